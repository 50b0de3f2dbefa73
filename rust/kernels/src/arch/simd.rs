/*!
Which vector instructions the [`blocks`](crate::host::blocks) kernels run with.

A [`Simd`] is a proof: there is no way to get one whose instructions the CPU lacks. With the feature `std` the
CPU is asked at run time; without it, what the compiler was told decides. Whoever runs many images asks once
and keeps the answer.
*/

use core::fmt;

/// A set of vector instructions that this CPU has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Simd(pub(crate) Kind);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Arrays,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512Bw,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    Neon,
}

/// Every kind of this architecture, slowest first.
const KINDS: &[Kind] = &[
    Kind::Arrays,
    #[cfg(target_arch = "x86_64")]
    Kind::Avx2,
    #[cfg(target_arch = "x86_64")]
    Kind::Avx512Bw,
    #[cfg(target_arch = "x86_64")]
    Kind::Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    Kind::Avx512,
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    Kind::Neon,
];

/// Whether the CPU has all of these features.
#[cfg(target_arch = "x86_64")]
macro_rules! has {
    ($($feature:tt),+) => {{
        // Miri knows some of these instructions only: it runs the common loops on arrays.
        #[cfg(all(feature = "std", not(miri)))]
        let all = $(std::arch::is_x86_feature_detected!($feature))&&+;
        #[cfg(not(all(feature = "std", not(miri))))]
        let all = !cfg!(miri) && $(cfg!(target_feature = $feature))&&+;
        all
    }};
}

impl Kind {
    fn is_available(self) -> bool {
        match self {
            Self::Arrays => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => has!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bw => has!("avx512f", "avx512bw"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => has!("avx512f", "avx512bw", "avx512vnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => has!("avx512f", "avx512bw", "avx512vnni", "avx512vpopcntdq"),
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            Self::Neon => !cfg!(miri),
        }
    }
}

impl Simd {
    /// What this CPU has, slowest first; never empty.
    pub fn available() -> impl DoubleEndedIterator<Item = Self> {
        KINDS.iter().copied().filter(|kind| kind.is_available()).map(Self)
    }

    /// The fastest that this CPU has, or `None` where it has no vector instructions that these kernels know.
    pub fn best() -> Option<Self> {
        Self::available().next_back().filter(|simd| simd.0 != Kind::Arrays)
    }

    /// The set with this [`name`](Self::name), where this CPU has it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::available().find(|simd| simd.name() == name)
    }

    /// The name that users see.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Arrays => "arrays",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Bw => "avx512bw",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni => "avx512vnni",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            Kind::Neon => "neon",
        }
    }
}

impl fmt::Debug for Simd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Simd({})", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_way_back() {
        for simd in Simd::available() {
            assert_eq!(Simd::from_name(simd.name()), Some(simd));
        }
        assert_eq!(Simd::from_name("mmx"), None);
        assert!(Simd::best() != Simd::from_name("arrays"));
    }
}
