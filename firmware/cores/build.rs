//! Builds the golden vectors in, and names the linker script of the target.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("Cargo sets OUT_DIR"));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let golden = golden.canonicalize().expect("tests/golden is there");
    println!("cargo::rerun-if-changed={}", golden.display());
    let mut models: Vec<PathBuf> = fs::read_dir(&golden)
        .expect("tests/golden can be read")
        .map(|entry| entry.expect("tests/golden can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cbn"))
        .collect();
    models.sort();
    let mut vectors = String::from("[\n");
    for model in &models {
        let name = model.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        let [model, input, output] = ["cbn", "in", "out"].map(|suffix| model.with_extension(suffix));
        writeln!(
            vectors,
            "Vector {{ name: {name:?}, model: &Aligned(*include_bytes!({model:?})), \
             inputs: &Aligned(*include_bytes!({input:?})), outputs: include_bytes!({output:?}) }},"
        )
        .expect("a string takes anything");
    }
    vectors.push_str("]\n");
    fs::write(out.join("vectors.rs"), vectors).expect("OUT_DIR is writable");

    // The machines of QEMU that scripts/test_cores.sh starts.
    let (code, ram) = match env::var("TARGET").expect("Cargo sets TARGET").as_str() {
        // mps2-an505: the secure aliases of its SSRAMs.
        "thumbv8m.main-none-eabi" => (0x1000_0000u32, 0x3800_0000u32),
        // mps2-an385.
        target if target.starts_with("thumb") => (0, 0x2000_0000),
        // virt.
        _ => (0x8000_0000, 0x8100_0000),
    };
    let script =
        include_str!("cores.x").replace("CODE_AT", &code.to_string()).replace("RAM_AT", &ram.to_string());
    fs::write(out.join("cores.x"), script).expect("OUT_DIR is writable");
    println!("cargo::rustc-link-search={}", out.display());
    println!("cargo::rustc-link-arg-bins=-Tcores.x");
    println!("cargo::rerun-if-changed=cores.x");
    println!("cargo::rerun-if-changed=build.rs");
}
