//! AArch64: NEON.

pub(crate) mod neon;
