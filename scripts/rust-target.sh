#!/usr/bin/env bash
# Make sure that a Rust target is installed:  rust-target.sh TRIPLE
set -euo pipefail
target=$1
if [ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ]; then exit 0; fi
if command -v rustup >/dev/null; then
    rustup target add "$target" && exit 0
fi
echo "The Rust target $target is missing: run 'rustup target add $target' (https://rustup.rs)." >&2
exit 1
