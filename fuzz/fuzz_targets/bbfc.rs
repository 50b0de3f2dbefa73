//! See [`cbin_nn_fuzz::bbfc`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cbin_nn_fuzz::bbfc::run(data));
