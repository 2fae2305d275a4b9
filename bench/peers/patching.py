#!/usr/bin/env python3
"""Exact patching sweeps of lamina beside TransformerLens' `patching` functions.

Both do the same job on the same machine in the same run: denoising of resid_pre × layer × position
and of z × layer × head (all positions) over PAIRS pairs of one length, metric logit difference. The
results are compared with each other before any time is reported; the runs alternate and medians are
taken. Model loading and, for TransformerLens, the clean run's cache are left out of the times;
lamina's includes its unpatched runs.

    pip install torch transformers transformer-lens gguf
    python bench/peers/patching.py --lamina build/lamina --model MODEL.gguf --pairs PAIRS.jsonl

PAIRS.jsonl is a pair file (docs/pairs.md), for example of `lamina pairs ioi --model MODEL.gguf`; the
first PAIRS pairs of the most frequent length are used.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--lamina", required=True, type=Path, help="the built command line program")
    p.add_argument("--model", required=True, type=Path, help="GGUF file that transformers can read")
    p.add_argument("--pairs", required=True, type=Path, help="pair file")
    p.add_argument("--count", type=int, default=16, help="pairs (default 16)")
    p.add_argument("--runs", type=int, default=3, help="counted runs of each (default 3)")
    p.add_argument("--peer-runs", type=int, default=1, help="counted runs of TransformerLens (default 1: minutes each)")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--sweeps", default="resid_pre,z")
    p.add_argument("--json", type=Path, help="also write the figures here")
    return p.parse_args()


def chosen_pairs(args, tokenizer):
    """Token ids of both prompts and of both answers, of pairs of one length."""
    rows = []
    for line in args.pairs.read_text().splitlines():
        pair = json.loads(line)
        ids = {side: tokenizer(pair[side]).input_ids for side in ("clean", "corrupted")}
        for key in ("correct", "wrong"):
            answer = pair[key][0] if isinstance(pair[key], list) else pair[key]
            ids[key] = tokenizer(" " + answer.strip(), add_special_tokens=False).input_ids
        if len(ids["clean"]) == len(ids["corrupted"]) and len(ids["correct"]) == len(ids["wrong"]) == 1:
            rows.append(ids)
    length = Counter(len(r["clean"]) for r in rows).most_common(1)[0][0]
    rows = [r for r in rows if len(r["clean"]) == length][:args.count]
    if len(rows) < args.count:
        sys.exit(f"{args.pairs}: {len(rows)} usable pairs of one length, {args.count} are needed")
    return rows


class Lamina:
    def __init__(self, args, pairs_file):
        self.args, self.pairs_file = args, pairs_file

    def sweep(self, site):
        done = subprocess.run([self.args.lamina, "--threads", str(self.args.threads), "--quiet", "patch", self.args.model,
                               "--pairs", self.pairs_file, "--site", site, "--json"],
                              check=True, capture_output=True, text=True)
        result = json.loads(done.stdout)
        values = [effect + result["base"]["mean"] for effect in result["sites"][0]["effect"]]
        return values, result["seconds"], result


class Peer:
    def __init__(self, args):
        import torch
        from transformer_lens import patching
        from transformer_lens.model_bridge import TransformerBridge
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(args.threads)
        torch.set_grad_enabled(False)
        self.torch, self.patching = torch, patching
        self.tokenizer = AutoTokenizer.from_pretrained(args.model.parent, gguf_file=args.model.name)
        model = AutoModelForCausalLM.from_pretrained(
            args.model.parent, gguf_file=args.model.name, dtype=torch.float32, attn_implementation="eager").eval()
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        self.model = TransformerBridge.boot_transformers(
            args.model.stem, hf_model=model, tokenizer=self.tokenizer, device="cpu", dtype=torch.float32)

    def start(self, rows):
        tensor = lambda key: self.torch.tensor([r[key] for r in rows])
        self.clean, self.corrupted = tensor("clean"), tensor("corrupted")
        self.correct, self.wrong = tensor("correct")[:, 0], tensor("wrong")[:, 0]
        names = {f"blocks.{l}.{h}" for l in range(self.model.cfg.n_layers) for h in ("hook_resid_pre", "attn.hook_z")}
        _, self.cache = self.model.run_with_cache(self.clean, names_filter=lambda n: n in names)

    def metric(self, logits):
        rows = self.torch.arange(len(self.correct))
        return (logits[rows, -1, self.correct] - logits[rows, -1, self.wrong]).mean()

    def sweep(self, site):
        function = {"resid_pre": self.patching.get_act_patch_resid_pre,
                    "z": self.patching.get_act_patch_attn_head_out_all_pos}[site]
        start = time.perf_counter()
        values = function(self.model, self.corrupted, self.cache, self.metric)
        return values.flatten().tolist(), time.perf_counter() - start


def main():
    args = arguments()
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    peer = Peer(args)
    rows = chosen_pairs(args, peer.tokenizer)
    peer.start(rows)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        pairs_file = Path(folder) / "pairs.jsonl"
        pairs_file.write_text("".join(json.dumps(r) + "\n" for r in rows))
        ours = Lamina(args, pairs_file)
        print(f"{len(rows)} pairs of {len(rows[0]['clean'])} tokens, {args.threads} threads")
        for site in args.sweeps.split(","):
            times = {"lamina": [], "TransformerLens": []}
            for run in range(max(args.runs, args.peer_runs)):
                if run < args.runs:
                    values, seconds, result = ours.sweep(site)
                    times["lamina"].append(seconds)
                if run < args.peer_runs:
                    expected, seconds = peer.sweep(site)
                    times["TransformerLens"].append(seconds)
            spread = abs(result["other"]["mean"] - result["base"]["mean"])
            worst = max(abs(a - b) for a, b in zip(values, expected, strict=True)) / spread
            medians = {name: statistics.median(t) for name, t in times.items()}
            print(f"{site}: {len(values)} nodes, {result['runs']} runs ({result['skipped']} left out); largest difference "
                  f"{worst:.1e} of the metric's range")
            for name, seconds in medians.items():
                print(f"  {name:16s} {seconds:8.2f} s  (min {min(times[name]):.2f}, max {max(times[name]):.2f})")
            print(f"  ratio {medians['TransformerLens'] / medians['lamina']:.1f}")
            figures[site] = {"times": times, "medians": medians, "difference": worst}
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
