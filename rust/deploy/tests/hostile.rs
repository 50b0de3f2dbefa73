//! Hostile models on the emulated board: the firmware gives the host's verdict on each, runs what it accepts
//! to the host's bytes, and goes on. What these tests need is told in `emulated.rs`.

#[path = "../../model/tests/common/mod.rs"]
mod models;
#[path = "common/needs.rs"]
mod needs;

use std::collections::BTreeMap;

use cbin_nn_deploy::{DeployError, Options};
use cbin_nn_model::batch::OwnedModel;
use cbin_nn_model::{Model, NoObserver};
use models::{Random, mutated, originals};
use needs::{go_on, needs, open};

/// The host's outcome for one image.
fn on_the_host(model: &Model<'_>, image: &[u8]) -> Vec<u8> {
    let mut output = vec![0u64; model.output_bytes().div_ceil(8)];
    let output = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut output)[..model.output_bytes()];
    let mut arena = vec![0; model.arena_bytes() / 4];
    model.run(image, output, &mut arena, &mut NoObserver).unwrap();
    output.to_vec()
}

#[test]
fn twenty_thousand_sealed_mutations_get_the_hosts_verdict_and_bytes() {
    let Some(runner) = needs() else { return };
    let mut session = open(&runner, Options::default()).unwrap();
    let (originals, mut random) = (originals(), Random(0xB0A2D));
    let mut outcomes = BTreeMap::new();
    for case in 0..20_000 {
        let bytes = mutated(&mut random, &originals[case % originals.len()]);
        let host = OwnedModel::new(&bytes);
        let board = session.load_unchecked(&bytes, &mut go_on);
        let outcome = match (&host, &board) {
            (Err(error), Err(DeployError::ModelInvalid { .. })) => error.slug(),
            // The host has more memory than the board: a plausible model may still be too large for it.
            (Ok(_), Err(DeployError::ArenaTooSmall { .. })) => "too large",
            (Ok(model), Ok(_)) => {
                let model = model.view();
                let macs: u64 = (0..model.operator_count()).map(|i| model.operator(i).unwrap().macs()).sum();
                if macs < 1_000_000 {
                    let image: Vec<u8> = (0..model.input_bytes()).map(|_| random.next() as u8).collect();
                    let run = session.run_image(&image, 1, 1, &mut go_on).unwrap();
                    // A packed input is cast to words, which a `Vec<u8>` does not promise to be.
                    let image = cbin_nn_model::aligned::AlignedBytes::copy_of(&image);
                    assert_eq!(run.output, on_the_host(&model, &image), "case {case}");
                    "equal bytes"
                } else {
                    "not run: large"
                }
            }
            _ => panic!("case {case}: host {:?}, board {board:?}", host.map(|_| ())),
        };
        *outcomes.entry(outcome).or_insert(0) += 1;
    }
    println!("{outcomes:?}");
    for outcome in
        ["equal bytes", "bad-header", "bad-tensor", "bad-operator", "bad-argument", "arena-overlap"]
    {
        assert!(outcomes.get(outcome).copied().unwrap_or(0) >= 10, "too few `{outcome}` in {outcomes:?}");
    }
    // And the next good model still runs.
    session.load_unchecked(&originals[0], &mut go_on).unwrap();
    let model = OwnedModel::new(&originals[0]).unwrap();
    let image = vec![0x5A; model.view().input_bytes()];
    assert_eq!(
        session.run_image(&image, 1, 1, &mut go_on).unwrap().output,
        on_the_host(&model.view(), &image)
    );
}
