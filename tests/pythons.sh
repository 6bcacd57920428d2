#!/usr/bin/env bash
# The module with the other Pythons of this machine: 3.10 to 3.14, the free-threaded builds among them, as found on PATH, with
# pyenv and with uv. Builds it for each on one compiled library, and runs the tests of functions, errors and robustness,
# without those of bytes, which are made by the library that all share.
#
#   tests/pythons.sh [BUILD_DIR [LIBRARY]]
#
# BUILD_DIR is build/pythons by default, LIBRARY a build tree that has the C++ library already; without one it is compiled.
# PYTHONS="python3.12 /a/python3" names the interpreters instead of looking for them. Needs cmake, and pip a package index.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$root/build/pythons}
mkdir -p "$build"
build=$(cd "$build" && pwd)
library=${2:-}
tests=$root/tests/python
tests_at_once=$(n=$(nproc); echo $((n > 4 ? 4 : n)))
files=("$tests"/test_{robustness,arrays,errors,main,scipy_special,stubs}.py)

# describe PYTHON: such as "3.13t", the t for no GIL; fails for what is no Python, or none that is supported or can be built for
describe() {
  "$1" -I - 2> /dev/null << 'END'
import os, sys, sysconfig
header = os.path.join(sysconfig.get_path("include"), "Python.h")
if sys.implementation.name != "cpython" or not (3, 10) <= sys.version_info[:2] <= (3, 14) or not os.path.exists(header):
    sys.exit(1)
print("%d.%d%s" % (*sys.version_info[:2], "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""))
END
}

if [ -n "${PYTHONS:-}" ]; then
  read -ra candidates <<< "$PYTHONS"
  seen=" "
else
  candidates=(python3.{10..14}{,t} "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python3
    "${UV_PYTHON_INSTALL_DIR:-$HOME/.local/share/uv/python}"/cpython-3.*/bin/python3)
  seen=" $(describe python3 || true) "  # this one has the whole suite
fi
names=() pythons=()
for candidate in "${candidates[@]}"; do
  python=$(command -v "$candidate") && name=$(describe "$python") || continue
  case $seen in *" $name "*) continue ;; esac
  seen+="$name "
  names+=("$name") pythons+=("$python")
done
if [ ${#names[@]} -eq 0 ]; then
  echo "tests/pythons.sh: finds no other Python with headers"
  exit 0
fi
echo "tests/pythons.sh: Python ${names[*]}"

if [ -z "$library" ]; then
  library=$build/library
  cmake -S "$root" -B "$library" -DCMAKE_BUILD_TYPE=Release -DSUMEXP_BUILD_PYTHON=OFF -DSUMEXP_CUDA=OFF
  cmake --build "$library" --parallel "${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"
fi
cmake --install "$library" --component devel --prefix "$build/installed" > /dev/null

# environment I: of the I-th Python, with what the tests want. Mostly waits for files, so that all are made side by side.
environment() {
  local here=$build/${names[$1]}
  mkdir -p "$here"
  "${pythons[$1]}" -m venv --clear "$here/venv"
  "$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check --prefer-binary \
    numpy pybind11 pytest pytest-{timeout,xdist} ml_dtypes mpmath scipy
}
made=()
for i in "${!names[@]}"; do
  environment "$i" &
  made+=($!)
done

for i in "${!names[@]}"; do
  here=$build/${names[i]}
  echo "== Python ${names[i]}: ${pythons[i]}"
  wait "${made[i]}"
  python=$here/venv/bin/python
  # without optimisation it compiles in half the time
  cmake -S "$root/csrc/bindings" -B "$here/build" -DCMAKE_PREFIX_PATH="$build/installed" -DPython_EXECUTABLE="$python" \
    -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O0 \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" > "$here/configure.log" || { cat "$here/configure.log"; exit 1; }
  cmake --build "$here/build" --parallel "${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"
  rm -rf "$here/package"
  mkdir "$here/package"
  cp -r "$root/python/sumexp" "$here/package"
  cp "$here/build"/_core.*.so "$here/package/sumexp"
  PYTHONPATH=$here/package "$python" -m pytest -q -p no:cacheprovider -n "$tests_at_once" --dist loadfile -m "not large" \
    -k "not bytes_do_not_depend" "${files[@]}"
done
echo "tests/pythons.sh: passed with Python ${names[*]}"
