/*!
Fixed-point numbers: what an accumulator becomes in the last layer of a BNN.

What follows the accumulator in the source network (bias, PReLU, BatchNorm, scale) is a piecewise-linear
function; it becomes a fixed-point one with at most two pieces, per unit:

```text
q = saturate(round_half_even((acc * mul + add) / 2^shift))
```

with the first `(mul, add)` where `acc < knee` and the second elsewhere. Ties go to the even neighbour;
values beyond the output type's range become its smallest or largest value.
*/

use crate::ArgumentError;
use crate::error::check_length;

/// Largest `shift` of a [`Requantization`].
pub const MAX_SHIFT: u32 = 62;

/// An output integer type.
pub trait Output: Copy + sealed::Sealed {
    /// The value nearest to `value` in this type.
    fn saturate(value: i64) -> Self;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for i8 {}
    impl Sealed for i16 {}
    impl Sealed for i32 {}
}

macro_rules! output {
    ($($int:ty),*) => {$(
        impl Output for $int {
            fn saturate(value: i64) -> Self {
                value.clamp(<$int>::MIN.into(), <$int>::MAX.into()) as $int
            }
        }
    )*};
}
output!(i8, i16, i32);

/// `value / 2^shift`, rounded to the nearest integer, ties to even.
pub fn round_half_even(value: i64, shift: u32) -> i64 {
    if shift == 0 {
        return value;
    }
    let floor = value >> shift;
    let rest = value & ((1 << shift) - 1);
    let half = 1 << (shift - 1);
    floor + i64::from(rest > half || (rest == half && floor & 1 == 1))
}

/// The fixed-point function of each unit.
#[derive(Debug, Clone, Copy)]
pub struct Requantization<'a> {
    mul: &'a [i64],
    add: &'a [i64],
    knee: &'a [i32],
    shift: u32,
}

impl<'a> Requantization<'a> {
    /// With an empty `knee`, `mul` and `add` hold one value a unit. Otherwise `knee` holds one value a unit,
    /// and `mul` and `add` two rows of them: below the knee first, then from the knee on.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] where the three disagree, [`ArgumentError::TooLarge`] for `shift`.
    pub fn new(mul: &'a [i64], add: &'a [i64], knee: &'a [i32], shift: u32) -> Result<Self, ArgumentError> {
        check_length("add", mul.len(), add.len())?;
        if !knee.is_empty() {
            check_length("mul", 2 * knee.len(), mul.len())?;
        }
        if shift > MAX_SHIFT {
            return Err(ArgumentError::TooLarge { argument: "shift", limit: MAX_SHIFT as usize });
        }
        Ok(Self { mul, add, knee, shift })
    }

    pub(crate) fn units(&self) -> usize {
        if self.knee.is_empty() { self.mul.len() } else { self.knee.len() }
    }

    /// Checks that no accumulator of `unit` in `-largest..=largest` takes `|acc * mul + add|` to 2^62.
    pub(crate) fn check_bound(&self, unit: usize, largest: u64) -> Result<(), ArgumentError> {
        let rows = self.mul.iter().zip(self.add).skip(unit).step_by(self.units());
        for (mul, add) in rows {
            let bound = u128::from(largest) * u128::from(mul.unsigned_abs()) + u128::from(add.unsigned_abs());
            if bound >= 1 << 62 {
                return Err(ArgumentError::Overflow { argument: "mul" });
            }
        }
        Ok(())
    }

    /// The output of `unit` for an accumulator.
    #[inline]
    pub fn apply<T: Output>(&self, unit: usize, acc: i32) -> T {
        T::saturate(self.rounded(unit, acc))
    }

    /// One copy for all types of output.
    fn rounded(&self, unit: usize, acc: i32) -> i64 {
        let above = !self.knee.is_empty() && acc >= self.knee[unit];
        let at = if above { self.units() + unit } else { unit };
        round_half_even(i64::from(acc) * self.mul[at] + self.add[at], self.shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_even_neighbour() {
        let table = [(-6, -2), (-5, -1), (-4, -1), (-3, -1), (-2, 0), (2, 0), (3, 1), (5, 1), (6, 2), (7, 2)];
        for (value, rounded) in table {
            assert_eq!(round_half_even(value, 2), rounded, "{value} / 4");
        }
        assert_eq!(round_half_even(7, 0), 7);
        assert_eq!(round_half_even(i64::MIN / 2, 62), -1);
    }

    #[test]
    fn output_saturates() {
        assert_eq!((i8::saturate(128), i8::saturate(-129), i8::saturate(5)), (127, -128, 5));
        assert_eq!((i16::saturate(1 << 40), i32::saturate(-(1 << 40))), (i16::MAX, i32::MIN));
    }

    #[test]
    fn the_knee_belongs_to_the_upper_piece() {
        let r = Requantization::new(&[1, 10], &[0, 5], &[3], 0).unwrap();
        assert_eq!([2, 3, 4].map(|acc| r.apply::<i32>(0, acc)), [2, 35, 45]);
    }
}
