//! Every field that the reader refuses, by the error it gives; every layer that the writer refuses; every
//! code.

mod common;

use std::collections::BTreeSet;

use cbin_nn_kernels::ArgumentError;
use cbin_nn_kernels::epilogue::Grid;
use cbin_nn_kernels::shape::{Padding, Shape, Window};
use cbin_nn_model::aligned::AlignedBytes;
use cbin_nn_model::batch::{Kernel, OwnedModel};
use cbin_nn_model::format::{
    DType, Header, Kind, Layout, NONE, OperatorRecord, Place, TensorRecord, WindowRecord, storage_bytes,
};
use cbin_nn_model::writer::{BuildError, Builder, OperatorSpec, PoolSpec, RulesSpec, seal};
use cbin_nn_model::{FormatError, Model, NoObserver, RunError};
use common::{in_place_model, small_model};

/// A file in its parts, to be damaged.
struct Parts {
    header: Header,
    operators: Vec<OperatorRecord>,
    tensors: Vec<TensorRecord>,
    /// Strings and data.
    rest: Vec<u8>,
}

impl Parts {
    fn of(bytes: &[u8]) -> Self {
        let (head, rest) = bytes.split_at(size_of::<Header>());
        let header: Header = bytemuck::pod_read_unaligned(head);
        let (operators, rest) = rest.split_at(header.operators as usize * size_of::<OperatorRecord>());
        let (tensors, rest) = rest.split_at(header.tensors as usize * size_of::<TensorRecord>());
        Self {
            header,
            operators: operators
                .chunks_exact(size_of::<OperatorRecord>())
                .map(bytemuck::pod_read_unaligned)
                .collect(),
            tensors: tensors
                .chunks_exact(size_of::<TensorRecord>())
                .map(bytemuck::pod_read_unaligned)
                .collect(),
            rest: rest.to_vec(),
        }
    }

    /// What the reader says of the parts, behind a length and a checksum that are right.
    fn error(self) -> FormatError {
        self.check().expect_err("an attack was accepted")
    }

    fn check(mut self) -> Result<(), FormatError> {
        self.header.file_bytes = (size_of::<Header>()
            + size_of_val(&self.operators[..])
            + size_of_val(&self.tensors[..])
            + self.rest.len()) as u32;
        let mut bytes = bytemuck::bytes_of(&self.header).to_vec();
        bytes.extend_from_slice(bytemuck::cast_slice(&self.operators));
        bytes.extend_from_slice(bytemuck::cast_slice(&self.tensors));
        bytes.extend_from_slice(&self.rest);
        seal(&mut bytes);
        Model::new_checked(&AlignedBytes::copy_of(&bytes)).map(drop)
    }
}

type Change<'a> = &'a dyn Fn(&mut Parts);

fn check(table: &[(&str, Change<'_>, FormatError)]) {
    // Operators: 0 conv1 (fused pool, veto), 1 conv2, 2 depthwise, 3 pointwise, 4 pool, 5 hidden, 6 logits.
    // Tensors: 8 activations, then constants: 8..=15 of conv1, 16 to 19, 20 to 23, 24 to 27, 28, 29 to 32,
    // 33 to 36.
    let bytes = small_model(1, Layout::ByteMask, DType::I16);
    for (name, change, expected) in table {
        let mut parts = Parts::of(&bytes);
        change(&mut parts);
        assert_eq!(parts.error(), *expected, "{name}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri takes seconds a file; the sealed mutations go the same ways")]
fn plans_in_place() {
    let field = |field| FormatError::Header { field };
    let bytes = in_place_model();
    let Header { in_place_bytes, image_offset, image_scratch_offset, arena_bytes, .. } =
        bytemuck::pod_read_unaligned(&bytes[..size_of::<Header>()]);
    assert!(in_place_bytes != 0 && image_offset % 4 == 0 && image_scratch_offset > image_offset);
    let table: &[(&str, Change<'_>, FormatError)] = &[
        ("no plan, but an offset", &|p| p.header.in_place_bytes = 0, field("in_place_bytes")),
        ("not in words", &|p| p.header.in_place_bytes += 2, field("in_place_bytes")),
        ("beyond all memory", &|p| p.header.in_place_bytes = u32::MAX - 3, field("in_place_bytes")),
        ("less than the arena", &|p| p.header.in_place_bytes = arena_bytes - 4, field("in_place_bytes")),
        ("less than the image", &|p| p.header.image_offset = in_place_bytes, field("in_place_bytes")),
        // Rows of 64 bytes over rows of 48: the second is written while the first row of the image is read.
        ("an image too near", &|p| p.header.image_offset = 124, field("image_offset")),
        ("an image between words", &|p| p.header.image_offset += 2, field("image_offset")),
        ("scratch between words", &|p| p.header.image_scratch_offset += 2, field("image_scratch_offset")),
        ("scratch beyond the end", &|p| p.header.image_scratch_offset += 4, field("image_scratch_offset")),
        ("scratch over the image", &|p| p.header.image_scratch_offset -= 4, field("image_scratch_offset")),
        (
            "scratch at the end of all",
            &|p| p.header.image_scratch_offset = u32::MAX - 3,
            field("image_scratch_offset"),
        ),
    ];
    for (name, change, expected) in table {
        let mut parts = Parts::of(&bytes);
        change(&mut parts);
        assert_eq!(parts.error(), *expected, "{name}");
    }
    let mut parts = Parts::of(&bytes);
    assert!(parts.header.image_offset > 128);
    parts.header.image_offset = 128;
    parts.check().expect("bands of one row");
    // A first layer that does not run so.
    let mut parts = Parts::of(&small_model(1, Layout::ByteMask, DType::I16));
    parts.header.in_place_bytes = parts.header.arena_bytes + 108;
    assert_eq!(parts.error(), field("in_place_bytes"));
}

#[test]
#[cfg_attr(miri, ignore = "Miri takes seconds a file; the sealed mutations go the same ways")]
fn header_fields() {
    let field = |field| FormatError::Header { field };
    check(&[
        ("too many operators", &|p| p.header.operators = 1025, field("operators")),
        ("too many tensors", &|p| p.header.tensors = 16_385, field("tensors")),
        (
            "no operators",
            &|p| {
                (p.header.operators, p.header.tensors) = (0, 0);
                (p.header.string_bytes, p.header.data_bytes) = (0, 0);
                (p.operators, p.tensors, p.rest) = (vec![], vec![], vec![]);
            },
            field("operators"),
        ),
        (
            "no output",
            &|p| {
                p.header.tensors = 7;
                p.tensors.truncate(7);
            },
            field("tensors"),
        ),
        (
            "data of 8 bytes more",
            &|p| {
                p.header.data_bytes += 8;
                p.rest.extend([0; 8]);
            },
            field("data_bytes"),
        ),
        (
            "data that no tensor has",
            &|p| {
                p.header.data_bytes += 16;
                p.rest.extend([0; 16]);
            },
            field("data_bytes"),
        ),
        ("an arena of 2 bytes more", &|p| p.header.arena_bytes += 2, field("arena_bytes")),
        ("an arena of 2 GiB", &|p| p.header.arena_bytes = 1 << 31, field("arena_bytes")),
        ("a flag of the future", &|p| p.header.flags = 2, field("flags")),
        ("a reserved word", &|p| p.header.reserved = 1, field("reserved")),
        ("a name beyond the strings", &|p| p.header.name.bytes = u32::MAX, field("name")),
        ("strings that are no text", &|p| p.rest[0] = 0xFF, field("strings")),
        (
            "padding of the strings",
            &|p| {
                // The last letter of the last name becomes padding.
                assert!(p.header.string_bytes.is_multiple_of(16));
                p.header.string_bytes -= 1;
                p.header.name.bytes = 0;
            },
            field("strings padding"),
        ),
    ]);
}

#[test]
#[cfg_attr(miri, ignore = "Miri takes seconds a file; the sealed mutations go the same ways")]
fn tensor_fields() {
    let field = |index, field| FormatError::Tensor { index, field };
    check(&[
        ("an unknown type", &|p| p.tensors[3].dtype = 6, field(3, "dtype")),
        ("an unknown place", &|p| p.tensors[3].place = 4, field(3, "place")),
        ("an unknown layout", &|p| p.tensors[3].layout = 4, field(3, "layout")),
        ("masks of integers", &|p| p.tensors[9].layout = 1, field(9, "shape")),
        ("integers by output channel", &|p| p.tensors[9].layout = 2, field(9, "shape")),
        ("sums of integers", &|p| p.tensors[9].layout = 3, field(9, "shape")),
        ("no rows", &|p| p.tensors[1].shape[1] = 0, field(1, "shape")),
        ("too many columns", &|p| p.tensors[1].shape[2] = 65_536, field(1, "shape")),
        ("too many elements", &|p| p.tensors[0].shape = [1, 65_535, 65_535, 1], field(0, "shape")),
        ("more than the kernels take", &|p| p.tensors[0].shape = [1, 65_535, 1025, 1], field(0, "shape")),
        ("two images", &|p| p.tensors[0].shape[0] = 2, field(0, "shape")),
        ("an activation of masks", &|p| p.tensors[7].layout = 1, field(7, "shape")),
        ("a reserved byte", &|p| p.tensors[2].reserved = 1, field(2, "reserved")),
        ("a reserved word", &|p| p.tensors[2].reserved2[1] = 1, field(2, "reserved")),
        ("a scale of 0", &|p| p.tensors[7].scale = 0.0, field(7, "scale")),
        ("an infinite scale", &|p| p.tensors[7].scale = f64::INFINITY, field(7, "scale")),
        ("a name beyond the strings", &|p| p.tensors[2].name.offset = u32::MAX, field(2, "name")),
        ("an input in the arena", &|p| p.tensors[0].place = Place::Arena.code(), field(0, "place")),
        ("an activation in the data", &|p| p.tensors[1].place = Place::Data.code(), field(1, "place")),
        ("an input with an offset", &|p| p.tensors[0].offset = 4, field(0, "offset")),
        ("an output with an offset", &|p| p.tensors[7].offset = 4, field(7, "offset")),
        ("half a word", &|p| p.tensors[1].offset += 2, field(1, "offset")),
        ("beyond the arena", &|p| p.tensors[1].offset = p.header.arena_bytes, field(1, "offset")),
        ("a hole in the data", &|p| p.tensors[9].offset += 16, field(9, "offset")),
        ("beyond the data", &|p| p.tensors[36].shape[0] = 1000, field(36, "offset")),
        ("data padding", &|p| *p.rest.last_mut().unwrap() = 1, field(36, "padding")),
        ("an input of i8", &|p| p.tensors[0].dtype = DType::I8.code(), field(0, "dtype")),
        ("another shape than the kernel's", &|p| p.tensors[1].shape[3] = 7, field(1, "shape")),
        ("another type than the kernel's", &|p| p.tensors[7].dtype = DType::U8.code(), field(7, "dtype")),
    ]);
}

#[test]
#[cfg_attr(miri, ignore = "Miri takes seconds a file; the sealed mutations go the same ways")]
fn operator_fields() {
    let field = |index, field| FormatError::Operator { index, field };
    let argument = |index, error| FormatError::Argument { index, error };
    let none = WindowRecord { kernel: [0; 2], strides: [0; 2], dilation: [0; 2], padding: [0; 4] };
    check(&[
        ("an unknown kind", &|p| p.operators[3].kind = 99, field(3, "kind")),
        ("a name beyond the strings", &|p| p.operators[3].name.bytes = 9999, field(3, "name")),
        // Fields that a kind does not use.
        ("a flag of the future", &|p| p.operators[1].flags = 2, field(1, "flags")),
        ("one-padding of bytes", &|p| p.operators[0].flags = 1, field(0, "flags")),
        ("a second input", &|p| p.operators[1].inputs[1] = 0, field(1, "inputs")),
        ("a constant of nothing", &|p| p.operators[4].constants[7] = 8, field(4, "constants")),
        ("a window of a dense layer", &|p| p.operators[5].window.kernel = [1, 1], field(5, "window")),
        ("a pool after a pool", &|p| p.operators[4].pool.kernel = [1, 1], field(4, "pool")),
        ("bytes that are bits", &|p| p.operators[1].input_mul = 1, field(1, "input_mul")),
        ("bytes that are bits", &|p| p.operators[1].input_add = 1, field(1, "input_add")),
        ("offsets of bits", &|p| p.operators[1].channel_adds = 8, field(1, "channel_adds")),
        ("offsets in the arena", &|p| p.operators[0].channel_adds = 1, field(0, "channel_adds")),
        ("offsets that do not exist", &|p| p.operators[0].channel_adds = 999, field(0, "channel_adds")),
        ("weights as offsets", &|p| p.operators[0].channel_adds = 8, field(0, "channel_adds")),
        ("a shift of bits", &|p| p.operators[0].shift = 1, field(0, "shift")),
        ("rules of a pool", &|p| p.operators[4].rule_grid = 1, field(4, "rule_grid")),
        ("a veto of a dense layer", &|p| p.operators[5].veto_grid = 1, field(5, "veto_grid")),
        ("a reserved byte", &|p| p.operators[0].reserved[1] = 1, field(0, "reserved")),
        ("a reserved word", &|p| p.operators[0].reserved2[1] = 1, field(0, "reserved")),
        // Inputs and weights.
        ("no input", &|p| p.operators[1].inputs[0] = NONE, field(1, "inputs")),
        ("its own output", &|p| p.operators[1].inputs[0] = 2, field(1, "inputs")),
        ("bytes where it reads bits", &|p| p.operators[1].inputs[0] = 0, field(1, "inputs")),
        ("no weights", &|p| p.operators[1].constants[0] = NONE, field(1, "weights")),
        ("weights that do not exist", &|p| p.operators[1].constants[0] = 37, field(1, "weights")),
        ("weights in the arena", &|p| p.operators[1].constants[0] = 1, field(1, "weights")),
        ("another layer's weights", &|p| p.operators[1].constants[0] = 20, field(1, "weights")),
        ("several filters a channel", &|p| p.operators[2].constants[0] = 16, field(2, "weights")),
        ("another dense layer's weights", &|p| p.operators[5].constants[0] = 33, field(5, "weights")),
        ("no weights of a dense layer", &|p| p.operators[5].constants[0] = NONE, field(5, "weights")),
        (
            "masks where it reads bits",
            &|p| {
                // conv1 with the kind of conv2 still has its weights in the byte-mask layout.
                p.operators[0].kind = Kind::BbConv2d.code();
                (p.operators[0].input_mul, p.operators[0].input_add) = (0, 0);
                p.tensors[0].dtype = DType::Bits.code();
            },
            field(0, "weights"),
        ),
        (
            "1-bit weights where it reads 8-bit ones",
            &|p| p.operators[0].kind = Kind::QqConv2d.code(),
            field(0, "weights"),
        ),
        // Rules, veto, pool.
        ("no lo", &|p| p.operators[1].constants[1] = NONE, field(1, "rules")),
        ("no flip", &|p| p.operators[1].constants[3] = NONE, field(1, "rules")),
        ("rules on no plane", &|p| p.operators[1].rule_grid = 3, field(1, "rules")),
        ("rules on another plane", &|p| p.operators[2].rule_grid = 1, field(2, "rules")),
        ("flips as lo", &|p| p.operators[0].constants[1] = 11, field(0, "rules")),
        ("lo as flips", &|p| p.operators[0].constants[3] = 9, field(0, "rules")),
        ("half a veto", &|p| p.operators[0].constants[5] = NONE, field(0, "veto")),
        ("a veto on no plane", &|p| p.operators[0].veto_grid = 3, field(0, "veto")),
        ("a veto without a pool", &|p| p.operators[0].pool = none, field(0, "pool")),
        ("invert without a pool", &|p| p.operators[1].constants[7] = 28, field(1, "pool")),
        ("a plane of no veto", &|p| p.operators[0].constants[4..7].fill(NONE), field(0, "veto_grid")),
        ("invert of another layer", &|p| p.operators[0].constants[7] = 28, field(0, "invert")),
        ("masks as invert", &|p| p.tensors[15].layout = 1, field(0, "invert")),
        ("use_and of another layer", &|p| p.operators[4].constants[0] = 15, field(4, "use_and")),
        // The last layer.
        ("knee of another type", &|p| p.operators[6].constants[3] = 34, field(6, "knee")),
        ("two rows without a knee", &|p| p.operators[6].constants[3] = NONE, field(6, "mul")),
        ("no mul", &|p| p.operators[6].constants[1] = NONE, field(6, "mul")),
        ("no add", &|p| p.operators[6].constants[2] = NONE, field(6, "add")),
        ("knee as add", &|p| p.operators[6].constants[2] = 36, field(6, "add")),
        // Scratch.
        ("half a word", &|p| p.operators[0].scratch_offset += 2, field(0, "scratch_offset")),
        ("half a word", &|p| p.operators[0].scratch_bytes += 2, field(0, "scratch_offset")),
        ("a place for no scratch", &|p| p.operators[5].scratch_offset = 4, field(5, "scratch_offset")),
        ("beyond the arena", &|p| p.operators[0].scratch_bytes = u32::MAX - 3, field(0, "scratch_offset")),
        ("too little", &|p| p.operators[0].scratch_bytes -= 4, field(0, "scratch_bytes")),
        // What the kernels object to.
        (
            "a stride of 0",
            &|p| p.operators[1].window.strides[1] = 0,
            argument(1, ArgumentError::Zero { argument: "strides" }),
        ),
        (
            "a fused pool's stride of 0",
            &|p| p.operators[0].pool.strides[1] = 0,
            argument(0, ArgumentError::Zero { argument: "strides" }),
        ),
        (
            "a pool larger than its input",
            &|p| p.operators[4].window.kernel = [4, 1],
            argument(4, ArgumentError::KernelTooLarge { argument: "kernel" }),
        ),
        (
            "a fused pool of 8192 x 8192 pixels",
            &|p| (p.operators[0].pool.padding, p.operators[0].pool.strides) = ([4096; 4], [1, 1]),
            argument(0, ArgumentError::TooLarge { argument: "shape", limit: 1 << 26 }),
        ),
        (
            "bytes that mean nothing",
            &|p| p.operators[0].input_mul = 0,
            argument(0, ArgumentError::Value { argument: "input mul" }),
        ),
        (
            "a shift of 63",
            &|p| p.operators[6].shift = 63,
            argument(6, ArgumentError::TooLarge { argument: "shift", limit: 62 }),
        ),
        (
            "a mask that is none",
            &|p| {
                let at = p.rest.len() - p.header.data_bytes as usize;
                p.rest[at] ^= 1;
            },
            argument(0, ArgumentError::Value { argument: "weights" }),
        ),
        (
            "a padding bit",
            &|p| {
                let at = p.rest.len() - p.header.data_bytes as usize + p.tensors[32].offset as usize;
                p.rest[at + 7] |= 0x80;
            },
            argument(5, ArgumentError::PaddingBits { argument: "rule flip" }),
        ),
    ]);
}

#[test]
#[cfg_attr(miri, ignore = "Miri takes seconds a file; the sealed mutations go the same ways")]
fn what_is_read_before_the_records() {
    let bytes = small_model(1, Layout::ByteMask, DType::I16);
    let error = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        Model::new_checked(&AlignedBytes::copy_of(&bytes)).map(drop).unwrap_err()
    };
    let length = bytes.len() as u64;
    assert_eq!(error(&|b| b.truncate(63)), FormatError::TooShort { got: 63 });
    assert_eq!(error(&|b| b[0] = b'K'), FormatError::Magic);
    assert_eq!(error(&|b| b[4] = 2), FormatError::Version { got: 2 });
    assert_eq!(error(&|b| b.push(0)), FormatError::Length { header: length, got: length + 1 });
    // A header whose sections are not its length.
    assert_eq!(error(&|b| b[16] += 1), FormatError::Length { header: length + 128, got: length });
    assert!(matches!(error(&|b| b[40] ^= 1), FormatError::Checksum { expected, got } if expected != got));
}

#[test]
fn codes_and_slugs_are_stable_and_different() {
    let error = ArgumentError::Zero { argument: "strides" };
    let table = [
        (FormatError::Misaligned, 1, "misaligned", "16-byte boundary"),
        (FormatError::TooShort { got: 3 }, 2, "too-short", "3 bytes"),
        (FormatError::Magic, 3, "bad-magic", "CBIN"),
        (FormatError::Version { got: 7 }, 4, "unsupported-version", "version 7"),
        (FormatError::Length { header: 8, got: 9 }, 5, "wrong-length", "says 8 bytes, there are 9"),
        (FormatError::Checksum { expected: 1, got: 2 }, 6, "bad-checksum", "0x00000002"),
        (FormatError::Header { field: "flags" }, 7, "bad-header", "`flags`"),
        (FormatError::Tensor { index: 4, field: "scale" }, 8, "bad-tensor", "tensor 4: field `scale`"),
        (FormatError::Operator { index: 5, field: "kind" }, 9, "bad-operator", "operator 5: field `kind`"),
        (FormatError::Argument { index: 6, error }, 10, "bad-argument", "operator 6: `strides` must be"),
        (FormatError::Overlap { index: 7 }, 11, "arena-overlap", "operator 7"),
        (FormatError::NotBuilt { index: 8 }, 12, "operator-not-built", "operator 8: this build was trimmed"),
    ];
    for (error, code, slug, text) in table {
        assert_eq!((error.code(), error.slug()), (code, slug));
        assert!(error.to_string().contains(text), "{error}");
    }
    assert_eq!(table.iter().map(|row| row.2).collect::<BTreeSet<_>>().len(), table.len());
    let old = FormatError::Operator { index: 1, field: "scratch_bytes" }.to_string();
    assert!(old.ends_with("made for the kernels of another version; convert it again"), "{old}");
    let error = ArgumentError::Value { argument: "weights" };
    let old = FormatError::Argument { index: 1, error }.to_string();
    assert!(old.ends_with("made for the kernels of another version; convert it again"), "{old}");
    let run = RunError::Operator { index: 2 };
    assert!(run.to_string().starts_with("operator 2 failed"));
}

#[test]
fn names_and_codes_belong_together() {
    for code in 0..=u8::MAX {
        let dtype = DType::from_code(code);
        assert_eq!(dtype.map(DType::name).and_then(DType::from_name), dtype);
        assert_eq!(dtype.map(DType::code), dtype.map(|_| code));
        assert_eq!(Kind::from_code(code.into()).is_some(), (1..=9).contains(&code));
        assert_eq!(
            Place::from_code(code).map(Place::name).and_then(Place::from_name),
            Place::from_code(code)
        );
        let layout = Layout::from_code(code);
        assert_eq!(layout.map(Layout::name).and_then(Layout::from_name), layout);
        let kind = Kind::from_code(code.into());
        assert_eq!(kind.map(Kind::name).and_then(Kind::from_name), kind);
        assert_eq!(kind.map(Kind::code), kind.map(|_| code.into()));
    }
    assert_eq!(DType::from_name("f32"), None);
    let bytes = |dtype| storage_bytes(dtype, Layout::Canonical, [2, 3, 5, 33]);
    assert_eq!(
        [DType::Bits, DType::U8, DType::I8, DType::I16, DType::I32, DType::I64].map(bytes),
        [Some(240), Some(990), Some(990), Some(1980), Some(3960), Some(7920)]
    );
    assert_eq!(storage_bytes(DType::Bits, Layout::ByteMask, [2, 3, 5, 33]), Some(992));
    // 15 taps: a word of numbers and eight of offsets.
    assert_eq!(storage_bytes(DType::Bits, Layout::PixelSums, [2, 3, 5, 3]), Some(72));
    assert_eq!(storage_bytes(DType::Bits, Layout::PixelSums, [2, 3, 5, 5]), None);
}

fn rules(values: usize, flips: usize) -> RulesSpec {
    RulesSpec { grid: Grid::Channel, lo: vec![0; values], hi: vec![9; values], flip: vec![0; flips] }
}

fn dense(units: usize) -> OperatorSpec {
    OperatorSpec::BbFc { weights: vec![0; units * 4], units, rules: rules(units, units.div_ceil(32)) }
}

/// A convolution of 2 x 2 pixels to 2 channels.
fn conv(window: Window, pool: Option<PoolSpec>) -> OperatorSpec {
    OperatorSpec::BbConv2d {
        weights: vec![0; 2 * window.taps()],
        filters: 2,
        window,
        padding: Padding::Zero,
        by_output_channel: None,
        rules: rules(2, 1),
        pool,
    }
}

#[test]
fn the_writer_names_the_layer() {
    let shape = Shape::new(2, 2, 3).unwrap();
    let layer = || "dense".to_owned();
    let mut other = Builder::new("other", "image", DType::Bits, shape);
    let later = other.operator("first", other.input(), "x", dense(1)).unwrap();
    let argument = |error| BuildError::Argument { layer: layer(), error };
    let length = |argument, expected, got| ArgumentError::Length { argument, expected, got };
    let large = Window { strides: [70_000, 1], ..Window::of(1, 1) };
    let pooled = |window, veto, invert| conv(Window::of(1, 1), Some(PoolSpec { window, veto, invert }));
    let table = [
        (DType::Bits, later, dense(5), BuildError::UnknownInput { layer: layer() }),
        (
            DType::U8,
            other.input(),
            dense(5),
            BuildError::InputType { layer: layer(), expected: "bits", got: "u8" },
        ),
        (DType::Bits, other.input(), conv(large, None), BuildError::Window { layer: layer() }),
        (
            DType::Bits,
            other.input(),
            pooled(large, None, None),
            argument(ArgumentError::TooLarge { argument: "strides", limit: 4096 }),
        ),
        (
            DType::Bits,
            other.input(),
            pooled(Window::of(2, 2), Some(rules(3, 1)), None),
            argument(length("rule lo", 2, 3)),
        ),
        (
            DType::Bits,
            other.input(),
            pooled(Window::of(2, 2), None, Some(vec![0, 0])),
            argument(length("invert", 1, 2)),
        ),
        (
            DType::Bits,
            other.input(),
            pooled(Window::of(2, 2), None, Some(vec![4])),
            argument(ArgumentError::PaddingBits { argument: "invert" }),
        ),
        (
            DType::Bits,
            other.input(),
            OperatorSpec::BbFc { weights: vec![8; 4], units: 1, rules: rules(1, 1) },
            argument(ArgumentError::PaddingBits { argument: "weights" }),
        ),
        (
            DType::Bits,
            other.input(),
            OperatorSpec::BbFc { weights: vec![0; 4], units: 1, rules: rules(2, 1) },
            argument(length("rule lo", 1, 2)),
        ),
        (
            DType::Bits,
            other.input(),
            OperatorSpec::BMaxPool2d { window: Window::of(3, 1), use_and: None },
            argument(ArgumentError::KernelTooLarge { argument: "kernel" }),
        ),
    ];
    for (dtype, input, spec, expected) in table {
        let mut builder = Builder::new("model", "image", dtype, shape);
        let error = builder.operator("dense", input, "y", spec).unwrap_err();
        assert_eq!(error, expected);
        assert!(error.to_string().starts_with("layer `dense`: "), "{error}");
        // The builder is as it was: the same model can still be finished.
        assert_eq!(builder.finish(false).unwrap_err(), BuildError::OperatorCount { got: 0 });
    }
}

#[test]
fn the_writer_counts_operators_and_trusts_its_reader() {
    let shape = Shape::new(1, 1, 1).unwrap();
    let mut builder = Builder::new("deep", "image", DType::Bits, shape);
    let pool = || OperatorSpec::BMaxPool2d { window: Window::of(1, 1), use_and: None };
    // Miri takes minutes to check a thousand operators.
    if !cfg!(miri) {
        let mut last = builder.input();
        for _ in 0..1024 {
            last = builder.operator("pool", last, "x", pool()).unwrap();
        }
        assert_eq!(builder.shape(last), Some(&shape));
        let error = builder.operator("pool", last, "x", pool()).unwrap_err();
        assert_eq!(error, BuildError::OperatorCount { got: 1025 });
        assert!(error.to_string().contains("this one has 1025"));
        let bytes = AlignedBytes::copy_of(&builder.finish(true).unwrap());
        let model = Model::new_checked(&bytes).unwrap();
        assert_eq!((model.operator_count(), model.arena_bytes(), model.name()), (1024, 8, "deep"));
        assert!(model.float_output());
        assert_eq!(model.file_bytes(), bytes.len());
    }
    let last = |dtype, scale| {
        let mut builder = Builder::new("", "", DType::Bits, shape);
        let (weights, mul, add) = (vec![0], vec![1], vec![0]);
        let spec = OperatorSpec::BbqFc { weights, units: 1, mul, add, knee: vec![], shift: 0, dtype, scale };
        builder.operator("", builder.input(), "", spec).unwrap();
        builder.finish(false)
    };
    let tensor = |field| BuildError::Rejected(FormatError::Tensor { index: 1, field });
    assert!(last(DType::I8, 1.0).is_ok());
    assert_eq!(last(DType::U8, 1.0).unwrap_err(), tensor("dtype"));
    assert_eq!(last(DType::I8, -1.0).unwrap_err(), tensor("scale"));
    assert_eq!(BuildError::TooLarge { what: "the arena" }.to_string().matches("the arena").count(), 1);
}

#[test]
#[cfg_attr(miri, ignore = "Miri takes seconds a file; the sealed mutations go the same ways")]
fn an_operator_says_what_it_is() {
    for (seed, first) in [(1, Kind::QbConv2d), (2, Kind::QqConv2d)] {
        let model = OwnedModel::new(&small_model(seed, Layout::Canonical, DType::I16)).unwrap();
        let view = model.view();
        assert_eq!(model.as_bytes().len(), view.file_bytes());
        let kinds = [
            (first, "conv1", true, 36 * 8 * 27),
            (Kind::BbConv2d, "conv2", false, 9 * 40 * 72),
            (Kind::BbDepthwiseConv2d, "depthwise", false, 9 * 40 * 9),
            (Kind::BbPointwiseConv2d, "pointwise", false, 9 * 40 * 40),
            (Kind::BMaxPool2d, "pool", false, 0),
            (Kind::BbFc, "hidden", false, 33 * 160),
            (Kind::BbqFc, "logits", false, 330),
        ];
        for (index, (kind, name, pooled, macs)) in kinds.into_iter().enumerate() {
            let operator = view.operator(index).unwrap();
            assert_eq!((operator.kind(), view.operator_kind(index)), (kind, Some(kind)));
            assert_eq!((view.operator_name(index), operator.has_fused_pool()), (name, pooled));
            assert_eq!(operator.macs(), macs, "{name}");
            assert_eq!(view.operator_inputs(index).collect::<Vec<_>>(), [index]);
            assert!(view.constant_bytes(index) > 0);
        }
        // One beyond the last.
        assert!(view.operator(7).is_err() && view.operator_kind(7).is_none());
        assert_eq!(
            (view.operator_name(7), view.operator_inputs(7).count(), view.constant_bytes(7)),
            ("", 0, 0)
        );
        assert_eq!(view.data_bytes(&view.input()), None);
    }
}

#[test]
fn a_batch_checks_its_lengths_and_takes_either_kernel() {
    let model = OwnedModel::new(&small_model(1, Layout::ByteMask, DType::I32)).unwrap();
    let images = vec![90; 2 * model.view().input_bytes()];
    let mut outputs = [vec![0u32; 20], vec![0u32; 20]];
    let short = model.run_batch(&images, bytemuck::cast_slice_mut(&mut outputs[0][1..]), 1).unwrap_err();
    assert_eq!(short, RunError::Length { argument: "output", expected: 80, got: 76 });
    for (kernel, output) in [Kernel::Reference, Kernel::Optimized].into_iter().zip(&mut outputs) {
        model.run_batch_with(kernel, &images, bytemuck::cast_slice_mut(output), 1).unwrap();
    }
    assert_eq!(outputs[0], outputs[1]);
    assert_eq!(OwnedModel::new(&[]).unwrap_err(), FormatError::TooShort { got: 0 });
    // A misaligned input of bits is named.
    let mut builder = Builder::new("", "", DType::Bits, Shape::new(2, 2, 3).unwrap());
    builder.operator("", builder.input(), "", dense(1)).unwrap();
    let bytes = AlignedBytes::copy_of(&builder.finish(false).unwrap());
    let model = Model::new_checked(&bytes).unwrap();
    let (image, mut output) = (AlignedBytes::copy_of(&[0; 17]), [0u32]);
    let output = bytemuck::cast_slice_mut(&mut output);
    let error = model.run(&image[1..], output, &mut [], &mut NoObserver).unwrap_err();
    assert_eq!(error, RunError::Alignment { argument: "input" });
}
