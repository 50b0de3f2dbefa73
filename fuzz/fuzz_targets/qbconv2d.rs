//! See [`cbin_nn_fuzz::qbconv2d`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cbin_nn_fuzz::qbconv2d::run(data));
