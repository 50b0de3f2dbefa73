/*!
Any bytes as a model file: as they are, and with the header mended (magic, version, lengths, checksum) so that
they reach the checks of the fields.

What opens is walked through every accessor, and run with both kernels where that is cheap.
*/

use cbin_nn_kernels::bits::lane_mask;
use cbin_nn_model::aligned::AlignedBytes;
use cbin_nn_model::format::{DType, Header, MAGIC, OperatorRecord, TensorRecord, VERSION, align};
use cbin_nn_model::writer::seal;
use cbin_nn_model::{Model, NoObserver};

/// See the module's documentation.
pub fn run(data: &[u8]) {
    open(data);
    if let Some(mended) = mend(data) {
        open(&mended);
    }
}

/// The bytes behind a header that agrees with their number.
fn mend(data: &[u8]) -> Option<Vec<u8>> {
    let mut header: Header = bytemuck::pod_read_unaligned(data.get(..size_of::<Header>())?);
    (header.magic, header.version) = (MAGIC, VERSION);
    header.file_bytes = data.len() as u32;
    let before = size_of::<Header>() as u64
        + u64::from(header.operators) * size_of::<OperatorRecord>() as u64
        + u64::from(header.tensors) * size_of::<TensorRecord>() as u64
        + align(header.string_bytes.into());
    header.data_bytes = (data.len() as u64).checked_sub(before)?.try_into().ok()?;
    let mut bytes = data.to_vec();
    bytes[..size_of::<Header>()].copy_from_slice(bytemuck::bytes_of(&header));
    seal(&mut bytes);
    Some(bytes)
}

fn open(bytes: &[u8]) {
    let bytes = AlignedBytes::copy_of(bytes);
    let model = match Model::new_checked(&bytes) {
        Ok(model) => model,
        Err(error) => {
            assert!(error.code() != 0 && !error.slug().is_empty() && !error.to_string().is_empty());
            return;
        }
    };
    let mut work = 0u64;
    let _ = (model.name(), model.float_output(), model.file_bytes());
    for index in 0..=model.operator_count() {
        let _ = (model.operator_name(index), model.constant_bytes(index), model.operator_kind(index));
        let _ = model.operator_inputs(index).count();
        let Ok(operator) = model.operator(index) else { continue };
        let _ = (operator.kind(), operator.has_fused_pool(), operator.scratch_bytes());
        // A pool's taps are not multiply-accumulates, and a fused one repeats them.
        let record: OperatorRecord = record(&bytes, index);
        let taps = |kernel: [u16; 2]| u64::from(kernel[0]).max(1) * u64::from(kernel[1]).max(1);
        let pooled =
            operator.output().elements() as u64 * taps(record.pool.kernel) * taps(record.window.kernel);
        work = work.saturating_add(operator.macs()).saturating_add(pooled.saturating_mul(64));
    }
    for index in 0..model.tensor_count() {
        let tensor = model.tensor(index).unwrap();
        assert_eq!(model.data_bytes(&tensor).map_or(tensor.bytes, <[u8]>::len), tensor.bytes);
    }
    let largest = model.arena_bytes().max(model.input_bytes()).max(model.output_bytes());
    if work > 300_000 || largest > 1 << 18 {
        return;
    }
    let mut image = AlignedBytes::copy_of(&vec![0x5A; model.input_bytes()]).to_vec();
    if model.input().dtype == DType::Bits {
        let channels = model.input().shape[3] as usize;
        for pixel in image.chunks_exact_mut(4 * channels.div_ceil(32)) {
            for (word, bytes) in pixel.chunks_exact_mut(4).enumerate() {
                bytes.copy_from_slice(&(0x5A5A_5A5A & lane_mask(channels, word)).to_le_bytes());
            }
        }
    }
    let image = AlignedBytes::copy_of(&image);
    let outputs = [true, false].map(|optimized| {
        let mut output = vec![0u64; model.output_bytes().div_ceil(8)];
        let slice = &mut bytemuck::cast_slice_mut(&mut output)[..model.output_bytes()];
        let mut arena = vec![0xDEAD_BEEF; model.arena_bytes() / 4];
        match optimized {
            true => model.run(&image, slice, &mut arena, &mut NoObserver),
            false => model.run_reference(&image, slice, &mut arena, &mut NoObserver),
        }
        .expect("a checked model runs");
        output
    });
    assert_eq!(outputs[0], outputs[1]);
    if let Some(plan) = model.in_place() {
        let mut memory = vec![0xDEAD_BEEF_u32; plan.bytes / 4];
        bytemuck::cast_slice_mut(&mut memory)[plan.image].copy_from_slice(&image);
        let mut output = vec![0u64; model.output_bytes().div_ceil(8)];
        let slice = &mut bytemuck::cast_slice_mut(&mut output)[..model.output_bytes()];
        model.run_in_place(&mut memory, slice, &mut NoObserver).expect("a checked model runs");
        assert_eq!(output, outputs[0]);
    }
}

fn record(bytes: &[u8], index: usize) -> OperatorRecord {
    let at = size_of::<Header>() + index * size_of::<OperatorRecord>();
    bytemuck::pod_read_unaligned(&bytes[at..at + size_of::<OperatorRecord>()])
}
