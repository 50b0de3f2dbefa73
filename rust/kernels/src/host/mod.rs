//! Layers rewritten for the vector instructions of a host: the top floor.

pub mod blocks;
