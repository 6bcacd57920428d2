#!/bin/sh
# Installs packages of Debian's with apt-get, as root or with sudo.
#
#   tests/debian.sh PACKAGE...
#
# The status is 77 where that cannot be, and a line says why.
set -eu
if ! command -v apt-get >/dev/null; then
  echo "tests/debian.sh: there is no apt-get to install $* with" >&2
  exit 77
fi
as_root=
if [ "$(id -u)" -ne 0 ]; then
  as_root=sudo
  if ! command -v sudo >/dev/null; then
    echo "tests/debian.sh: run as root once: apt-get install $*" >&2
    exit 77
  fi
fi
$as_root apt-get update || echo "tests/debian.sh: apt-get update failed; the lists that are there will have to do" >&2
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" || exit 77
