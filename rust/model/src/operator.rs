//! From an operator record to a kernel: which constants an operator takes, and how it runs.

use bytemuck::Pod;
use cbin_nn_kernels::epilogue::{Grid, Pool, Requantization, Rules};
use cbin_nn_kernels::operators::bbconv2d::{self, BbConv2d};
use cbin_nn_kernels::operators::bbdepthwiseconv2d::BbDepthwiseConv2d;
use cbin_nn_kernels::operators::bbfc::{BbFc, Dense};
use cbin_nn_kernels::operators::bbpointwiseconv2d::BbPointwiseConv2d;
use cbin_nn_kernels::operators::bbqfc::BbqFc;
use cbin_nn_kernels::operators::bmaxpool2d::BMaxPool2d;
use cbin_nn_kernels::operators::bqqfc::BqqFc;
use cbin_nn_kernels::operators::qbconv2d::{self, Affine, QbConv2d};
use cbin_nn_kernels::operators::qqconv2d::{self, QqConv2d};
use cbin_nn_kernels::shape::{Conv2dGeometry, Padding, Shape, Sliding};
use cbin_nn_kernels::{ArgumentError, ConvLayer, Kernel, Run};

use crate::format::{
    CONSTANTS, DType, FLAG_ONE_PADDING, Kind, Layout, NONE, OperatorRecord, Place, TensorRecord,
    WindowRecord, grid_from_code, slot,
};
use crate::{FormatError, Model};

/// The families that a build has, each with the Cargo feature that brings it: an image trimmed to a model leaves the
/// others out. What they write stands behind them: element types, and the kernel's own for each. What differs beyond that is
/// in [`Parse`]; whatever lists them is made here.
macro_rules! families {
    ($($feature:literal $(#[$doc:meta])* $kind:ident -> [$($dtype:ident $element:ty),+]),+ $(,)?) => {
        /// One operator of a model, ready to run.
        #[derive(Debug, Clone, Copy)]
        #[non_exhaustive]
        pub enum Operator<'a> {
            $($(#[$doc])* #[cfg(feature = $feature)] $kind($kind<'a>)),+
        }

        /// `$body` with `$operator` bound to the struct of whatever family `$self` is of.
        macro_rules! each {
            ($self:expr, $operator:ident => $body:expr) => {
                match $self { $(#[cfg(feature = $feature)] Operator::$kind($operator) => $body),+ }
            };
        }

        /// `$function` with the struct of the family of `$kind`, or `$absent` where the build has no such family.
        macro_rules! of_kind {
            ($of:expr, $function:ident($argument:expr), $absent:expr) => {
                match $of {
                    $(#[cfg(feature = $feature)] Kind::$kind => $function::<$kind<'_>>($argument),)+
                    #[allow(unreachable_patterns, reason = "reached where a family is left out")]
                    _ => $absent,
                }
            };
        }

        $(#[cfg(feature = $feature)]
        impl<'a> From<$kind<'a>> for Operator<'a> {
            fn from(operator: $kind<'a>) -> Self {
                Self::$kind(operator)
            }
        })+

        $(#[cfg(feature = $feature)]
        impl Family for $kind<'_> {
            fn writes(dtype: DType) -> bool {
                matches!(dtype, $(DType::$dtype)|+)
            }

            fn run(&self, io: Io<'_>) -> Option<()> {
                match io.dtype {
                    $(DType::$dtype => optimized::<$element, Self>(self, io),)+
                    _ => None,
                }
            }

            fn run_reference(&self, io: Io<'_>) -> Option<()> {
                match io.dtype {
                    $(DType::$dtype => reference::<$element, Self>(self, io),)+
                    _ => None,
                }
            }
        })+

        impl Operator<'_> {
            /// The family.
            pub fn kind(&self) -> Kind {
                match self { $(#[cfg(feature = $feature)] Self::$kind(_) => Kind::$kind),+ }
            }
        }
    };
}

families! {
    "qbconv2d" /// 8-bit input, 1-bit weights.
    QbConv2d -> [Bits u32],
    "qqconv2d" /// 8-bit input, 8-bit weights.
    QqConv2d -> [Bits u32],
    "bbconv2d" /// Packed input, 1-bit weights.
    BbConv2d -> [Bits u32],
    "bbpointwiseconv2d" /// Packed input, 1-bit weights, 1 x 1 kernel.
    BbPointwiseConv2d -> [Bits u32],
    "bbdepthwiseconv2d" /// Packed input, 1-bit weights, one filter a channel.
    BbDepthwiseConv2d -> [Bits u32],
    "bmaxpool2d" /// Max-pool of packed bits.
    BMaxPool2d -> [Bits u32],
    "bbfc" /// Fully connected to packed bits.
    BbFc -> [Bits u32],
    "bbqfc" /// Fully connected to integers.
    BbqFc -> [I8 i8, I16 i16, I32 i32],
    "bqqfc" /// Fully connected to integers, 8-bit weights.
    BqqFc -> [I8 i8, I16 i16, I32 i32],
}

/// The bytes that an operator runs on, and its scratch.
pub(crate) struct Io<'t> {
    /// Where the image lies in `output`'s memory: the byte at which it begins; `input` is empty then.
    pub(crate) image_gap: Option<usize>,
    pub(crate) input: &'t [u8],
    pub(crate) output: &'t mut [u8],
    /// Type of the output.
    pub(crate) dtype: DType,
    pub(crate) scratch: &'t mut [u32],
}

/// What a model needs of a family of operators beside its kernel.
trait Family: Kernel {
    /// Whether the operator writes elements of `dtype`.
    fn writes(dtype: DType) -> bool;

    /// Runs the optimized kernel. `None` where a slice is not aligned or has the wrong length.
    fn run(&self, io: Io<'_>) -> Option<()>;

    /// Runs the naive reference, which needs no scratch.
    fn run_reference(&self, io: Io<'_>) -> Option<()>;
}

/// How the operator of a record is read.
trait Parse<'a>: Sized {
    fn parse(parser: &Parser<'_, 'a>) -> Result<Self, FormatError>;
}

impl<'a> Model<'a> {
    /// Operator `index`, ready to run.
    ///
    /// # Errors
    /// [`FormatError`]; of a checked model only for an index that does not exist.
    pub fn operator(&self, index: usize) -> Result<Operator<'a>, FormatError> {
        if index >= self.operators.len() {
            return Err(FormatError::Operator { index, field: "index" });
        }
        Operator::from_record(self, index)
    }

    /// Multiply-accumulates of one image, counting taps in the padding.
    pub fn macs(&self) -> u64 {
        (0..self.operators.len())
            .filter_map(|index| self.operator(index).ok())
            .map(|operator| operator.macs())
            .sum()
    }
}

impl<'a> Operator<'a> {
    pub(crate) fn from_record(model: &Model<'a>, index: usize) -> Result<Self, FormatError> {
        fn parse<'a, T: Parse<'a> + Into<Operator<'a>>>(
            parser: &Parser<'_, 'a>,
        ) -> Result<Operator<'a>, FormatError> {
            T::parse(parser).map(Into::into)
        }
        let parser = Parser::new(model, index);
        let kind = parser.kind()?;
        of_kind!(kind, parse(&parser), Err(parser.absent()))
    }

    /// Shape of the output.
    pub fn output(&self) -> Shape {
        each!(self, operator => operator.output())
    }

    /// Multiply-accumulates, counting taps in the padding.
    pub fn macs(&self) -> u64 {
        each!(self, operator => operator.macs())
    }

    /// Whether a max-pool is fused into the operator.
    pub fn has_fused_pool(&self) -> bool {
        each!(self, operator => operator.has_pool())
    }

    /// Bytes of scratch.
    pub fn scratch_bytes(&self) -> usize {
        each!(self, operator => 4 * operator.scratch_words())
    }

    /// Bytes that the input had better begin behind the output where the output may overwrite it.
    #[cfg(feature = "alloc")]
    pub(crate) fn preferred_input_gap(&self) -> Option<usize> {
        each!(self, operator => operator.preferred_input_gap())
    }

    /// Scans weights and rules for what lengths don't tell.
    #[cfg(feature = "alloc")]
    pub(crate) fn check_contents(&self) -> Result<(), ArgumentError> {
        each!(self, operator => operator.check_contents())
    }

    /// Runs the optimized kernel on bytes that are aligned to their element types.
    /// `None` where a slice is not aligned or has the wrong length.
    #[cfg(feature = "std")]
    pub(crate) fn run(&self, io: Io<'_>) -> Option<()> {
        each!(self, operator => operator.run(io))
    }
}

/// What the check of a model asks of an operator.
pub(crate) struct Checked {
    pub(crate) output: Shape,
    pub(crate) writes: bool,
    pub(crate) scratch_bytes: usize,
    pub(crate) input_gap: Option<usize>,
}

/// Checks operator `index` by itself: its record, its parameters, and what they contain. `dtype` is its output's.
pub(crate) fn check(model: &Model<'_>, index: usize, dtype: DType) -> Result<Checked, FormatError> {
    #[inline(never)]
    fn check<'a, T: Parse<'a> + Family>(
        (parser, dtype): (&Parser<'_, 'a>, DType),
    ) -> Result<Checked, FormatError> {
        let operator = T::parse(parser)?;
        operator.check_contents().map_err(|error| parser.argument(error))?;
        Ok(Checked {
            output: operator.output(),
            writes: T::writes(dtype),
            scratch_bytes: 4 * operator.scratch_words(),
            input_gap: operator.input_gap(),
        })
    }
    let parser = Parser::new(model, index);
    let kind = parser.kind()?;
    of_kind!(kind, check((&parser, dtype)), Err(parser.absent()))
}

/// Runs operator `index` of a checked model. Little is on the stack beside the family's struct: what parses it and
/// what runs it are functions of their own.
pub(crate) fn run(model: &Model<'_>, index: usize, io: Io<'_>) -> Option<()> {
    #[inline(never)]
    fn run<'a, T: Parse<'a> + Family>((parser, io): (&Parser<'_, 'a>, Io<'_>)) -> Option<()> {
        match &T::parse(parser) {
            Ok(operator) => operator.run(io),
            Err(_) => None,
        }
    }
    let parser = Parser::new(model, index);
    of_kind!(parser.kind().ok()?, run((&parser, io)), None)
}

/// As [`run`], with the naive reference.
pub(crate) fn run_reference(model: &Model<'_>, index: usize, io: Io<'_>) -> Option<()> {
    fn run<'a, T: Parse<'a> + Family>((parser, io): (&Parser<'_, 'a>, Io<'_>)) -> Option<()> {
        T::parse(parser).ok()?.run_reference(io)
    }
    let parser = Parser::new(model, index);
    of_kind!(parser.kind().ok()?, run((&parser, io)), None)
}

/// The optimized kernel on elements `T`, and with the image in the output's memory where `io` says so.
#[inline(never)]
fn optimized<T: Pod, K: Run<T>>(kernel: &K, io: Io<'_>) -> Option<()>
where
    K::Input: Pod,
{
    let scratch = io.scratch.get_mut(..kernel.scratch_words())?;
    let output = elements(io.output)?;
    match io.image_gap {
        Some(gap) => kernel.optimized_over_input(output, gap, scratch).ok(),
        None => kernel.optimized(bytemuck::try_cast_slice(io.input).ok()?, output, scratch).ok(),
    }
}

/// As [`optimized`], by the naive reference.
fn reference<T: Pod, K: Run<T>>(kernel: &K, io: Io<'_>) -> Option<()>
where
    K::Input: Pod,
{
    kernel.reference(bytemuck::try_cast_slice(io.input).ok()?, elements(io.output)?).ok()
}

#[cfg(feature = "qbconv2d")]
impl<'a> Parse<'a> for QbConv2d<'a> {
    #[inline(never)]
    fn parse(parser: &Parser<'_, 'a>) -> Result<Self, FormatError> {
        let layer = parser.layer(DType::U8);
        let layer = in_place(&layer)?;
        let weights = parser.constant(slot::WEIGHTS, "weights")?;
        let words = parser.elements(weights, DType::Bits, "weights")?;
        let weights = match weights.layout() {
            Layout::ByteMask if cfg!(feature = "qbconv2d-byte-mask") => qbconv2d::Weights::ByteMask(words),
            Layout::PixelSums if cfg!(feature = "qbconv2d-pixel-sums") => qbconv2d::Weights::PixelSums(words),
            Layout::Canonical if cfg!(feature = "qbconv2d-canonical") => qbconv2d::Weights::Packed(words),
            Layout::ByOutputChannel => return Err(parser.wrong("weights")),
            _ => return Err(parser.absent()),
        };
        let adds = parser.channel_adds(layer.geometry().input().channels())?;
        QbConv2d::on_layer(layer, parser.affine(), adds, weights).map_err(|error| parser.argument(error))
    }
}

#[cfg(feature = "qqconv2d")]
impl<'a> Parse<'a> for QqConv2d<'a> {
    #[inline(never)]
    fn parse(parser: &Parser<'_, 'a>) -> Result<Self, FormatError> {
        let layer = parser.layer(DType::U8);
        let layer = in_place(&layer)?;
        let weights = parser.constant(slot::WEIGHTS, "weights")?;
        let adds = parser.channel_adds(layer.geometry().input().channels())?;
        let weights = if weights.dtype() == DType::I16 {
            qqconv2d::Weights::Wide(parser.canonical(weights, DType::I16, "weights")?)
        } else {
            qqconv2d::Weights::Byte(parser.canonical(weights, DType::I8, "weights")?)
        };
        QqConv2d::on_layer(layer, parser.affine(), adds, weights).map_err(|error| parser.argument(error))
    }
}

#[cfg(feature = "bbconv2d")]
impl<'a> Parse<'a> for BbConv2d<'a> {
    #[inline(never)]
    fn parse(parser: &Parser<'_, 'a>) -> Result<Self, FormatError> {
        let layer = parser.layer(DType::Bits);
        let layer = in_place(&layer)?;
        let weights = parser.constant(slot::WEIGHTS, "weights")?;
        let words = parser.elements(weights, DType::Bits, "weights")?;
        let weights = match weights.layout() {
            Layout::ByOutputChannel if cfg!(feature = "bbconv2d-by-output-channel") => {
                bbconv2d::Weights::ByOutputChannel(words)
            }
            Layout::Canonical if cfg!(feature = "bbconv2d-canonical") => bbconv2d::Weights::Packed(words),
            Layout::ByteMask | Layout::PixelSums => return Err(parser.wrong("weights")),
            _ => return Err(parser.absent()),
        };
        BbConv2d::on_layer(layer, parser.padding(), weights).map_err(|error| parser.argument(error))
    }
}

#[cfg(feature = "bbpointwiseconv2d")]
impl<'a> Parse<'a> for BbPointwiseConv2d<'a> {
    #[inline(never)]
    fn parse(parser: &Parser<'_, 'a>) -> Result<Self, FormatError> {
        let layer = parser.layer(DType::Bits);
        let layer = in_place(&layer)?;
        let weights = parser.constant(slot::WEIGHTS, "weights")?;
        let words = parser.canonical(weights, DType::Bits, "weights")?;
        BbPointwiseConv2d::on_layer(layer, words).map_err(|error| parser.argument(error))
    }
}

#[cfg(feature = "bbdepthwiseconv2d")]
impl<'a> Parse<'a> for BbDepthwiseConv2d<'a> {
    #[inline(never)]
    fn parse(parser: &Parser<'_, 'a>) -> Result<Self, FormatError> {
        let layer = parser.layer(DType::Bits);
        let layer = in_place(&layer)?;
        let weights = parser.constant(slot::WEIGHTS, "weights")?;
        let words = parser.canonical(weights, DType::Bits, "weights")?;
        BbDepthwiseConv2d::on_layer(layer, parser.padding(), words).map_err(|error| parser.argument(error))
    }
}

#[cfg(feature = "bmaxpool2d")]
impl<'a> Parse<'a> for BMaxPool2d<'a> {
    #[inline(never)]
    fn parse(parser: &Parser<'_, 'a>) -> Result<Self, FormatError> {
        let input = parser.input(DType::Bits)?;
        let use_and = parser.pixel_bits(slot::USE_AND, "use_and", input.channels())?;
        BMaxPool2d::new(input, parser.record.window.into(), use_and).map_err(|error| parser.argument(error))
    }
}

#[cfg(feature = "bbfc")]
impl<'a> Parse<'a> for BbFc<'a> {
    #[inline(never)]
    fn parse(parser: &Parser<'_, 'a>) -> Result<Self, FormatError> {
        let dense = parser.dense(parser.input(DType::Bits)?)?;
        let rules = parser.rules(slot::LO, 0, dense.output(), dense.output())?;
        BbFc::new(dense, rules).map_err(|error| parser.argument(error))
    }
}

#[cfg(feature = "bbqfc")]
impl<'a> Parse<'a> for BbqFc<'a> {
    #[inline(never)]
    fn parse(parser: &Parser<'_, 'a>) -> Result<Self, FormatError> {
        let dense = parser.dense(parser.input(DType::Bits)?)?;
        let requantization = parser.requantization(dense.units())?;
        BbqFc::new(dense, requantization).map_err(|error| parser.argument(error))
    }
}

#[cfg(feature = "bqqfc")]
impl<'a> Parse<'a> for BqqFc<'a> {
    #[inline(never)]
    fn parse(parser: &Parser<'_, 'a>) -> Result<Self, FormatError> {
        let input = parser.input(DType::Bits)?;
        let (units, tensor) = parser.dense_weights(&input)?;
        let weights = parser.canonical(tensor, DType::I8, "weights")?;
        let requantization = parser.requantization(units)?;
        BqqFc::new(input, units, weights, requantization).map_err(|error| parser.argument(error))
    }
}

/// Bytes as elements, where they are aligned to them.
pub(crate) fn elements<T: Pod>(bytes: &mut [u8]) -> Option<&mut [T]> {
    bytemuck::try_cast_slice_mut(bytes).ok()
}

/// What there is, where it is: `?` on the result itself would move it, and the structs of operators are large for a
/// small stack.
fn in_place<T>(result: &Result<T, FormatError>) -> Result<&T, FormatError> {
    result.as_ref().map_err(|error| *error)
}

/// The parts of a model that one operator's parser needs.
pub(crate) struct Parser<'m, 'a> {
    model: &'m Model<'a>,
    record: &'a OperatorRecord,
    index: usize,
}

impl<'m, 'a> Parser<'m, 'a> {
    fn new(model: &'m Model<'a>, index: usize) -> Self {
        Self { model, record: model.record(index), index }
    }

    /// The family, of a record whose unused fields are so.
    fn kind(&self) -> Result<Kind, FormatError> {
        let kind = Kind::from_code(self.record.kind).ok_or(self.wrong("kind"))?;
        self.check_unused(kind)?;
        Ok(kind)
    }

    fn absent(&self) -> FormatError {
        FormatError::NotBuilt { index: self.index }
    }

    fn affine(&self) -> Affine {
        Affine { mul: self.record.input_mul, add: self.record.input_add }
    }

    fn padding(&self) -> Padding {
        if self.record.flags & FLAG_ONE_PADDING != 0 { Padding::One } else { Padding::Zero }
    }

    fn wrong(&self, field: &'static str) -> FormatError {
        FormatError::Operator { index: self.index, field }
    }

    fn argument(&self, error: ArgumentError) -> FormatError {
        FormatError::Argument { index: self.index, error }
    }

    /// Fields that `kind` does not use are 0 or [`NONE`], so that every model has one encoding.
    fn check_unused(&self, kind: Kind) -> Result<(), FormatError> {
        let record = self.record;
        let convolution = kind.is_convolution();
        let padded = matches!(kind, Kind::BbConv2d | Kind::BbDepthwiseConv2d);
        let used = match kind {
            Kind::BMaxPool2d => 1,
            Kind::BbFc | Kind::BbqFc | Kind::BqqFc => 4,
            _ => CONSTANTS,
        };
        let none = WindowRecord::default_zero();
        let table = [
            ("flags", !padded && record.flags != 0 || record.flags & !FLAG_ONE_PADDING != 0),
            ("inputs", record.inputs[1] != NONE),
            ("constants", record.constants[used..].iter().any(|&t| t != NONE)),
            ("window", (kind == Kind::BbFc || kind.is_head()) && record.window != none),
            ("pool", !convolution && record.pool != none),
            ("input_mul", !kind.reads_bytes() && record.input_mul != 0),
            ("input_add", !kind.reads_bytes() && record.input_add != 0),
            ("channel_adds", !kind.reads_bytes() && record.channel_adds != 0),
            ("shift", !kind.is_head() && record.shift != 0),
            ("rule_grid", !convolution && record.rule_grid != 0),
            ("veto_grid", !convolution && record.veto_grid != 0),
            ("reserved", record.reserved != [0; 2] || record.reserved2 != [0; 2]),
        ];
        match table.iter().find(|(_, wrong)| *wrong) {
            Some((field, _)) => Err(self.wrong(field)),
            None => Ok(()),
        }
    }

    /// The shape of the one input, an earlier activation of type `dtype`.
    fn input(&self, dtype: DType) -> Result<Shape, FormatError> {
        let at = self.record.inputs[0] as usize;
        if at > self.index {
            return Err(self.wrong("inputs"));
        }
        let tensor = self.model.tensor_record(at);
        if tensor.dtype() != dtype {
            return Err(self.wrong("inputs"));
        }
        tensor.image_shape().map_err(|_| self.wrong("inputs"))
    }

    fn optional(&self, slot: usize, field: &'static str) -> Result<Option<&'a TensorRecord>, FormatError> {
        match self.record.constants[slot] {
            NONE => Ok(None),
            at => self.data_record(at, field).map(Some),
        }
    }

    /// The record of a tensor in the data section.
    fn data_record(&self, at: u32, field: &'static str) -> Result<&'a TensorRecord, FormatError> {
        if (at as usize) < self.model.tensor_count() {
            let tensor = self.model.tensor_record(at as usize);
            if tensor.place() == Place::Data {
                return Ok(tensor);
            }
        }
        Err(self.wrong(field))
    }

    fn constant(&self, slot: usize, field: &'static str) -> Result<&'a TensorRecord, FormatError> {
        self.data_record(self.record.constants[slot], field)
    }

    /// The elements of a constant of type `dtype`, in place.
    fn elements<T: Pod>(
        &self,
        tensor: &TensorRecord,
        dtype: DType,
        field: &'static str,
    ) -> Result<&'a [T], FormatError> {
        if tensor.dtype() != dtype {
            return Err(self.wrong(field));
        }
        let bytes = self.model.constant_data(tensor).ok_or(self.wrong(field))?;
        bytemuck::try_cast_slice(bytes).map_err(|_| self.wrong(field))
    }

    /// As [`elements`](Self::elements), for constants that have no other layout.
    fn canonical<T: Pod>(
        &self,
        tensor: &TensorRecord,
        dtype: DType,
        field: &'static str,
    ) -> Result<&'a [T], FormatError> {
        if tensor.layout() != Layout::Canonical {
            return Err(self.wrong(field));
        }
        self.elements(tensor, dtype, field)
    }

    /// The geometry of a convolution of activations of type `dtype` whose weights have shape `[O, H, W, I]`, or `[1, H, W, C]` where it is
    /// depthwise.
    #[inline(never)]
    fn geometry(&self, dtype: DType) -> Result<Conv2dGeometry, FormatError> {
        let input = self.input(dtype)?;
        let filters = self.filters(input.channels())?;
        Conv2dGeometry::new(input, self.record.window.into(), filters).map_err(|e| self.argument(e))
    }

    /// The filters of a convolution, whose weights have the shape that the record's window says.
    #[inline(always)]
    fn filters(&self, input_channels: usize) -> Result<usize, FormatError> {
        let weights = self.constant(slot::WEIGHTS, "weights")?;
        let [filters, height, width, channels] = weights.shape.map(|d| d as usize);
        if [height, width] != self.record.window.kernel.map(usize::from) || channels != input_channels {
            return Err(self.wrong("weights"));
        }
        match self.record.kind == Kind::BbDepthwiseConv2d.code() {
            true if filters != 1 => Err(self.wrong("weights")),
            true => Ok(channels),
            false => Ok(filters),
        }
    }

    /// Packed bits of one pixel, or none.
    fn pixel_bits(
        &self,
        slot: usize,
        field: &'static str,
        channels: usize,
    ) -> Result<Option<&'a [u32]>, FormatError> {
        match self.optional(slot, field)? {
            None => Ok(None),
            Some(tensor) if tensor.shape == [1, 1, 1, channels as u32] => {
                Ok(Some(self.canonical(tensor, DType::Bits, field)?))
            }
            Some(_) => Err(self.wrong(field)),
        }
    }

    /// Three constants from `first` on: `lo`, `hi` and `flip`.
    fn rules(&self, first: usize, grid: u8, conv: &Shape, output: &Shape) -> Result<Rules<'a>, FormatError> {
        let name = if first == slot::LO { "rules" } else { "veto" };
        let grid = grid_from_code(grid).ok_or(self.wrong(name))?;
        let (height, width) = match grid {
            Grid::Channel => (1, 1),
            Grid::Conv => (conv.height(), conv.width()),
            Grid::Output => (output.height(), output.width()),
        };
        let shape = [1, height as u32, width as u32, conv.channels() as u32];
        // None of them is a result that would be moved: see `in_place`.
        let part = |slot: usize, dtype| {
            let tensor = self.constant(slot, name).ok().filter(|tensor| tensor.shape == shape)?;
            (tensor.dtype() == dtype && tensor.layout() == Layout::Canonical)
                .then(|| self.model.constant_data(tensor))
                .flatten()
        };
        let lo = part(first, DType::I32).and_then(|bytes| bytemuck::try_cast_slice(bytes).ok());
        let hi = part(first + 1, DType::I32).and_then(|bytes| bytemuck::try_cast_slice(bytes).ok());
        let flip = part(first + 2, DType::Bits).and_then(|bytes| bytemuck::try_cast_slice(bytes).ok());
        let (Some(lo), Some(hi), Some(flip)) = (lo, hi, flip) else { return Err(self.wrong(name)) };
        Rules::new(grid, conv.channels(), lo, hi, flip).map_err(|e| self.argument(e))
    }

    /// What a convolution of activations of type `dtype` is beside its weights, whose shape is checked.
    #[inline(never)]
    fn layer(&self, dtype: DType) -> Result<ConvLayer<'a>, FormatError> {
        let record = self.record;
        let geometry = self.geometry(dtype);
        let geometry = in_place(&geometry)?;
        let conv = geometry.output();
        let has_pool = record.pool != WindowRecord::default_zero();
        let has_veto = record.constants[slot::VETO_LO..][..3].iter().any(|&part| part != NONE);
        if !has_pool && (has_veto || record.constants[slot::INVERT] != NONE) {
            return Err(self.wrong("pool"));
        }
        if !has_veto && record.veto_grid != 0 {
            return Err(self.wrong(if has_pool { "veto_grid" } else { "pool" }));
        }
        let output = if has_pool { self.pooled(conv)? } else { *conv };
        let rules = self.rules(slot::LO, record.rule_grid, conv, &output);
        let rules = in_place(&rules)?;
        let pool = if has_pool { Some(self.pool(conv, has_veto.then_some(&output))) } else { None };
        let pool = match &pool {
            Some(pool) => Some(in_place(pool)?),
            None => None,
        };
        ConvLayer::of_parts(geometry, rules, pool, |error| self.argument(error))
    }

    /// The record's pool on the convolution's plane `conv`; with a veto where the shape of the output is given.
    #[inline(never)]
    fn pool(&self, conv: &Shape, vetoed: Option<&Shape>) -> Result<Pool<'a>, FormatError> {
        let invert = self.pixel_bits(slot::INVERT, "invert", conv.channels())?;
        let veto = vetoed.map(|output| self.rules(slot::VETO_LO, self.record.veto_grid, conv, output));
        let veto = match &veto {
            Some(veto) => Some(in_place(veto)?),
            None => None,
        };
        let sliding = Sliding::new(conv.height(), conv.width(), self.record.pool.into());
        match sliding {
            Ok(sliding) => Ok(Pool::of_parts(sliding, veto, invert)),
            Err(error) => Err(self.argument(error)),
        }
    }

    /// The shape of the convolution's plane `conv` after the record's pool.
    #[inline(never)]
    fn pooled(&self, conv: &Shape) -> Result<Shape, FormatError> {
        let pool = Sliding::new(conv.height(), conv.width(), self.record.pool.into());
        pool.and_then(|pool| Shape::new(pool.output_height(), pool.output_width(), conv.channels()))
            .map_err(|e| self.argument(e))
    }

    /// The offset of each input channel, or an empty slice where the record has none.
    fn channel_adds(&self, channels: usize) -> Result<&'a [i32], FormatError> {
        if self.record.channel_adds == 0 {
            return Ok(&[]);
        }
        let tensor = self.data_record(self.record.channel_adds, "channel_adds")?;
        if tensor.shape != [1, 1, 1, channels as u32] {
            return Err(self.wrong("channel_adds"));
        }
        self.canonical(tensor, DType::I32, "channel_adds")
    }

    /// The fixed-point function of each unit of a head.
    fn requantization(&self, units: usize) -> Result<Requantization<'a>, FormatError> {
        let units = units as u32;
        let knee: &[i32] = match self.optional(slot::KNEE, "knee")? {
            Some(knee) if knee.shape == [1, 1, 1, units] => self.canonical(knee, DType::I32, "knee")?,
            Some(_) => return Err(self.wrong("knee")),
            None => &[],
        };
        let rows = if knee.is_empty() { 1 } else { 2 };
        let factor = |slot, name| {
            let tensor = self.constant(slot, name)?;
            if tensor.shape != [1, 1, rows, units] {
                return Err(self.wrong(name));
            }
            self.canonical::<i64>(tensor, DType::I64, name)
        };
        let (mul, add) = (factor(slot::MUL, "mul")?, factor(slot::ADD, "add")?);
        Requantization::new(mul, add, knee, self.record.shift).map_err(|e| self.argument(e))
    }

    /// Fully connected weights of shape `[units, H, W, C]`, and the units.
    fn dense_weights(&self, input: &Shape) -> Result<(usize, &'a TensorRecord), FormatError> {
        let tensor = self.constant(slot::WEIGHTS, "weights")?;
        let [units, height, width, channels] = tensor.shape.map(|d| d as usize);
        if [height, width, channels] != [input.height(), input.width(), input.channels()] {
            return Err(self.wrong("weights"));
        }
        Ok((units, tensor))
    }

    /// Packed fully connected weights.
    fn dense(&self, input: Shape) -> Result<Dense<'a>, FormatError> {
        let (units, tensor) = self.dense_weights(&input)?;
        let words = self.canonical(tensor, DType::Bits, "weights")?;
        Dense::new(input, units, words).map_err(|e| self.argument(e))
    }
}

impl WindowRecord {
    /// The window of an operator that has none.
    pub(crate) fn default_zero() -> Self {
        bytemuck::Zeroable::zeroed()
    }
}
