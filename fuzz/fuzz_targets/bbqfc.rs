//! See [`cbin_nn_fuzz::bbqfc`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cbin_nn_fuzz::bbqfc::run(data));
