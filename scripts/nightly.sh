#!/usr/bin/env bash
# Make sure that components of the nightly toolchain are installed:  nightly.sh COMPONENT...
set -euo pipefail
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "A nightly toolchain is missing: run 'rustup toolchain install nightly' (https://rustup.rs)." >&2
    exit 1
fi
installed=$(rustup component list --toolchain nightly --installed)
for component in "$@"; do
    grep -q "^$component" <<<"$installed" || rustup component add --toolchain nightly "$component"
done
