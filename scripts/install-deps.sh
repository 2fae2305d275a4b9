#!/bin/sh
# Installs what lamina needs to build, from Debian's own packages, and asks nothing.
# Does nothing when everything is there. Needs root or sudo otherwise.
#   scripts/install-deps.sh          what building and testing need
#   scripts/install-deps.sh --ci     also clang-format, ccache, graphviz and xarray, as the checks use them
set -eu

packages="cmake ninja-build g++ pkg-config libeigen3-dev libhdf5-dev libboost-graph-dev
  libcli11-dev libfmt-dev nlohmann-json3-dev libpcre2-dev libutf8proc-dev libgtest-dev libgmock-dev"
if [ "${1:-}" = "--ci" ]; then
  packages="$packages clang-format-16 ccache graphviz python3-xarray python3-h5netcdf"
fi

if ! command -v dpkg-query >/dev/null 2>&1 || ! command -v apt-get >/dev/null 2>&1; then
  echo "install-deps: no Debian package tools here; install these yourself:" $packages >&2
  exit 0
fi

missing=""
for package in $packages; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=""
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null 2>&1; then
    echo "install-deps: missing packages:$missing; become root or install sudo" >&2
    exit 1
  fi
  as_root="sudo"
fi
echo "install-deps: installing$missing" >&2
$as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2
# shellcheck disable=SC2086  # a list of packages
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
