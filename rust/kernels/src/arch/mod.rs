//! Inner loops, one folder an architecture. `portable` always compiles and runs everywhere.

pub(crate) mod portable;
