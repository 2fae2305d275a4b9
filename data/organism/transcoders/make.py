#!/usr/bin/env python3
"""Trains a transcoder for every layer of the organism, on text of its own training distribution, and measures them.

    make.py train --lamina build/lamina --work W     texts → all layers in one pass → this folder
    make.py evaluate                                 held-out texts → card.json: L0, explained variance, cross-entropy and
                                                     right answers with an MLP (and all MLPs) replaced
    make.py check --lamina build/lamina --work W     `lamina transcoder eval` of the same texts against card.json

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
SETTINGS = ["--activation", "batch_topk", "--k", "16", "--features", "512", "--batch", "512", "--buffer", "65536", "--lr", "2e-3",
            "--warmup", "100", "--decay", "1500", "--steps", "6000", "--dead-window", "800", "--auxk", "64"]
EVALUATED, PROMPTS = 40_000, 200  # held-out tokens; held-out prompts of each task


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
    subprocess.run([args.lamina, "--threads", "1", "transcoder", "train", "--model", "organism", "--prompts", prompts, "-o", out, "--force",
                    *SETTINGS], check=True)
    for folder in sorted(out.glob("layer_*")):
        ship(folder, HERE / folder.name)


class Transcoder:
    """y = W_decᵀ z + b_dec, z = u where u = W_enc x + b_enc > threshold, from a SAELens folder; counts what it sees."""

    def __init__(self, folder):
        import torch
        from safetensors.torch import load_file

        self.torch = torch
        self.w = {n: t.float() for n, t in load_file(folder / "sae_weights.safetensors").items()}
        self.fired = torch.zeros(self.w["b_enc"].numel())
        self.rows = 0

    def __call__(self, x):
        u = x @ self.w["W_enc"] + self.w["b_enc"]
        z = self.torch.where(u > self.w["threshold"], u, 0.0)
        self.fired += (z > 0).float().flatten(0, -2).sum(0)
        self.rows += z[..., 0].numel()
        return z @ self.w["W_dec"] + self.w["b_dec"]


def evaluate(args):
    import torch

    import reference

    torch.set_num_threads(2)
    c, w, tokenizer = reference.load(HERE.parent)
    documents = [tokenizer.encode(t).ids for t in texts(EVALUATED, True, 2)]
    layers = {l: Transcoder(HERE / f"layer_{l}") for l in range(c["n_layers"])}
    true_mlp = lambda l, x: (torch.nn.functional.silu(x @ w[f"blocks.{l}.mlp.W_gate"]) * (x @ w[f"blocks.{l}.mlp.W_in"])) @ w[
        f"blocks.{l}.mlp.W_out"]
    def cross_entropy(mlp, documents=documents):
        """Mean nats of every next token."""
        by_length = {}
        for d in documents:
            by_length.setdefault(len(d), []).append(d)
        total = count = 0
        with torch.no_grad():
            for same in by_length.values():
                ids = torch.tensor(same)
                logp = reference.unembed(c, w, reference.hidden(c, w, ids, mlp=mlp)).log_softmax(-1)[:, :-1]
                total -= logp.gather(-1, ids[:, 1:, None]).sum().item()
                count += ids[:, 1:].numel()
        return total / count

    def reconstruction(documents):
        """Each transcoder on the true stream: the model's cross-entropy, and a row per layer."""
        seen = {l: [0.0, 0.0, torch.zeros(c["d_model"], dtype=torch.float64)] for l in layers}
        for t in layers.values():
            t.fired, t.rows = torch.zeros_like(t.fired), 0

        def watch(l):
            def compute(x):
                y = true_mlp(l, x)
                s = seen[l]
                s[0] += (layers[l](x) - y).double().pow(2).sum().item()
                s[1] += y.double().pow(2).sum().item()
                s[2] += y.double().flatten(0, -2).sum(0)
                return y
            return compute

        ce = cross_entropy({l: watch(l) for l in layers}, documents)
        return ce, [{"layer": l, "features": len(t.fired), "l0": t.fired.sum().item() / t.rows,
                     "explained_variance": 1 - seen[l][0] / (seen[l][1] - seen[l][2].pow(2).sum().item() / t.rows),
                     "dead_share": (t.fired == 0).float().mean().item()} for l, t in layers.items()]

    ce, rows = reconstruction(documents)
    card = {"documents": len(documents), "tokens": sum(map(len, documents)), "ce": ce, "layers": rows}
    for r in rows:
        l = r["layer"]
        replaced, zero = cross_entropy({l: layers[l]}), cross_entropy({l: torch.zeros_like})
        r |= {"ce_replaced": replaced, "ce_zero": zero, "ce_score": (zero - replaced) / (zero - ce)}
    replaced, zero = cross_entropy(layers), cross_entropy({l: torch.zeros_like for l in layers})
    card["all_layers"] = {"ce_replaced": replaced, "ce_zero": zero, "ce_score": (zero - replaced) / (zero - ce)}
    # A small sample for the tests: the prompts of ../prompts.jsonl.
    lines = (HERE.parent / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    card["prompts"] = reconstruction([tokenizer.encode(json.loads(line)["text"]).ids for line in lines])[1]

    def right(name, mlp):
        """How many held-out prompts of a task the most probable of all tokens answers."""
        rng, count = random.Random(f"3 {name}"), 0
        with torch.no_grad():
            for _ in range(PROMPTS):
                item = tasks.TASKS[name](rng, True)
                ids = torch.tensor([tokenizer.encode(" ".join(item.prompt)).ids])
                best = reference.unembed(c, w, reference.hidden(c, w, ids, mlp=mlp)[:, -1]).argmax(-1)
                count += tokenizer.id_to_token(int(best)) in item.correct
        return count

    card["answers"] = {"prompts": PROMPTS, "right": {name: right(name, None) for name in tasks.TASKS},
                       "right_replaced": {name: right(name, layers) for name in tasks.TASKS}}
    card["settings"] = SETTINGS
    (HERE / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(f"{card['tokens']} held-out tokens, cross-entropy {card['ce']:.4f}")
    for r in card["layers"]:
        print(f"layer {r['layer']}: L0 {r['l0']:.2f}, explained {r['explained_variance']:.4f}, dead {r['dead_share']:.3f}, CE "
              f"{r['ce_replaced']:.4f} (zero {r['ce_zero']:.4f}), score {r['ce_score']:.3f}")
    print(f"all: CE {replaced:.4f} (zero {zero:.4f}), score {card['all_layers']['ce_score']:.3f}")
    for name, n in card["answers"]["right"].items():
        print(f"{name}: {n} of {PROMPTS} right, all MLPs replaced {card['answers']['right_replaced'][name]}")


def check(args):
    """Every number that both compute, to the sixth digit: torch and lamina in float32, sums in double."""
    args.work.mkdir(parents=True, exist_ok=True)
    write_texts(args.work / "held_out.txt", EVALUATED, True, 2)
    card = json.loads((HERE / "card.json").read_text())
    told = json.loads(subprocess.run(
        [args.lamina, "-q", "transcoder", "eval", "organism", "--transcoder", "organism", "--prompts",
         args.work / "held_out.txt", "--together", "--json"], check=True, stdout=subprocess.PIPE).stdout)
    assert told["tokens"] == card["tokens"], (told["tokens"], card["tokens"])
    worst = 0.0

    def same(what, a, b, tolerance):
        nonlocal worst
        worst = max(worst, abs(a - b) / tolerance)
        assert abs(a - b) <= tolerance, (what, a, b)

    for mine, theirs in zip(told["dictionaries"], card["layers"], strict=True):
        name = f"layer {theirs['layer']}"
        same(name + " L0", mine["l0"], theirs["l0"], 2e-4)  # a pre-activation at the threshold may fall on either side
        same(name + " explained variance", mine["explained_variance"], theirs["explained_variance"], 1e-5)
        same(name + " dead", mine["dead"] / theirs["features"], theirs["dead_share"], 1e-6)
        for key, other in ("original", card["ce"]), ("spliced", theirs["ce_replaced"]), ("zero", theirs["ce_zero"]):
            same(f"{name} CE {key}", mine["ce"][key], other, 2e-5)
    same("all layers", told["together"]["spliced"], card["all_layers"]["ce_replaced"], 2e-5)
    print(f"lamina and torch agree; largest difference {worst:.2g} of what is allowed")


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("what", choices=["train", "evaluate", "check"])
    parse.add_argument("--lamina", type=pathlib.Path)
    parse.add_argument("--work", type=pathlib.Path)
    args = parse.parse_args()
    if args.what != "evaluate" and not (args.lamina and args.work):
        parse.error(f"{args.what} needs --lamina and --work")
    {"train": train, "evaluate": evaluate, "check": check}[args.what](args)


if __name__ == "__main__":
    main()
