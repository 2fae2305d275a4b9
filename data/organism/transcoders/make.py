#!/usr/bin/env python3
"""Trains a transcoder for every layer of the organism, on text of its own training distribution, and measures them.

    make.py train --lamina build/lamina --work W     texts → all layers in one pass → this folder
    make.py evaluate --lamina build/lamina --work W  held-out texts → card.json: L0, explained variance, cross-entropy
                                                     with an MLP (and all MLPs) replaced

Texts come from ../tasks.py: whole training documents for `train`, held-out ones for `evaluate`, in the same shares of
tokens. `evaluate` needs torch (../../reference.py's forward pass).
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys

import numpy as np
from safetensors.numpy import load_file, save_file

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]
import tasks  # noqa: E402

TOKENS = 400_000
SETTINGS = ["--activation", "topk", "--k", "16", "--features", "512", "--batch", "2048", "--buffer", "65536", "--lr", "1e-3",
            "--warmup", "50", "--decay", "400", "--steps", "2000", "--dead-window", "200", "--auxk", "64"]


def texts(count, test, seed):
    """Whole documents, equal shares of tokens for every task, until `count` tokens."""
    rng = random.Random(seed)
    spent, out, total = dict.fromkeys(tasks.TASKS, 0), [], 0
    while total < count:
        name = min(spent, key=spent.get)
        words = tasks.TASKS[name](rng, test).words
        spent[name] += len(words) + 1
        total += len(words) + 1
        out.append(" ".join(words))
    rng.shuffle(out)
    return out


def write_texts(path, *how):
    path.write_text("".join(t + "\n" for t in texts(*how)))


def ship(trained, here):
    """Copies a dictionary, weights as float16: half the size, read as float32."""
    here.mkdir(exist_ok=True)
    weights = {name: w.astype(np.float16) for name, w in load_file(trained / "sae_weights.safetensors").items()}
    save_file(weights, here / "sae_weights.safetensors")
    config = json.loads((trained / "cfg.json").read_text())
    config["dtype"] = "float16"
    (here / "cfg.json").write_text(json.dumps(config, indent=1) + "\n")


def train(args):
    args.work.mkdir(parents=True, exist_ok=True)
    prompts = args.work / "train.txt"
    write_texts(prompts, TOKENS, False, 1)
    out = args.work / "trained"
    subprocess.run([args.lamina, "transcoder", "train", "--model", "organism", "--prompts", prompts, "-o", out, "--force",
                    *SETTINGS], check=True)
    for folder in sorted(out.glob("layer_*")):
        ship(folder, HERE / folder.name)


class Transcoder:
    """y = W_decᵀ topk(W_enc x + b_enc) + b_dec, from a SAELens folder; counts what it sees."""

    def __init__(self, folder):
        import torch
        from safetensors.torch import load_file

        self.torch = torch
        config = json.loads((folder / "cfg.json").read_text())
        self.k = config["k"]
        self.w = {n: t.float() for n, t in load_file(folder / "sae_weights.safetensors").items()}
        self.fired = torch.zeros(config["d_sae"])
        self.rows = 0

    def __call__(self, x):
        u = x @ self.w["W_enc"] + self.w["b_enc"]
        top = u.topk(self.k, dim=-1)
        z = self.torch.zeros_like(u).scatter(-1, top.indices, top.values.clamp(min=0))
        self.fired += (z > 0).float().flatten(0, -2).sum(0)
        self.rows += z[..., 0].numel()
        return z @ self.w["W_dec"] + self.w["b_dec"]


def evaluate(args):
    import torch

    import reference

    torch.set_num_threads(2)
    c, w, tokenizer = reference.load(HERE.parent)
    documents = [tokenizer.encode(t).ids for t in texts(40_000, True, 2)]
    layers = {l: Transcoder(HERE / f"layer_{l}") for l in range(c["n_layers"])}
    true_mlp = lambda l, x: (torch.nn.functional.silu(x @ w[f"blocks.{l}.mlp.W_gate"]) * (x @ w[f"blocks.{l}.mlp.W_in"])) @ w[
        f"blocks.{l}.mlp.W_out"]
    by_length = {}
    for d in documents:
        by_length.setdefault(len(d), []).append(d)

    def cross_entropy(mlp):
        """Mean nats of every next token of the held-out documents."""
        total = count = 0
        with torch.no_grad():
            for same in by_length.values():
                ids = torch.tensor(same)
                logp = reference.unembed(c, w, reference.hidden(c, w, ids, mlp=mlp)).log_softmax(-1)[:, :-1]
                total -= logp.gather(-1, ids[:, 1:, None]).sum().item()
                count += ids[:, 1:].numel()
        return total / count

    # Error of each transcoder on the true stream.
    sums = {l: [0.0, 0.0, torch.zeros(c["d_model"], dtype=torch.float64), 0] for l in layers}

    def watch(l):
        def compute(x):
            y = true_mlp(l, x)
            s = sums[l]
            s[0] += (layers[l](x) - y).double().pow(2).sum().item()
            s[1] += y.double().pow(2).sum().item()
            s[2] += y.double().flatten(0, -2).sum(0)
            s[3] += y[..., 0].numel()
            return y
        return compute

    card = {"documents": len(documents), "ce": cross_entropy({l: watch(l) for l in layers}), "layers": []}
    assert abs(card["ce"] - cross_entropy(None)) < 1e-5
    counts = {l: (t.fired.clone(), t.rows) for l, t in layers.items()}
    for l, t in layers.items():
        fired, rows = counts[l]
        error, square, total, n = sums[l]
        replaced, zero = cross_entropy({l: t}), cross_entropy({l: torch.zeros_like})
        card["layers"].append({
            "layer": l, "features": len(fired), "l0": fired.sum().item() / rows,
            "explained_variance": 1 - error / (square - total.pow(2).sum().item() / n),
            "dead_share": (fired == 0).float().mean().item(), "ce_replaced": replaced, "ce_zero": zero,
            "ce_score": (zero - replaced) / (zero - card["ce"])})
    replaced, zero = cross_entropy(layers), cross_entropy({l: torch.zeros_like for l in layers})
    card["all_layers"] = {"ce_replaced": replaced, "ce_zero": zero, "ce_score": (zero - replaced) / (zero - card["ce"])}
    card["tokens"] = sum(map(len, documents))
    card["settings"] = SETTINGS
    (HERE / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(f"{card['tokens']} held-out tokens, cross-entropy {card['ce']:.4f}")
    for r in card["layers"]:
        print(f"layer {r['layer']}: L0 {r['l0']:.2f}, explained {r['explained_variance']:.3f}, dead {r['dead_share']:.3f}, CE "
              f"{r['ce_replaced']:.4f} (zero {r['ce_zero']:.4f}), score {r['ce_score']:.3f}")
    print(f"all: CE {replaced:.4f} (zero {zero:.4f}), score {card['all_layers']['ce_score']:.3f}")


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("what", choices=["train", "evaluate"])
    parse.add_argument("--lamina", type=pathlib.Path, required=True)
    parse.add_argument("--work", type=pathlib.Path, required=True)
    args = parse.parse_args()
    {"train": train, "evaluate": evaluate}[args.what](args)


if __name__ == "__main__":
    main()
