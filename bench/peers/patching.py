#!/usr/bin/env python3
"""Exact patching sweeps of lamina beside TransformerLens' `patching` functions.

Both do the same job on the same machine in the same run: denoising of resid_pre × layer × position
and of z × layer × head (all positions) over PAIRS pairs of one length, metric logit difference. The
results are compared with each other before any time is reported; the runs alternate and medians are
taken. Model loading and, for TransformerLens, the clean run's cache are left out of the times;
lamina's includes its unpatched runs.

    pip install torch transformers 'transformer-lens<4' h5py gguf
    python bench/peers/patching.py --lamina build/lamina --model MODEL.gguf --pairs PAIRS.jsonl

PAIRS.jsonl is a pair file (docs/pairs.md), for example of `lamina pairs ioi --model MODEL.gguf`; the
first PAIRS pairs of the most frequent length are used. TransformerLens' HookedTransformer of the same
architecture gets the GGUF file's weights through transformers: nothing folded, nothing centred.
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
    p.add_argument("--model", required=True, type=Path, help="GGUF file of a Llama model that transformers can read")
    p.add_argument("--pairs", required=True, type=Path, help="pair file")
    p.add_argument("--count", type=int, default=16, help="pairs (default 16)")
    p.add_argument("--runs", type=int, default=3, help="counted runs of each (default 3)")
    p.add_argument("--peer-runs", type=int, default=1, help="counted runs of TransformerLens (default 1: minutes each)")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--sweeps", default="resid_pre,z")
    p.add_argument("--json", type=Path, help="also write the figures here")
    return p.parse_args()


def lamina_tokens(args, texts):
    lines = subprocess.run([args.lamina, "-q", "tokenize", args.model, "--ids"], check=True, capture_output=True,
                           text=True, input="".join(t + "\n" for t in texts)).stdout.splitlines()
    return [[int(i) for i in line.split()] for line in lines]


def chosen_pairs(args):
    """Token ids of both prompts and of both answers, of pairs of one length."""
    pairs = [json.loads(line) for line in args.pairs.read_text().splitlines() if line.strip()]
    first = lambda x: x if isinstance(x, (str, int)) else x[0]
    word = lambda x: x if isinstance(x, int) else " " + x.strip()
    texts = [p[side] for p in pairs for side in ("clean", "corrupted")]
    ids = lamina_tokens(args, texts)
    plain = subprocess.run([args.lamina, "-q", "tokenize", args.model, "--ids", "--bos", "never"], check=True,
                           capture_output=True, text=True,
                           input="".join(f"{word(first(p[k]))}\n" for p in pairs for k in ("correct", "wrong"))).stdout
    answers = [[int(i) for i in line.split()] for line in plain.splitlines()]
    rows = []
    for i in range(len(pairs)):
        clean, corrupted, right, wrong = ids[2 * i], ids[2 * i + 1], answers[2 * i], answers[2 * i + 1]
        if len(clean) == len(corrupted) and len(right) == len(wrong) == 1:
            rows.append({"clean": clean, "corrupted": corrupted, "correct": right, "wrong": wrong})
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
    def __init__(self, args, rows):
        import torch
        from transformer_lens import HookedTransformer, HookedTransformerConfig, patching
        from transformer_lens.pretrained.weight_conversions.llama import convert_llama_weights
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(args.threads)
        torch.set_grad_enabled(False)
        self.torch, self.patching = torch, patching
        hf = AutoModelForCausalLM.from_pretrained(args.model.parent, gguf_file=args.model.name, dtype=torch.float32).eval()
        c = hf.config
        rope = getattr(c, "rope_theta", None) or c.rope_parameters["rope_theta"]
        cfg = HookedTransformerConfig(
            n_layers=c.num_hidden_layers, d_model=c.hidden_size, n_heads=c.num_attention_heads,
            d_head=c.hidden_size // c.num_attention_heads, n_key_value_heads=c.num_key_value_heads,
            d_mlp=c.intermediate_size, d_vocab=c.vocab_size, n_ctx=256, act_fn="silu", gated_mlp=True,
            normalization_type="RMS", eps=c.rms_norm_eps, final_rms=True, positional_embedding_type="rotary",
            rotary_dim=c.hidden_size // c.num_attention_heads, rotary_base=rope, rotary_adjacent_pairs=False,
            original_architecture="LlamaForCausalLM", device="cpu", default_prepend_bos=False)
        self.model = HookedTransformer(cfg)
        self.model.load_state_dict(convert_llama_weights(hf, cfg), strict=False)
        self.model.eval()
        tensor = lambda key: torch.tensor([r[key] for r in rows])
        self.clean, self.corrupted = tensor("clean"), tensor("corrupted")
        self.correct, self.wrong = tensor("correct")[:, 0], tensor("wrong")[:, 0]
        same = (hf(self.clean).logits - self.model(self.clean)).abs().max()
        print(f"HookedTransformer and transformers: logits differ by {same:.1e}")
        del hf
        _, self.cache = self.model.run_with_cache(self.clean)

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
    rows = chosen_pairs(args)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        pairs_file = Path(folder) / "pairs.jsonl"
        pairs_file.write_text("".join(json.dumps(r) + "\n" for r in rows))
        ours, peer = Lamina(args, pairs_file), Peer(args, rows)
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
