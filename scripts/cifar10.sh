#!/usr/bin/env bash
# Unpack CIFAR-10 from the shared folder, where there is one:  cifar10.sh PYTHON OUT
set -euo pipefail
python=$1 out=$2
shared="${CBIN_NN_SHARED:-../shared}/cifar10"
if [ -n "${CBIN_NN_DATA:-}" ] || [ -f "$out/cifar-10-batches-bin/test_batch.bin" ] || [ ! -f "$shared/unpack.py" ]; then
    exit 0
fi
"$(dirname "$python")/uv" pip install --quiet --python "$python" pillow
partial="$out.partial"
rm -rf "$partial" && mkdir -p "$partial"
"$python" "$shared/unpack.py" "$partial" >/dev/null
rm -rf "$out" && mv "$partial" "$out"
