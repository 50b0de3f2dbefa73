/*!
The records of a `.cbn` file, exactly as they lie in it. `docs/format.md` is the specification.

All fields are little-endian. A record's size is a multiple of 8, its fields are aligned, and fields that an
operator does not use are 0 (or [`NONE`] for a tensor index).
*/

use bytemuck::{Pod, Zeroable};
use cbin_nn_kernels::bits::words_for;
use cbin_nn_kernels::epilogue::Grid;
use cbin_nn_kernels::layouts::by_output_channel::GroupShape;
use cbin_nn_kernels::layouts::pixel_sums::SumShape;
use cbin_nn_kernels::shape::{MAX_DIMENSION, MAX_ELEMENTS, Window};

/// First four bytes of every file.
pub const MAGIC: [u8; 4] = *b"CBIN";
/// The format version that this crate reads and writes.
pub const VERSION: u32 = 1;
/// "No tensor" in an index field.
pub const NONE: u32 = u32::MAX;
/// Sections begin, and tensors in the data section lie, at multiples of this many bytes.
pub const ALIGNMENT: usize = 16;
/// Most operators of a model.
pub const MAX_OPERATORS: usize = 1024;
/// Most tensors of a model.
pub const MAX_TENSORS: usize = 16_384;
/// Largest arena, bytes.
pub const MAX_ARENA: usize = 1 << 30;
/// Header flag: the host multiplies the integer output by its scale, to float32.
pub const FLAG_FLOAT_OUTPUT: u32 = 1;
/// Operator flag: taps outside the image count as +1 instead of 0.
pub const FLAG_ONE_PADDING: u16 = 1;
/// Constant slots of an operator record.
pub const CONSTANTS: usize = 8;

/// The CRC-32 of zip, PNG and Ethernet, over everything behind the header's checksum field.
pub const CRC: crc::Crc<u32, CrcTable> = crc::Crc::<u32, CrcTable>::new(&crc::CRC_32_ISO_HDLC);
/// A board checks a model once, bit by bit, and spares the kilobyte of a table; a host may check many.
#[cfg(not(feature = "std"))]
type CrcTable = crc::NoTable;
#[cfg(feature = "std")]
type CrcTable = crc::Table<1>;
/// First byte that the checksum covers.
pub const CRC_FROM: usize = 16;

/// The first 64 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 4],
    /// [`VERSION`].
    pub version: u32,
    /// Length of the file.
    pub file_bytes: u32,
    /// [`CRC`] of the bytes from [`CRC_FROM`] to the end.
    pub checksum: u32,
    /// Operator records.
    pub operators: u32,
    /// Tensor records: input, one output an operator, then constants.
    pub tensors: u32,
    /// Bytes of the string section, padding excluded.
    pub string_bytes: u32,
    /// Bytes of the data section, a multiple of [`ALIGNMENT`].
    pub data_bytes: u32,
    /// Bytes of arena that a run needs, scratch included; a multiple of 4.
    pub arena_bytes: u32,
    /// [`FLAG_FLOAT_OUTPUT`].
    pub flags: u32,
    /// The model's name in the string section.
    pub name: Span,
    /// Bytes of memory that a run needs with the image in it, a multiple of 4, or 0 where there is no such plan: the next two
    /// fields are 0 then. Operator 0 reads the image there, writes over it, and has its scratch elsewhere; all else lies as in
    /// the arena, which is the beginning of that memory.
    pub in_place_bytes: u32,
    /// First byte of the image in that memory, a multiple of 4.
    pub image_offset: u32,
    /// First byte of operator 0's scratch in that memory, a multiple of 4.
    pub image_scratch_offset: u32,
    /// 0.
    pub reserved: u32,
}

/// A byte range of the string section.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Span {
    /// First byte.
    pub offset: u32,
    /// Length in bytes.
    pub bytes: u32,
}

/// One operator, 128 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct OperatorRecord {
    /// [`Kind`].
    pub kind: u16,
    /// [`FLAG_ONE_PADDING`].
    pub flags: u16,
    /// The source layer's name.
    pub name: Span,
    /// Activation tensors read; unused ones are [`NONE`].
    pub inputs: [u32; 2],
    /// Constant tensors, in the order that `docs/format.md` gives for the kind; unused ones are [`NONE`].
    pub constants: [u32; CONSTANTS],
    /// The kernel's window.
    pub window: WindowRecord,
    /// The fused pool's window, or all 0.
    pub pool: WindowRecord,
    /// `qbconv2d` and `qqconv2d`: an input byte q means `input_mul * q + input_add`.
    pub input_mul: i32,
    /// See `input_mul`.
    pub input_add: i32,
    /// `bbqfc` and `bqqfc`: the requantization's shift.
    pub shift: u32,
    /// [`Grid`] of the rules: 0 channel, 1 convolution plane, 2 output plane.
    pub rule_grid: u8,
    /// [`Grid`] of the veto rules.
    pub veto_grid: u8,
    /// 0.
    pub reserved: [u8; 2],
    /// First byte of the operator's scratch in the arena, a multiple of 4.
    pub scratch_offset: u32,
    /// Bytes of scratch.
    pub scratch_bytes: u32,
    /// `qbconv2d` and `qqconv2d`: constant tensor with an offset for each input channel, in place of
    /// `input_add`; 0 (which is the input, and no constant) where there is none.
    pub channel_adds: u32,
    /// 0.
    pub reserved2: [u32; 2],
}

/// A [`Window`] in 16-bit fields.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct WindowRecord {
    /// Height, width.
    pub kernel: [u16; 2],
    /// Vertical, horizontal.
    pub strides: [u16; 2],
    /// Vertical, horizontal.
    pub dilation: [u16; 2],
    /// Above, left, below, right.
    pub padding: [u16; 4],
}

impl Kind {
    /// Whether the operator is a convolution: weights, rules, and perhaps a fused pool.
    pub fn is_convolution(self) -> bool {
        match self {
            Self::QbConv2d
            | Self::QqConv2d
            | Self::BbConv2d
            | Self::BbPointwiseConv2d
            | Self::BbDepthwiseConv2d => true,
            Self::BMaxPool2d | Self::BbFc | Self::BbqFc | Self::BqqFc => false,
        }
    }

    /// Whether the operator is fully connected to integers: weights and a requantization.
    pub fn is_head(self) -> bool {
        matches!(self, Self::BbqFc | Self::BqqFc)
    }

    /// Whether the operator reads 8-bit input.
    pub fn reads_bytes(self) -> bool {
        matches!(self, Self::QbConv2d | Self::QqConv2d)
    }
}

impl From<WindowRecord> for Window {
    fn from(record: WindowRecord) -> Self {
        Window {
            kernel: record.kernel.map(usize::from),
            strides: record.strides.map(usize::from),
            dilation: record.dilation.map(usize::from),
            padding: record.padding.map(usize::from),
        }
    }
}

impl TryFrom<Window> for WindowRecord {
    type Error = core::num::TryFromIntError;

    fn try_from(window: Window) -> Result<Self, Self::Error> {
        let pair = |[a, b]: [usize; 2]| Ok::<_, Self::Error>([a.try_into()?, b.try_into()?]);
        let [top, left, bottom, right] = window.padding;
        let ([top, left], [bottom, right]) = (pair([top, left])?, pair([bottom, right])?);
        Ok(Self {
            kernel: pair(window.kernel)?,
            strides: pair(window.strides)?,
            dilation: pair(window.dilation)?,
            padding: [top, left, bottom, right],
        })
    }
}

/// One tensor, 48 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct TensorRecord {
    /// [`DType`].
    pub dtype: u8,
    /// [`Place`].
    pub place: u8,
    /// [`Layout`].
    pub layout: u8,
    /// 0.
    pub reserved: u8,
    /// Byte offset in the arena or in the data section; 0 for the caller's input and output.
    pub offset: u32,
    /// `[1, H, W, C]` of an activation, `[O, H, W, I]` of weights.
    pub shape: [u32; 4],
    /// One step of an integer tensor in the source network's units; 1 where it has no meaning.
    pub scale: f64,
    /// The tensor's name.
    pub name: Span,
    /// 0.
    pub reserved2: [u32; 2],
}

macro_rules! codes {
    ($(#[$meta:meta])* $name:ident: $int:ty { $($(#[$doc:meta])* $variant:ident = $code:literal $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name { $($(#[$doc])* $variant = $code),+ }

        impl $name {
            /// The value of a record's field, or `None` for a number that the format does not know.
            pub fn from_code(code: $int) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)+ _ => None }
            }

            /// The number in a record's field.
            pub fn code(self) -> $int {
                self as $int
            }

            /// The name that users see.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// The variant with a given [`name`](Self::name).
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

codes! {
    /// Operator families.
    Kind: u16 {
        /// 8-bit input, 1-bit weights, packed output.
        QbConv2d = 1 "qbconv2d",
        /// 8-bit input, 8-bit weights, packed output.
        QqConv2d = 2 "qqconv2d",
        /// Packed input, 1-bit weights, packed output.
        BbConv2d = 3 "bbconv2d",
        /// Packed input, 1-bit weights, 1 x 1 kernel, packed output.
        BbPointwiseConv2d = 4 "bbpointwiseconv2d",
        /// Packed to packed.
        BMaxPool2d = 5 "bmaxpool2d",
        /// Fully connected, packed to packed.
        BbFc = 6 "bbfc",
        /// Fully connected, packed to integers.
        BbqFc = 7 "bbqfc",
        /// Packed input, 1-bit weights, one filter a channel, packed output.
        BbDepthwiseConv2d = 8 "bbdepthwiseconv2d",
        /// Fully connected, packed input, 8-bit weights, to integers.
        BqqFc = 9 "bqqfc",
    }
}

codes! {
    /// Element types.
    DType: u8 {
        /// Packed signs, 32 channels to a word.
        Bits = 0 "bits",
        /// 8-bit unsigned.
        U8 = 1 "u8",
        /// 8-bit signed.
        I8 = 2 "i8",
        /// 16-bit signed.
        I16 = 3 "i16",
        /// 32-bit signed.
        I32 = 4 "i32",
        /// 64-bit signed.
        I64 = 5 "i64",
    }
}

codes! {
    /// Where a tensor's elements are.
    Place: u8 {
        /// The data section of the file.
        Data = 0 "data",
        /// The arena.
        Arena = 1 "arena",
        /// The caller's input.
        Input = 2 "input",
        /// The caller's output.
        Output = 3 "output",
    }
}

codes! {
    /// How a tensor's elements are stored.
    Layout: u8 {
        /// The canonical layout of its type: packed pixels for bits, row-major elements otherwise.
        Canonical = 0 "canonical",
        /// Bits as bytes 0xFF (+1) and 0x00 (-1), each filter padded with 0x00 to whole words.
        ByteMask = 1 "byte-mask",
        /// Bits by output channel, 32 of them to a word: `cbin_nn_kernels::layouts::by_output_channel`.
        ByOutputChannel = 2 "by-output-channel",
        /// Bits as lists of signed sums of pixels: `cbin_nn_kernels::layouts::pixel_sums`.
        PixelSums = 3 "pixel-sums",
    }
}

/// Slots of [`OperatorRecord::constants`] for convolutions and `bbfc`.
#[cfg_attr(not(feature = "all-operators"), allow(dead_code))]
pub(crate) mod slot {
    pub(crate) const WEIGHTS: usize = 0;
    /// Rules are three slots: lo, hi, flip.
    pub(crate) const LO: usize = 1;
    pub(crate) const VETO_LO: usize = 4;
    pub(crate) const INVERT: usize = 7;
    /// `bmaxpool2d`.
    pub(crate) const USE_AND: usize = 0;
    /// `bbqfc` and `bqqfc`.
    pub(crate) const MUL: usize = 1;
    pub(crate) const ADD: usize = 2;
    pub(crate) const KNEE: usize = 3;
}

/// [`Grid`] of a record's field.
pub fn grid_from_code(code: u8) -> Option<Grid> {
    match code {
        0 => Some(Grid::Channel),
        1 => Some(Grid::Conv),
        2 => Some(Grid::Output),
        _ => None,
    }
}

/// The number of a [`Grid`] in a record's field.
pub fn grid_code(grid: Grid) -> u8 {
    match grid {
        Grid::Channel => 0,
        Grid::Conv => 1,
        Grid::Output => 2,
    }
}

/// Bytes that a tensor of this type, layout and shape takes, or `None` where a dimension is 0 or beyond the
/// limits of the kernels.
pub fn storage_bytes(dtype: DType, layout: Layout, shape: [u32; 4]) -> Option<usize> {
    if shape.iter().any(|&d| d == 0 || d as usize > MAX_DIMENSION) {
        return None;
    }
    let [n, h, w, c] = shape.map(u64::from);
    let factors = match (dtype, layout) {
        (DType::Bits, Layout::Canonical) => [n, h, w, 4 * words_for(c as usize) as u64],
        // Below 2^48.
        (DType::Bits, Layout::ByteMask) => [n, (h * w * c).div_ceil(4), 4, 1],
        (DType::Bits, Layout::ByOutputChannel) => [GroupShape::checked_words(shape)?, 4, 1, 1],
        (DType::Bits, Layout::PixelSums) => {
            let [_, height, width, channels] = shape.map(|d| d as usize);
            [n, SumShape::new([height, width], channels)?.filter_words() as u64, 4, 1]
        }
        (_, Layout::ByteMask | Layout::ByOutputChannel | Layout::PixelSums) => return None,
        (_, Layout::Canonical) => {
            let size = match dtype {
                DType::U8 | DType::I8 => 1,
                DType::I16 => 2,
                DType::I32 => 4,
                DType::I64 => 8,
                DType::Bits => unreachable!(),
            };
            // Below 2^35.
            [n, h, w, c * size]
        }
    };
    let bytes = factors.into_iter().try_fold(1u64, u64::checked_mul)?;
    (bytes <= 8 * MAX_ELEMENTS as u64).then_some(bytes as usize)
}

/// Rounds up to the next multiple of [`ALIGNMENT`].
pub const fn align(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT as u64)
}
