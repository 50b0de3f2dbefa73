//! Loops over vectors, whatever the instructions: each architecture brings a type and three products.

pub(crate) mod blocks;
