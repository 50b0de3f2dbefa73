//! The layer walk: the same code on the host and on a board.

use core::ops::Range;

use crate::format::{DType, Place, TensorRecord};
use crate::operator::{self, Io};
use crate::{Model, RunError};

/// Sees each operator begin and end.
pub trait Observer {
    /// Operator `index` is about to run.
    fn before(&mut self, index: usize) {
        let _ = index;
    }

    /// Operator `index` has run and its output is `output`, as the tensor is stored.
    fn after(&mut self, index: usize, output: &[u8]) {
        let _ = (index, output);
    }
}

/// An [`Observer`] that looks away.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObserver;

impl Observer for NoObserver {}

impl Model<'_> {
    /// Runs the model on one image.
    ///
    /// `input` holds [`input_bytes`](Self::input_bytes) bytes (u8 HWC, or packed words), `output`
    /// [`output_bytes`](Self::output_bytes), aligned to its element type, and `arena` at least
    /// [`arena_bytes`](Self::arena_bytes). What the arena held before does not matter.
    ///
    /// # Errors
    /// [`RunError`] naming the argument; then nothing was computed.
    pub fn run(
        &self,
        input: &[u8],
        output: &mut [u8],
        arena: &mut [u32],
        observer: &mut impl Observer,
    ) -> Result<(), RunError> {
        self.walk(input, output, arena, observer, |index, io| operator::run(self, index, io))
    }

    /// As [`run`](Self::run), with every operator's naive reference: slow, and the same bytes.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_reference(
        &self,
        input: &[u8],
        output: &mut [u8],
        arena: &mut [u32],
        observer: &mut impl Observer,
    ) -> Result<(), RunError> {
        self.walk(input, output, arena, observer, |index, io| operator::run_reference(self, index, io))
    }

    /// `execute` runs the operator of an index.
    #[inline(always)]
    pub(crate) fn walk(
        &self,
        input: &[u8],
        output: &mut [u8],
        arena: &mut [u32],
        observer: &mut impl Observer,
        mut execute: impl FnMut(usize, Io<'_>) -> Option<()>,
    ) -> Result<(), RunError> {
        exact("input", self.input_bytes(), input.len())?;
        exact("output", self.output_bytes(), output.len())?;
        aligned("input", self.tensor_record(0), input)?;
        aligned("output", self.tensor_record(self.operator_count()), output)?;
        let got = size_of_val(arena);
        let arena = arena.get_mut(..self.arena_bytes() / 4).ok_or(RunError::Length {
            argument: "arena",
            expected: self.arena_bytes(),
            got,
        })?;
        for index in 0..self.operator_count() {
            let failed = RunError::Operator { index };
            let record = self.record(index);
            let source = self.tensor_record(record.inputs[0] as usize);
            let target = self.tensor_record(index + 1);
            let scratch = words(record.scratch_offset as usize, record.scratch_bytes as usize);
            let [from, to, scratch] = arena
                .get_disjoint_mut([arena_words(source), arena_words(target), scratch])
                .map_err(|_| failed)?;
            let from = match source.place() {
                Place::Input => input,
                _ => bytemuck::cast_slice(from).get(..source.bytes()).ok_or(failed)?,
            };
            let to = match target.place() {
                Place::Output => &mut *output,
                _ => bytemuck::cast_slice_mut(to).get_mut(..target.bytes()).ok_or(failed)?,
            };
            observer.before(index);
            let io = Io { input: from, output: &mut *to, dtype: target.dtype(), scratch };
            execute(index, io).ok_or(failed)?;
            observer.after(index, to);
        }
        Ok(())
    }
}

/// The arena words of a tensor, or an empty range at 0 for one that is elsewhere.
fn arena_words(tensor: &TensorRecord) -> Range<usize> {
    match tensor.place() {
        Place::Arena => words(tensor.offset as usize, tensor.bytes()),
        _ => 0..0,
    }
}

/// The words of a byte range that begins at a multiple of 4. An empty one is put at 0, where it overlaps
/// nothing.
fn words(offset: usize, bytes: usize) -> Range<usize> {
    if bytes == 0 { 0..0 } else { offset / 4..(offset + bytes).div_ceil(4) }
}

fn exact(argument: &'static str, expected: usize, got: usize) -> Result<(), RunError> {
    if expected == got { Ok(()) } else { Err(RunError::Length { argument, expected, got }) }
}

fn aligned(argument: &'static str, tensor: &TensorRecord, bytes: &[u8]) -> Result<(), RunError> {
    let alignment = match tensor.dtype() {
        DType::U8 | DType::I8 => 1,
        DType::I16 => 2,
        DType::Bits | DType::I32 => 4,
        DType::I64 => 8,
    };
    if (bytes.as_ptr() as usize).is_multiple_of(alignment) {
        Ok(())
    } else {
        Err(RunError::Alignment { argument })
    }
}
