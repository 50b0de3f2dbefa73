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

# Floors

Each module uses those below it, and none of those above:

| floor | what |
|---|---|
| [`host`] | layers rewritten for the vector instructions of a host |
| [`operators`] | one operator, one file: its parameters, validated, and its naive reference |
| `methods` | the optimized ways to run them; a method that serves one layout has its name |
| [`layouts`] | how weights lie in a model, one layout a file |
| [`epilogue`] | what becomes of an accumulator: bits by a rule, pooled bits, fixed-point integers |
| `arch` | inner loops, for any core and for some by hand; the only `unsafe` code |
| [`bits`], [`shape`], [`kernel`], errors | packed words, planes and windows; the trait of all operators |

# Operators

| module | operator | input | weights | output |
|---|---|---|---|---|
| [`qbconv2d`](operators::qbconv2d) | [`QbConv2d`](operators::qbconv2d::QbConv2d) | u8 | 1 bit | packed |
| [`qqconv2d`](operators::qqconv2d) | [`QqConv2d`](operators::qqconv2d::QqConv2d) | u8 | i8 | packed |
| [`bbconv2d`](operators::bbconv2d) | [`BbConv2d`](operators::bbconv2d::BbConv2d) | packed | 1 bit | packed |
| [`bbpointwiseconv2d`](operators::bbpointwiseconv2d) | [`BbPointwiseConv2d`](operators::bbpointwiseconv2d::BbPointwiseConv2d) | packed | 1 bit | packed |
| [`bbdepthwiseconv2d`](operators::bbdepthwiseconv2d) | [`BbDepthwiseConv2d`](operators::bbdepthwiseconv2d::BbDepthwiseConv2d) | packed | 1 bit | packed |
| [`bmaxpool2d`](operators::bmaxpool2d) | [`BMaxPool2d`](operators::bmaxpool2d::BMaxPool2d) | packed | - | packed |
| [`bbfc`](operators::bbfc) | [`BbFc`](operators::bbfc::BbFc) | packed | 1 bit | packed |
| [`bbqfc`](operators::bbqfc) | [`BbqFc`](operators::bbqfc::BbqFc) | packed | 1 bit | i8, i16 or i32 |
| [`bqqfc`](operators::bqqfc) | [`BqqFc`](operators::bqqfc::BqqFc) | packed | i8 | i8, i16 or i32 |

Each operator is a struct that is validated when it is built, with two ways to [`Run`] it: `reference`,
written as the definition reads, and `optimized`. They agree bit for bit on every input, which one shared
test macro (`tests/variants.rs`) checks.

A host with vector instructions ([`simd`]) runs layers rewritten for them ([`host`]), with the same outputs.

BatchNorm, PReLU, bias and scale never appear here: they are folded into integer [rules](epilogue::rule) when a model is
converted, and into the fixed-point [requantization](epilogue::Requantization) of the last layer.
*/
#![no_std]
#![deny(unsafe_code)]

#[cfg(feature = "std")]
extern crate std;

mod arch;
pub mod bits;
pub mod epilogue;
mod error;
pub mod host;
pub mod kernel;
pub mod layouts;
mod methods;
pub mod operators;
pub mod shape;

pub use arch::simd;
pub use error::ArgumentError;
pub use kernel::{Facts, Kernel, Run};
pub use methods::conv::ConvLayer;

/// The examples of the README run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
