#!/usr/bin/env bash
# Fuzz with libFuzzer, two targets at a time:  fuzz.sh SECONDS [TARGET...]   (all targets where none is named)
#
# What is new goes to build/fuzz/TARGET, an input that fails to fuzz/artifacts/TARGET. To keep it: put it in
# fuzz/corpus/TARGET, where `make test` replays it; to make a grown corpus small again: the target's binary with
# -set_cover_merge=1 -use_counters=0.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=$1
shift
all=$(sed -n 's|^path = "fuzz_targets/\(.*\)\.rs"|\1|p' fuzz/Cargo.toml)
[ $# -gt 0 ] || set -- $all
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "Fuzzing needs a nightly toolchain: run 'rustup toolchain install nightly'." >&2
    exit 1
fi
cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --version 0.13.2 --locked --quiet
# No sanitizer: there is no unsafe code on this machine's path, and without one twice as many cases fit a minute.
host=$(rustc -vV | sed -n 's/^host: //p')
(cd fuzz && cargo +nightly fuzz build --sanitizer none --features libfuzzer --target "$host" --target-dir target)

run() {
    local target=$1 log=build/fuzz/$1.log longest=256
    [ "$target" = view ] && longest=2048
    mkdir -p "build/fuzz/$target" "fuzz/artifacts/$target"
    if "fuzz/target/$host/release/$target" "build/fuzz/$target" "fuzz/corpus/$target" -max_total_time="$seconds" \
        -max_len="$longest" -timeout=20 -artifact_prefix="fuzz/artifacts/$target/" >"$log" 2>&1; then
        printf '%-20s %s\n' "$target" "$(sed -n 's/^Done //p' "$log")"
    else
        tail -40 "$log"
        echo "$target FAILED; its input is in fuzz/artifacts/$target" >&2
        return 1
    fi
}
export -f run
export host seconds
printf '%s\n' "$@" | xargs --max-procs=2 --max-args=1 bash -c 'set -euo pipefail; run "$0"'
