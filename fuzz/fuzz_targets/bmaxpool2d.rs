//! See [`cbin_nn_fuzz::bmaxpool2d`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cbin_nn_fuzz::bmaxpool2d::run(data));
