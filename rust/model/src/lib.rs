/*!
The `.cbn` model file, its arena plan, and the layer walk that host and board share.

`no_std` and without allocation: a model is executed in place from the bytes of its file, with one arena that
the caller supplies. The same walk runs on the host and on a Cortex-M, which is what makes their outputs equal
by construction.

- [`Model::new_checked`] turns untrusted bytes into a checked view, or into an error that names the field.
  After it, no accessor panics and no run leaves its slices. `docs/format.md` gives the format on one page.
- [`Model::run`] walks the operators in order. An [`Observer`] sees each one begin and end: the board
  counts instructions there, the host reads intermediate tensors.
- `writer` (feature `alloc`) builds files, with weights laid out as suits boards best; `plan` places tensors in the arena by lifetime.
- `host` (feature `std`) rewrites a model's layers for the vector instructions of the CPU; `batch` runs many images
  with them, on all cores.

# Invariants

Tensor 0 is the model's input and tensor i + 1 the output of operator i; an operator reads only earlier
tensors. So the graph is in execution order, has no cycle, and a lifetime is found without a table.
*/
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;

#[cfg(not(target_endian = "little"))]
compile_error!("a .cbn file is executed in place and holds little-endian words");

#[cfg(feature = "alloc")]
pub mod aligned;
#[cfg(feature = "std")]
pub mod batch;
mod check;
mod error;
pub mod format;
#[cfg(feature = "std")]
pub mod host;
#[cfg(feature = "alloc")]
mod layouts;
// Each family has imports, macros and parts of the parser of its own.
#[cfg_attr(not(feature = "all-operators"), allow(unused_imports, unused_macros, dead_code))]
pub mod operator;
#[cfg(feature = "alloc")]
pub mod plan;
mod view;
mod walk;
#[cfg(feature = "alloc")]
pub mod writer;

pub use error::{FormatError, RunError};
pub use view::{ArenaBuffer, InPlace, Model, Tensor};
pub use walk::{NoObserver, Observer};

/// The examples of the README run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
