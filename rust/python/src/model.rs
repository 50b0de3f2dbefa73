//! `Model`: load, describe, run.

use cbin_nn_model::batch::{Kernel, OwnedModel};
use cbin_nn_model::format::{DType, Layout};
use cbin_nn_model::host::Instructions;
use cbin_nn_model::{FormatError, Observer, Tensor};
use numpy::{Element, IntoPyArray, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors;

/// A checked `.cbn` model.
#[pyclass(frozen, module = "cbin_nn._native")]
pub(crate) struct Model {
    pub(crate) inner: OwnedModel,
}

/// What one operator is and takes, for summaries. All sizes are in bytes.
#[pyclass(frozen, get_all, module = "cbin_nn._native")]
pub(crate) struct OperatorInfo {
    name: String,
    kind: &'static str,
    inputs: Vec<String>,
    output: String,
    output_shape: (u32, u32, u32),
    output_dtype: &'static str,
    output_bytes: usize,
    scratch_bytes: usize,
    constant_bytes: usize,
    macs: u64,
    fused_pool: bool,
    /// How its weights lie in the file; None for an operator without any.
    weights_layout: Option<&'static str>,
}

/// Height, width, channels.
fn hwc(tensor: &Tensor<'_>) -> (u32, u32, u32) {
    let [_, height, width, channels] = tensor.shape;
    (height, width, channels)
}

#[pymethods]
impl Model {
    /// Copies and checks the bytes of a `.cbn` file. The variable `CBIN_NN_KERNELS` chooses what it runs with.
    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: &[u8]) -> PyResult<Self> {
        let instructions = Instructions::from_environment()
            .map_err(|error| errors::argument("bad-kernels", error.to_string()))?;
        let inner = py.detach(|| OwnedModel::with_instructions(data, instructions));
        Ok(Self { inner: inner.map_err(errors::model_file)? })
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.inner.as_bytes())
    }

    /// The instructions that `run` uses.
    #[getter]
    fn kernels(&self) -> &'static str {
        self.inner.instructions().name()
    }

    #[getter]
    fn name(&self) -> &str {
        self.inner.view().name()
    }

    #[getter]
    fn input_shape(&self) -> (u32, u32, u32) {
        hwc(&self.inner.view().input())
    }

    #[getter]
    fn input_dtype(&self) -> &'static str {
        self.inner.view().input().dtype.name()
    }

    #[getter]
    fn output_shape(&self) -> (u32, u32, u32) {
        hwc(&self.inner.view().output())
    }

    #[getter]
    fn output_dtype(&self) -> &'static str {
        self.inner.view().output().dtype.name()
    }

    #[getter]
    fn output_scale(&self) -> f64 {
        self.inner.view().output().scale
    }

    #[getter]
    fn float_output(&self) -> bool {
        self.inner.view().float_output()
    }

    /// Arena and image, on a board.
    #[getter]
    fn memory_bytes(&self) -> usize {
        let view = self.inner.view();
        view.in_place().map_or(view.arena_bytes() + view.input_bytes(), |plan| plan.bytes)
    }

    /// Whether the image lies in the arena, on a board.
    #[getter]
    fn in_place(&self) -> bool {
        self.inner.view().in_place().is_some()
    }

    #[getter]
    fn input_bytes(&self) -> usize {
        self.inner.view().input_bytes()
    }

    #[getter]
    fn output_bytes(&self) -> usize {
        self.inner.view().output_bytes()
    }

    #[getter]
    fn file_bytes(&self) -> usize {
        self.inner.view().file_bytes()
    }

    /// One `OperatorInfo` an operator, in execution order.
    fn operators(&self) -> PyResult<Vec<OperatorInfo>> {
        let model = self.inner.view();
        (0..model.operator_count())
            .map(|index| {
                let operator = model.operator(index).map_err(errors::model_file)?;
                let output = model.tensor(index + 1);
                let output = output.ok_or(FormatError::Tensor { index: index + 1, field: "index" });
                let output = output.map_err(errors::model_file)?;
                Ok(OperatorInfo {
                    name: model.operator_name(index).to_owned(),
                    kind: operator.kind().name(),
                    inputs: model
                        .operator_inputs(index)
                        .filter_map(|t| model.tensor(t))
                        .map(|t| t.name.to_owned())
                        .collect(),
                    output: output.name.to_owned(),
                    output_shape: hwc(&output),
                    output_dtype: output.dtype.name(),
                    output_bytes: output.bytes,
                    scratch_bytes: operator.scratch_bytes(),
                    constant_bytes: model.constant_bytes(index),
                    macs: operator.macs(),
                    fused_pool: operator.has_fused_pool(),
                    weights_layout: model.weights(index).map(|weights| weights.layout.name()),
                })
            })
            .collect()
    }

    /// (operator, element type, layout, shape, bytes) of the weights of each operator that has any, as they are
    /// stored or, where they are stored by output channel or as sums, in the canonical layout.
    #[allow(clippy::type_complexity)]
    fn weights<'py>(
        &self,
        py: Python<'py>,
    ) -> Vec<(String, &'static str, &'static str, [u32; 4], Bound<'py, PyBytes>)> {
        let model = self.inner.view();
        (0..model.operator_count())
            .filter_map(|index| {
                let tensor = model.weights(index)?;
                let name = model.operator_name(index).to_owned();
                let (layout, bytes) = match model.repacked(&tensor) {
                    Some(packed) => {
                        (Layout::Canonical, packed.iter().flat_map(|word| word.to_le_bytes()).collect())
                    }
                    None => (tensor.layout, model.data_bytes(&tensor)?.to_vec()),
                };
                Some((name, tensor.dtype.name(), layout.name(), tensor.shape, PyBytes::new(py, &bytes)))
            })
            .collect()
    }

    /// (name, scratch, offset, bytes, first operator, last operator) of every buffer in the arena.
    fn arena(&self) -> Vec<(&str, bool, usize, usize, usize, usize)> {
        let buffers = self.inner.view().arena_buffers(true);
        buffers.map(|b| (b.name, b.scratch, b.offset, b.bytes, b.first, b.last)).collect()
    }

    /// Runs a batch on `threads` threads (0: one a core): u8 images `[N, H, W, C]`, or uint32 words `[N, H,
    /// W, words]` for a model with packed input. Returns integers `[N, units]`, or words for a packed output.
    fn run<'py>(
        &self,
        py: Python<'py>,
        images: &Bound<'py, PyAny>,
        threads: usize,
        reference: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let kernel = if reference { Kernel::Reference } else { Kernel::Optimized };
        match self.inner.view().input().dtype {
            DType::U8 => self.run_on::<u8>(py, images, kernel, threads),
            _ => self.run_on::<u32>(py, images, kernel, threads),
        }
    }

    /// Runs one image `[H, W, C]` and returns the stored bytes of every operator's output, in order.
    fn run_taps<'py>(
        &self,
        py: Python<'py>,
        image: PyReadonlyArrayDyn<'py, u8>,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        struct Taps(Vec<Vec<u8>>);
        impl Observer for Taps {
            fn after(&mut self, _index: usize, output: &[u8]) {
                self.0.push(output.to_vec());
            }
        }
        let image = image.as_array();
        let image = image.as_standard_layout();
        let image = image.as_slice().unwrap_or(&[]);
        let model = self.inner.view();
        let taps = py.detach(|| {
            let mut taps = Taps(Vec::new());
            // Words, so that the output is aligned to any element type.
            let mut output = vec![0u32; model.output_bytes().div_ceil(4)];
            let output = &mut bytemuck::cast_slice_mut(&mut output)[..model.output_bytes()];
            let mut arena = vec![0u32; model.arena_bytes() / 4];
            model.run(image, output, &mut arena, &mut taps).map(|()| taps)
        });
        Ok(taps.map_err(errors::run)?.0.iter().map(|bytes| PyBytes::new(py, bytes)).collect())
    }
}

impl Model {
    /// `T` is the type of an input element.
    fn run_on<'py, T: Element + bytemuck::Pod + Sync>(
        &self,
        py: Python<'py>,
        images: &Bound<'py, PyAny>,
        kernel: Kernel,
        threads: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let model = self.inner.view();
        let input = model.input();
        let (height, width, _) = hwc(&input);
        let last = input.bytes / size_of::<T>() / (height * width) as usize;
        let images: PyReadonlyArrayDyn<'py, T> = images.extract().map_err(|_| {
            let kind = input.dtype.name();
            errors::argument("bad-dtype", format!("`images` must be a NumPy array for {kind} input"))
        })?;
        let expected = [height as usize, width as usize, last];
        if images.shape().len() != 4 || images.shape()[1..] != expected {
            return Err(errors::argument(
                "bad-shape",
                format!("`images` has shape {:?}, expected [N, {height}, {width}, {last}]", images.shape()),
            ));
        }
        let images = images.as_array();
        let images = images.as_standard_layout();
        let bytes: &[u8] = bytemuck::cast_slice(images.as_slice().unwrap_or(&[]));
        match model.output().dtype {
            DType::I8 => self.run_to::<i8>(py, bytes, kernel, threads),
            DType::I16 => self.run_to::<i16>(py, bytes, kernel, threads),
            DType::I32 => self.run_to::<i32>(py, bytes, kernel, threads),
            _ => self.run_to::<u32>(py, bytes, kernel, threads),
        }
    }

    /// `T` is the type of an output element.
    fn run_to<'py, T: Element + bytemuck::Pod>(
        &self,
        py: Python<'py>,
        images: &[u8],
        kernel: Kernel,
        threads: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let model = self.inner.view();
        let count = images.len() / model.input_bytes();
        let elements = model.output_bytes() / size_of::<T>();
        let mut outputs = vec![T::zeroed(); count * elements];
        // In parts, so that Ctrl-C ends a long run.
        let part = self.inner.images_between_looks();
        let parts = images.chunks(part * model.input_bytes()).zip(outputs.chunks_mut(part * elements));
        for (images, outputs) in parts {
            py.detach(|| {
                self.inner.run_batch_with(kernel, images, bytemuck::cast_slice_mut(outputs), threads)
            })
            .map_err(errors::run)?;
            py.check_signals()?;
        }
        let (height, width, _) = hwc(&model.output());
        let shape = match model.output().dtype {
            DType::Bits => vec![count, height as usize, width as usize, elements / (height * width) as usize],
            _ => vec![count, elements],
        };
        let outputs = ndarray::ArrayD::from_shape_vec(shape, outputs)
            .map_err(|e| errors::argument("internal-error", e.to_string()))?;
        Ok(outputs.into_pyarray(py).into_any())
    }
}
