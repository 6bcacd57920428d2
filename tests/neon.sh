#!/bin/sh
# The NEON kernels on any Debian machine: cross-compiles the library and its C++ tests for AArch64 and runs them
# under qemu-user. Among them is the digest test, which holds NEON to the bytes of the x86 kernels.
#
#   tests/neon.sh [BUILD_DIR]      default: build/neon
#
# Needs cmake, aarch64-linux-gnu-g++ and qemu-aarch64; the last two are installed with apt-get when missing. Where that
# cannot be, for want of apt-get or of the right to use it, the status is 77.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$root/build/neon}

if ! command -v aarch64-linux-gnu-g++ >/dev/null || ! command -v qemu-aarch64 >/dev/null; then
  if ! command -v apt-get >/dev/null; then
    echo "tests/neon.sh: needs aarch64-linux-gnu-g++ and qemu-aarch64 (Debian: g++-aarch64-linux-gnu, qemu-user), and finds no" \
      "apt-get to install them with" >&2
    exit 77
  fi
  as_root=
  if [ "$(id -u)" -ne 0 ]; then
    as_root=sudo
    if ! command -v sudo >/dev/null; then
      echo "tests/neon.sh: run as root once: apt-get install g++-aarch64-linux-gnu qemu-user" >&2
      exit 77
    fi
  fi
  $as_root apt-get update || echo "tests/neon.sh: apt-get update failed; the lists that are there will have to do" >&2
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends g++-aarch64-linux-gnu qemu-user
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
