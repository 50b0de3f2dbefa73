//! `build_model`: from the dataclasses of `cbin_nn.operators` to the bytes of a `.cbn` file.

use std::collections::HashMap;

use cbin_nn_kernels::bits::{pack, words_for};
use cbin_nn_kernels::epilogue::Grid;
use cbin_nn_kernels::operators::qbconv2d::Affine;
use cbin_nn_kernels::shape::{Padding, Shape, Window};
use cbin_nn_model::format::{DType, Layout};
use cbin_nn_model::writer::{Builder, ByteWeights, OperatorSpec, PoolSpec, RulesSpec};
use numpy::PyReadonlyArrayDyn;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors;

#[derive(FromPyObject)]
struct PyWindow {
    kernel: [usize; 2],
    strides: [usize; 2],
    dilation: [usize; 2],
    padding: [usize; 4],
}

#[derive(FromPyObject)]
struct PyRules<'py> {
    lo: PyReadonlyArrayDyn<'py, i32>,
    hi: PyReadonlyArrayDyn<'py, i32>,
    flip: PyReadonlyArrayDyn<'py, bool>,
    grid: String,
}

#[derive(FromPyObject)]
struct PyPool<'py> {
    window: PyWindow,
    veto: Option<PyRules<'py>>,
    invert: Option<PyReadonlyArrayDyn<'py, bool>>,
}

#[derive(FromPyObject)]
struct PyConvolution<'py> {
    weights: PyReadonlyArrayDyn<'py, i8>,
    window: PyWindow,
    rules: PyRules<'py>,
    pool: Option<PyPool<'py>>,
}

#[derive(FromPyObject)]
struct PyRequantization<'py> {
    mul_above: PyReadonlyArrayDyn<'py, i64>,
    add_above: PyReadonlyArrayDyn<'py, i64>,
    mul_below: PyReadonlyArrayDyn<'py, i64>,
    add_below: PyReadonlyArrayDyn<'py, i64>,
    knee: PyReadonlyArrayDyn<'py, i32>,
    shift: u32,
    dtype: String,
    scale: f64,
}

/// The bytes of the `.cbn` file of a `cbin_nn.operators.LoweredModel`: with weights laid out as the operators say, or, where
/// there are sample inputs, as suits boards best.
#[pyfunction]
#[pyo3(signature = (lowered, samples=None))]
pub(crate) fn build_model<'py>(
    py: Python<'py>,
    lowered: &Bound<'py, PyAny>,
    samples: Option<&[u8]>,
) -> PyResult<Bound<'py, PyBytes>> {
    let name: String = lowered.getattr("name")?.extract()?;
    let input: String = lowered.getattr("input")?.extract()?;
    let [height, width, channels]: [usize; 3] = lowered.getattr("input_shape")?.extract()?;
    let float_output: bool = lowered.getattr("float_output")?.extract()?;
    let shape = Shape::new(height, width, channels)
        .map_err(|e| errors::argument("bad-shape", format!("input `{input}`: {e}")))?;
    let dtype: String = lowered.getattr("input_dtype")?.extract()?;
    let dtype =
        DType::from_name(&dtype).filter(|dtype| matches!(dtype, DType::U8 | DType::Bits)).ok_or_else(
            || errors::argument("bad-dtype", format!("input `{input}`: type `{dtype}` is no input type")),
        )?;
    let mut builder = Builder::new(&name, &input, dtype, shape);
    let mut tensors = HashMap::from([(input, builder.input())]);
    for operator in lowered.getattr("operators")?.try_iter()? {
        let operator = operator?;
        let name: String = operator.getattr("name")?.extract()?;
        let input: String = operator.getattr("input")?.extract()?;
        let output: String = operator.getattr("output")?.extract()?;
        let Some(&source) = tensors.get(&input) else {
            let message = format!("layer `{name}`: its input `{input}` does not exist yet");
            return Err(errors::argument("unknown-input", message));
        };
        let channels = builder.shape(source).map_or(1, Shape::channels);
        let spec = operator_spec(&operator, &name, channels)?;
        let tensor = builder.operator(&name, source, &output, spec).map_err(errors::build)?;
        tensors.insert(output, tensor);
    }
    let bytes = py.detach(|| match samples {
        None => builder.finish(float_output),
        Some(samples) => builder.finish_for_boards(float_output, samples),
    });
    let bytes = bytes.map_err(errors::build)?;
    Ok(PyBytes::new(py, &bytes))
}

fn operator_spec(operator: &Bound<'_, PyAny>, name: &str, input_channels: usize) -> PyResult<OperatorSpec> {
    let kind: String = operator.getattr("kind")?.extract()?;
    match kind.as_str() {
        "qbconv2d" => {
            let parts: PyConvolution<'_> = operator.extract()?;
            let affine = Affine {
                mul: operator.getattr("input_mul")?.extract()?,
                add: operator.getattr("input_add")?.extract()?,
            };
            let pixel_sums: bool = operator.getattr("pixel_sums")?.extract()?;
            Ok(OperatorSpec::QbConv2d {
                weights: packed_signs(&parts.weights, name, input_channels)?,
                filters: rows(&parts.weights),
                window: parts.window.into(),
                affine,
                channel_adds: channel_adds(operator)?,
                layout: if pixel_sums { Layout::PixelSums } else { Layout::ByteMask },
                rules: parts.rules.spec(name)?,
                pool: parts.pool.map(|pool| pool.spec(name)).transpose()?,
            })
        }
        "bbconv2d" => {
            let parts: PyConvolution<'_> = operator.extract()?;
            let one: bool = operator.getattr("one_padding")?.extract()?;
            let lane_mask: Option<PyReadonlyArrayDyn<'_, bool>> = operator.getattr("lane_mask")?.extract()?;
            Ok(OperatorSpec::BbConv2d {
                weights: packed_signs(&parts.weights, name, input_channels)?,
                filters: rows(&parts.weights),
                window: parts.window.into(),
                padding: if one { Padding::One } else { Padding::Zero },
                by_output_channel: lane_mask
                    .map(|mask| packed_flags(&mask, input_channels, name))
                    .transpose()?,
                rules: parts.rules.spec(name)?,
                pool: parts.pool.map(|pool| pool.spec(name)).transpose()?,
            })
        }
        "qqconv2d" => {
            let affine = Affine {
                mul: operator.getattr("input_mul")?.extract()?,
                add: operator.getattr("input_add")?.extract()?,
            };
            let array = operator.getattr("weights")?;
            let (weights, filters) = match array.extract::<PyReadonlyArrayDyn<'_, i16>>() {
                Ok(wide) => (ByteWeights::I16(elements(&wide)), rows(&wide)),
                Err(_) => {
                    let weights: PyReadonlyArrayDyn<'_, i8> = array.extract()?;
                    (ByteWeights::I8(elements(&weights)), rows(&weights))
                }
            };
            let window: PyWindow = operator.getattr("window")?.extract()?;
            let rules: PyRules<'_> = operator.getattr("rules")?.extract()?;
            let pool: Option<PyPool<'_>> = operator.getattr("pool")?.extract()?;
            Ok(OperatorSpec::QqConv2d {
                weights,
                filters,
                window: window.into(),
                affine,
                channel_adds: channel_adds(operator)?,
                rules: rules.spec(name)?,
                pool: pool.map(|pool| pool.spec(name)).transpose()?,
            })
        }
        "bbpointwiseconv2d" => {
            let parts: PyConvolution<'_> = operator.extract()?;
            Ok(OperatorSpec::BbPointwiseConv2d {
                weights: packed_signs(&parts.weights, name, input_channels)?,
                filters: rows(&parts.weights),
                strides: parts.window.strides,
                rules: parts.rules.spec(name)?,
                pool: parts.pool.map(|pool| pool.spec(name)).transpose()?,
            })
        }
        "bbdepthwiseconv2d" => {
            let parts: PyConvolution<'_> = operator.extract()?;
            let one: bool = operator.getattr("one_padding")?.extract()?;
            Ok(OperatorSpec::BbDepthwiseConv2d {
                weights: packed_signs(&parts.weights, name, input_channels)?,
                window: parts.window.into(),
                padding: if one { Padding::One } else { Padding::Zero },
                rules: parts.rules.spec(name)?,
                pool: parts.pool.map(|pool| pool.spec(name)).transpose()?,
            })
        }
        "bmaxpool2d" => {
            let window: PyWindow = operator.getattr("window")?.extract()?;
            let use_and: Option<PyReadonlyArrayDyn<'_, bool>> = operator.getattr("use_and")?.extract()?;
            let use_and = use_and.map(|bits| packed_flags(&bits, input_channels, name)).transpose()?;
            Ok(OperatorSpec::BMaxPool2d { window: window.into(), use_and })
        }
        "bbfc" => {
            let weights: PyReadonlyArrayDyn<'_, i8> = operator.getattr("weights")?.extract()?;
            let rules: PyRules<'_> = operator.getattr("rules")?.extract()?;
            Ok(OperatorSpec::BbFc {
                weights: packed_signs(&weights, name, input_channels)?,
                units: rows(&weights),
                rules: rules.spec(name)?,
            })
        }
        "bbqfc" | "bqqfc" => {
            let weights: PyReadonlyArrayDyn<'_, i8> = operator.getattr("weights")?.extract()?;
            let parts: PyRequantization<'_> = operator.getattr("requantization")?.extract()?;
            let (above, below) = (elements(&parts.mul_above), elements(&parts.mul_below));
            let (add_above, add_below) = (elements(&parts.add_above), elements(&parts.add_below));
            let knee =
                if above == below && add_above == add_below { Vec::new() } else { elements(&parts.knee) };
            let rows_of = |below: Vec<i64>, above: Vec<i64>| {
                if knee.is_empty() { above } else { [below, above].concat() }
            };
            let dtype = DType::from_name(&parts.dtype).ok_or_else(|| {
                errors::argument(
                    "bad-dtype",
                    format!("layer `{name}`: output type `{}` is unknown", parts.dtype),
                )
            })?;
            let (units, shift, scale) = (rows(&weights), parts.shift, parts.scale);
            let (mul, add) = (rows_of(below, above), rows_of(add_below, add_above));
            Ok(if kind == "bbqfc" {
                let weights = packed_signs(&weights, name, input_channels)?;
                OperatorSpec::BbqFc { weights, units, mul, add, knee, shift, dtype, scale }
            } else {
                let weights = elements(&weights);
                OperatorSpec::BqqFc { weights, units, mul, add, knee, shift, dtype, scale }
            })
        }
        _ => {
            Err(errors::argument("unknown-operator", format!("layer `{name}`: operator `{kind}` is unknown")))
        }
    }
}

/// The offset of each input channel, or nothing.
fn channel_adds(operator: &Bound<'_, PyAny>) -> PyResult<Vec<i32>> {
    let adds: Option<PyReadonlyArrayDyn<'_, i32>> = operator.getattr("channel_adds")?.extract()?;
    Ok(adds.map_or_else(Vec::new, |adds| elements(&adds)))
}

impl From<PyWindow> for Window {
    fn from(window: PyWindow) -> Self {
        let PyWindow { kernel, strides, dilation, padding } = window;
        Self { kernel, strides, dilation, padding }
    }
}

impl PyRules<'_> {
    fn spec(&self, name: &str) -> PyResult<RulesSpec> {
        let grid = match self.grid.as_str() {
            "channel" => Grid::Channel,
            "conv" => Grid::Conv,
            "output" => Grid::Output,
            grid => {
                let message = format!("layer `{name}`: rule grid `{grid}` is unknown");
                return Err(errors::argument("unknown-grid", message));
            }
        };
        let channels = self.lo.as_array().shape().last().copied().unwrap_or(0);
        let flip = packed_flags(&self.flip, channels, name)?;
        Ok(RulesSpec { grid, lo: elements(&self.lo), hi: elements(&self.hi), flip })
    }
}

impl PyPool<'_> {
    fn spec(self, name: &str) -> PyResult<PoolSpec> {
        let channels = |bits: &PyReadonlyArrayDyn<'_, bool>| bits.as_array().len();
        Ok(PoolSpec {
            window: self.window.into(),
            veto: self.veto.map(|veto| veto.spec(name)).transpose()?,
            invert: self.invert.map(|bits| packed_flags(&bits, channels(&bits), name)).transpose()?,
        })
    }
}

/// The elements in row-major order.
fn elements<T: numpy::Element + Copy>(array: &PyReadonlyArrayDyn<'_, T>) -> Vec<T> {
    array.as_array().iter().copied().collect()
}

/// Length of the first axis.
fn rows<T: numpy::Element>(array: &PyReadonlyArrayDyn<'_, T>) -> usize {
    array.as_array().shape().first().copied().unwrap_or(0)
}

fn packed_signs(array: &PyReadonlyArrayDyn<'_, i8>, name: &str, channels: usize) -> PyResult<Vec<u32>> {
    let signs = elements(array);
    if let Some(value) = signs.iter().find(|&&s| s != 1 && s != -1) {
        let message = format!("layer `{name}`: weights must be -1 or +1, found {value}");
        return Err(errors::argument("bad-weights", message));
    }
    packed(&signs, channels, name)
}

fn packed_flags(array: &PyReadonlyArrayDyn<'_, bool>, channels: usize, name: &str) -> PyResult<Vec<u32>> {
    let signs: Vec<i8> = array.as_array().iter().map(|&bit| if bit { 1 } else { -1 }).collect();
    packed(&signs, channels, name)
}

fn packed(signs: &[i8], channels: usize, name: &str) -> PyResult<Vec<u32>> {
    let mut words = vec![0; signs.len() / channels.max(1) * words_for(channels)];
    pack(signs, channels, &mut words)
        .map_err(|e| errors::argument("bad-layer-argument", format!("layer `{name}`: {e}")))?;
    Ok(words)
}
