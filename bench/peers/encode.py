#!/usr/bin/env python3
"""Features of tokens: lamina's encoder beside SAELens' on the same shapes.

    encode.py --bench build/bench/encode_bench [--threads 2] [--repeats 3]

The two take turns, `encode_bench` whole and then SAELens' `encode` of its shapes; the best time of each is compared. Weights
and inputs are random, so that times are compared here and no values (tests/transcoder compares those with SAELens').
With ReLU, lamina keeps the active features alone (next to none of them here) and SAELens a dense tensor.
Needs torch and sae-lens.
"""
import argparse
import subprocess
import time

import torch
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig


def lamina_times(args):
    lines = subprocess.run([args.bench, str(args.threads)], check=True, capture_output=True, text=True).stdout.splitlines()
    rows = [line.split() for line in lines[2:]]
    return {(int(r[0]), int(r[1]), r[2]): float(r[3].removesuffix("ms")) for r in rows}


def saelens_times(shapes):
    out, made, x = {}, None, torch.empty(0)
    for features, rows, activation in shapes:
        if made != (features, activation):
            common = {"d_in": 576, "d_sae": features, "dtype": "float32", "device": "cpu"}
            sae = TopKSAE(TopKSAEConfig(k=64, **common)) if activation == "topk" else StandardSAE(StandardSAEConfig(**common))
            with torch.no_grad():
                sae.W_enc.uniform_(-1, 1)
                sae.b_enc.fill_(-30)  # as in encode_bench: few are active
            made = (features, activation)
        x = torch.rand(rows, 576) * 2 - 1
        best, begin = float("inf"), time.perf_counter()
        with torch.no_grad():
            while time.perf_counter() - begin < 0.3:
                start = time.perf_counter()
                sae.encode(x)
                best = min(best, time.perf_counter() - start)
        out[features, rows, activation] = 1e3 * best
    return out


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--bench", required=True)
    parse.add_argument("--threads", type=int, default=2)
    parse.add_argument("--repeats", type=int, default=3)
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    ours, theirs = {}, {}
    keep = lambda best, times: best.update({shape: min(ms, best.get(shape, ms)) for shape, ms in times.items()})
    for _ in range(args.repeats):
        keep(ours, lamina_times(args))
        keep(theirs, saelens_times(sorted(ours, key=lambda s: (s[0], s[2], s[1]))))
    print("| features | tokens | activation | lamina, ms | SAELens, ms | lamina is faster by |")
    print("|---|---|---|---|---|---|")
    for shape, ms in ours.items():
        print(f"| {shape[0]:,} | {shape[1]} | {shape[2]} | {ms:.1f} | {theirs[shape]:.1f} | {theirs[shape] / ms:.2f} × |")


if __name__ == "__main__":
    main()
