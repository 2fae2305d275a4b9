#!/bin/sh
# Keeps the layers apart: apps → circuits → patching → probes → core, never upward.
#   - a folder includes only itself and the folders below it;
#   - public headers (<folder>/include) include no private header and no header of Eigen, HDF5 or
#     nlohmann/json, so that what they cost a user stays known;
#   - public headers do not depend on compiler flags (`#ifdef __AVX…`).
# Usage: scripts/check-layers.sh [ROOT]. Prints one line for each offence; exit 1 if there is one.
set -eu
root=${1:-$(cd "$(dirname "$0")/.." && pwd)}
cd "$root"

find core probes patching circuits apps -type f \( -name '*.h' -o -name '*.cpp' \) | sort |
while IFS= read -r file; do
  awk -v file="$file" '
    BEGIN {
      split("core probes patching circuits apps", names, " ")
      for (i in names) rank[names[i]] = i + 0
      own = file; sub("/.*", "", own)
      public = file ~ "^[a-z]+/include/"
    }
    function offence(text) { printf "%s:%d: %s\n", file, FNR, text }
    /^[ \t]*#[ \t]*(if|ifdef|ifndef|elif)([ \t(!]).*__(AVX|SSE|FMA|F16C|BMI|ARM_NEON|ARM_FEATURE)/ {
      if (public) offence("a public header depends on compiler flags: " $0)
    }
    /^[ \t]*#[ \t]*include[ \t]*[<"]/ {
      target = $0
      sub(/^[^<"]*[<"]/, "", target); sub(/[>"].*/, "", target)
      if (target ~ "^lamina/") {
        split(target, part, "/")
        if (part[2] in rank && rank[part[2]] > rank[own])
          offence(own " includes a header of the higher layer " part[2] ": " target)
      } else if (public && $0 ~ /include[ \t]*"/) {
        offence("a public header includes the private header \"" target "\"")
      }
      # Paths into another folder go round its public headers.
      if (target ~ "(^|/)(core|probes|patching|circuits|apps)/(src|include)/")
        offence("includes another folder by path: " target)
      if (target ~ "\\.\\./") offence("includes through ..: " target)
      if (public && (target ~ "^(Eigen|unsupported/Eigen|nlohmann)/" || target ~ "^(hdf5|H5).*\\.h"))
        offence("a public header includes " target)
    }' "$file"
done > "${TMPDIR:-/tmp}/lamina-layers.$$"
count=$(wc -l < "${TMPDIR:-/tmp}/lamina-layers.$$")
cat "${TMPDIR:-/tmp}/lamina-layers.$$"
rm -f "${TMPDIR:-/tmp}/lamina-layers.$$"
[ "$count" -eq 0 ]
