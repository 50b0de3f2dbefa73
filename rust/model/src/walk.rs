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
        self.run_on(Some(input), output, arena, observer)
    }

    /// Runs the model on the image in `memory`, which is overwritten: rows of the first activation take the place of rows of
    /// the image that are done with.
    ///
    /// `memory` holds at least the bytes of the model's [`in_place`](Self::in_place) plan, the image where that says, as
    /// [`run`](Self::run) would take it; `output` is as there. So a board needs no memory for an image beside the arena.
    ///
    /// # Errors
    /// [`RunError`] naming the argument, or saying that there is no such plan; then nothing was computed.
    pub fn run_in_place(
        &self,
        memory: &mut [u32],
        output: &mut [u8],
        observer: &mut impl Observer,
    ) -> Result<(), RunError> {
        self.run_on(None, output, memory, observer)
    }

    /// Runs the model on `input`, or in place: `memory` holds the image then, or else is the arena. What a board calls that
    /// does either, as one walk takes less flash than two.
    ///
    /// # Errors
    /// As [`run`](Self::run) and [`run_in_place`](Self::run_in_place).
    pub fn run_on(
        &self,
        input: Option<&[u8]>,
        output: &mut [u8],
        memory: &mut [u32],
        observer: &mut impl Observer,
    ) -> Result<(), RunError> {
        self.walk(input, output, memory, observer, |index, io| operator::run(self, index, io))
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
        self.walk(Some(input), output, arena, observer, |index, io| operator::run_reference(self, index, io))
    }

    /// `execute` runs the operator of an index. Without an input, the image is in the arena.
    #[inline(always)]
    pub(crate) fn walk(
        &self,
        input: Option<&[u8]>,
        output: &mut [u8],
        arena: &mut [u32],
        observer: &mut impl Observer,
        mut execute: impl FnMut(usize, Io<'_>) -> Option<()>,
    ) -> Result<(), RunError> {
        let in_place = match input {
            Some(input) => {
                exact("input", self.input_bytes(), input.len())?;
                aligned("input", self.tensor_record(0), input)?;
                None
            }
            None => Some(self.in_place().ok_or(RunError::NotInPlace)?),
        };
        let (argument, expected) =
            in_place.as_ref().map_or(("arena", self.arena_bytes()), |plan| ("memory", plan.bytes));
        exact("output", self.output_bytes(), output.len())?;
        aligned("output", self.tensor_record(self.operator_count()), output)?;
        let got = size_of_val(arena);
        let arena = arena.get_mut(..expected / 4).ok_or(RunError::Length { argument, expected, got })?;
        let input = input.unwrap_or(&[]);
        for index in 0..self.operator_count() {
            let failed = RunError::Operator { index };
            let record = self.record(index);
            let source = self.tensor_record(record.inputs[0] as usize);
            let target = self.tensor_record(index + 1);
            let mut scratch = words(record.scratch_offset as usize, record.scratch_bytes as usize);
            let mut written = arena_words(target);
            let image_gap = in_place.as_ref().filter(|_| index == 0).map(|plan| {
                scratch = words(self.image_scratch_offset(), record.scratch_bytes as usize);
                // The output's memory up to the end of the image.
                let gap = plan.image.start.wrapping_sub(4 * written.start);
                written.end = written.end.max(plan.image.end.div_ceil(4));
                gap
            });
            let [from, to, scratch] =
                arena.get_disjoint_mut([arena_words(source), written, scratch]).map_err(|_| failed)?;
            let from = match source.place() {
                Place::Input => input,
                _ => bytemuck::cast_slice(from).get(..source.bytes()).ok_or(failed)?,
            };
            let to = match target.place() {
                Place::Output => &mut *output,
                _ if image_gap.is_some() => bytemuck::cast_slice_mut(to),
                _ => bytemuck::cast_slice_mut(to).get_mut(..target.bytes()).ok_or(failed)?,
            };
            observer.before(index);
            let io = Io { image_gap, input: from, output: &mut *to, dtype: target.dtype(), scratch };
            execute(index, io).ok_or(failed)?;
            observer.after(index, to.get(..target.bytes()).ok_or(failed)?);
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
