#!/bin/sh
# Every C++ file of the project must be as .clang-format says. `--fix` rewrites the files instead.
set -eu
cd "$(dirname "$0")/.."
tool=${CLANG_FORMAT:-clang-format-16}
mode="--dry-run -Werror"
[ "${1:-}" = "--fix" ] && mode="-i"
git ls-files -z '*.h' '*.cpp' | xargs -0 "$tool" $mode
