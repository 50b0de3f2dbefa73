#!/usr/bin/env bash
# The golden vectors on other cores, under QEMU: compile for each target, run, expect the reference's bytes.
#
# Cortex-M0's instructions run on a Cortex-M3: QEMU's machine with a Cortex-M0 (microbit) has too little memory for all
# vectors at once.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/emulator.sh qemu-system-arm
scripts/emulator.sh qemu-system-riscv32 qemu-system-misc
semihosting=(-nographic -monitor none -serial null -semihosting-config "enable=on,target=native")
run() {
    local target=$1 emulator=$2
    shift 2
    scripts/rust-target.sh "$target"
    (cd firmware && cargo build --quiet --release --locked -p cbin-nn-cores --target "$target")
    printf '%-30s %s: ' "$target" "$*"
    timeout 300 "$emulator" "$@" "${semihosting[@]}" -kernel "firmware/target/$target/release/cores" 2>&1
}
run thumbv6m-none-eabi qemu-system-arm -machine mps2-an385
run thumbv7m-none-eabi qemu-system-arm -machine mps2-an385
run thumbv7em-none-eabihf qemu-system-arm -machine mps2-an500
run thumbv8m.main-none-eabi qemu-system-arm -machine mps2-an505
run riscv32imac-unknown-none-elf qemu-system-riscv32 -machine virt -bios none
