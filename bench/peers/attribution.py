#!/usr/bin/env python3
"""Attribution patching of every node: lamina beside TransformerLens' autograd, on the same pairs.

Nodes: resid_pre, attn_out and mlp_out × layer × position, z × layer × head. Both sides take the
pairs of the most frequent length, one batch, fp32, the same weights and threads. Results are
compared first. Timed on both sides: two forward passes, one backward pass and the scores; loading
the model and reading the pairs is left out. lamina's time holds the rearranging of the weights for
the backward pass, which a single command cannot avoid. The runs alternate; medians are reported.

    pip install torch transformers transformer-lens gguf
    lamina pairs ioi --model MODEL.gguf -n 200 --solved -o ioi.jsonl
    python bench/peers/attribution.py --lamina build/lamina --model MODEL.gguf --pairs ioi.jsonl
"""

import argparse
import collections
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# lamina's sites and the bridge's own names of the same places.
SITES = {"resid_pre": "hook_in", "attn_out": "attn.hook_out", "mlp_out": "mlp.hook_out", "z": "attn.o.hook_in"}
TOLERANCE = 1e-3  # of the site's largest score: fp32 through 30 layers, sums in another order


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--lamina", required=True, type=Path, help="the built command line program")
    p.add_argument("--model", required=True, type=Path, help="GGUF file that transformers can read")
    p.add_argument("--pairs", required=True, type=Path, help="pair file of `lamina pairs`")
    p.add_argument("--count", type=int, default=16, help="pairs at most")
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--json", type=Path, help="also write the figures here")
    return p.parse_args()


class Peer:
    def __init__(self, args):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformer_lens.model_bridge import TransformerBridge

        torch.set_num_threads(args.threads)
        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(args.model.parent, gguf_file=args.model.name)
        model = AutoModelForCausalLM.from_pretrained(
            args.model.parent, gguf_file=args.model.name, dtype=torch.float32, attn_implementation="eager").eval()
        self.layers = model.config.num_hidden_layers
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        self.bridge = TransformerBridge.boot_transformers(
            args.model.stem, hf_model=model, tokenizer=self.tokenizer, device="cpu", dtype=torch.float32)
        self.names = {f"blocks.{l}.{hook}" for l in range(self.layers) for hook in SITES.values()}

    def ids(self, text):
        return self.tokenizer(text, add_special_tokens=True)["input_ids"]

    def set_pairs(self, pairs):
        t = self.torch
        self.clean = t.tensor([p["clean"] for p in pairs])
        self.corrupted = t.tensor([p["corrupted"] for p in pairs])
        self.correct = t.tensor([p["correct"][0] for p in pairs])
        self.wrong = t.tensor([p["wrong"][0] for p in pairs])

    def attribute(self):
        """{site: [layer, position] or [layer, head]}, the gradient at the corrupted prompts."""
        t, start = self.torch, time.perf_counter()
        clean, values, gradients = {}, {}, {}
        keep = lambda store: lambda act, hook: store.__setitem__(hook.name, act.detach())
        wanted = lambda name: name in self.names
        with t.no_grad():
            self.bridge.run_with_hooks(self.clean, fwd_hooks=[(wanted, keep(clean))], return_type=None)
        with self.bridge.hooks(fwd_hooks=[(wanted, keep(values))], bwd_hooks=[(wanted, keep(gradients))]):
            logits = self.bridge(self.corrupted)[:, -1]
            rows = t.arange(len(logits))
            (logits[rows, self.correct] - logits[rows, self.wrong]).mean().backward()
        self.bridge.zero_grad(set_to_none=True)
        scores = {}
        for site, hook in SITES.items():
            per_layer = []
            for l in range(self.layers):
                name = f"blocks.{l}.{hook}"
                product = (clean[name] - values[name]) * gradients[name]
                if site == "z":
                    product = product.reshape(*product.shape[:2], self.bridge.cfg.n_heads, -1)
                    per_layer.append(product.sum((0, 1, 3)))
                else:
                    per_layer.append(product.sum((0, 2)))
            scores[site] = t.stack(per_layer)
        return {site: s.tolist() for site, s in scores.items()}, time.perf_counter() - start


def run_lamina(args, pairs_file, method):
    environment = dict(os.environ, OMP_WAIT_POLICY=os.environ.get("OMP_WAIT_POLICY", "passive"))
    done = subprocess.run(
        [args.lamina, "--threads", str(args.threads), "--quiet", "patch", args.model, "--pairs", pairs_file,
         "--site", ",".join(SITES), "--method", method, "--json"],
        check=True, capture_output=True, text=True, env=environment)
    result = json.loads(done.stdout)
    return {site["site"]: site["effect"] for site in result["sites"]}, result["seconds"]


def prepare(args, peer, path):
    """The pairs as token ids, those of the most frequent length, written for lamina."""
    pairs = []
    for line in args.pairs.read_text().splitlines():
        pair = json.loads(line)
        one = lambda words: [peer.tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in words]
        pairs.append({"id": pair["id"], "clean": peer.ids(pair["clean"]), "corrupted": peer.ids(pair["corrupted"]),
                      "correct": one(pair["correct"]), "wrong": one(pair["wrong"])})
    length, _ = collections.Counter(len(p["clean"]) for p in pairs).most_common(1)[0]
    pairs = [p for p in pairs if len(p["clean"]) == length][:args.count]
    path.write_text("".join(json.dumps(p) + "\n" for p in pairs))
    return pairs, length


def compare(mine, theirs):
    worst = {}
    for site in SITES:
        flat = [v for row in theirs[site] for v in row]
        assert len(flat) == len(mine[site]), (site, len(flat), len(mine[site]))
        unit = max(map(abs, flat))
        worst[site] = max(abs(a - b) for a, b in zip(mine[site], flat)) / unit
    return worst


def main():
    args = arguments()
    peer = Peer(args)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        pairs, length = prepare(args, peer, file)
        peer.set_pairs(pairs)
        print(f"{len(pairs)} pairs of {length} tokens, {args.threads} threads, {args.runs} runs")
        worst = compare(run_lamina(args, file, "atp")[0], peer.attribute()[0])
        for site, difference in worst.items():
            print(f"  {site:>10}: largest difference {difference:.1e} of the largest score")
        if max(worst.values()) > TOLERANCE:
            sys.exit(f"the results differ by more than {TOLERANCE:g}: nothing was timed")
        times = collections.defaultdict(list)
        for _ in range(args.runs):
            times["TransformerLens AtP"].append(peer.attribute()[1])
            times["lamina AtP"].append(run_lamina(args, file, "atp")[1])
            times["lamina RelP"].append(run_lamina(args, file, "relp")[1])
    medians = {name: statistics.median(t) for name, t in times.items()}
    for name, seconds in medians.items():
        print(f"  {name:>20}: {seconds:.3f} s ({min(times[name]):.3f} … {max(times[name]):.3f}), "
              f"{medians['TransformerLens AtP'] / seconds:.2f} × TransformerLens")
    if args.json:
        args.json.write_text(json.dumps({"differences": worst, "seconds": times}, indent=1))


if __name__ == "__main__":
    main()
