//! The committed corpus through every target, on stable Rust and without libFuzzer.

use std::fs;
use std::path::{Path, PathBuf};

use cbin_nn_fuzz::TARGETS;
use cbin_nn_kernels::bits::lane_mask;
use cbin_nn_kernels::epilogue::Grid;
use cbin_nn_kernels::operators::qbconv2d::Affine;
use cbin_nn_kernels::shape::{Padding, Shape, Window};
use cbin_nn_model::format::{DType, Layout};
use cbin_nn_model::writer::{Builder, ByteWeights, OperatorSpec, PoolSpec, RulesSpec};

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

#[test]
fn every_target_survives_its_corpus() {
    for (name, target) in TARGETS {
        let folder = corpus(name);
        let files: Vec<PathBuf> = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(files.len() >= 10, "{}: {} files are no corpus", folder.display(), files.len());
        for file in &files {
            // The name of the file that panics, beside what the panic says.
            println!("{}", file.display());
            target(&fs::read(file).unwrap());
        }
        target(&[]);
    }
}

#[test]
fn every_folder_of_the_corpus_has_a_target() {
    for entry in fs::read_dir(corpus("")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(TARGETS.iter().any(|(target, _)| *target == name), "corpus/{name} belongs to no target");
    }
}

#[test]
fn every_target_has_its_binary() {
    for (name, _) in TARGETS {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fuzz_targets/{name}.rs"));
        let source = fs::read_to_string(path).unwrap();
        assert!(source.contains(&format!("cbin_nn_fuzz::{name}::run(data)")), "{name}");
    }
}

/// Writes a first corpus of `view`: a model of one operator for each kind, so that fuzzing starts inside the
/// format. `cargo test --manifest-path fuzz/Cargo.toml -- --ignored` remakes it.
#[test]
#[ignore = "writes files"]
fn seeds_of_view() {
    let bits = |channels: usize| lane_mask(channels, 0) & 0x2B5A_69C3;
    let rules = |grid, values: usize, flips: usize| RulesSpec {
        grid,
        lo: vec![-1; values],
        hi: vec![i32::MAX; values],
        flip: vec![bits(3); flips],
    };
    let window = Window { padding: [1, 0, 1, 0], ..Window::of(2, 2) };
    let pool = || PoolSpec {
        window: Window { strides: [2, 2], ..Window::of(2, 2) },
        veto: Some(rules(Grid::Output, 3, 1)),
        invert: Some(vec![bits(3)]),
    };
    let affine = Affine { mul: 2, add: -255 };
    let qb = |layout| OperatorSpec::QbConv2d {
        weights: vec![bits(2); 12],
        filters: 3,
        window,
        affine,
        channel_adds: vec![],
        layout,
        rules: rules(Grid::Conv, 12, 4),
        pool: None,
    };
    let sums = OperatorSpec::QbConv2d {
        weights: (0..12).map(|at| bits(2) ^ at & 3).collect(),
        filters: 3,
        window,
        affine,
        channel_adds: vec![],
        layout: Layout::PixelSums,
        rules: rules(Grid::Channel, 3, 1),
        pool: None,
    };
    let specs = [
        ("qbconv2d", DType::U8, qb(Layout::Canonical)),
        ("qbconv2d-byte-mask", DType::U8, qb(Layout::ByteMask)),
        ("qbconv2d-pixel-sums", DType::U8, sums),
        (
            "qqconv2d",
            DType::U8,
            OperatorSpec::QqConv2d {
                weights: ByteWeights::I8(vec![-3; 24]),
                filters: 3,
                window,
                affine,
                channel_adds: vec![],
                rules: rules(Grid::Channel, 3, 1),
                pool: None,
            },
        ),
        (
            "bbconv2d",
            DType::Bits,
            OperatorSpec::BbConv2d {
                weights: vec![bits(2); 12],
                filters: 3,
                window,
                padding: Padding::One,
                by_output_channel: None,
                rules: rules(Grid::Channel, 3, 1),
                pool: None,
            },
        ),
        (
            "bbconv2d-pool",
            DType::Bits,
            OperatorSpec::BbConv2d {
                weights: vec![bits(2); 12],
                filters: 3,
                window: Window { padding: [1, 0, 0, 1], ..Window::of(2, 2) },
                padding: Padding::Zero,
                by_output_channel: None,
                rules: rules(Grid::Channel, 3, 1),
                pool: Some(pool()),
            },
        ),
        (
            "bbpointwiseconv2d",
            DType::Bits,
            OperatorSpec::BbPointwiseConv2d {
                weights: vec![bits(2); 3],
                filters: 3,
                strides: [2, 1],
                rules: rules(Grid::Channel, 3, 1),
                pool: None,
            },
        ),
        (
            "bbdepthwiseconv2d",
            DType::Bits,
            OperatorSpec::BbDepthwiseConv2d {
                weights: vec![bits(2); 4],
                window,
                padding: Padding::Zero,
                rules: RulesSpec { flip: vec![bits(2)], ..rules(Grid::Channel, 2, 1) },
                pool: None,
            },
        ),
        ("bmaxpool2d", DType::Bits, OperatorSpec::BMaxPool2d { window, use_and: Some(vec![bits(2)]) }),
        (
            "bbfc",
            DType::Bits,
            OperatorSpec::BbFc { weights: vec![bits(2); 18], units: 3, rules: rules(Grid::Channel, 3, 1) },
        ),
        (
            "bbqfc",
            DType::Bits,
            OperatorSpec::BbqFc {
                weights: vec![bits(2); 18],
                units: 3,
                mul: vec![3; 6],
                add: vec![-9; 6],
                knee: vec![1; 3],
                shift: 2,
                dtype: DType::I16,
                scale: 0.5,
            },
        ),
    ];
    fs::create_dir_all(corpus("view")).unwrap();
    for (name, dtype, spec) in specs {
        let mut builder = Builder::new("m", "i", dtype, Shape::new(3, 2, 2).unwrap());
        builder.operator("o", builder.input(), "t", spec).unwrap();
        fs::write(corpus("view").join(name), builder.finish(false).unwrap()).unwrap();
    }
    // Two operators, for the arena between them.
    let mut builder = Builder::new("m", "i", DType::U8, Shape::new(3, 2, 2).unwrap());
    let between = builder.operator("o", builder.input(), "t", qb(Layout::ByteMask)).unwrap();
    let pooled = OperatorSpec::BMaxPool2d { window: Window::of(1, 1), use_and: None };
    builder.operator("p", between, "u", pooled).unwrap();
    fs::write(corpus("view").join("two-operators"), builder.finish(true).unwrap()).unwrap();
}
