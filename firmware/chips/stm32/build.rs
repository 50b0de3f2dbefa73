//! Puts `itcm.x` where the boards' linker finds it.

use std::{env, fs, path::PathBuf};

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("Cargo sets OUT_DIR"));
    fs::write(out.join("itcm.x"), include_bytes!("itcm.x")).expect("OUT_DIR is writable");
    println!("cargo::rustc-link-search={}", out.display());
    println!("cargo::rerun-if-changed=itcm.x");
    println!("cargo::rerun-if-changed=build.rs");
}
