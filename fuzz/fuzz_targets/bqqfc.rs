//! See [`cbin_nn_fuzz::bqqfc`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cbin_nn_fuzz::bqqfc::run(data));
