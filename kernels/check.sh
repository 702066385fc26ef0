#!/usr/bin/env bash
# Builds the kernels without JAX and compares their digests: as installed, under the address and undefined-behaviour
# sanitizers, and for 64-bit Arm under an emulator where its compiler is there (Debian: g++-aarch64-linux-gnu, qemu-user).
set -euo pipefail
cd "$(dirname "$0")/cpu"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
avx512="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx512vbmi -mprefer-vector-width=512"

build() { # NAME COMPILER FLAGS SOURCE[=FLAGS]...
  local name=$1 compiler=$2 flags=$3 objects=() source
  shift 3
  for source in "$@" runtime check; do
    local own=""
    [[ $source == *=* ]] && own=${source#*=}
    source=${source%%=*}
    $compiler -std=c++17 -Wno-psabi -Wno-uninitialized -Wno-maybe-uninitialized $flags $own -c "$source.cc" -o "$work/$name-$source.o"
    objects+=("$work/$name-$source.o")
  done
  $compiler $flags "${objects[@]}" -o "$work/$name" -pthread
}

case $(uname -m) in
x86_64) here=("avx512=$avx512" "avxvnni=-mavx2 -mavxvnni" "avx2=-mavx2" plain) ;;
aarch64) here=("neon=-march=armv8.2-a+dotprod" plain) ;;
*) here=(plain) ;;
esac
build native "${CXX:-c++}" "-O3" "${here[@]}"
"$work/native" | sed 's/$/ as installed/' | tee "$work/digests"
build sanitized "${CXX:-c++}" "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all" "${here[@]}"
"$work/sanitized" | sed 's/$/ sanitized/' | tee -a "$work/digests"
if [[ $(uname -m) == x86_64 ]] && command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null; then
  build arm aarch64-linux-gnu-g++ "-O2 -static" "neon=-march=armv8.2-a+dotprod" plain
  qemu-aarch64 -cpu max "$work/arm" | sed 's/$/ on 64-bit Arm, emulated/' | tee -a "$work/digests"
fi
[ "$(cut -d' ' -f1 "$work/digests" | sort -u | wc -l)" = 1 ] || { echo "the digests differ" >&2; exit 1; }
echo "all digests are equal"
