#!/usr/bin/env bash
# Make sure that an emulator is there; install it where that is possible:  emulator.sh [PROGRAM [PACKAGE]]
set -euo pipefail
program=${1:-${CBIN_NN_QEMU:-qemu-system-arm}}
if command -v "$program" >/dev/null; then exit 0; fi
install="apt-get install --yes --no-install-recommends ${2:-qemu-system-arm}"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing the emulator: $install"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && $install -qq >/dev/null; } && exit 0
fi
echo "The emulator is missing. Run:  sudo $install" >&2
exit 1
