/*!
Building `.cbn` files: operators in, bytes out.

The writer derives what a file must agree on (output shapes, scratch, arena plan, weight layouts) with the
same code that checks and runs it, and [`Builder::finish`] hands out nothing that [`Model::new_checked`]
rejects.
*/

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use bytemuck::Zeroable;
use cbin_nn_kernels::epilogue::{Grid, Pool, Requantization, Rules};
use cbin_nn_kernels::layouts::by_output_channel::to_groups;
use cbin_nn_kernels::layouts::byte_mask::{self, to_byte_mask};
use cbin_nn_kernels::layouts::pixel_sums::{SumShape, to_sums};
use cbin_nn_kernels::operators::bbconv2d::{self, BbConv2d, group_shape};
use cbin_nn_kernels::operators::bbdepthwiseconv2d::BbDepthwiseConv2d;
use cbin_nn_kernels::operators::bbfc::{BbFc, Dense};
use cbin_nn_kernels::operators::bbpointwiseconv2d::BbPointwiseConv2d;
use cbin_nn_kernels::operators::bbqfc::BbqFc;
use cbin_nn_kernels::operators::bmaxpool2d::BMaxPool2d;
use cbin_nn_kernels::operators::bqqfc::BqqFc;
use cbin_nn_kernels::operators::qbconv2d::{Affine, QbConv2d, Weights};
use cbin_nn_kernels::operators::qqconv2d::QqConv2d;
use cbin_nn_kernels::shape::{Conv2dGeometry, Padding, Shape, Window};
use cbin_nn_kernels::{ArgumentError, Kernel};

use crate::aligned::AlignedBytes;
use crate::format::{
    ALIGNMENT, CONSTANTS, CRC, CRC_FROM, DType, FLAG_FLOAT_OUTPUT, FLAG_ONE_PADDING, Header, Kind, Layout,
    MAGIC, MAX_ARENA, MAX_OPERATORS, NONE, OperatorRecord, Place, Span, TensorRecord, VERSION, WindowRecord,
    align, grid_code, slot, storage_bytes,
};
use crate::operator::Operator;
use crate::plan::{Buffer, plan};
use crate::{FormatError, Model, RunError};

/// Why a model can't be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A layer's shapes or parameters do not fit together.
    #[error("layer `{layer}`: {error}")]
    Argument {
        /// The operator's name.
        layer: String,
        /// What the kernel objects to.
        error: ArgumentError,
    },
    /// A layer reads a tensor that no earlier operator writes.
    #[error("layer `{layer}`: its input does not exist yet")]
    UnknownInput {
        /// The operator's name.
        layer: String,
    },
    /// A layer reads a tensor of another element type.
    #[error("layer `{layer}`: its input is {got}, expected {expected}")]
    InputType {
        /// The operator's name.
        layer: String,
        /// Type the operator reads.
        expected: &'static str,
        /// Type of the tensor.
        got: &'static str,
    },
    /// A window has a side above 65535.
    #[error("layer `{layer}`: a kernel, stride, dilation or padding is too large for the file format")]
    Window {
        /// The operator's name.
        layer: String,
    },
    /// No operator, or more than the format holds.
    #[error("a model needs between 1 and {MAX_OPERATORS} operators, this one has {got}")]
    OperatorCount {
        /// Operators given.
        got: usize,
    },
    /// The model is larger than the format holds.
    #[error("the model does not fit the file format: {what} is above its limit")]
    TooLarge {
        /// What is too large.
        what: &'static str,
    },
    /// The finished file was rejected by the reader: a bug of this crate.
    #[error("internal error: the written model is rejected by its own reader: {0}")]
    Rejected(#[from] FormatError),
    /// The finished file does not run: a bug of this crate.
    #[error("internal error: the written model does not run: {0}")]
    Failed(#[from] RunError),
}

/// An activation tensor of a model being built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorId(pub(crate) u32);

/// Rules of a layer, owned. `flip` is packed; see [`cbin_nn_kernels::epilogue::Rules::new`] for the lengths.
#[derive(Debug, Clone)]
pub struct RulesSpec {
    /// The plane that the rules follow.
    pub grid: Grid,
    /// Smallest accumulators inside.
    pub lo: Vec<i32>,
    /// Largest accumulators inside.
    pub hi: Vec<i32>,
    /// Packed flips.
    pub flip: Vec<u32>,
}

/// A fused max-pool.
#[derive(Debug, Clone)]
pub struct PoolSpec {
    /// Window on the convolution's plane.
    pub window: Window,
    /// Veto rules.
    pub veto: Option<RulesSpec>,
    /// Packed bits of one pixel.
    pub invert: Option<Vec<u32>>,
}

/// What an operator does; weights are packed in the canonical layout.
#[derive(Debug, Clone)]
pub enum OperatorSpec {
    /// 8-bit input, 1-bit weights.
    QbConv2d {
        /// `[filters][taps][words]`.
        weights: Vec<u32>,
        /// Output channels.
        filters: usize,
        /// Kernel window.
        window: Window,
        /// Integer meaning of the input bytes.
        affine: Affine,
        /// Empty, or an offset for each input channel in place of `affine.add`.
        channel_adds: Vec<i32>,
        /// Layout of the weights in the file; as byte masks where [`Layout::PixelSums`] has no fast kernel.
        layout: Layout,
        /// Rules.
        rules: RulesSpec,
        /// Fused pool.
        pool: Option<PoolSpec>,
    },
    /// 8-bit input, 8-bit weights.
    QqConv2d {
        /// `[filters][taps][channels]`.
        weights: ByteWeights,
        /// Output channels.
        filters: usize,
        /// Kernel window.
        window: Window,
        /// Integer meaning of the input bytes.
        affine: Affine,
        /// Empty, or an offset for each input channel in place of `affine.add`.
        channel_adds: Vec<i32>,
        /// Rules.
        rules: RulesSpec,
        /// Fused pool.
        pool: Option<PoolSpec>,
    },
    /// Packed input, 1-bit weights, 1 x 1 kernel without padding.
    BbPointwiseConv2d {
        /// `[filters][words]`.
        weights: Vec<u32>,
        /// Output channels.
        filters: usize,
        /// Vertical and horizontal step.
        strides: [usize; 2],
        /// Rules.
        rules: RulesSpec,
        /// Fused pool.
        pool: Option<PoolSpec>,
    },
    /// Packed input, 1-bit weights, one filter a channel.
    BbDepthwiseConv2d {
        /// `[taps][words]`.
        weights: Vec<u32>,
        /// Kernel window.
        window: Window,
        /// Value of taps outside.
        padding: Padding,
        /// Rules.
        rules: RulesSpec,
        /// Fused pool.
        pool: Option<PoolSpec>,
    },
    /// Packed input, 1-bit weights.
    BbConv2d {
        /// `[filters][taps][words]`.
        weights: Vec<u32>,
        /// Output channels.
        filters: usize,
        /// Kernel window.
        window: Window,
        /// Value of taps outside.
        padding: Padding,
        /// The file holds the weights by output channel, with this mask of input channels that are stored
        /// inverted (one packed pixel); `None`: in the canonical layout.
        by_output_channel: Option<Vec<u32>>,
        /// Rules.
        rules: RulesSpec,
        /// Fused pool.
        pool: Option<PoolSpec>,
    },
    /// Max-pool of packed bits.
    BMaxPool2d {
        /// Pool window.
        window: Window,
        /// Packed bits of one pixel.
        use_and: Option<Vec<u32>>,
    },
    /// Fully connected to packed bits.
    BbFc {
        /// `[units][words of the input]`.
        weights: Vec<u32>,
        /// Units.
        units: usize,
        /// One rule a unit.
        rules: RulesSpec,
    },
    /// Fully connected to integers.
    BbqFc {
        /// `[units][words of the input]`.
        weights: Vec<u32>,
        /// Units.
        units: usize,
        /// One row of `units` factors, or two with a knee.
        mul: Vec<i64>,
        /// As `mul`.
        add: Vec<i64>,
        /// Empty, or one value a unit.
        knee: Vec<i32>,
        /// Right shift.
        shift: u32,
        /// `I8`, `I16` or `I32`.
        dtype: DType,
        /// One output step in the source network's units.
        scale: f64,
    },
    /// Fully connected to integers, 8-bit weights.
    BqqFc {
        /// `[units][features]`.
        weights: Vec<i8>,
        /// Units.
        units: usize,
        /// As in [`BbqFc`](Self::BbqFc).
        mul: Vec<i64>,
        /// As `mul`.
        add: Vec<i64>,
        /// Empty, or one value a unit.
        knee: Vec<i32>,
        /// Right shift.
        shift: u32,
        /// `I8`, `I16` or `I32`.
        dtype: DType,
        /// One output step in the source network's units.
        scale: f64,
    },
}

pub(crate) struct Activation {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Shape,
    scale: f64,
}

struct Constant {
    name: String,
    dtype: DType,
    layout: Layout,
    shape: [u32; 4],
    bytes: Vec<u8>,
}

pub(crate) struct Draft {
    pub(crate) name: String,
    pub(crate) spec: OperatorSpec,
    pub(crate) record: OperatorRecord,
    scratch_bytes: usize,
    image_gap: Option<usize>,
}

/// The weights of a `qqconv2d`.
#[derive(Debug, Clone)]
pub enum ByteWeights {
    /// 8-bit.
    I8(Vec<i8>),
    /// 16-bit, where 8 would change real weights too much.
    I16(Vec<i16>),
}

/// A model being built, operator by operator, in execution order.
pub struct Builder {
    pub(crate) name: String,
    pub(crate) activations: Vec<Activation>,
    constants: Vec<Constant>,
    pub(crate) operators: Vec<Draft>,
}

impl Builder {
    /// A model with one input of type `dtype` ([`DType::U8`] or [`DType::Bits`]).
    pub fn new(name: &str, input_name: &str, dtype: DType, shape: Shape) -> Self {
        let input = Activation { name: input_name.to_owned(), dtype, shape, scale: 1.0 };
        Self { name: name.to_owned(), activations: vec![input], constants: Vec::new(), operators: Vec::new() }
    }

    /// The model's input.
    pub fn input(&self) -> TensorId {
        TensorId(0)
    }

    /// The shape of a tensor.
    pub fn shape(&self, tensor: TensorId) -> Option<&Shape> {
        self.activations.get(tensor.0 as usize).map(|a| &a.shape)
    }

    /// Appends an operator that reads `input`; its output is the returned tensor, named `output_name`.
    ///
    /// # Errors
    /// [`BuildError`] naming the layer; the builder is then as it was before the call.
    pub fn operator(
        &mut self,
        name: &str,
        input: TensorId,
        output_name: &str,
        spec: OperatorSpec,
    ) -> Result<TensorId, BuildError> {
        let constants = self.constants.len();
        let result = self.append(name, input, output_name, spec);
        if result.is_err() {
            self.constants.truncate(constants);
        }
        result
    }

    fn append(
        &mut self,
        name: &str,
        input: TensorId,
        output_name: &str,
        spec: OperatorSpec,
    ) -> Result<TensorId, BuildError> {
        let layer = || name.to_owned();
        let argument = |error| BuildError::Argument { layer: layer(), error };
        if self.operators.len() == MAX_OPERATORS {
            return Err(BuildError::OperatorCount { got: MAX_OPERATORS + 1 });
        }
        let source =
            self.activations.get(input.0 as usize).ok_or(BuildError::UnknownInput { layer: layer() })?;
        let bytes = matches!(spec, OperatorSpec::QbConv2d { .. } | OperatorSpec::QqConv2d { .. });
        let expected = if bytes { DType::U8 } else { DType::Bits };
        if source.dtype != expected {
            let (expected, got) = (expected.name(), source.dtype.name());
            return Err(BuildError::InputType { layer: layer(), expected, got });
        }
        let source = source.shape;
        let window_record = |window: Window| {
            WindowRecord::try_from(window).map_err(|_| BuildError::Window { layer: layer() })
        };
        let mut record = OperatorRecord {
            inputs: [input.0, NONE],
            constants: [NONE; CONSTANTS],
            channel_adds: NONE,
            ..OperatorRecord::zeroed()
        };
        let (mut dtype, mut scale) = (DType::Bits, 1.0);
        // Each arm builds the kernel's own operator, which derives the output's shape and the scratch, and
        // finds what does not fit; then it stores the parameters.
        let (output, scratch_bytes, image_gap) = match &spec {
            OperatorSpec::QbConv2d {
                weights,
                filters,
                window,
                affine,
                channel_adds,
                layout,
                rules,
                pool,
            } => {
                record.kind = Kind::QbConv2d.code();
                record.window = window_record(*window)?;
                (record.input_mul, record.input_add) = (affine.mul, affine.add);
                let geometry = Conv2dGeometry::new(source, *window, *filters).map_err(argument)?;
                let (rules_view, pool_view) =
                    tail_views(&geometry, rules, pool.as_ref()).map_err(argument)?;
                let build = |weights| {
                    QbConv2d::new(geometry, *affine, weights, rules_view, pool_view)
                        .and_then(|kernel| kernel.with_channel_adds(channel_adds))
                };
                let sums = SumShape::new(window.kernel, source.channels());
                let rewritten;
                let (layout, stored, view) = match layout {
                    Layout::Canonical => (Layout::Canonical, weights, Weights::Packed(weights)),
                    Layout::ByOutputChannel => {
                        return Err(argument(ArgumentError::Value { argument: "weights layout" }));
                    }
                    Layout::PixelSums | Layout::ByteMask => {
                        let fits = build(Weights::Packed(weights)).map_err(argument)?.fits_sums();
                        if let Some(shape) = sums.filter(|_| fits && *layout == Layout::PixelSums) {
                            let mut words = vec![0; filters * shape.filter_words()];
                            to_sums(&shape, weights, &mut words).map_err(argument)?;
                            rewritten = words;
                            (Layout::PixelSums, &rewritten, Weights::PixelSums(&rewritten))
                        } else {
                            let mut masks = vec![0; filters * byte_mask::filter_words(&geometry)];
                            to_byte_mask(&geometry, weights, &mut masks).map_err(argument)?;
                            rewritten = masks;
                            (Layout::ByteMask, &rewritten, Weights::ByteMask(&rewritten))
                        }
                    }
                };
                let kernel = build(view).map_err(argument)?;
                self.channel_adds(name, &mut record, channel_adds)?;
                let shape = filter_shape(&geometry);
                record.constants[slot::WEIGHTS] =
                    self.constant(name, "weights", DType::Bits, layout, shape, bytemuck::cast_slice(stored))?;
                self.tail(name, &mut record, geometry.output(), &kernel.output(), rules, pool.as_ref())?;
                measure(&Operator::QbConv2d(kernel))
            }
            OperatorSpec::BbConv2d { weights, filters, window, padding, by_output_channel, rules, pool } => {
                record.kind = Kind::BbConv2d.code();
                record.flags = if *padding == Padding::One { FLAG_ONE_PADDING } else { 0 };
                record.window = window_record(*window)?;
                let geometry = Conv2dGeometry::new(source, *window, *filters).map_err(argument)?;
                let (rules_view, pool_view) =
                    tail_views(&geometry, rules, pool.as_ref()).map_err(argument)?;
                let rewritten;
                let (layout, stored, view) = match by_output_channel {
                    None => (Layout::Canonical, weights, bbconv2d::Weights::Packed(weights)),
                    Some(mask) => {
                        let mut words = vec![0; group_shape(&geometry).words()];
                        to_groups(&group_shape(&geometry), weights, mask, &mut words).map_err(argument)?;
                        rewritten = words;
                        (Layout::ByOutputChannel, &rewritten, bbconv2d::Weights::ByOutputChannel(&rewritten))
                    }
                };
                let kernel =
                    BbConv2d::new(geometry, *padding, view, rules_view, pool_view).map_err(argument)?;
                let shape = filter_shape(&geometry);
                record.constants[slot::WEIGHTS] =
                    self.constant(name, "weights", DType::Bits, layout, shape, bytemuck::cast_slice(stored))?;
                self.tail(name, &mut record, geometry.output(), &kernel.output(), rules, pool.as_ref())?;
                measure(&Operator::BbConv2d(kernel))
            }
            OperatorSpec::QqConv2d { weights, filters, window, affine, channel_adds, rules, pool } => {
                record.kind = Kind::QqConv2d.code();
                record.window = window_record(*window)?;
                (record.input_mul, record.input_add) = (affine.mul, affine.add);
                let geometry = Conv2dGeometry::new(source, *window, *filters).map_err(argument)?;
                let (rules_view, pool_view) =
                    tail_views(&geometry, rules, pool.as_ref()).map_err(argument)?;
                let kernel = match weights {
                    ByteWeights::I8(w) => QqConv2d::new(geometry, *affine, w, rules_view, pool_view),
                    ByteWeights::I16(w) => QqConv2d::new_wide(geometry, *affine, w, rules_view, pool_view),
                };
                let kernel =
                    kernel.and_then(|kernel| kernel.with_channel_adds(channel_adds)).map_err(argument)?;
                self.channel_adds(name, &mut record, channel_adds)?;
                let shape = filter_shape(&geometry);
                record.constants[slot::WEIGHTS] = match weights {
                    ByteWeights::I8(w) => self.canonical(name, "weights", DType::I8, shape, w)?,
                    ByteWeights::I16(w) => self.canonical(name, "weights", DType::I16, shape, w)?,
                };
                self.tail(name, &mut record, geometry.output(), &kernel.output(), rules, pool.as_ref())?;
                measure(&Operator::QqConv2d(kernel))
            }
            OperatorSpec::BbPointwiseConv2d { weights, filters, strides, rules, pool } => {
                record.kind = Kind::BbPointwiseConv2d.code();
                let window = Window { strides: *strides, ..Window::of(1, 1) };
                record.window = window_record(window)?;
                let geometry = Conv2dGeometry::new(source, window, *filters).map_err(argument)?;
                let (rules_view, pool_view) =
                    tail_views(&geometry, rules, pool.as_ref()).map_err(argument)?;
                let kernel =
                    BbPointwiseConv2d::new(geometry, weights, rules_view, pool_view).map_err(argument)?;
                let shape = filter_shape(&geometry);
                record.constants[slot::WEIGHTS] =
                    self.canonical(name, "weights", DType::Bits, shape, weights)?;
                self.tail(name, &mut record, geometry.output(), &kernel.output(), rules, pool.as_ref())?;
                measure(&Operator::BbPointwiseConv2d(kernel))
            }
            OperatorSpec::BbDepthwiseConv2d { weights, window, padding, rules, pool } => {
                record.kind = Kind::BbDepthwiseConv2d.code();
                record.flags = if *padding == Padding::One { FLAG_ONE_PADDING } else { 0 };
                record.window = window_record(*window)?;
                let geometry = Conv2dGeometry::new(source, *window, source.channels()).map_err(argument)?;
                let (rules_view, pool_view) =
                    tail_views(&geometry, rules, pool.as_ref()).map_err(argument)?;
                let kernel = BbDepthwiseConv2d::new(geometry, *padding, weights, rules_view, pool_view)
                    .map_err(argument)?;
                let shape = [1, window.kernel[0] as u32, window.kernel[1] as u32, source.channels() as u32];
                record.constants[slot::WEIGHTS] =
                    self.canonical(name, "weights", DType::Bits, shape, weights)?;
                self.tail(name, &mut record, geometry.output(), &kernel.output(), rules, pool.as_ref())?;
                measure(&Operator::BbDepthwiseConv2d(kernel))
            }
            OperatorSpec::BMaxPool2d { window, use_and } => {
                record.kind = Kind::BMaxPool2d.code();
                record.window = window_record(*window)?;
                let kernel = BMaxPool2d::new(source, *window, use_and.as_deref()).map_err(argument)?;
                if let Some(use_and) = use_and {
                    let shape = pixel_shape(source.channels());
                    record.constants[slot::USE_AND] =
                        self.canonical(name, "use_and", DType::Bits, shape, use_and)?;
                }
                measure(&Operator::BMaxPool2d(kernel))
            }
            OperatorSpec::BbFc { weights, units, rules } => {
                record.kind = Kind::BbFc.code();
                let dense = Dense::new(source, *units, weights).map_err(argument)?;
                let kernel = BbFc::new(dense, rules.view(*units).map_err(argument)?).map_err(argument)?;
                record.constants[slot::WEIGHTS] =
                    self.canonical(name, "weights", DType::Bits, dense_shape(&source, *units), weights)?;
                self.rules(name, &mut record, slot::LO, rules, &kernel.output(), &kernel.output())?;
                measure(&Operator::BbFc(kernel))
            }
            OperatorSpec::BbqFc {
                weights,
                units,
                mul,
                add,
                knee,
                shift,
                dtype: output_dtype,
                scale: step,
            } => {
                record.kind = Kind::BbqFc.code();
                record.shift = *shift;
                (dtype, scale) = (*output_dtype, *step);
                let dense = Dense::new(source, *units, weights).map_err(argument)?;
                let requantization = Requantization::new(mul, add, knee, *shift).map_err(argument)?;
                let kernel = BbqFc::new(dense, requantization).map_err(argument)?;
                record.constants[slot::WEIGHTS] =
                    self.canonical(name, "weights", DType::Bits, dense_shape(&source, *units), weights)?;
                self.requantization(name, &mut record, *units, mul, add, knee)?;
                measure(&Operator::BbqFc(kernel))
            }
            OperatorSpec::BqqFc {
                weights,
                units,
                mul,
                add,
                knee,
                shift,
                dtype: output_dtype,
                scale: step,
            } => {
                record.kind = Kind::BqqFc.code();
                record.shift = *shift;
                (dtype, scale) = (*output_dtype, *step);
                let requantization = Requantization::new(mul, add, knee, *shift).map_err(argument)?;
                let kernel = BqqFc::new(source, *units, weights, requantization).map_err(argument)?;
                record.constants[slot::WEIGHTS] =
                    self.canonical(name, "weights", DType::I8, dense_shape(&source, *units), weights)?;
                self.requantization(name, &mut record, *units, mul, add, knee)?;
                measure(&Operator::BqqFc(kernel))
            }
        }
        .map_err(argument)?;
        self.operators.push(Draft { name: name.to_owned(), spec, record, scratch_bytes, image_gap });
        self.activations.push(Activation { name: output_name.to_owned(), dtype, shape: output, scale });
        Ok(TensorId(self.operators.len() as u32))
    }

    /// Stores the fixed-point function of a head's units.
    fn requantization(
        &mut self,
        name: &str,
        record: &mut OperatorRecord,
        units: usize,
        mul: &[i64],
        add: &[i64],
        knee: &[i32],
    ) -> Result<(), BuildError> {
        let rows = if knee.is_empty() { 1 } else { 2 };
        let shape = [1, 1, rows, units as u32];
        record.constants[slot::MUL] = self.canonical(name, "mul", DType::I64, shape, mul)?;
        record.constants[slot::ADD] = self.canonical(name, "add", DType::I64, shape, add)?;
        if !knee.is_empty() {
            let shape = pixel_shape(units);
            record.constants[slot::KNEE] = self.canonical(name, "knee", DType::I32, shape, knee)?;
        }
        Ok(())
    }

    /// Stores the offsets of the input channels, where there are any.
    fn channel_adds(
        &mut self,
        name: &str,
        record: &mut OperatorRecord,
        adds: &[i32],
    ) -> Result<(), BuildError> {
        if !adds.is_empty() {
            let shape = pixel_shape(adds.len());
            record.channel_adds = self.canonical(name, "channel_adds", DType::I32, shape, adds)?;
        }
        Ok(())
    }

    fn tail(
        &mut self,
        name: &str,
        record: &mut OperatorRecord,
        conv: &Shape,
        output: &Shape,
        rules: &RulesSpec,
        pool: Option<&PoolSpec>,
    ) -> Result<(), BuildError> {
        record.rule_grid = grid_code(rules.grid);
        self.rules(name, record, slot::LO, rules, conv, output)?;
        let Some(pool) = pool else { return Ok(()) };
        record.pool =
            WindowRecord::try_from(pool.window).map_err(|_| BuildError::Window { layer: name.to_owned() })?;
        if let Some(veto) = &pool.veto {
            record.veto_grid = grid_code(veto.grid);
            self.rules(name, record, slot::VETO_LO, veto, conv, output)?;
        }
        if let Some(invert) = &pool.invert {
            let shape = pixel_shape(conv.channels());
            record.constants[slot::INVERT] = self.canonical(name, "invert", DType::Bits, shape, invert)?;
        }
        Ok(())
    }

    fn rules(
        &mut self,
        name: &str,
        record: &mut OperatorRecord,
        first: usize,
        rules: &RulesSpec,
        conv: &Shape,
        output: &Shape,
    ) -> Result<(), BuildError> {
        let (height, width) = match rules.grid {
            Grid::Channel => (1, 1),
            Grid::Conv => (conv.height(), conv.width()),
            Grid::Output => (output.height(), output.width()),
        };
        let shape = [1, height as u32, width as u32, conv.channels() as u32];
        let names =
            if first == slot::LO { ["lo", "hi", "flip"] } else { ["veto_lo", "veto_hi", "veto_flip"] };
        record.constants[first] = self.canonical(name, names[0], DType::I32, shape, &rules.lo)?;
        record.constants[first + 1] = self.canonical(name, names[1], DType::I32, shape, &rules.hi)?;
        record.constants[first + 2] = self.canonical(name, names[2], DType::Bits, shape, &rules.flip)?;
        Ok(())
    }

    fn canonical<T: bytemuck::NoUninit>(
        &mut self,
        layer: &str,
        part: &'static str,
        dtype: DType,
        shape: [u32; 4],
        elements: &[T],
    ) -> Result<u32, BuildError> {
        self.constant(layer, part, dtype, Layout::Canonical, shape, bytemuck::cast_slice(elements))
    }

    /// Adds a constant and returns its index among the constants; `finish` moves it behind the activations.
    fn constant(
        &mut self,
        layer: &str,
        part: &'static str,
        dtype: DType,
        layout: Layout,
        shape: [u32; 4],
        bytes: &[u8],
    ) -> Result<u32, BuildError> {
        let argument = |error| BuildError::Argument { layer: layer.to_owned(), error };
        let expected = storage_bytes(dtype, layout, shape).ok_or(argument(ArgumentError::TooLarge {
            argument: part,
            limit: cbin_nn_kernels::shape::MAX_ELEMENTS,
        }))?;
        if bytes.len() != expected {
            return Err(argument(ArgumentError::Length { argument: part, expected, got: bytes.len() }));
        }
        let name = alloc::format!("{layer}/{part}");
        self.constants.push(Constant { name, dtype, layout, shape, bytes: bytes.to_owned() });
        Ok(self.constants.len() as u32 - 1)
    }

    /// Plans the arena and writes the file. `float_output`: the host multiplies the output by its scale.
    ///
    /// # Errors
    /// [`BuildError`] naming what is wrong with the whole; layers were checked as they were added.
    pub fn finish(self, float_output: bool) -> Result<Vec<u8>, BuildError> {
        self.write(float_output)
    }

    pub(crate) fn write(&self, float_output: bool) -> Result<Vec<u8>, BuildError> {
        let count = self.operators.len();
        if count == 0 {
            return Err(BuildError::OperatorCount { got: 0 });
        }
        let (buffers, offsets, arena_bytes) = self.plan()?;
        let in_place = self.plan_in_place(&buffers, &offsets, arena_bytes);
        let mut strings = Strings::default();
        let mut data = Vec::new();
        let mut operators = Vec::with_capacity(count);
        for (index, draft) in self.operators.iter().enumerate() {
            let mut record = draft.record;
            record.name = strings.add(&draft.name);
            record.scratch_offset = offsets[index] as u32;
            record.scratch_bytes = buffers[index].bytes as u32;
            for constant in record.constants.iter_mut().filter(|c| **c != NONE) {
                *constant += count as u32 + 1;
            }
            record.channel_adds = match record.channel_adds {
                NONE => 0,
                constant => constant + count as u32 + 1,
            };
            operators.push(record);
        }
        let mut tensors = Vec::with_capacity(count + 1 + self.constants.len());
        for (index, activation) in self.activations.iter().enumerate() {
            let (place, offset) = match index {
                0 => (Place::Input, 0),
                _ if index == count => (Place::Output, 0),
                _ => (Place::Arena, offsets[count + index - 1]),
            };
            tensors.push(TensorRecord {
                dtype: activation.dtype.code(),
                place: place.code(),
                offset: offset as u32,
                shape: image_shape(&activation.shape),
                scale: activation.scale,
                name: strings.add(&activation.name),
                ..TensorRecord::zeroed()
            });
        }
        for constant in &self.constants {
            tensors.push(TensorRecord {
                dtype: constant.dtype.code(),
                place: Place::Data.code(),
                layout: constant.layout.code(),
                offset: u32::try_from(data.len())
                    .map_err(|_| BuildError::TooLarge { what: "the data section" })?,
                shape: constant.shape,
                scale: 1.0,
                name: strings.add(&constant.name),
                ..TensorRecord::zeroed()
            });
            data.extend_from_slice(&constant.bytes);
            data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        }
        let name = strings.add(&self.name);
        let mut header = Header {
            magic: MAGIC,
            version: VERSION,
            operators: count as u32,
            tensors: tensors.len() as u32,
            string_bytes: strings.0.len() as u32,
            data_bytes: data.len() as u32,
            arena_bytes: arena_bytes as u32,
            flags: if float_output { FLAG_FLOAT_OUTPUT } else { 0 },
            name,
            in_place_bytes: in_place.bytes as u32,
            image_offset: in_place.image as u32,
            image_scratch_offset: in_place.scratch as u32,
            ..Header::zeroed()
        };
        strings.0.resize(align(strings.0.len() as u64) as usize, 0);
        let mut bytes = bytemuck::bytes_of(&header).to_vec();
        bytes.extend_from_slice(bytemuck::cast_slice(&operators));
        bytes.extend_from_slice(bytemuck::cast_slice(&tensors));
        bytes.extend_from_slice(&strings.0);
        bytes.extend_from_slice(&data);
        header.file_bytes =
            u32::try_from(bytes.len()).map_err(|_| BuildError::TooLarge { what: "the file" })?;
        bytes[..size_of::<Header>()].copy_from_slice(bytemuck::bytes_of(&header));
        seal(&mut bytes);
        Model::new_checked(&AlignedBytes::copy_of(&bytes))?;
        Ok(bytes)
    }

    /// The arena's buffers and their offsets: scratch of every operator, then the activations between
    /// operators.
    fn plan(&self) -> Result<(Vec<Buffer>, Vec<usize>, usize), BuildError> {
        let count = self.operators.len();
        let scratch = self.operators.iter().enumerate().map(|(index, draft)| Buffer {
            bytes: draft.scratch_bytes,
            first: index,
            last: index,
        });
        // Tensor t is written by operator t - 1 and lives until its last reader.
        let activations = (1..count).map(|tensor| Buffer {
            bytes: self.activations[tensor].storage_bytes(),
            first: tensor - 1,
            last: self
                .operators
                .iter()
                .rposition(|draft| draft.record.inputs.contains(&(tensor as u32)))
                .unwrap_or(tensor - 1),
        });
        let buffers: Vec<Buffer> = scratch.chain(activations).collect();
        let (mut offsets, mut arena_bytes) = plan(&buffers, None);
        if self.operators[0].image_gap.is_some() && count > 1 {
            // The image lies behind the first activation, which therefore comes first where that costs nothing.
            let (first, bytes) = plan(&buffers, Some(count));
            if bytes <= arena_bytes {
                (offsets, arena_bytes) = (first, bytes);
            }
        }
        if arena_bytes > MAX_ARENA {
            return Err(BuildError::TooLarge { what: "the arena" });
        }
        Ok((buffers, offsets, arena_bytes))
    }

    /// The plan for runs with the image in the model's memory, all 0 where that takes no less than arena and image do.
    fn plan_in_place(&self, buffers: &[Buffer], offsets: &[usize], arena_bytes: usize) -> PlanInPlace {
        let count = self.operators.len();
        let is_read_again = self.operators[1..].iter().any(|draft| draft.record.inputs.contains(&0));
        let Some(gap) = self.operators[0].image_gap.filter(|_| count > 1 && !is_read_again) else {
            return PlanInPlace::default();
        };
        let (output, image_bytes) = (offsets[count], self.activations[0].storage_bytes());
        let image = output + gap;
        let end = (output + buffers[count].bytes).max(image + image_bytes).next_multiple_of(4);
        // Before the first activation or behind the image.
        let scratch = if buffers[0].bytes <= output { 0 } else { end };
        let bytes = arena_bytes.max(end).max(scratch + buffers[0].bytes);
        if bytes >= arena_bytes + image_bytes || bytes > MAX_ARENA {
            return PlanInPlace::default();
        }
        PlanInPlace { bytes, image, scratch }
    }
}

/// Where the image and the first operator's scratch lie for runs in place, and the memory for all.
#[derive(Default)]
struct PlanInPlace {
    bytes: usize,
    image: usize,
    scratch: usize,
}

/// Writes the checksum of a finished file into its header.
///
/// # Panics
/// Where `bytes` is shorter than a header.
pub fn seal(bytes: &mut [u8]) {
    let checksum = CRC.checksum(&bytes[CRC_FROM..]);
    bytes[CRC_FROM - 4..CRC_FROM].copy_from_slice(&checksum.to_le_bytes());
}

/// The string section being written; equal names share bytes.
#[derive(Default)]
struct Strings(Vec<u8>);

impl Strings {
    fn add(&mut self, text: &str) -> Span {
        let bytes = text.as_bytes();
        let found =
            if bytes.is_empty() { Some(0) } else { self.0.windows(bytes.len()).position(|w| w == bytes) };
        let offset = found.unwrap_or(self.0.len());
        if found.is_none() {
            self.0.extend_from_slice(bytes);
        }
        Span { offset: offset as u32, bytes: bytes.len() as u32 }
    }
}

impl Activation {
    fn storage_bytes(&self) -> usize {
        storage_bytes(self.dtype, Layout::Canonical, image_shape(&self.shape)).unwrap_or(usize::MAX)
    }
}

impl RulesSpec {
    fn view(&self, channels: usize) -> Result<Rules<'_>, ArgumentError> {
        Rules::new(self.grid, channels, &self.lo, &self.hi, &self.flip)
    }
}

impl PoolSpec {
    fn view(&self, conv: &Shape) -> Result<Pool<'_>, ArgumentError> {
        let veto = self.veto.as_ref().map(|veto| veto.view(conv.channels())).transpose()?;
        Pool::new(conv, self.window, veto, self.invert.as_deref())
    }
}

/// Rules and pool of a convolution as its kernel takes them.
fn tail_views<'s>(
    geometry: &Conv2dGeometry,
    rules: &'s RulesSpec,
    pool: Option<&'s PoolSpec>,
) -> Result<(Rules<'s>, Option<Pool<'s>>), ArgumentError> {
    let conv = geometry.output();
    Ok((rules.view(conv.channels())?, pool.map(|pool| pool.view(conv)).transpose()?))
}

/// Output shape, scratch bytes and image gap of an operator whose parameters are in order.
fn measure(operator: &Operator<'_>) -> Result<(Shape, usize, Option<usize>), ArgumentError> {
    operator.check_contents()?;
    Ok((operator.output(), operator.scratch_bytes(), operator.preferred_input_gap()))
}

fn image_shape(shape: &Shape) -> [u32; 4] {
    [1, shape.height() as u32, shape.width() as u32, shape.channels() as u32]
}

fn pixel_shape(channels: usize) -> [u32; 4] {
    [1, 1, 1, channels as u32]
}

fn filter_shape(geometry: &Conv2dGeometry) -> [u32; 4] {
    let [height, width] = geometry.sliding().window().kernel;
    [geometry.output().channels(), height, width, geometry.input().channels()].map(|d| d as u32)
}

fn dense_shape(input: &Shape, units: usize) -> [u32; 4] {
    [units, input.height(), input.width(), input.channels()].map(|d| d as u32)
}
