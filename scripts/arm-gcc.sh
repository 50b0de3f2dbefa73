#!/usr/bin/env bash
# Make sure that the C cross-compiler for Arm is there, with newlib; install it where that is possible.
set -euo pipefail
if command -v arm-none-eabi-gcc >/dev/null && [ -f "$(arm-none-eabi-gcc -print-file-name=rdimon.specs)" ]; then exit 0; fi
install="apt-get install --yes --no-install-recommends gcc-arm-none-eabi libnewlib-arm-none-eabi"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing the C compiler for Arm: $install"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && $install -qq >/dev/null; } && exit 0
fi
echo "The C compiler for Arm is missing. Run:  sudo $install" >&2
exit 1
