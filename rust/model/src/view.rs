//! The checked view over a model's bytes.

use core::ops::Range;

use crate::FormatError;
use crate::format::{
    ALIGNMENT, DType, FLAG_FLOAT_OUTPUT, Header, Kind, Layout, MAGIC, MAX_OPERATORS, MAX_TENSORS,
    OperatorRecord, Place, Span, TensorRecord, VERSION, align, slot, storage_bytes,
};
#[cfg(feature = "alloc")]
use cbin_nn_kernels::bits::words_for;
#[cfg(feature = "alloc")]
use cbin_nn_kernels::layouts::by_output_channel::{GroupShape, from_groups};
#[cfg(feature = "alloc")]
use cbin_nn_kernels::layouts::pixel_sums::{SumShape, from_sums};
use cbin_nn_kernels::shape::Shape;

/// A model: a checked view over the bytes of a `.cbn` file.
///
/// The constructor checks everything that a run relies on; after it no accessor panics.
#[derive(Debug, Clone, Copy)]
pub struct Model<'a> {
    pub(crate) header: &'a Header,
    pub(crate) operators: &'a [OperatorRecord],
    pub(crate) tensors: &'a [TensorRecord],
    pub(crate) strings: &'a str,
    pub(crate) data: &'a [u8],
}

/// One tensor of a model.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// Name from the source model.
    pub name: &'a str,
    /// Element type.
    pub dtype: DType,
    /// Where its elements are.
    pub place: Place,
    /// How they are stored.
    pub layout: Layout,
    /// `[1, H, W, C]` of an activation, `[O, H, W, I]` of weights.
    pub shape: [u32; 4],
    /// Byte offset in its [`Place`].
    pub offset: usize,
    /// Bytes of storage.
    pub bytes: usize,
    /// One step of an integer tensor in the source network's units.
    pub scale: f64,
}

/// A plan for runs with the image in the model's own memory, which begins with the arena.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InPlace {
    /// Bytes of that memory; a multiple of 4.
    pub bytes: usize,
    /// Where in it the image is, bytes. A run overwrites it.
    pub image: Range<usize>,
}

/// A part of the arena, and when it is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArenaBuffer<'a> {
    /// Name of the tensor, or of the operator whose scratch it is.
    pub name: &'a str,
    /// Whether it is an operator's scratch.
    pub scratch: bool,
    /// Offset in the arena, in bytes.
    pub offset: usize,
    /// Size in bytes.
    pub bytes: usize,
    /// First operator during which it is in use.
    pub first: usize,
    /// Last operator during which it is in use.
    pub last: usize,
}

impl Tensor<'_> {
    /// Height, width and channels.
    ///
    /// # Errors
    /// As [`Shape::new`].
    pub fn image_shape(&self) -> Result<Shape, cbin_nn_kernels::ArgumentError> {
        let [_, height, width, channels] = self.shape.map(|d| d as usize);
        Shape::new(height, width, channels)
    }

    pub(crate) fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.bytes
    }
}

/// What a record says, of a checked model; what it can't say in one is read as the first code.
impl TensorRecord {
    pub(crate) fn dtype(&self) -> DType {
        DType::from_code(self.dtype).unwrap_or(DType::Bits)
    }

    pub(crate) fn place(&self) -> Place {
        Place::from_code(self.place).unwrap_or(Place::Data)
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout::from_code(self.layout).unwrap_or(Layout::Canonical)
    }

    pub(crate) fn bytes(&self) -> usize {
        storage_bytes(self.dtype(), self.layout(), self.shape).unwrap_or(0)
    }

    pub(crate) fn range(&self) -> Range<usize> {
        self.offset as usize..self.offset as usize + self.bytes()
    }

    /// As [`Tensor::image_shape`].
    pub(crate) fn image_shape(&self) -> Result<Shape, cbin_nn_kernels::ArgumentError> {
        let [_, height, width, channels] = self.shape.map(|d| d as usize);
        Shape::new(height, width, channels)
    }
}

impl<'a> Model<'a> {
    /// The view after a look at the lengths alone, for bytes that [`new_checked`](Self::new_checked) has accepted
    /// before. Other bytes may make accessors and runs panic; nothing worse, since this crate has no `unsafe`.
    ///
    /// # Errors
    /// [`FormatError`], where the bytes can't be those of a model.
    pub fn new_unchecked(bytes: &'a [u8]) -> Result<Self, FormatError> {
        Self::split(bytes)
    }

    /// Cuts the bytes into their sections. Only lengths are checked.
    pub(crate) fn split(bytes: &'a [u8]) -> Result<Self, FormatError> {
        if !(bytes.as_ptr() as usize).is_multiple_of(ALIGNMENT) {
            return Err(FormatError::Misaligned);
        }
        let (head, rest) =
            bytes.split_at_checked(size_of::<Header>()).ok_or(FormatError::TooShort { got: bytes.len() })?;
        let header: &Header = bytemuck::from_bytes(head);
        if header.magic != MAGIC {
            return Err(FormatError::Magic);
        }
        if header.version != VERSION {
            return Err(FormatError::Version { got: header.version });
        }
        let bounded = |field, value: u32, limit: usize| match value as usize {
            value if value <= limit => Ok(value),
            _ => Err(FormatError::Header { field }),
        };
        let operators = bounded("operators", header.operators, MAX_OPERATORS)?;
        let tensors = bounded("tensors", header.tensors, MAX_TENSORS)?;
        let sections = [
            (operators * size_of::<OperatorRecord>()) as u64,
            (tensors * size_of::<TensorRecord>()) as u64,
            align(header.string_bytes.into()),
            header.data_bytes.into(),
        ];
        let total = sections.iter().sum::<u64>() + size_of::<Header>() as u64;
        if total != bytes.len() as u64 || u64::from(header.file_bytes) != total {
            let header = if u64::from(header.file_bytes) == bytes.len() as u64 {
                total
            } else {
                header.file_bytes.into()
            };
            return Err(FormatError::Length { header, got: bytes.len() as u64 });
        }
        // The sum is the length of the slice, so every part fits `usize` and every cut succeeds.
        let (operators, rest) = rest.split_at(sections[0] as usize);
        let (tensors, rest) = rest.split_at(sections[1] as usize);
        let (strings, data) = rest.split_at(sections[2] as usize);
        let strings = core::str::from_utf8(&strings[..header.string_bytes as usize])
            .map_err(|_| FormatError::Header { field: "strings" })?;
        Ok(Self {
            header,
            operators: bytemuck::cast_slice(operators),
            tensors: bytemuck::cast_slice(tensors),
            strings,
            data,
        })
    }

    pub(crate) fn text(&self, span: Span) -> Option<&'a str> {
        let start = span.offset as usize;
        self.strings.get(start..start.checked_add(span.bytes as usize)?)
    }

    /// The model's name.
    pub fn name(&self) -> &'a str {
        self.text(self.header.name).unwrap_or("")
    }

    /// Number of operators.
    pub fn operator_count(&self) -> usize {
        self.operators.len()
    }

    /// Name of the source layer of operator `index`; empty for an index that does not exist.
    pub fn operator_name(&self, index: usize) -> &'a str {
        self.operators.get(index).and_then(|record| self.text(record.name)).unwrap_or("")
    }

    pub(crate) fn image_scratch_offset(&self) -> usize {
        self.header.image_scratch_offset as usize
    }

    pub(crate) fn record(&self, index: usize) -> &'a OperatorRecord {
        &self.operators[index]
    }

    /// The activation tensors that operator `index` reads.
    pub fn operator_inputs(&self, index: usize) -> impl Iterator<Item = usize> + 'a {
        let inputs = self.operators.get(index).map_or([u32::MAX; 2], |record| record.inputs);
        let count = self.tensors.len();
        inputs.into_iter().map(|t| t as usize).filter(move |&t| t < count)
    }

    /// Number of tensors: the input, one output an operator, then constants.
    pub fn tensor_count(&self) -> usize {
        self.tensors.len()
    }

    /// Tensor `index`: 0 is the model's input, i + 1 the output of operator i, the rest are constants. `None`
    /// for an index that does not exist.
    pub fn tensor(&self, index: usize) -> Option<Tensor<'a>> {
        (index < self.tensors.len()).then(|| self.tensor_at(index))
    }

    /// The record of tensor `index`, which exists.
    pub(crate) fn tensor_record(&self, index: usize) -> &'a TensorRecord {
        &self.tensors[index]
    }

    /// Tensor `index`, which exists.
    pub(crate) fn tensor_at(&self, index: usize) -> Tensor<'a> {
        let record = self.tensor_record(index);
        Tensor {
            name: self.text(record.name).unwrap_or(""),
            dtype: record.dtype(),
            place: record.place(),
            layout: record.layout(),
            shape: record.shape,
            offset: record.offset as usize,
            bytes: record.bytes(),
            scale: record.scale,
        }
    }

    /// The model's input tensor.
    pub fn input(&self) -> Tensor<'a> {
        self.tensor_at(0)
    }

    /// The model's output tensor.
    pub fn output(&self) -> Tensor<'a> {
        self.tensor_at(self.operators.len())
    }

    /// Whether the host multiplies the output by its scale, to float32.
    pub fn float_output(&self) -> bool {
        self.header.flags & FLAG_FLOAT_OUTPUT != 0
    }

    /// Bytes of one input image.
    pub fn input_bytes(&self) -> usize {
        self.tensor_record(0).bytes()
    }

    /// Bytes of one image's output.
    pub fn output_bytes(&self) -> usize {
        self.tensor_record(self.operators.len()).bytes()
    }

    /// Bytes of arena that a run needs, scratch included; a multiple of 4.
    pub fn arena_bytes(&self) -> usize {
        self.header.arena_bytes as usize
    }

    /// The plan for a run with the image in the model's own memory, where the model has one: see
    /// [`run_in_place`](Self::run_in_place).
    pub fn in_place(&self) -> Option<InPlace> {
        let Header { in_place_bytes, image_offset, .. } = *self.header;
        let start = image_offset as usize;
        (in_place_bytes != 0)
            .then(|| InPlace { bytes: in_place_bytes as usize, image: start..start + self.input_bytes() })
    }

    /// What lies where in the arena, and when: in order of the operators, an operator's scratch before its output. With
    /// `in_place`, and a plan for it, the image comes first.
    pub fn arena_buffers(&self, in_place: bool) -> impl Iterator<Item = ArenaBuffer<'a>> + use<'a> {
        let model = *self;
        let plan = if in_place { model.in_place() } else { None };
        let is_planned = plan.is_some();
        let image = plan.map(|plan| ArenaBuffer {
            name: model.input().name,
            scratch: false,
            offset: plan.image.start,
            bytes: plan.image.len(),
            first: 0,
            last: 0,
        });
        image.into_iter().chain((0..model.operators.len()).flat_map(move |index| {
            let record = model.record(index);
            let offset = match index {
                0 if is_planned => model.header.image_scratch_offset,
                _ => record.scratch_offset,
            };
            let scratch = ArenaBuffer {
                name: model.operator_name(index),
                scratch: true,
                offset: offset as usize,
                bytes: record.scratch_bytes as usize,
                first: index,
                last: index,
            };
            let tensor = model.tensor_at(index + 1);
            let output = ArenaBuffer {
                name: tensor.name,
                scratch: false,
                offset: tensor.offset,
                bytes: if tensor.place == Place::Arena { tensor.bytes } else { 0 },
                first: index,
                last: (index..model.operators.len())
                    .rfind(|&reader| model.operators[reader].inputs.contains(&(index as u32 + 1)))
                    .unwrap_or(index),
            };
            [scratch, output].into_iter().filter(|buffer| buffer.bytes != 0)
        }))
    }

    /// Length of the file.
    pub fn file_bytes(&self) -> usize {
        self.header.file_bytes as usize
    }

    /// Bytes of the constants that operator `index` refers to.
    pub fn constant_bytes(&self, index: usize) -> usize {
        let Some(record) = self.operators.get(index) else { return 0 };
        let adds = (record.channel_adds != 0).then_some(&record.channel_adds);
        record
            .constants
            .iter()
            .chain(adds)
            .filter(|&&t| (t as usize) < self.tensors.len())
            .map(|&t| self.tensor_record(t as usize).bytes())
            .sum()
    }

    /// The weights of operator `index`; `None` for one that has none, such as a pool of bits.
    pub fn weights(&self, index: usize) -> Option<Tensor<'a>> {
        let record = self.operators.get(index)?;
        if Kind::from_code(record.kind)? == Kind::BMaxPool2d {
            return None;
        }
        let at = record.constants[slot::WEIGHTS] as usize;
        (at < self.tensors.len()).then(|| self.tensor_at(at))
    }

    /// Kind of operator `index`, where the record names a known one.
    pub fn operator_kind(&self, index: usize) -> Option<Kind> {
        self.operators.get(index).and_then(|record| Kind::from_code(record.kind))
    }

    /// The words of weights by output channel ([`Layout::ByOutputChannel`]) or as sums ([`Layout::PixelSums`]), in the canonical
    /// layout; `None` for other tensors.
    #[cfg(feature = "alloc")]
    pub fn repacked(&self, tensor: &Tensor<'_>) -> Option<alloc::vec::Vec<u32>> {
        if !matches!(tensor.layout, Layout::ByOutputChannel | Layout::PixelSums) {
            return None;
        }
        let stored = bytemuck::try_cast_slice(self.data_bytes(tensor)?).ok()?;
        let [filters, height, width, channels] = tensor.shape.map(|d| d as usize);
        let words = filters * height * width * words_for(channels);
        let mut packed = alloc::vec![0; words];
        match tensor.layout {
            Layout::PixelSums => {
                from_sums(&SumShape::new([height, width], channels)?, stored, &mut packed).ok()?
            }
            _ => {
                from_groups(&GroupShape::new(filters, [height, width], channels), stored, &mut packed).ok()?
            }
        }
        Some(packed)
    }

    /// The stored bytes of a constant; `None` for a tensor that is not in the data section.
    pub fn data_bytes(&self, tensor: &Tensor<'_>) -> Option<&'a [u8]> {
        if tensor.place != Place::Data {
            return None;
        }
        self.data.get(tensor.range())
    }

    /// The stored bytes of a constant.
    pub(crate) fn constant_data(&self, record: &TensorRecord) -> Option<&'a [u8]> {
        self.data.get(record.range())
    }
}
