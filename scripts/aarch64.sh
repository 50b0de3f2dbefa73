#!/usr/bin/env bash
# Make sure that AArch64 programs can be built and run here: a linker and qemu-user. Installs them where possible.
set -euo pipefail
if command -v qemu-aarch64 >/dev/null && command -v aarch64-linux-gnu-gcc >/dev/null; then exit 0; fi
install="apt-get install --yes --no-install-recommends qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing an AArch64 linker and emulator: $install"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && $install -qq >/dev/null; } && exit 0
fi
echo "qemu-aarch64 or aarch64-linux-gnu-gcc is missing. Run:  sudo $install" >&2
exit 1
