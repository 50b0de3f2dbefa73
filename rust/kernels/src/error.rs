//! The one error of this crate: an argument that does not fit its operator.

use core::fmt;

/// An argument of an operator is inconsistent with the others.
///
/// `argument` is the name of the parameter as the operator's documentation gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArgumentError {
    /// A slice has the wrong number of elements.
    Length {
        /// Parameter name.
        argument: &'static str,
        /// Elements that the shapes call for.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// A dimension, stride or dilation is zero.
    Zero {
        /// Parameter name.
        argument: &'static str,
    },
    /// A dimension or a product of dimensions is above the limit of this crate.
    TooLarge {
        /// Parameter name.
        argument: &'static str,
        /// Largest value that is accepted.
        limit: usize,
    },
    /// The kernel, dilated, is larger than the padded input, so that no output pixel exists.
    KernelTooLarge {
        /// Parameter name.
        argument: &'static str,
    },
    /// An accumulator could leave the range of `i32`, or a requantized product that of `i64`.
    Overflow {
        /// Parameter name.
        argument: &'static str,
    },
    /// An unused high bit of a packed tensor is set.
    PaddingBits {
        /// Parameter name.
        argument: &'static str,
    },
    /// A value is outside its documented range.
    Value {
        /// Parameter name.
        argument: &'static str,
    },
}

impl ArgumentError {
    /// Name of the parameter that is wrong.
    pub fn argument(&self) -> &'static str {
        match *self {
            Self::Length { argument, .. }
            | Self::Zero { argument }
            | Self::TooLarge { argument, .. }
            | Self::KernelTooLarge { argument }
            | Self::Overflow { argument }
            | Self::PaddingBits { argument }
            | Self::Value { argument } => argument,
        }
    }
}

impl fmt::Display for ArgumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Length { argument, expected, got } => {
                write!(f, "`{argument}` has {got} elements, expected {expected}")
            }
            Self::Zero { argument } => write!(f, "`{argument}` must be at least 1"),
            Self::TooLarge { argument, limit } => write!(f, "`{argument}` is above the limit of {limit}"),
            Self::KernelTooLarge { argument } => {
                write!(f, "`{argument}` is larger than the padded input: there is no output pixel")
            }
            Self::Overflow { argument } => {
                write!(f, "`{argument}` can overflow the accumulator: use fewer taps or smaller factors")
            }
            Self::PaddingBits { argument } => {
                write!(f, "`{argument}` has a set bit above its last channel: unused bits must be 0")
            }
            Self::Value { argument } => write!(f, "`{argument}` is outside its documented range"),
        }
    }
}

impl core::error::Error for ArgumentError {}

/// Checks the length of a slice argument.
pub(crate) fn check_length(argument: &'static str, expected: usize, got: usize) -> Result<(), ArgumentError> {
    if expected == got { Ok(()) } else { Err(ArgumentError::Length { argument, expected, got }) }
}
