#!/bin/sh
# Builds lamina and runs its demonstration: records a small model that ships with the project,
# reads the recording, prints tables and leaves HDF5 files in ./lamina-demo.
# Arguments go to `lamina demo` (see `build/lamina demo --help`).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
"$here/scripts/install-deps.sh"
# The compiler talks only when something is wrong; the demonstration talks for itself.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "demo: building lamina (Release) in $here/build" >&2
if ! { (cd "$here" && cmake --preset release -DLAMINA_TESTS=OFF) &&
       cmake --build "$here/build" --target lamina_cli; } >"$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi
"$here/build/lamina" demo "$@"
