//! The operators, one a file: its parameters, validated, and its naive reference.

pub mod bbconv2d;
pub mod bbdepthwiseconv2d;
pub mod bbfc;
pub mod bbpointwiseconv2d;
pub mod bbqfc;
pub mod bmaxpool2d;
pub mod bqqfc;
pub mod qbconv2d;
pub mod qqconv2d;
