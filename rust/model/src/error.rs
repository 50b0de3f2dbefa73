//! What can be wrong with a model file, and with a call that runs one.

use cbin_nn_kernels::ArgumentError;

/// Why bytes are not a model. Every variant says which field; none leaves anything half done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The slice does not start at a multiple of 16 bytes.
    #[error("the model's bytes must start at a 16-byte boundary: copy them to an aligned buffer")]
    Misaligned,
    /// Fewer bytes than a header.
    #[error(
        "{got} bytes are too few for a .cbn file: the header alone has 64; the file is truncated or empty"
    )]
    TooShort {
        /// Length of the slice, bytes.
        got: usize,
    },
    /// The first four bytes are not `CBIN`.
    #[error("not a .cbn file: it does not begin with \"CBIN\"; convert the source model first")]
    Magic,
    /// A format version that this reader does not know.
    #[error("format version {got} is not supported (this reader knows 1): update cbin-nn or convert again")]
    Version {
        /// Version of the file.
        got: u32,
    },
    /// The header's length is not the slice's, or not that of its sections.
    #[error("the header says {header} bytes, there are {got}: the file is truncated or was appended to")]
    Length {
        /// Bytes by the header.
        header: u64,
        /// Bytes there are.
        got: u64,
    },
    /// The checksum does not match the bytes.
    #[error("checksum {got:#010x}, expected {expected:#010x}: the file is damaged; convert or copy it again")]
    Checksum {
        /// CRC-32 stored in the header.
        expected: u32,
        /// CRC-32 of the bytes.
        got: u32,
    },
    /// A header field is outside its range.
    #[error("header field `{field}` is outside its range")]
    Header {
        /// Name of the field in `docs/format.md`.
        field: &'static str,
    },
    /// A field of a tensor record is wrong.
    #[error("tensor {index}: field `{field}` is wrong")]
    Tensor {
        /// Index of the tensor.
        index: usize,
        /// Name of the field in `docs/format.md`.
        field: &'static str,
    },
    /// A field of an operator record is wrong.
    #[error("operator {index}: field `{field}` is wrong{}", remedy(field))]
    Operator {
        /// Index of the operator.
        index: usize,
        /// Name of the field in `docs/format.md`.
        field: &'static str,
    },
    /// An operator's shapes or parameters do not fit together.
    #[error("operator {index}: {error}{}", remedy_of(error))]
    Argument {
        /// Index of the operator.
        index: usize,
        /// What the kernel objects to.
        error: ArgumentError,
    },
    /// The operator, or the layout of its weights, is not in this build.
    #[error(
        "operator {index}: this build was trimmed to other operators or layouts of weights; build one with all \
         of them, or with those of this model"
    )]
    NotBuilt {
        /// Index of the operator.
        index: usize,
    },
    /// Two things that live at the same time share bytes of the arena.
    #[error("operator {index}: its output or scratch overlaps a tensor that is still needed")]
    Overlap {
        /// Index of the operator.
        index: usize,
    },
}

const OTHER_KERNELS: &str = ": the model was made for the kernels of another version; convert it again";

/// What to do about a field of an operator, where there is one thing to do.
fn remedy(field: &str) -> &'static str {
    match field {
        // Each version's kernels have scratch of their own.
        "scratch_bytes" => OTHER_KERNELS,
        _ => "",
    }
}

/// As [`remedy`], for what a kernel objects to.
fn remedy_of(error: &ArgumentError) -> &'static str {
    match error {
        // Layouts are a version's own, too.
        ArgumentError::Value { argument: "weights" } => OTHER_KERNELS,
        _ => "",
    }
}

impl FormatError {
    /// A stable number for each variant, for boards that send no text. Never 0.
    pub fn code(&self) -> u16 {
        match self {
            Self::Misaligned => 1,
            Self::TooShort { .. } => 2,
            Self::Magic => 3,
            Self::Version { .. } => 4,
            Self::Length { .. } => 5,
            Self::Checksum { .. } => 6,
            Self::Header { .. } => 7,
            Self::Tensor { .. } => 8,
            Self::Operator { .. } => 9,
            Self::Argument { .. } => 10,
            Self::Overlap { .. } => 11,
            Self::NotBuilt { .. } => 12,
        }
    }

    /// A stable name for each variant, in kebab-case.
    pub fn slug(&self) -> &'static str {
        match self {
            Self::Misaligned => "misaligned",
            Self::TooShort { .. } => "too-short",
            Self::Magic => "bad-magic",
            Self::Version { .. } => "unsupported-version",
            Self::Length { .. } => "wrong-length",
            Self::Checksum { .. } => "bad-checksum",
            Self::Header { .. } => "bad-header",
            Self::Tensor { .. } => "bad-tensor",
            Self::Operator { .. } => "bad-operator",
            Self::Argument { .. } => "bad-argument",
            Self::Overlap { .. } => "arena-overlap",
            Self::NotBuilt { .. } => "operator-not-built",
        }
    }
}

/// Why a run was refused. Nothing was computed, unless it is [`RunError::Operator`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A slice of the caller has the wrong length, in bytes.
    #[error("`{argument}` has {got} bytes, expected {expected}")]
    Length {
        /// `input`, `output` or `arena`.
        argument: &'static str,
        /// Bytes expected (for the arena: at least).
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// A slice of the caller is not aligned to the tensor's element type.
    #[error("`{argument}` is not aligned to its element type")]
    Alignment {
        /// `input` or `output`.
        argument: &'static str,
    },
    /// The model has no plan for a run with the image in its own memory.
    #[error("the model has no plan for an image in its own memory: call `run`")]
    NotInPlace,
    /// An operator rejected its tensors. Does not happen for a checked model.
    #[error("operator {index} failed: the model's bytes changed after they were checked")]
    Operator {
        /// Index of the operator.
        index: usize,
    },
}
