//! Puts the memory map and the assets where the linker and `include_bytes!` find them.
//!
//! `EMBED_ASSETS` is the folder of `model.cbn` and `images.bin`; this one, if it isn't set.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("Cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("Cargo sets it"));
    println!("cargo::rerun-if-env-changed=EMBED_ASSETS");
    let assets = env::var_os("EMBED_ASSETS").map_or(here.clone(), PathBuf::from);
    for (from, name) in [(&here, "memory.x"), (&assets, "model.cbn"), (&assets, "images.bin")] {
        let path = from.join(name);
        println!("cargo::rerun-if-changed={}", path.display());
        if let Err(error) = fs::copy(&path, out.join(name)) {
            println!("cargo::error={}: {error}; README.md says how to make it", path.display());
        }
    }
    println!("cargo::rustc-link-search={}", out.display());
}
