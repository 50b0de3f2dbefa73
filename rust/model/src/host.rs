/*!
A model at the full speed of the host: its layers rewritten for vector instructions.

The walk is the board's. What differs is how an operator runs: where the kernels have a layout for sixteen output
channels side by side ([`blocks`](cbin_nn_kernels::host::blocks)), its weights are rewritten when the model is loaded, in
memory alone, and the operator runs on them; any other operator runs as it does on a board. The bytes are the
same either way, which `tests/host.rs` checks for every set of instructions.
*/

use std::fmt;
use std::sync::OnceLock;

use cbin_nn_kernels::host::blocks::{BlockLayer, BlockPlan, Layer, Line};
use cbin_nn_kernels::simd::Simd;

use crate::format::DType;
use crate::operator::{Io, Operator, elements};
use crate::{Model, Observer, RunError};

/// The environment variable that forces a set of instructions.
pub const VARIABLE: &str = "CBIN_NN_KERNELS";

/// Which kernels a host runs: the portable ones, which are a board's, or those of a set of vector instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instructions(Option<Simd>);

/// A name that is no set of instructions of this CPU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{VARIABLE} is {name:?}, which this CPU does not have: use one of {}", names().join(", "))]
pub struct UnknownInstructions {
    /// The name.
    pub name: String,
}

fn names() -> Vec<&'static str> {
    Instructions::available().map(Instructions::name).collect()
}

impl Instructions {
    /// What boards run.
    pub const PORTABLE: Self = Self(None);

    /// All that this CPU can run, slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        std::iter::once(Self::PORTABLE).chain(Simd::available().map(|simd| Self(Some(simd))))
    }

    /// The fastest that this CPU can run. The CPU is asked once.
    pub fn best() -> Self {
        static BEST: OnceLock<Instructions> = OnceLock::new();
        *BEST.get_or_init(|| Self(Simd::best()))
    }

    /// Those with this [`name`](Self::name).
    ///
    /// # Errors
    /// [`UnknownInstructions`], which lists what there is.
    pub fn from_name(name: &str) -> Result<Self, UnknownInstructions> {
        Self::available()
            .find(|instructions| instructions.name() == name)
            .ok_or_else(|| UnknownInstructions { name: name.to_owned() })
    }

    /// Those that the environment variable [`VARIABLE`] names, or the best where it is unset or empty.
    ///
    /// # Errors
    /// As [`from_name`](Self::from_name).
    pub fn from_environment() -> Result<Self, UnknownInstructions> {
        match std::env::var_os(VARIABLE) {
            Some(name) if !name.is_empty() => Self::from_name(&name.to_string_lossy()),
            _ => Ok(Self::best()),
        }
    }

    /// The name that users see: `portable`, `avx2`, `avx512` and so on.
    pub fn name(self) -> &'static str {
        self.0.map_or("portable", Simd::name)
    }
}

impl fmt::Display for Instructions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One layer in the layout of the host.
#[derive(Debug)]
struct HostLayer {
    plan: BlockPlan,
    lines: Vec<Line>,
    words: Vec<u32>,
}

/// The layers of a model that the host runs in a layout of its own.
#[derive(Debug)]
pub struct HostLayers {
    instructions: Instructions,
    /// One an operator; `None` for one that runs as on a board.
    layers: Vec<Option<HostLayer>>,
}

impl HostLayers {
    /// Rewrites what there is a layout for.
    pub fn new(model: &Model<'_>, instructions: Instructions) -> Self {
        let rewrite = |index| {
            instructions.0?;
            let operator = model.operator(index).ok()?;
            let layer = block_layer(&operator)?;
            let plan = BlockPlan::new(layer)?;
            let (mut lines, mut words) = (vec![Line::ZERO; plan.lines()], vec![0; plan.words()]);
            plan.write(layer, &mut lines, &mut words).ok()?;
            Some(HostLayer { plan, lines, words })
        };
        Self { instructions, layers: (0..model.operator_count()).map(rewrite).collect() }
    }

    /// What they were rewritten for.
    pub fn instructions(&self) -> Instructions {
        self.instructions
    }

    /// Whether operator `index` has been rewritten.
    pub fn is_rewritten(&self, index: usize) -> bool {
        self.layers.get(index).is_some_and(Option::is_some)
    }

    /// The working memory of a thread.
    pub fn workspace(&self, model: &Model<'_>) -> Workspace {
        let plans = || self.layers.iter().flatten().map(|layer| &layer.plan);
        let most = |size: fn(&BlockPlan) -> usize| plans().map(size).max().unwrap_or(0);
        Workspace {
            arena: vec![0; model.arena_bytes() / 4],
            plane: vec![0; most(BlockPlan::plane_bytes).div_ceil(4)],
            accumulators: vec![Line::ZERO; most(|plan| if plan.has_rules() { 0 } else { plan.output_len() })],
        }
    }
}

/// What [`HostModel::run`] writes to beside its output.
#[derive(Debug)]
pub struct Workspace {
    arena: Vec<u32>,
    /// A padded input.
    plane: Vec<u32>,
    accumulators: Vec<Line>,
}

impl Workspace {
    /// The arena of the model.
    pub(crate) fn arena(&mut self) -> &mut [u32] {
        &mut self.arena
    }
}

/// A model, its operators and their layers, ready for any number of images.
#[derive(Debug)]
pub struct HostModel<'m> {
    model: Model<'m>,
    layers: &'m HostLayers,
    operators: Vec<Operator<'m>>,
}

impl<'m> HostModel<'m> {
    /// `layers` were made from `model`.
    pub fn new(model: Model<'m>, layers: &'m HostLayers) -> Self {
        let operators = (0..model.operator_count()).map_while(|index| model.operator(index).ok()).collect();
        Self { model, layers, operators }
    }

    /// As [`Model::run`].
    ///
    /// # Errors
    /// As [`Model::run`].
    pub fn run(
        &self,
        input: &[u8],
        output: &mut [u8],
        workspace: &mut Workspace,
        observer: &mut impl Observer,
    ) -> Result<(), RunError> {
        let Workspace { arena, plane, accumulators } = workspace;
        let plane = bytemuck::cast_slice_mut(plane);
        self.model.walk(Some(input), output, arena, observer, |index, io| {
            let operator = self.operators.get(index)?;
            let (Some(layer), Some(simd)) = (self.layers.layers.get(index)?, self.layers.instructions.0)
            else {
                return operator.run(io);
            };
            let Io { input, output, dtype, .. } = io;
            let HostLayer { plan, lines, words } = layer;
            let layer = BlockLayer::new(plan, lines, words).ok()?;
            if plan.has_rules() {
                let output = elements(output)?;
                let plane = plane.get_mut(..plan.plane_bytes())?;
                return layer.run(simd, input, output, plane).ok();
            }
            let accumulators = accumulators.get_mut(..plan.output_len())?;
            layer.accumulators(simd, input, accumulators).ok()?;
            requantize(operator, accumulators, output, dtype)
        })
    }
}

/// The layer that the kernels have a layout for.
fn block_layer<'o, 'a>(operator: &'o Operator<'a>) -> Option<Layer<'o, 'a>> {
    match operator {
        Operator::QbConv2d(operator) => Some(Layer::QbConv2d(operator)),
        Operator::QqConv2d(operator) => Some(Layer::QqConv2d(operator)),
        Operator::BbConv2d(operator) => Some(Layer::BbConv2d(operator)),
        Operator::BbPointwiseConv2d(operator) => Some(Layer::BbPointwiseConv2d(operator)),
        Operator::BbFc(operator) => Some(Layer::BbFc(operator)),
        Operator::BbqFc(operator) => Some(Layer::BbqFc(operator)),
        Operator::BbDepthwiseConv2d(operator) => Some(Layer::BbDepthwiseConv2d(operator)),
        Operator::BMaxPool2d(_) | Operator::BqqFc(_) => None,
    }
}

/// From accumulators in lanes to integers of type `dtype`.
fn requantize(operator: &Operator<'_>, lines: &[Line], output: &mut [u8], dtype: DType) -> Option<()> {
    let Operator::BbqFc(operator) = operator else { return None };
    match dtype {
        DType::I8 => BlockLayer::requantize::<i8>(operator, lines, elements(output)?).ok(),
        DType::I16 => BlockLayer::requantize::<i16>(operator, lines, elements(output)?).ok(),
        DType::I32 => BlockLayer::requantize::<i32>(operator, lines, elements(output)?).ok(),
        _ => None,
    }
}
