//! The golden vectors of `tests/golden` on the emulated board. Their outputs come from an oracle, so this
//! compares the firmware with more than the host. What these tests need is told in `emulated.rs`.

#[path = "common/needs.rs"]
mod needs;

use std::fs;
use std::path::PathBuf;

use cbin_nn_deploy::Options;
use needs::{go_on, needs, open};

#[test]
fn every_vector_gives_its_bytes_on_the_board() {
    let Some(runner) = needs() else { return };
    let mut session = open(&runner, Options::default()).unwrap();
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden"));
    let mut images = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "cbn") {
            continue;
        }
        let read = |suffix| fs::read(path.with_extension(suffix)).unwrap();
        let opened = session.load_model(&read("cbn"), &mut go_on).unwrap();
        let (inputs, outputs) = (read("in"), read("out"));
        let (input, output) = (opened.input_bytes as usize, opened.output_bytes as usize);
        let count = inputs.len() / input;
        assert_eq!((inputs.len(), outputs.len()), (count * input, count * output), "{path:?}");
        for (index, (image, expected)) in inputs.chunks(input).zip(outputs.chunks(output)).enumerate() {
            let run = session.run_image(image, index + 1, count, &mut go_on).unwrap();
            assert_eq!(run.output, expected, "{path:?}, image {index}");
            images += 1;
        }
    }
    assert!(images >= 100, "{images} images");
}
