#!/bin/bash
# Builds, prunes and writes an attribution graph of some 22,000 nodes; says how long it took and the largest memory.
#
#   bench/graph_size.sh build/lamina
#
# The organism with quick transcoders of 32 active features a token (their quality does not matter here), 113 tokens.
set -euo pipefail
lamina=$(realpath "${1:?usage: bench/graph_size.sh build/lamina}")
data=$(realpath "$(dirname "$0")/../data/organism")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for _ in 1 2 3 4 5 6 7; do printf 'When Mary and John went to the store , John gave a drink to Mary . '; done > prompt.txt
"$lamina" -q transcoder train --model organism --prompts "$data/prompts.jsonl" -o t --features 512 --batch 64 --buffer 512 \
  --steps 100 --activation topk --k 32 > /dev/null
for run in 1 2 3; do
  /usr/bin/time -f "run $run: %e s with loading, %M KiB" "$lamina" -q circuit organism --transcoders t --prompts prompt.txt \
    --max-features 0 --graph pruned.json --force --show 0 2>&1 | grep -E "^(graph|pruned|time|run)"
done
ls -l pruned.json | awk '{ print "pruned.json: " $5 " bytes" }'
/usr/bin/time -f "graph --prune --paths: %e s, %M KiB" "$lamina" -q graph pruned.json --prune --nodes 0.6 --paths 10 --show 1 2>&1 > /dev/null | tail -1
