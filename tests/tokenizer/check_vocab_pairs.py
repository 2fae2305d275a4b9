#!/usr/bin/env python3
"""Exact equality with pairs of test inputs and ids in llama.cpp's format.

Usage: check_vocab_pairs.py TOKENIZE_LINES VOCAB.gguf...

Next to each VOCAB.gguf lie VOCAB.gguf.inp (texts separated by a line __ggml_vocab_test__) and
VOCAB.gguf.out (one line of ids a text, no special tokens added).
"""
import json
import subprocess
import sys

helper, *vocabularies = sys.argv[1:]
failed = False
for vocabulary in vocabularies:
    with open(vocabulary + ".inp", encoding="utf-8", newline="") as f:
        texts = f.read().split("\n__ggml_vocab_test__\n")
    with open(vocabulary + ".out", encoding="utf-8") as f:
        expected = [[int(i) for i in line.split()] for line in f.read().split("\n")]
    expected = expected[: len(texts)]
    lines = "".join(json.dumps(t) + "\n" for t in texts)
    out = subprocess.run([helper, vocabulary, "--no-bos", "--plain-special"], input=lines,
                         capture_output=True, text=True, check=True).stdout
    got = [json.loads(line) for line in out.splitlines()]
    wrong = [(t, e, g["ids"]) for t, e, g in zip(texts, expected, got) if e != g["ids"]]
    trips = sum(g["text"] != t for t, g in zip(texts, got))
    print(f"{vocabulary}: {len(texts)} texts, {len(wrong)} differ, {trips} do not round-trip")
    for t, e, g in wrong:
        print("  ", json.dumps(t), "\n     expected", e, "\n     got     ", g)
    failed |= bool(wrong) or len(got) != len(expected)
sys.exit(failed)
