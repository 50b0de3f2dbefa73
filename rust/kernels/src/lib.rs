/*!
Operators of binarized neural networks (BNNs) on packed bits.

`no_std`, no allocation, no dependencies, no `unsafe` outside `arch/`: the caller supplies input, weights,
output and scratch as slices, and every length is checked once, when an operator is built.

# The bit contract

A bit of 1 means +1 and a bit of 0 means -1; `sign(0) = +1`. Tensors are NHWC with the channels
innermost, 32 to a `u32`, least significant bit first, and every pixel begins on a new word. The unused
high bits of a pixel's last word are zero in every tensor, and every operator leaves them so. The
accumulator of a binary dot product is `acc = K - 2 * popcount(x ^ w)`, where K counts the real products:
true channels times the taps inside the image. `docs/bits.md` works an example by hand.

# One operator, one file

| module | operator | input | weights | output |
|---|---|---|---|---|
| [`qbconv2d`] | [`QbConv2d`](qbconv2d::QbConv2d) | u8 | 1 bit | packed |
| [`qqconv2d`] | [`QqConv2d`](qqconv2d::QqConv2d) | u8 | i8 | packed |
| [`bbconv2d`] | [`BbConv2d`](bbconv2d::BbConv2d) | packed | 1 bit | packed |
| [`bbpointwiseconv2d`] | [`BbPointwiseConv2d`](bbpointwiseconv2d::BbPointwiseConv2d) | packed | 1 bit | packed |
| [`bbdepthwiseconv2d`] | [`BbDepthwiseConv2d`](bbdepthwiseconv2d::BbDepthwiseConv2d) | packed | 1 bit | packed |
| [`bmaxpool2d`] | [`BMaxPool2d`](bmaxpool2d::BMaxPool2d) | packed | - | packed |
| [`bbfc`] | [`BbFc`](bbfc::BbFc) | packed | 1 bit | packed |
| [`bbqfc`] | [`BbqFc`](bbqfc::BbqFc) | packed | 1 bit | i8, i16 or i32 |
| [`bqqfc`] | [`BqqFc`](bqqfc::BqqFc) | packed | i8 | i8, i16 or i32 |

Each operator is a struct that is validated when it is built, with two ways to run it: `reference`,
written as the definition reads, and `optimized`. They agree bit for bit on every input, which one shared
test macro (`tests/variants.rs`) checks.

A host with vector instructions ([`simd`]) runs layers rewritten for them ([`blocks`]), with the same outputs.

BatchNorm, PReLU, bias and scale never appear here: they are folded into integer [`rule`]s when a model is
converted, and into the fixed-point [requantization](bbqfc::Requantization) of the last layer.
*/
#![no_std]
#![deny(unsafe_code)]

#[cfg(feature = "std")]
extern crate std;

mod arch;
pub mod bbconv2d;
pub mod bbdepthwiseconv2d;
pub mod bbfc;
pub mod bbpointwiseconv2d;
pub mod bbqfc;
pub mod bits;
pub mod blocks;
pub mod bmaxpool2d;
pub mod bqqfc;
mod byte_mask;
mod byte_pairs;
mod bytes;
mod conv;
mod error;
pub mod lanes;
pub mod pixel_sums;
mod planes;
pub mod qbconv2d;
pub mod qqconv2d;
pub mod rule;
pub mod shape;
pub mod simd;
mod sum_walk;
mod vertical;

pub use conv::ConvLayer;
pub use error::ArgumentError;

/// The examples of the README run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
