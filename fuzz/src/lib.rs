/*!
Fuzz targets: hostile bytes for the model file, hostile arguments for every operator.

Each target is an ordinary function of a byte slice, [`TARGETS`] lists them, and `fuzz_targets/` hands them to
libFuzzer. Stable Rust replays the committed corpus through the same functions (`tests/replay.rs`), so that
what fuzzing once found stays found.

An operator's target draws shapes, windows, parameters and lengths from the bytes: mostly ones that fit, so
that kernels run; now and then off by one or wild, so that constructors refuse. What is asserted:

- a constructor gives an operator or an error, and only refuses where something odd was drawn;
- a run succeeds exactly where its slices have the right lengths;
- reference and optimized agree bit for bit, and padding bits are 0, where `check_contents` has nothing to
  say;
- nothing panics. Debug assertions and overflow checks are on.

The values of weights, rules and images come from a seed among the bytes: fuzzing steers arguments, and
`rust/kernels/tests/variants.rs` has the values.
*/

pub mod bbconv2d;
pub mod bbdepthwiseconv2d;
pub mod bbfc;
pub mod bbpointwiseconv2d;
pub mod bbqfc;
pub mod bmaxpool2d;
pub mod bqqfc;
mod draw;
mod layer;
pub mod qbconv2d;
pub mod qqconv2d;
pub mod view;

/// A target: any bytes, no panic.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also its folder in `corpus/`.
pub const TARGETS: [(&str, Target); 10] = [
    ("view", view::run),
    ("qbconv2d", qbconv2d::run),
    ("qqconv2d", qqconv2d::run),
    ("bbconv2d", bbconv2d::run),
    ("bbpointwiseconv2d", bbpointwiseconv2d::run),
    ("bbdepthwiseconv2d", bbdepthwiseconv2d::run),
    ("bmaxpool2d", bmaxpool2d::run),
    ("bbfc", bbfc::run),
    ("bbqfc", bbqfc::run),
    ("bqqfc", bqqfc::run),
];
