#!/bin/sh
# Builds lamina and runs every test. Arguments go to ctest (for example -R cli, -LE slow).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
"$here/scripts/install-deps.sh"
cd "$here"
cmake --preset release -DLAMINA_TESTS=ON
cmake --build build
exec ctest --test-dir build --output-on-failure -j "$(nproc)" "$@"
