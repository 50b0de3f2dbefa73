//! The checks that make untrusted bytes a model: everything that a run relies on.

use core::ops::Range;

use crate::format::{
    ALIGNMENT, CRC, CRC_FROM, DType, FLAG_FLOAT_OUTPUT, Layout, MAX_ARENA, Place, align, storage_bytes,
};
use crate::operator;
use crate::{FormatError, Model};

impl<'a> Model<'a> {
    /// Checks `bytes`, the whole of a `.cbn` file at a 16-byte boundary, as hostile input.
    ///
    /// # Errors
    /// [`FormatError`], naming the field.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let model = Self::split(bytes)?;
        let header = model.header;
        let got = CRC.checksum(&bytes[CRC_FROM..]);
        if got != header.checksum {
            return Err(FormatError::Checksum { expected: header.checksum, got });
        }
        model.check_header(bytes)?;
        model.check_tensors()?;
        for index in 0..model.operators.len() {
            model.check_operator(index)?;
        }
        Ok(model)
    }

    fn check_header(&self, bytes: &[u8]) -> Result<(), FormatError> {
        let header = self.header;
        let field = |field| Err(FormatError::Header { field });
        if header.operators == 0 {
            return field("operators");
        }
        if header.tensors <= header.operators {
            return field("tensors");
        }
        if !(header.data_bytes as usize).is_multiple_of(ALIGNMENT) {
            return field("data_bytes");
        }
        if header.arena_bytes as usize > MAX_ARENA || !header.arena_bytes.is_multiple_of(4) {
            return field("arena_bytes");
        }
        if header.flags & !FLAG_FLOAT_OUTPUT != 0 {
            return field("flags");
        }
        if header.reserved != 0 {
            return field("reserved");
        }
        if header.in_place_bytes as usize > MAX_ARENA || !header.in_place_bytes.is_multiple_of(4) {
            return field("in_place_bytes");
        }
        if self.text(header.name).is_none() {
            return field("name");
        }
        let strings_end = bytes.len() - self.data.len();
        let padding =
            strings_end - (align(header.string_bytes.into()) as usize - header.string_bytes as usize);
        if bytes[padding..strings_end].iter().any(|&b| b != 0) {
            return field("strings padding");
        }
        Ok(())
    }

    fn check_tensors(&self) -> Result<(), FormatError> {
        let activations = self.operators.len() + 1;
        let mut data_end = 0usize;
        for (index, record) in self.tensors.iter().enumerate() {
            let field = |field| FormatError::Tensor { index, field };
            let dtype = DType::from_code(record.dtype).ok_or(field("dtype"))?;
            let place = Place::from_code(record.place).ok_or(field("place"))?;
            let layout = Layout::from_code(record.layout).ok_or(field("layout"))?;
            let bytes = storage_bytes(dtype, layout, record.shape).ok_or(field("shape"))?;
            if record.reserved != 0 || record.reserved2 != [0; 2] {
                return Err(field("reserved"));
            }
            if !(record.scale.is_finite() && record.scale > 0.0) {
                return Err(field("scale"));
            }
            if self.text(record.name).is_none() {
                return Err(field("name"));
            }
            let expected = match index {
                0 => Place::Input,
                _ if index + 1 == activations => Place::Output,
                _ if index < activations => Place::Arena,
                _ => Place::Data,
            };
            if place != expected {
                return Err(field("place"));
            }
            let offset = record.offset as usize;
            match place {
                Place::Input | Place::Output => {
                    if offset != 0 {
                        return Err(field("offset"));
                    }
                }
                Place::Arena => {
                    let end = offset as u64 + (bytes as u64).next_multiple_of(4);
                    if !offset.is_multiple_of(4) || end > self.header.arena_bytes.into() {
                        return Err(field("offset"));
                    }
                }
                Place::Data => {
                    // Tensors tile the data section in order, with zeros up to the next boundary.
                    let end = align(offset as u64 + bytes as u64);
                    if offset != data_end || end > self.data.len() as u64 {
                        return Err(field("offset"));
                    }
                    data_end = end as usize;
                    if self.data[offset + bytes..data_end].iter().any(|&b| b != 0) {
                        return Err(field("padding"));
                    }
                }
            }
            if index < activations {
                if record.shape[0] != 1 || layout != Layout::Canonical {
                    return Err(field("shape"));
                }
                record.image_shape().map_err(|_| field("shape"))?;
            }
        }
        if data_end != self.data.len() {
            return Err(FormatError::Header { field: "data_bytes" });
        }
        match self.tensor_record(0).dtype() {
            DType::U8 | DType::Bits => Ok(()),
            _ => Err(FormatError::Tensor { index: 0, field: "dtype" }),
        }
    }

    fn check_operator(&self, index: usize) -> Result<(), FormatError> {
        let output = self.tensor_record(index + 1);
        let operator = operator::check(self, index, output.dtype())?;
        let shape = operator.output;
        let expected = [1, shape.height() as u32, shape.width() as u32, shape.channels() as u32];
        if output.shape != expected {
            return Err(FormatError::Tensor { index: index + 1, field: "shape" });
        }
        if !operator.writes {
            return Err(FormatError::Tensor { index: index + 1, field: "dtype" });
        }
        let record = &self.operators[index];
        let scratch =
            record.scratch_offset as u64..record.scratch_offset as u64 + u64::from(record.scratch_bytes);
        if record.scratch_bytes == 0 && record.scratch_offset != 0
            || !record.scratch_offset.is_multiple_of(4)
            || !record.scratch_bytes.is_multiple_of(4)
            || scratch.end > self.header.arena_bytes.into()
        {
            return Err(FormatError::Operator { index, field: "scratch_offset" });
        }
        if (record.scratch_bytes as usize) < operator.scratch_bytes {
            return Err(FormatError::Operator { index, field: "scratch_bytes" });
        }
        if self.text(record.name).is_none() {
            return Err(FormatError::Operator { index, field: "name" });
        }
        if index == 0 {
            self.check_in_place(&operator)?;
        }
        // What this operator writes must not touch what it or a later operator still reads.
        let scratch = scratch.start as usize..scratch.end as usize;
        let written = if output.place() == Place::Arena { output.range() } else { 0..0 };
        if overlap(&scratch, &written) {
            return Err(FormatError::Overlap { index });
        }
        for reader in &self.operators[index..] {
            for &input in &reader.inputs {
                let input = input as usize;
                if input == 0 || input > index {
                    continue;
                }
                let live = self.tensor_record(input);
                let live = if live.place() == Place::Arena { live.range() } else { 0..0 };
                if overlap(&live, &written) || overlap(&live, &scratch) {
                    return Err(FormatError::Overlap { index });
                }
            }
        }
        Ok(())
    }

    /// Checks the plan for a run in place, of which `first` is the operator that writes over the image.
    fn check_in_place(&self, first: &operator::Checked) -> Result<(), FormatError> {
        let header = self.header;
        let field = |field| Err(FormatError::Header { field });
        let (image, scratch) = (header.image_offset as usize, header.image_scratch_offset as usize);
        let Some(plan) = self.in_place() else {
            return if (image, scratch) == (0, 0) { Ok(()) } else { field("in_place_bytes") };
        };
        let output = self.tensor_record(1);
        let is_read_again = self.operators[1..].iter().any(|reader| reader.inputs.contains(&0));
        let Some(gap) = first.input_gap.filter(|_| output.place() == Place::Arena && !is_read_again) else {
            return field("in_place_bytes");
        };
        if plan.bytes < self.arena_bytes() || plan.image.end > plan.bytes {
            return field("in_place_bytes");
        }
        if !image.is_multiple_of(4) || image < output.range().start + gap {
            return field("image_offset");
        }
        let scratch = scratch..scratch + self.operators[0].scratch_bytes as usize;
        let planes = output.range().start..output.range().end.max(plan.image.end.next_multiple_of(4));
        if !scratch.start.is_multiple_of(4) || scratch.end > plan.bytes || overlap(&scratch, &planes) {
            return field("image_scratch_offset");
        }
        Ok(())
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    !a.is_empty() && !b.is_empty() && a.start < b.end && b.start < a.end
}
