#!/usr/bin/env bash
# Builds the kernels without JAX and compares their digests: under the address and undefined-behaviour sanitizers, with
# AVX-VNNI's instruction made of C++ on x86-64, and for 64-bit Arm under an emulator where its compiler is there
# (Debian: g++-aarch64-linux-gnu, qemu-user). What is installed is compared with JAX, by tests/conformance.
set -euo pipefail
cd "$(dirname "$0")/cpu"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
avx512="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx512vbmi -mprefer-vector-width=512"
sanitized="-O0 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
compiler=${CXX:-c++}

compile() { # BUILD COMPILER FLAGS SOURCE FLAGS: in the background
  $2 -std=c++17 -Wno-psabi -Wno-uninitialized -Wno-maybe-uninitialized $3 $5 -c "$4.cc" -o "$work/$1-$4.o" &
  compiling+=($!)
}
compiling=()

case $(uname -m) in
x86_64)
  compile sanitized "$compiler" "$sanitized" avx512 "$avx512"
  compile sanitized "$compiler" "$sanitized" avxvnni "-mavx2 -include emulated_avxvnni.h"
  compile sanitized "$compiler" "$sanitized" avx2 "-mavx2"
  ;;
aarch64) compile sanitized "$compiler" "$sanitized" neon "-march=armv8.2-a+dotprod" ;;
esac
for source in plain runtime check; do compile sanitized "$compiler" "$sanitized" $source ""; done
emulated=""
if [[ $(uname -m) == x86_64 ]] && command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null; then
  emulated=yes
  compile arm aarch64-linux-gnu-g++ "-O1" neon "-march=armv8.2-a+dotprod"
  for source in plain runtime check; do compile arm aarch64-linux-gnu-g++ "-O1" $source ""; done
fi
for process in "${compiling[@]}"; do wait "$process"; done

$compiler $sanitized "$work"/sanitized-*.o -o "$work/sanitized" -pthread
"$work/sanitized" | sed 's/$/ sanitized/' | tee "$work/digests"
if [[ $emulated ]]; then
  aarch64-linux-gnu-g++ -static "$work"/arm-*.o -o "$work/arm" -pthread
  qemu-aarch64 -cpu max "$work/arm" | sed 's/$/ on 64-bit Arm, emulated/' | tee -a "$work/digests"
fi
[ "$(cut -d' ' -f1 "$work/digests" | sort -u | wc -l)" = 1 ] || { echo "the digests differ" >&2; exit 1; }
echo "all digests are equal"
