"""Makes entropy.json: what `lamina entropy` must find on golden models, computed here with
transformers (eager attention), torch and numpy in double precision, one row at a time.

    python make_entropy_goldens.py      needs torch, transformers >= 5, numpy

Grouped queries (llama3), windows and norms on queries and keys (gemma3), windows and soft-capped
scores (gemma2), learned positions (gpt2), and attention in both directions (bert). Nothing of the
project is used but the golden models.
"""

import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
import transformers

HERE = pathlib.Path(__file__).resolve().parent
GOLDENS = HERE.parent / "goldens"
MODELS = {"llama3": "CausalLM", "gemma3": "CausalLM", "gemma2": "CausalLM", "gpt2": "CausalLM",
          "bert": "MaskedLM"}
COLLAPSE, OVERLOAD = 0.7, 0.97  # tiny random models attend evenly
LEAST, RATIO = 1.2, 4.0
FIRST_KEYS, KEY_QUERIES, STRONGEST = 4, 3, 6
BINS = [0, 1, 2, 4, 8, 16, 32]


def prompts():
    """Few different ids, so that tokens repeat."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(2, 14, (n,), generator=generator) for n in (13, 1, 30, 2, 22)]


def layers_of(model):
    base = model.base_model
    return base.h if hasattr(base, "h") else base.layers if hasattr(base, "layers") else base.encoder.layer


def run(model, ids):
    """scores and patterns [L, H, T, T], streams [L, T, D], logits [T, V]"""
    scores, streams, handles = [], [], []
    for layer in layers_of(model):
        handles.append(layer.register_forward_hook(
            lambda _, args, output: streams.append((output[0] if isinstance(output, tuple) else output)[0])))
    real = F.softmax

    def softmax(x, dim=None, _stacklevel=3, dtype=None):  # some models ask for fp32 here
        scores.append(x[0])
        return real(x, dim=dim)

    F.softmax = softmax
    try:
        with torch.no_grad():
            out = model(input_ids=ids[None], output_attentions=True)
    finally:
        F.softmax = real
        for handle in handles:
            handle.remove()
    patterns = torch.stack([a[0] for a in out.attentions]).double()
    scores = torch.stack(scores)
    assert scores.dtype == torch.float64 and len(scores) == len(patterns)
    assert (real(scores, -1) - patterns).abs().max() < 1e-6
    return scores.numpy(), real(scores, -1).numpy(), torch.stack(streams).numpy(), out.logits[0].numpy()


def mean(values):
    return float(np.mean(values)) if len(values) else None


class Head:
    def __init__(self):
        self.h, self.n, self.sink, self.top = [], [], [], []
        self.share = {k: [] for k in ("previous", "self", "duplicate", "induction")}
        self.logits = []
        self.key = [[0.0, 0] for _ in range(FIRST_KEYS)]
        self.bins = [([], []) for _ in BINS]

    def query(self, i, ids, weights, scores):
        """weights, scores: {key: value} of the keys in sight."""
        keys = sorted(weights)
        p = np.array([weights[k] for k in keys])
        h = float(-sum(x * np.log(x) for x in p if x > 0))
        bin_ = max(b for b in range(len(BINS)) if BINS[b] <= i)
        self.h.append(h)
        self.bins[bin_][0].append(h)
        self.logits += [scores[k] for k in keys]
        if len(keys) < 2:
            return
        self.n.append(h / np.log(len(keys)))
        self.bins[bin_][1].append(self.n[-1])
        if 0 in weights:
            self.sink.append(weights[0])
            self.top.append(max(keys, key=lambda k: (weights[k], -k)) == 0)
        if i - 1 in weights:
            self.share["previous"].append(weights[i - 1])
        self.share["self"].append(weights[i])
        copies = [j for j in range(i) if ids[j] == ids[i] and j in weights]
        if copies:
            self.share["duplicate"].append(sum(weights[j] for j in copies))
        behind = [j + 1 for j in copies if j + 1 != i]
        if behind:
            self.share["induction"].append(sum(weights[j] for j in behind))
        for k in range(FIRST_KEYS):
            if k in weights:
                self.key[k][0] += weights[k]
                self.key[k][1] += 1

    def result(self):
        n = np.array(self.n)
        out = {
            "entropy": [mean(self.h), float(np.std(self.h)), min(self.h), max(self.h)],
            "normalized": [mean(n), float(np.std(n)), float(n.min()), float(n.max())],
            "queries": [len(self.h), len(self.n)],
            "collapsed": mean(n <= COLLAPSE), "overloaded": mean(n >= OVERLOAD),
            "sink": mean(self.sink), "sink_top": mean(self.top),
            "logits": [mean(self.logits), max(self.logits), len(self.logits)],
            "keys": [s / c for s, c in self.key],
            "bins": [[mean(a), mean(b), len(a)] for a, b in self.bins],
        }
        return out | {k: mean(v) for k, v in self.share.items()}


def measure(name, kind):
    model = getattr(transformers, "AutoModelFor" + kind).from_pretrained(
        GOLDENS / name, attn_implementation="eager").double().eval()
    heads, strong, outputs = None, [], []
    massive = None
    for number, ids in enumerate(prompts()):
        scores, patterns, streams, logits = run(model, ids)
        l_count, h_count, t = patterns.shape[:3]
        seen_all, got_all = np.zeros((l_count, t)), np.zeros(t)
        heads = heads or [[Head() for _ in range(h_count)] for _ in range(l_count)]
        for l in range(l_count):
            visible = scores[l, 0] > -1e30
            for h in range(h_count):
                for i in range(t):
                    keys = np.flatnonzero(visible[i])
                    heads[l][h].query(i, ids.tolist(), {int(k): float(patterns[l, h, i, k]) for k in keys},
                                      {int(k): float(scores[l, h, i, k]) for k in keys})
            several = visible & (visible.sum(1, keepdims=True) > 1)
            seen_all[l] = several.sum(0)
            got_all += (patterns[l] * several).sum((0, 1))
        for j in range(1, t):
            if seen_all[:, j].sum() >= KEY_QUERIES * l_count:
                strong.append([got_all[j] / (seen_all[:, j].sum() * h_count), number, j, int(ids[j])])

        if massive is None:
            massive = {"median": [[] for _ in range(l_count)], "found": []}
        for l in range(l_count):
            magnitude = np.abs(streams[l])
            median = float(torch.median(torch.tensor(magnitude)))
            massive["median"][l].append(median)
            for i, d in zip(*np.nonzero((magnitude > LEAST) & (magnitude > RATIO * median))):
                massive["found"].append([float(streams[l][i, d]), l, int(d), number, int(i), int(ids[i])])
        z = torch.logsumexp(torch.tensor(logits), -1).numpy()
        p = np.exp(logits - z[:, None])
        outputs += [(float(z[i]), float(-(p[i] * np.log(p[i])).sum()), float(p[i].max()), logits[i])
                    for i in range(t)]
    spread = lambda x: [float(np.mean(x)), float(np.std(x)), float(np.min(x)), float(np.max(x))]
    return {
        "model": name,
        "heads": [[head.result() for head in layer] for layer in heads],
        "strong": sorted(strong, key=lambda s: -s[0])[:STRONGEST],
        "medians": [mean(m) for m in massive["median"]],
        "massive": sorted(massive["found"], key=lambda a: -abs(a[0])),
        "output": [spread([o[i] for o in outputs]) for i in range(3)]
                  + [spread(np.concatenate([o[3] for o in outputs]))],
    }


def rounded(x):
    if isinstance(x, float):
        return float(f"{x:.10g}")
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    return [rounded(v) for v in x] if isinstance(x, list) else x


if __name__ == "__main__":
    result = {
        "options": {"collapse": COLLAPSE, "overload": OVERLOAD, "least": LEAST, "ratio": RATIO,
                    "first_keys": FIRST_KEYS, "key_queries": KEY_QUERIES, "strongest": STRONGEST},
        "prompts": [ids.tolist() for ids in prompts()],
        "cases": [rounded(measure(name, kind)) for name, kind in MODELS.items()],
    }
    for case in result["cases"]:
        flat = [h for layer in case["heads"] for h in layer]
        print(case["model"], "massive", len(case["massive"]), "medians", case["medians"],
              "collapsed", round(max(h["collapsed"] for h in flat), 3),
              "overloaded", round(max(h["overloaded"] for h in flat), 3), case["output"][0])
    (HERE / "entropy.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")
