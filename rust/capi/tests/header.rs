//! The committed header is the one that the code gives. `CBIN_NN_WRITE_HEADER=1` writes it.

use std::path::Path;

#[test]
fn the_header_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let builder = cbindgen::Builder::new().with_config(config).with_src(root.join("src/lib.rs"));
    let mut written = Vec::new();
    builder.generate().unwrap().write(&mut written);
    let path = root.join("include/cbin_nn.h");
    if std::env::var_os("CBIN_NN_WRITE_HEADER").is_some() {
        std::fs::write(&path, &written).unwrap();
    }
    let committed = std::fs::read(&path).unwrap_or_default();
    assert!(committed == written, "include/cbin_nn.h is not what src/lib.rs gives: run `make capi-header`");
}
