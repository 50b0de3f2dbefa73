//! From an operator record to a kernel: which constants an operator takes, and how it runs.

use cbin_nn_kernels::ArgumentError;
use cbin_nn_kernels::bbconv2d::{self, BbConv2d, Padding};
use cbin_nn_kernels::bbdepthwiseconv2d::BbDepthwiseConv2d;
use cbin_nn_kernels::bbfc::{BbFc, Dense};
use cbin_nn_kernels::bbpointwiseconv2d::BbPointwiseConv2d;
use cbin_nn_kernels::bbqfc::{BbqFc, Requantization};
use cbin_nn_kernels::bmaxpool2d::BMaxPool2d;
use cbin_nn_kernels::bqqfc::BqqFc;
use cbin_nn_kernels::qbconv2d::{Affine, QbConv2d, Weights};
use cbin_nn_kernels::qqconv2d::QqConv2d;
use cbin_nn_kernels::rule::{Grid, Pool, Rules};
use cbin_nn_kernels::shape::{Conv2dGeometry, Shape};

use crate::format::{
    CONSTANTS, DType, FLAG_ONE_PADDING, Kind, Layout, NONE, OperatorRecord, Place, WindowRecord,
    grid_from_code,
};
use crate::view::Tensor;
use crate::{FormatError, Model};

/// Slots of [`OperatorRecord::constants`] for convolutions and `bbfc`.
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

/// One operator of a model, ready to run.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Operator<'a> {
    /// 8-bit input, 1-bit weights.
    QbConv2d(QbConv2d<'a>, Conv2dGeometry),
    /// 8-bit input, 8-bit weights.
    QqConv2d(QqConv2d<'a>, Conv2dGeometry),
    /// Packed input, 1-bit weights.
    BbConv2d(BbConv2d<'a>, Conv2dGeometry),
    /// Packed input, 1-bit weights, 1 x 1 kernel.
    BbPointwiseConv2d(BbPointwiseConv2d<'a>, Conv2dGeometry),
    /// Packed input, 1-bit weights, one filter a channel.
    BbDepthwiseConv2d(BbDepthwiseConv2d<'a>),
    /// Max-pool of packed bits.
    BMaxPool2d(BMaxPool2d<'a>),
    /// Fully connected to packed bits.
    BbFc(BbFc<'a>, u64),
    /// Fully connected to integers.
    BbqFc(BbqFc<'a>, Shape, u64),
    /// Fully connected to integers, 8-bit weights.
    BqqFc(BqqFc<'a>),
}

/// The parts of a model that one operator's parser needs.
struct Parser<'m, 'a> {
    model: &'m Model<'a>,
    record: &'a OperatorRecord,
    index: usize,
}

impl<'a> Operator<'a> {
    pub(crate) fn from_record(model: &Model<'a>, index: usize) -> Result<Self, FormatError> {
        let record = model.record(index);
        let parser = Parser { model, record, index };
        let kind = Kind::from_code(record.kind).ok_or(parser.wrong("kind"))?;
        parser.check_unused(kind)?;
        let input = parser.input(if kind.reads_bytes() { DType::U8 } else { DType::Bits })?;
        match kind {
            Kind::QbConv2d
            | Kind::QqConv2d
            | Kind::BbConv2d
            | Kind::BbPointwiseConv2d
            | Kind::BbDepthwiseConv2d => parser.convolution(kind, input),
            Kind::BMaxPool2d => {
                let use_and = parser.pixel_bits(slot::USE_AND, "use_and", input.channels())?;
                let operator = BMaxPool2d::new(input, record.window.into(), use_and);
                Ok(Self::BMaxPool2d(operator.map_err(|e| parser.argument(e))?))
            }
            Kind::BbFc => {
                let (dense, macs) = parser.dense(input)?;
                let rules = parser.rules(slot::LO, 0, dense.output(), dense.output())?;
                let operator = BbFc::new(dense, rules).map_err(|e| parser.argument(e))?;
                Ok(Self::BbFc(operator, macs))
            }
            Kind::BbqFc => {
                let (dense, macs) = parser.dense(input)?;
                let requantization = parser.requantization(dense.units())?;
                let output = *dense.output();
                let operator = BbqFc::new(dense, requantization).map_err(|e| parser.argument(e))?;
                Ok(Self::BbqFc(operator, output, macs))
            }
            Kind::BqqFc => {
                let (units, tensor) = parser.dense_weights(&input)?;
                let weights = parser.canonical(&tensor, DType::I8, "weights")?;
                let requantization = parser.requantization(units)?;
                let operator = BqqFc::new(input, units, weights, requantization);
                Ok(Self::BqqFc(operator.map_err(|e| parser.argument(e))?))
            }
        }
    }

    /// The family.
    pub fn kind(&self) -> Kind {
        match self {
            Self::QbConv2d(..) => Kind::QbConv2d,
            Self::QqConv2d(..) => Kind::QqConv2d,
            Self::BbConv2d(..) => Kind::BbConv2d,
            Self::BbPointwiseConv2d(..) => Kind::BbPointwiseConv2d,
            Self::BbDepthwiseConv2d(..) => Kind::BbDepthwiseConv2d,
            Self::BMaxPool2d(..) => Kind::BMaxPool2d,
            Self::BbFc(..) => Kind::BbFc,
            Self::BbqFc(..) => Kind::BbqFc,
            Self::BqqFc(..) => Kind::BqqFc,
        }
    }

    /// Shape of the output.
    pub fn output(&self) -> &Shape {
        match self {
            Self::QbConv2d(operator, _) => operator.output(),
            Self::QqConv2d(operator, _) => operator.output(),
            Self::BbConv2d(operator, _) => operator.output(),
            Self::BbPointwiseConv2d(operator, _) => operator.output(),
            Self::BbDepthwiseConv2d(operator) => operator.output(),
            Self::BMaxPool2d(operator) => operator.output(),
            Self::BbFc(operator, _) => operator.output(),
            Self::BbqFc(_, output, _) => output,
            Self::BqqFc(operator) => operator.output(),
        }
    }

    /// Multiply-accumulates, counting taps in the padding.
    pub fn macs(&self) -> u64 {
        match self {
            Self::QbConv2d(_, geometry)
            | Self::QqConv2d(_, geometry)
            | Self::BbConv2d(_, geometry)
            | Self::BbPointwiseConv2d(_, geometry) => geometry.macs(),
            Self::BbDepthwiseConv2d(operator) => operator.macs(),
            Self::BMaxPool2d(_) => 0,
            Self::BbFc(_, macs) | Self::BbqFc(_, _, macs) => *macs,
            Self::BqqFc(operator) => operator.units() as u64 * operator.features() as u64,
        }
    }

    /// Whether a max-pool is fused into the operator.
    pub fn has_fused_pool(&self) -> bool {
        match self {
            Self::QbConv2d(operator, _) => operator.has_pool(),
            Self::QqConv2d(operator, _) => operator.has_pool(),
            Self::BbConv2d(operator, _) => operator.has_pool(),
            Self::BbPointwiseConv2d(operator, _) => operator.has_pool(),
            Self::BbDepthwiseConv2d(operator) => operator.has_pool(),
            Self::BMaxPool2d(_) | Self::BbFc(..) | Self::BbqFc(..) | Self::BqqFc(_) => false,
        }
    }

    /// Bytes of scratch.
    pub fn scratch_bytes(&self) -> usize {
        match self {
            Self::QbConv2d(operator, _) => 4 * (operator.window_words() + operator.scratch_words()),
            Self::QqConv2d(operator, _) => 4 * (operator.window_words() + operator.scratch_words()),
            Self::BbConv2d(operator, _) => 4 * (operator.list_words() + operator.scratch_words()),
            Self::BbPointwiseConv2d(operator, _) => 4 * operator.scratch_words(),
            Self::BbDepthwiseConv2d(operator) => 4 * operator.scratch_words(),
            Self::BMaxPool2d(_) | Self::BbFc(..) | Self::BbqFc(..) | Self::BqqFc(_) => 0,
        }
    }

    /// Whether the operator writes elements of `dtype`.
    pub fn writes(&self, dtype: DType) -> bool {
        match self {
            Self::BbqFc(..) | Self::BqqFc(_) => matches!(dtype, DType::I8 | DType::I16 | DType::I32),
            _ => dtype == DType::Bits,
        }
    }

    /// Scans weights and rules for what lengths don't tell.
    pub(crate) fn check_contents(&self) -> Result<(), ArgumentError> {
        match self {
            Self::QbConv2d(operator, _) => operator.check_contents(),
            Self::QqConv2d(operator, _) => operator.check_contents(),
            Self::BbConv2d(operator, _) => operator.check_contents(),
            Self::BbPointwiseConv2d(operator, _) => operator.check_contents(),
            Self::BbDepthwiseConv2d(operator) => operator.check_contents(),
            Self::BMaxPool2d(operator) => operator.check_contents(),
            Self::BbFc(operator, _) => operator.check_contents(),
            Self::BbqFc(operator, ..) => operator.check_contents(),
            Self::BqqFc(operator) => operator.check_contents(),
        }
    }

    /// Runs the optimized kernel on bytes that are aligned to their element types.
    /// `None` where a slice is not aligned or has the wrong length.
    pub(crate) fn run(
        &self,
        input: &[u8],
        output: &mut [u8],
        dtype: DType,
        scratch: &mut [u32],
    ) -> Option<()> {
        let words = |bytes| bytemuck::try_cast_slice::<u8, u32>(bytes).ok();
        match self {
            Self::QbConv2d(operator, _) => {
                let (window, rest) = parted(scratch, operator.window_words(), operator.scratch_words())?;
                operator.optimized(input, elements(output)?, window, rest).ok()
            }
            Self::QqConv2d(operator, _) => {
                let (window, rest) = parted(scratch, operator.window_words(), operator.scratch_words())?;
                operator.optimized(input, elements(output)?, window, rest).ok()
            }
            Self::BbConv2d(operator, _) => {
                let (list, rest) = parted(scratch, operator.list_words(), operator.scratch_words())?;
                operator.optimized(words(input)?, elements(output)?, list, rest).ok()
            }
            Self::BbPointwiseConv2d(operator, _) => {
                let scratch = scratch.get_mut(..operator.scratch_words())?;
                operator.optimized(words(input)?, elements(output)?, scratch).ok()
            }
            Self::BbDepthwiseConv2d(operator) => {
                let scratch = scratch.get_mut(..operator.scratch_words())?;
                operator.optimized(words(input)?, elements(output)?, scratch).ok()
            }
            Self::BMaxPool2d(operator) => operator.optimized(words(input)?, elements(output)?).ok(),
            Self::BbFc(operator, _) => operator.optimized(words(input)?, elements(output)?).ok(),
            Self::BbqFc(operator, ..) => match dtype {
                DType::I8 => operator.optimized::<i8>(words(input)?, elements(output)?).ok(),
                DType::I16 => operator.optimized::<i16>(words(input)?, elements(output)?).ok(),
                DType::I32 => operator.optimized::<i32>(words(input)?, elements(output)?).ok(),
                _ => None,
            },
            Self::BqqFc(operator) => match dtype {
                DType::I8 => operator.optimized::<i8>(words(input)?, elements(output)?).ok(),
                DType::I16 => operator.optimized::<i16>(words(input)?, elements(output)?).ok(),
                DType::I32 => operator.optimized::<i32>(words(input)?, elements(output)?).ok(),
                _ => None,
            },
        }
    }
}

impl Operator<'_> {
    /// Runs the naive reference instead: as [`run`](Self::run), without scratch.
    pub(crate) fn run_reference(&self, input: &[u8], output: &mut [u8], dtype: DType) -> Option<()> {
        let words = |bytes| bytemuck::try_cast_slice::<u8, u32>(bytes).ok();
        match self {
            Self::QbConv2d(operator, _) => operator.reference(input, elements(output)?).ok(),
            Self::QqConv2d(operator, _) => operator.reference(input, elements(output)?).ok(),
            Self::BbConv2d(operator, _) => operator.reference(words(input)?, elements(output)?).ok(),
            Self::BbPointwiseConv2d(operator, _) => operator.reference(words(input)?, elements(output)?).ok(),
            Self::BbDepthwiseConv2d(operator) => operator.reference(words(input)?, elements(output)?).ok(),
            Self::BMaxPool2d(operator) => operator.reference(words(input)?, elements(output)?).ok(),
            Self::BbFc(operator, _) => operator.reference(words(input)?, elements(output)?).ok(),
            Self::BbqFc(operator, ..) => match dtype {
                DType::I8 => operator.reference::<i8>(words(input)?, elements(output)?).ok(),
                DType::I16 => operator.reference::<i16>(words(input)?, elements(output)?).ok(),
                DType::I32 => operator.reference::<i32>(words(input)?, elements(output)?).ok(),
                _ => None,
            },
            Self::BqqFc(operator) => match dtype {
                DType::I8 => operator.reference::<i8>(words(input)?, elements(output)?).ok(),
                DType::I16 => operator.reference::<i16>(words(input)?, elements(output)?).ok(),
                DType::I32 => operator.reference::<i32>(words(input)?, elements(output)?).ok(),
                _ => None,
            },
        }
    }
}

/// Bytes as elements, where they are aligned to them.
pub(crate) fn elements<T: bytemuck::Pod>(bytes: &mut [u8]) -> Option<&mut [T]> {
    bytemuck::try_cast_slice_mut(bytes).ok()
}

/// A window of bytes and the words behind it, cut from an operator's scratch.
fn parted(scratch: &mut [u32], window: usize, rest: usize) -> Option<(&mut [[u8; 4]], &mut [u32])> {
    let (window, after) = scratch.split_at_mut_checked(window)?;
    Some((bytemuck::cast_slice_mut(window), after.get_mut(..rest)?))
}

impl<'a> Parser<'_, 'a> {
    fn wrong(&self, field: &'static str) -> FormatError {
        FormatError::Operator { index: self.index, field }
    }

    fn argument(&self, error: ArgumentError) -> FormatError {
        FormatError::Argument { index: self.index, error }
    }

    fn convolution(&self, kind: Kind, input: Shape) -> Result<Operator<'a>, FormatError> {
        let record = self.record;
        let weights = self.constant(slot::WEIGHTS, "weights")?;
        let geometry = self.geometry(kind, input, &weights)?;
        let (rules, pool) = self.tail(&geometry)?;
        let affine = Affine { mul: record.input_mul, add: record.input_add };
        let one = record.flags & FLAG_ONE_PADDING != 0;
        let padding = if one { Padding::One } else { Padding::Zero };
        let adds = if kind.reads_bytes() { self.channel_adds(input.channels())? } else { &[] };
        let operator = match kind {
            Kind::QbConv2d => {
                let words = self.elements(&weights, DType::Bits, "weights")?;
                let weights = match weights.layout {
                    Layout::ByteMask => Weights::ByteMask(words),
                    Layout::Canonical => Weights::Packed(words),
                    Layout::PixelSums => Weights::PixelSums(words),
                    Layout::Lanes => return Err(self.wrong("weights")),
                };
                QbConv2d::new(geometry, affine, weights, rules, pool)
                    .and_then(|o| o.with_channel_adds(adds))
                    .map(|o| Operator::QbConv2d(o, geometry))
            }
            Kind::QqConv2d => {
                let built = if weights.dtype == DType::I16 {
                    let weights = self.canonical(&weights, DType::I16, "weights")?;
                    QqConv2d::new_wide(geometry, affine, weights, rules, pool)
                } else {
                    let weights = self.canonical(&weights, DType::I8, "weights")?;
                    QqConv2d::new(geometry, affine, weights, rules, pool)
                };
                built.and_then(|o| o.with_channel_adds(adds)).map(|o| Operator::QqConv2d(o, geometry))
            }
            Kind::BbPointwiseConv2d => {
                let words = self.canonical(&weights, DType::Bits, "weights")?;
                BbPointwiseConv2d::new(geometry, words, rules, pool)
                    .map(|o| Operator::BbPointwiseConv2d(o, geometry))
            }
            Kind::BbDepthwiseConv2d => {
                let words = self.canonical(&weights, DType::Bits, "weights")?;
                BbDepthwiseConv2d::new(geometry, padding, words, rules, pool).map(Operator::BbDepthwiseConv2d)
            }
            _ => {
                let words = self.elements(&weights, DType::Bits, "weights")?;
                let weights = match weights.layout {
                    Layout::Lanes => bbconv2d::Weights::Lanes(words),
                    Layout::Canonical => bbconv2d::Weights::Packed(words),
                    Layout::ByteMask | Layout::PixelSums => return Err(self.wrong("weights")),
                };
                BbConv2d::new(geometry, padding, weights, rules, pool)
                    .map(|o| Operator::BbConv2d(o, geometry))
            }
        };
        operator.map_err(|error| self.argument(error))
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
        let tensor = self.model.tensor_at(at);
        if tensor.dtype != dtype {
            return Err(self.wrong("inputs"));
        }
        tensor.image_shape().map_err(|_| self.wrong("inputs"))
    }

    fn optional(&self, slot: usize, field: &'static str) -> Result<Option<Tensor<'a>>, FormatError> {
        match self.record.constants[slot] {
            NONE => Ok(None),
            at if (at as usize) < self.model.tensor_count() => {
                let tensor = self.model.tensor_at(at as usize);
                if tensor.place == Place::Data { Ok(Some(tensor)) } else { Err(self.wrong(field)) }
            }
            _ => Err(self.wrong(field)),
        }
    }

    fn constant(&self, slot: usize, field: &'static str) -> Result<Tensor<'a>, FormatError> {
        self.optional(slot, field)?.ok_or(self.wrong(field))
    }

    /// The elements of a constant of type `dtype`, in place.
    fn elements<T: bytemuck::Pod>(
        &self,
        tensor: &Tensor<'a>,
        dtype: DType,
        field: &'static str,
    ) -> Result<&'a [T], FormatError> {
        if tensor.dtype != dtype {
            return Err(self.wrong(field));
        }
        let bytes = self.model.data_bytes(tensor).ok_or(self.wrong(field))?;
        bytemuck::try_cast_slice(bytes).map_err(|_| self.wrong(field))
    }

    /// As [`elements`](Self::elements), for constants that have no other layout.
    fn canonical<T: bytemuck::Pod>(
        &self,
        tensor: &Tensor<'a>,
        dtype: DType,
        field: &'static str,
    ) -> Result<&'a [T], FormatError> {
        if tensor.layout != Layout::Canonical {
            return Err(self.wrong(field));
        }
        self.elements(tensor, dtype, field)
    }

    /// The geometry of a convolution whose weights have shape `[O, H, W, I]`, or `[1, H, W, C]` where it is
    /// depthwise.
    fn geometry(
        &self,
        kind: Kind,
        input: Shape,
        weights: &Tensor<'a>,
    ) -> Result<Conv2dGeometry, FormatError> {
        let [filters, height, width, channels] = weights.shape.map(|d| d as usize);
        let window = self.record.window;
        let filters = match kind {
            Kind::BbDepthwiseConv2d if filters != 1 => return Err(self.wrong("weights")),
            Kind::BbDepthwiseConv2d => channels,
            _ => filters,
        };
        if [height, width] != window.kernel.map(usize::from) || channels != input.channels() {
            return Err(self.wrong("weights"));
        }
        Conv2dGeometry::new(input, window.into(), filters).map_err(|e| self.argument(e))
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
                Ok(Some(self.canonical(&tensor, DType::Bits, field)?))
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
        let part = |slot| {
            let tensor = self.constant(slot, name)?;
            if tensor.shape == shape { Ok(tensor) } else { Err(self.wrong(name)) }
        };
        let lo = self.canonical(&part(first)?, DType::I32, name)?;
        let hi = self.canonical(&part(first + 1)?, DType::I32, name)?;
        let flip = self.canonical(&part(first + 2)?, DType::Bits, name)?;
        Rules::new(grid, conv.channels(), lo, hi, flip).map_err(|e| self.argument(e))
    }

    /// The rules of a convolution, and its fused pool where the record has one.
    fn tail(&self, geometry: &Conv2dGeometry) -> Result<(Rules<'a>, Option<Pool<'a>>), FormatError> {
        let record = self.record;
        let conv = geometry.output();
        let veto = [0, 1, 2].map(|part| record.constants[slot::VETO_LO + part] != NONE);
        if record.pool == WindowRecord::default_zero() {
            if veto != [false; 3] || record.constants[slot::INVERT] != NONE || record.veto_grid != 0 {
                return Err(self.wrong("pool"));
            }
            return Ok((self.rules(slot::LO, record.rule_grid, conv, conv)?, None));
        }
        let bare = Pool::new(conv, record.pool.into(), None, None).map_err(|e| self.argument(e))?;
        let sliding = bare.sliding();
        let output = Shape::new(sliding.output_height(), sliding.output_width(), conv.channels())
            .map_err(|e| self.argument(e))?;
        let rules = self.rules(slot::LO, record.rule_grid, conv, &output)?;
        let veto = if veto == [false; 3] {
            if record.veto_grid != 0 {
                return Err(self.wrong("veto_grid"));
            }
            None
        } else {
            Some(self.rules(slot::VETO_LO, record.veto_grid, conv, &output)?)
        };
        let invert = self.pixel_bits(slot::INVERT, "invert", conv.channels())?;
        let pool = Pool::new(conv, record.pool.into(), veto, invert).map_err(|e| self.argument(e))?;
        Ok((rules, Some(pool)))
    }

    /// The offset of each input channel, or an empty slice where the record has none.
    fn channel_adds(&self, channels: usize) -> Result<&'a [i32], FormatError> {
        let at = self.record.channel_adds as usize;
        if at == 0 {
            return Ok(&[]);
        }
        if at >= self.model.tensor_count() {
            return Err(self.wrong("channel_adds"));
        }
        let tensor = self.model.tensor_at(at);
        if tensor.place != Place::Data || tensor.shape != [1, 1, 1, channels as u32] {
            return Err(self.wrong("channel_adds"));
        }
        self.canonical(&tensor, DType::I32, "channel_adds")
    }

    /// The fixed-point function of each unit of a head.
    fn requantization(&self, units: usize) -> Result<Requantization<'a>, FormatError> {
        let units = units as u32;
        let knee: &[i32] = match self.optional(slot::KNEE, "knee")? {
            Some(knee) if knee.shape == [1, 1, 1, units] => self.canonical(&knee, DType::I32, "knee")?,
            Some(_) => return Err(self.wrong("knee")),
            None => &[],
        };
        let rows = if knee.is_empty() { 1 } else { 2 };
        let factor = |slot, name| {
            let tensor = self.constant(slot, name)?;
            if tensor.shape != [1, 1, rows, units] {
                return Err(self.wrong(name));
            }
            self.canonical::<i64>(&tensor, DType::I64, name)
        };
        let (mul, add) = (factor(slot::MUL, "mul")?, factor(slot::ADD, "add")?);
        Requantization::new(mul, add, knee, self.record.shift).map_err(|e| self.argument(e))
    }

    /// Fully connected weights of shape `[units, H, W, C]`, and the units.
    fn dense_weights(&self, input: &Shape) -> Result<(usize, Tensor<'a>), FormatError> {
        let tensor = self.constant(slot::WEIGHTS, "weights")?;
        let [units, height, width, channels] = tensor.shape.map(|d| d as usize);
        if [height, width, channels] != [input.height(), input.width(), input.channels()] {
            return Err(self.wrong("weights"));
        }
        Ok((units, tensor))
    }

    /// Packed fully connected weights, and the multiply-accumulates.
    fn dense(&self, input: Shape) -> Result<(Dense<'a>, u64), FormatError> {
        let (units, tensor) = self.dense_weights(&input)?;
        let words = self.canonical(&tensor, DType::Bits, "weights")?;
        let dense = Dense::new(input, units, words).map_err(|e| self.argument(e))?;
        Ok((dense, units as u64 * dense.features() as u64))
    }
}

impl WindowRecord {
    /// The window of an operator that has none.
    pub(crate) fn default_zero() -> Self {
        bytemuck::Zeroable::zeroed()
    }
}
