#!/usr/bin/env python3
"""Trains, evaluates and exports the organism: a small multilingual decoder with several known abilities.

  make.py train    --work DIR [--steps N]        train, with checkpoints in DIR (goes on from the last one)
  make.py export   --work DIR [--out FOLDER]     write config.json, model.safetensors (half precision), tokenizer.json
  make.py evaluate [--model FOLDER]              measure the saved model on held-out prompts -> accuracies.json
  make.py prompts  [--model FOLDER]              write prompts.jsonl and pairs/*.jsonl

Deterministic given the seed and the thread count, up to the order of floating-point sums.
"""
import argparse
import json
import math
import pathlib
import random
import sys
import time

import torch
import torch.nn.functional as F

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import lamina_format  # noqa: E402
import reference  # noqa: E402
import tasks  # noqa: E402


def config(args):
    return lamina_format.make_config(
        n_layers=args.layers, d_model=args.width, n_heads=args.heads, n_kv_heads=args.heads,
        d_head=args.width // args.heads, d_mlp=args.mlp, d_vocab=len(tasks.vocabulary()), n_ctx=128, norm="rms",
        norm_place="pre", final_norm=True, positions="rotary", rotary_dim=args.width // args.heads, gated=True, act="silu", tied=args.tied)


def initialise(c, seed):
    g = torch.Generator().manual_seed(seed)
    w = {}
    for name, shape in lamina_format.shapes(c).items():
        if name.endswith((".w",)):
            w[name] = torch.ones(shape)
        elif name.startswith("embed"):
            w[name] = torch.randn(shape, generator=g) * (0.1 if c["tied"] else 0.5)
        else:
            fan_in = c["n_heads"] * c["d_head"] if name.endswith("W_O") else shape[-2]
            w[name] = torch.randn(shape, generator=g) * fan_in ** -0.5
            if name.endswith(("W_O", "W_out")):
                w[name] *= (2 * c["n_layers"]) ** -0.5
            if name.startswith("unembed"):
                w[name] *= 0.3
    return {n: t.requires_grad_() for n, t in w.items()}


class Batches:
    """Rows of `length` tokens, each holding several whole documents; the mixture is kept in tokens, not documents."""

    def __init__(self, seed, rows, length, mixture):
        self.rng, self.rows, self.length = random.Random(seed), rows, length
        self.mixture, self.factors = tasks.MIXTURES[mixture], tasks.FACTORS[mixture]
        self.spent = dict.fromkeys(self.mixture, 0)
        self.vocabulary = tasks.vocabulary()
        self.waiting = []

    def document(self):
        name = min(self.spent, key=lambda n: self.spent[n] / self.mixture[n])
        item = tasks.TASKS[name](self.rng, False)
        self.spent[name] += len(item.words) + 1
        factor = self.factors.get(name, 1.0)
        return [0] + [self.vocabulary[w] for w in item.words], [0.0] + [x * factor for x in item.weights]

    def next(self):
        ids = torch.zeros(self.rows, self.length, dtype=torch.long)
        pos, doc = torch.zeros_like(ids), torch.full_like(ids, -1)
        weight = torch.zeros(self.rows, self.length)
        for r in range(self.rows):
            at = n = 0
            while True:
                # First fit among a few waiting documents, so that rows fill well.
                while len(self.waiting) < 12:
                    self.waiting.append(self.document())
                fit = next((d for d in self.waiting if at + len(d[0]) <= self.length), None)
                if fit is None:
                    break
                self.waiting.remove(fit)
                e = at + len(fit[0])
                ids[r, at:e], weight[r, at:e] = torch.tensor(fit[0]), torch.tensor(fit[1])
                pos[r, at:e], doc[r, at:e] = torch.arange(e - at), n
                at, n = e, n + 1
        return ids, pos, doc, weight


def orthogonalise(g, steps=5):
    """Nearest semi-orthogonal matrix to each of g [.., m, n], by a quintic Newton–Schulz iteration (Muon)."""
    x = g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    wide = x.shape[-2] > x.shape[-1]
    if wide:
        x = x.mT
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if wide else x


class Optimizer:
    """Muon for the matrices inside the blocks, Adam for embeddings, unembedding and norms."""

    def __init__(self, w, muon_rate, adam_rate, decay):
        self.w, self.decay, self.muon_rate = w, decay, muon_rate
        self.muon = [n for n in w if n.startswith("blocks.") and w[n].dim() >= 2]
        rest = [n for n in w if n not in self.muon]
        self.momentum = {n: torch.zeros_like(w[n]) for n in self.muon}
        self.adam = torch.optim.AdamW([{"params": [w[n] for n in rest if w[n].dim() > 1], "weight_decay": decay},
                                       {"params": [w[n] for n in rest if w[n].dim() == 1], "weight_decay": 0.0}],
                                      lr=adam_rate, betas=(0.9, 0.98))
        self.adam_rate = adam_rate

    @torch.no_grad()
    def step(self, factor):
        for group in self.adam.param_groups:
            group["lr"] = self.adam_rate * factor
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        rate = self.muon_rate * factor
        for n in self.muon:
            p, m = self.w[n], self.momentum[n]
            m.mul_(0.95).add_(p.grad)
            update = orthogonalise(p.grad + 0.95 * m)
            scale = max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5
            p.mul_(1 - rate * self.decay).add_(update, alpha=-rate * scale)
            p.grad = None

    def state(self):
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def load(self, state):
        for n in self.momentum:
            self.momentum[n].copy_(state["momentum"][n])
        self.adam.load_state_dict(state["adam"])


def items(name, count, seed=20_000):
    """`count` held-out items of a task, different prompts all."""
    rng, seen, out = random.Random(f"{seed}/{name}"), set(), []
    for _ in range(50 * count):
        i = (tasks.TASKS | tasks.BEYOND)[name](rng, True)
        if tuple(i.prompt) not in seen:
            seen.add(tuple(i.prompt))
            out.append(i)
        if len(out) == count:
            break
    return out


@torch.no_grad()
def log_probs(c, w, prompts):
    """Log-probabilities after each prompt (lists of ids without <bos>): [prompt, V]. Grouped by length: no padding."""
    out = torch.empty(len(prompts), c["d_vocab"])
    groups = {}
    for i, p in enumerate(prompts):
        groups.setdefault(len(p), []).append(i)
    for members in groups.values():
        h = reference.hidden(c, w, torch.tensor([[0] + prompts[i] for i in members]))
        out[members] = F.log_softmax(reference.unembed(c, w, h[:, -1]), -1)
    return out


def measure(c, w, count, names=tuple(tasks.TASKS)):
    """Held-out accuracies. distinct_keys: different things held out (pairs of names, facts, words with languages …).
    correct: the most probable token is a right answer. preferred: right answers, together, are
    more probable than the wrong ones together. probability: mean mass on the right answers."""
    v = tasks.vocabulary()
    result = {}
    for name in names:
        its = items(name, count)
        lp = log_probs(c, w, [[v[x] for x in i.prompt] for i in its])
        p = lp.exp()
        top = lp.argmax(-1).tolist()
        right = [[v[x] for x in i.correct] for i in its]
        wrong = [[v[x] for x in i.wrong] for i in its]
        mass = [p[k, r].sum().item() for k, r in enumerate(right)]
        bad = [p[k, r].sum().item() for k, r in enumerate(wrong)]
        n = len(its)
        result[name] = {"prompts": n, "distinct_keys": len({i.key for i in its}), "correct": sum(t in r for t, r in zip(top, right)),
                        "preferred": sum(a > b for a, b in zip(mass, bad)), "probability": round(sum(mass) / n, 4)}
        result[name]["accuracy"] = round(result[name]["correct"] / n, 4)
        if name == "greater_than":
            result[name]["mean_probability_difference"] = round(sum(a - b for a, b in zip(mass, bad)) / n, 4)
        if name == "translation":
            by = {}
            for i, t, r in zip(its, top, right):
                pair = i.key.split()[1]
                by.setdefault(pair, [0, 0])
                by[pair][0] += t in r
                by[pair][1] += 1
            result[name]["by_languages"] = {k: by[k] for k in sorted(by)}
        if name == "ioi":
            for form in ("ABBA", "BABA"):
                ks = [k for k, i in enumerate(its) if i.key.endswith(form)]
                result[name][form] = [sum(top[k] in right[k] for k in ks), len(ks)]
    return result


def train(args):
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    c = config(args)
    w = initialise(c, args.seed)
    optimizer = Optimizer(w, args.muon_rate, args.adam_rate, args.decay)
    last = args.work / "checkpoint.pt"
    step, tokens, spent = 0, 0, 0.0
    if last.exists():
        s = torch.load(last, weights_only=True)
        step, tokens, spent = s["step"], s["tokens"], s["seconds"]
        with torch.no_grad():
            for n in w:
                w[n].copy_(s["weights"][n])
        optimizer.load(s["optimizer"])
    # Resuming draws fresh documents: the generator is seeded by the step it starts from.
    batches = Batches(f"{args.seed}/{step}", args.rows, args.length, args.mixture)
    log = open(args.work / "log.jsonl", "a", encoding="utf-8")
    parameters = sum(t.numel() for t in w.values())
    print(f"{parameters} parameters, vocabulary {c['d_vocab']}, from step {step} to {args.steps}", flush=True)
    start, mean = time.time(), None
    while step < args.steps:
        factor = min(1.0, (step + 1) / args.warmup, max(0.02, (args.steps - step) / max(1, args.cooldown)))
        ids, pos, doc, weight = batches.next()
        h = reference.hidden(c, w, ids, pos, doc)
        r, t = (weight > 0).nonzero(as_tuple=True)
        target, tw = ids[r, t], weight[r, t]
        logits = reference.unembed(c, w, h[r, t - 1])
        loss = (F.cross_entropy(logits, target, reduction="none") * tw).sum() / tw.sum()
        loss.backward()
        optimizer.step(factor)
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        step, tokens = step + 1, tokens + int((doc >= 0).sum())
        if step % 50 == 0:
            sec = spent + time.time() - start
            print(f"step {step} loss {mean:.4f} tokens {tokens} seconds {sec:.0f}", flush=True)
        if step % args.every == 0 or step == args.steps:
            sec = spent + time.time() - start
            result = {k: [x["accuracy"], x["probability"]] for k, x in measure(c, w, 100).items()}
            line = {"step": step, "tokens": tokens, "seconds": round(sec), "loss": round(mean, 4), "held_out": result}
            print(json.dumps(line), flush=True)
            log.write(json.dumps(line) + "\n")
            log.flush()
            torch.save({"step": step, "tokens": tokens, "seconds": sec, "config": c, "parameters": parameters,
                        "weights": {n: t.detach() for n, t in w.items()}, "optimizer": optimizer.state()},
                       last.with_suffix(".new"))
            last.with_suffix(".new").replace(last)


def export(args):
    s = torch.load(args.work / "checkpoint.pt", weights_only=True)
    reference.save(args.out, s["config"], s["weights"], list(tasks.vocabulary()), torch.float16)
    (args.out / "training.json").write_text(json.dumps(
        {"steps": s["step"], "tokens": s["tokens"], "seconds": round(s["seconds"]), "parameters": s["parameters"]}) + "\n")
    size = (args.out / "model.safetensors").stat().st_size
    print(f"{args.out}: step {s['step']}, {s['parameters']} parameters, {size} bytes", file=sys.stderr)


def evaluate(args):
    torch.set_num_threads(args.threads)
    c, w, _ = reference.load(args.model)
    result = measure(c, w, args.count, [*tasks.TASKS, *tasks.BEYOND])
    (args.model / "accuracies.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, r in result.items():
        print(f"{name:26s} {r['correct']}/{r['prompts']} = {r['accuracy']:.3f}, preferred {r['preferred']}/{r['prompts']}, "
              f"probability {r['probability']:.3f}")


EXAMPLES = [  # prompts people know from the literature, first in prompts.jsonl
    ("ioi", "When Mary and John went to the store , John gave a drink to", ["Mary"]),
    ("greater_than", "The war lasted from the year 17 43 to 17", tasks.YEARS[44:]),
    ("agreement", "The keys to the cabinet", ["are", "were"]),
    ("capitals", "The capital of France is", ["Paris"]),
]
PAIR_TASKS = {"ioi": "ioi", "greater_than": "greater_than", "sva": "agreement", "capitals": "capitals",
              "translation": "translation"}


def prompts(args):
    """prompts.jsonl: held-out prompts of every task. pairs/TASK.jsonl: only pairs the saved model gets right."""
    torch.set_num_threads(args.threads)
    c, w, _ = reference.load(args.model)
    v = tasks.vocabulary()

    def dump(path, rows):
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
        print(f"{path.name}: {len(rows)}", file=sys.stderr)

    def best(prompt, correct):
        """The right answer this model finds most likely: agreement and greater-than have several."""
        lp = log_probs(c, w, [[v[x] for x in prompt]])[0]
        return max(correct, key=lambda x: lp[v[x]])

    rows = [{"id": f"{task}-example", "text": text, "target": best(text.split(), correct), "labels": {"task": task}}
            for task, text, correct in EXAMPLES]
    for name in tasks.TASKS:
        for k, i in enumerate(items(name, args.per_task, seed=30_000)):
            labels = {"task": name}
            if name in ("translation", "repetition", "cloze"):
                concept, langs = i.key.split()
                labels |= {"concept": concept, "source_language": langs.split(">")[0], "target_language": langs.split(">")[-1]}
            rows.append({"id": f"{name}-{k}", "text": " ".join(i.prompt), "target": best(i.prompt, i.correct), "labels": labels})
    dump(args.model / "prompts.jsonl", rows)

    for name, task in PAIR_TASKS.items():
        its = items(task, 3 * args.pairs, seed=40_000)
        if task == "greater_than":
            its = [i for i in its if int(i.key.split()[2]) >= 20]
        clean, corrupted = (log_probs(c, w, [[v[x] for x in p] for p in ps])
                            for ps in ([i.prompt for i in its], [i.corrupted for i in its]))
        keep = []
        for i, a, b in zip(its, clean, corrupted):
            right, wrong = [v[x] for x in i.correct], [v[x] for x in i.wrong]
            # A later year is right after the corrupted year too: there, only the clean prompt decides.
            flips = task == "greater_than" or int(b.argmax()) in wrong
            if int(a.argmax()) in right and flips:
                keep.append({"clean": " ".join(i.prompt), "corrupted": " ".join(i.corrupted), "correct": i.correct,
                             "wrong": i.wrong})
        print(f"{name}: both right on {len(keep)} of {len(its)}", file=sys.stderr)
        dump(args.model / "pairs" / f"{name}.jsonl", keep[:args.pairs])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(dest="verb", required=True)
    t = sub.add_parser("train", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    t.add_argument("--work", type=pathlib.Path, required=True, help="folder for checkpoints and log")
    t.add_argument("--seed", type=int, default=1)
    t.add_argument("--steps", type=int, default=800, help="train until this step")
    t.add_argument("--cooldown", type=int, default=0, help="last steps, in which the rate falls linearly")
    t.add_argument("--warmup", type=int, default=50)
    t.add_argument("--mixture", choices=sorted(tasks.MIXTURES), default="first", help="shares of the tasks")
    t.add_argument("--rows", type=int, default=16, help="rows per step")
    t.add_argument("--length", type=int, default=96, help="tokens per row")
    t.add_argument("--layers", type=int, default=6)
    t.add_argument("--width", type=int, default=128)
    t.add_argument("--heads", type=int, default=4)
    t.add_argument("--mlp", type=int, default=320)
    t.add_argument("--tied", action="store_true", help="one matrix for embedding and unembedding")
    t.add_argument("--muon-rate", type=float, default=0.004)
    t.add_argument("--adam-rate", type=float, default=0.004)
    t.add_argument("--decay", type=float, default=0.05, help="weight decay")
    t.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    t.add_argument("--threads", type=int, default=1)
    t.set_defaults(call=train)
    e = sub.add_parser("export", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    e.add_argument("--work", type=pathlib.Path, required=True)
    e.add_argument("--out", type=pathlib.Path, default=HERE)
    e.set_defaults(call=export)
    v = sub.add_parser("evaluate", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    v.add_argument("--model", type=pathlib.Path, default=HERE)
    v.add_argument("--count", type=int, default=500, help="prompts per task")
    v.add_argument("--threads", type=int, default=1)
    v.set_defaults(call=evaluate)
    p = sub.add_parser("prompts", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--model", type=pathlib.Path, default=HERE)
    p.add_argument("--per-task", type=int, default=5, help="prompts per task")
    p.add_argument("--pairs", type=int, default=40, help="pairs per task")
    p.add_argument("--threads", type=int, default=1)
    p.set_defaults(call=prompts)
    args = ap.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
