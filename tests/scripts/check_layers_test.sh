#!/bin/sh
# The layer check accepts this project and finds each kind of planted offence.
# Usage: check_layers_test.sh SOURCE_DIR
set -eu
source_dir=$1
check="$source_dir/scripts/check-layers.sh"
"$check" "$source_dir"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fresh() {
  rm -rf "$work/tree"
  for part in core probes patching circuits; do mkdir -p "$work/tree/$part/include/lamina/$part" "$work/tree/$part/src"; done
  mkdir -p "$work/tree/apps"
  echo '#include "lamina/core/error.h"' > "$work/tree/probes/src/fine.cpp"
}
expect_offence() {  # expect_offence FILE LINE-OF-CODE MESSAGE
  fresh
  printf '// first line\n%s\n' "$2" > "$work/tree/$1"
  if "$check" "$work/tree" > "$work/out"; then
    echo "not found: $2 in $1" >&2
    exit 1
  fi
  if ! grep -q "^$1:2: .*$3" "$work/out" || [ "$(wc -l < "$work/out")" -ne 1 ]; then
    echo "expected one line '$1:2: …$3…', got:" >&2
    cat "$work/out" >&2
    exit 1
  fi
}

fresh
"$check" "$work/tree"
expect_offence core/src/a.cpp '#include "lamina/probes/probe.h"' 'higher layer probes'
expect_offence core/include/lamina/core/a.h '#include <lamina/circuits/graph.h>' 'higher layer circuits'
expect_offence probes/src/a.cpp '#  include "lamina/patching/metric.h"' 'higher layer patching'
expect_offence probes/src/a.cpp '#include "core/src/engine/weights.h"' 'by path'
expect_offence core/include/lamina/core/a.h '#include "engine/weights.h"' 'private header'
expect_offence core/include/lamina/core/a.h '#include <Eigen/Dense>' 'includes Eigen'
expect_offence core/include/lamina/core/a.h '#include <hdf5.h>' 'includes hdf5'
expect_offence core/include/lamina/core/a.h '#ifdef __AVX512F__' 'compiler flags'
expect_offence core/include/lamina/core/a.h '#if defined(__AVX2__)' 'compiler flags'
