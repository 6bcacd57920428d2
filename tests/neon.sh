#!/bin/sh
# The NEON kernels on any Debian machine: cross-compiles the library and its C++ tests for AArch64 and runs them
# under qemu-user. Among them is the digest test, which holds NEON to the bytes of the x86 kernels.
#
#   tests/neon.sh [BUILD_DIR]      default: build/neon
#
# Needs cmake, aarch64-linux-gnu-g++ and qemu-aarch64; the last two are installed when missing. Where that cannot be, the status
# is 77 (tests/debian.sh).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$root/build/neon}

if ! command -v aarch64-linux-gnu-g++ >/dev/null || ! command -v qemu-aarch64 >/dev/null; then
  "$root/tests/debian.sh" g++-aarch64-linux-gnu qemu-user
fi
if ! command -v cmake >/dev/null; then
  echo "tests/neon.sh: needs cmake (pip install cmake)" >&2
  exit 1
fi

jobs=$(nproc 2>/dev/null || echo 2)
cmake -S "$root" -B "$build" -DCMAKE_TOOLCHAIN_FILE="$root/tests/cpp/aarch64.cmake" -DCMAKE_BUILD_TYPE=Release \
  -DSUMEXP_BUILD_TESTS=ON -DSUMEXP_BUILD_SIMT=OFF -DSUMEXP_BUILD_PYTHON=OFF -DSUMEXP_CUDA=OFF
cmake --build "$build" -j "$jobs"
ctest --test-dir "$build" --output-on-failure --no-tests=error -j "$jobs"
