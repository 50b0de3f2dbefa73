//! Tells the kernels which instructions the target has, where stable Rust does not say so by itself.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(cbin_dsp)");
    println!("cargo::rerun-if-changed=build.rs");
    // The DSP extension is part of every ARMv7E-M core (Cortex-M4, M7); it is optional in ARMv8-M, so not
    // assumed there. `cfg(target_feature = "dsp")` would say it, but is unstable.
    if std::env::var("TARGET").is_ok_and(|target| target.starts_with("thumbv7em")) {
        println!("cargo::rustc-cfg=cbin_dsp");
    }
}
