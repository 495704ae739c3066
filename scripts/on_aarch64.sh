#!/bin/sh
# Runs a program for 64-bit Arm under emulation, with what `make aarch64` unpacked in build/aarch64.
# usage: on_aarch64.sh CPU PROGRAM [ARGUMENT ...]     CPU: cortex-a53, cortex-a76, max, ...
set -eu
folder=${EFFV2_AARCH64:-$(cd "$(dirname "$0")/.." && pwd)/build/aarch64}
qemu=$folder/qemu
cpu=$1
shift
# Its libraries are those that came with it; the program's are in the sysroot.
exec "$qemu/lib64/ld-linux-x86-64.so.2" \
    --library-path "$qemu/lib/x86_64-linux-gnu:$qemu/usr/lib/x86_64-linux-gnu" \
    "$qemu/usr/bin/qemu-aarch64" -cpu "$cpu" -L "$folder/sysroot" "$@"
