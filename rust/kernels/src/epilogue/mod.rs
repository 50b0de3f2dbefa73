/*!
Epilogues: what becomes of an accumulator.

| module | accumulators become |
|---|---|
| [`rule`] | bits, by an interval each |
| [`pool`] | bits, by the rules of all accumulators under a max-pool |
| [`fixed`] | fixed-point integers of 8, 16 or 32 bits |
*/

pub mod fixed;
pub mod pool;
pub mod rule;

pub use fixed::{MAX_SHIFT, Output, Requantization, round_half_even};
pub use pool::Pool;
pub use rule::{Grid, Rule, Rules};
