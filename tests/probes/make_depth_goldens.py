#!/usr/bin/env python3
"""Makes depth.json: what the depth analyses must find on golden models, computed here in numpy and
torch in double precision from the values that the reference implementations recorded
(tests/goldens/NAME/golden.safetensors).

    python make_depth_goldens.py [CLONE]      needs torch, transformers >= 5, numpy, safetensors

With a clone of github.com/RobertCsordas/llm_effective_depth, the function that this repository uses
for relative contributions and cosines (analysis/analyze_norms.py, analyze_norms) also runs, as it
is, on the tiny Llama: "authors". It expects nnsight; the few things it uses of it stand below.
Without the clone "authors" is kept from the last run.
"""
import ast
import json
import pathlib
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.numpy import load_file

HERE = pathlib.Path(__file__).resolve().parent
GOLDENS = HERE.parent / "goldens"
PARALLEL = ("lamina_parallel",)
POST = ("lamina_post",)
NAMES = ("llama3", "gpt2", "lamina_parallel", "lamina_relu", "lamina_post")
RELU = ("lamina_relu",)


def prompts_of(name):
    """[{site: float64 array [token, ...]}], one a prompt"""
    golden = load_file(GOLDENS / name / "golden.safetensors")
    out, p = [], 0
    while f"p{p}/ids" in golden:
        head = f"p{p}/"
        out.append({k[len(head):]: v.astype(np.float64) if v.dtype != np.int32 else v
                    for k, v in golden.items() if k.startswith(head)})
        p += 1
    return out


def chosen(prompts, skip, every):
    """[(prompt, position)]"""
    return [(p, i) for p, values in enumerate(prompts) for i in range(skip, len(values["ids"]))
            if (p + i) % every == 0]


def gather(prompts, site, tokens):
    return np.array([prompts[p][site].reshape(len(prompts[p]["ids"]), -1)[i] for p, i in tokens])


def layers_of(prompts):
    return sum(f"blocks.{l}.hook_resid_post" in prompts[0] for l in range(100))


def streams_of(name, prompts, tokens):
    leaving = "hook_normalized_resid_post" if name in POST else "hook_resid_post"
    return [gather(prompts, "blocks.0.hook_resid_pre", tokens)] + [
        gather(prompts, f"blocks.{l}.{leaving}", tokens) for l in range(layers_of(prompts))]


def norm(x):
    return np.sqrt((x * x).sum(-1))


def cos(x, y):
    return (x * y).sum(-1) / (norm(x) * norm(y))


def contributions(name, prompts, tokens):
    h = streams_of(name, prompts, tokens)
    out = {}
    for l in range(len(h) - 1):
        a = gather(prompts, f"blocks.{l}.hook_attn_out", tokens)
        m = gather(prompts, f"blocks.{l}.hook_mlp_out", tokens)
        base = h[l] if name in PARALLEL else h[l] + a
        if name in POST:
            base = gather(prompts, f"blocks.{l}.hook_normalized_resid_mid", tokens)
        step = h[l + 1] - h[l]
        for key, value in dict(
                attn_norm=norm(a), mlp_norm=norm(m), block_norm=norm(step), attn_ratio=norm(a) / norm(h[l]),
                mlp_ratio=norm(m) / norm(base), block_ratio=norm(step) / norm(h[l]), attn_cos=cos(a, h[l]),
                mlp_cos=cos(m, base), block_cos=cos(step, h[l]), stream_cos=cos(h[l + 1], h[l])).items():
            out.setdefault(key, []).append(value.mean())
            if key.endswith(("norm", "ratio")):
                out.setdefault(key + "_max", []).append(value.max())
    return out


def growth(name, prompts, tokens):
    h = streams_of(name, prompts, tokens)
    variance = [x.var(-1).mean() for x in h]
    return dict(norm=[norm(x).mean() for x in h], norm_max=[norm(x).max() for x in h],
                rms=[np.sqrt((x * x).mean(-1)).mean() for x in h], variance=variance,
                pooled_variance=[x.var() for x in h], growth=[v / variance[0] for v in variance])


def angular(name, prompts, tokens):
    h = streams_of(name, prompts, tokens)
    layers = len(h) - 1
    return [[np.arccos(np.clip(cos(h[i], h[i + n]), -1, 1)).mean() / np.pi if i + n <= layers else None
             for n in range(1, layers + 1)] for i in range(layers)]


def sparsity(name, prompts, tokens):
    counts = []
    for l in range(layers_of(prompts)):
        x = gather(prompts, f"blocks.{l}.mlp.hook_post", tokens)
        bound = 0 if name in RELU else 0.1 * np.sqrt((x * x).mean(-1, keepdims=True))
        counts.append((np.abs(x) > bound).sum(0).tolist())
    return counts


def magnitudes(prompts, tokens):
    edges = np.exp2(np.arange(-12, 9))
    out = {}
    for output, site in (("attn_out", "hook_attn_out"), ("mlp_out", "hook_mlp_out"), ("mlp_post", "mlp.hook_post")):
        entry = out[output] = dict(histogram=[], top=[], half=[], mean=[])
        for l in range(layers_of(prompts)):
            x = np.abs(gather(prompts, f"blocks.{l}.{site}", tokens))
            u = x / x.sum(-1, keepdims=True) * x.shape[-1]
            entry["histogram"].append(np.bincount(np.searchsorted(edges, u.ravel(), side="right"), minlength=22).tolist())
            mean = u.mean(0)
            entry["mean"].append(mean.tolist())
            falling = np.sort(mean)[::-1]
            entry["top"].append(falling[:max(1, len(mean) // 10)].sum() / mean.sum())
            entry["half"].append((np.searchsorted(np.cumsum(falling), mean.sum() / 2) + 1) / len(mean))
    return out


def coding_rate(name, prompts, tokens, unit, epsilon):
    out = []
    for z in streams_of(name, prompts, tokens):
        if unit:
            z = z / norm(z)[:, None]
        n, d = z.shape
        out.append(0.5 * np.linalg.slogdet(np.eye(d) + d / (n * epsilon**2) * z.T @ z)[1])
    return out


def exits(name, prompts, tokens):
    """What the model's own head says of every stream, and when it stops changing its mind."""
    model = transformers.AutoModelForCausalLM.from_pretrained(GOLDENS / name, attn_implementation="eager").double().eval()
    final = model.model.norm if hasattr(model, "model") else model.transformer.ln_f
    with torch.no_grad():
        said = np.array([model.lm_head(final(torch.tensor(x))).argmax(-1).numpy()
                         for x in streams_of(name, prompts, tokens)])
    target = np.array([prompts[p]["ids"][i + 1] if i + 1 < len(prompts[p]["ids"]) else -1 for p, i in tokens])
    first = [min(s for s in range(len(said)) if (said[s:, t] == said[-1, t]).all()) for t in range(said.shape[1])]
    return dict(agree=(said == said[-1]).sum(1).tolist(), targets=int((target >= 0).sum()),
                correct=((said == target) & (target >= 0)).sum(1).tolist(),
                exits=np.bincount(first, minlength=len(said)).tolist())


def linear_maps(source, target, ridge, holdout, skip):
    """Centred and scaled inputs, normal equations solved by numpy; prompts holdout-1, 2*holdout-1 ... measured."""
    a, b = prompts_of(source), prompts_of(target)
    every = chosen(a, skip, 1)
    fit = [t for t in every if t[0] % holdout != holdout - 1]
    held = [t for t in every if t[0] % holdout == holdout - 1]
    error = []
    for x, x2 in zip(streams_of(source, a, fit), streams_of(source, a, held)):
        z = (x - x.mean(0)) / x.std(0)
        row = []
        for y, y2 in zip(streams_of(target, b, fit), streams_of(target, b, held)):
            w = np.linalg.solve(z.T @ z / len(z) + ridge * np.eye(z.shape[1]), z.T @ (y - y.mean(0)) / len(z))
            guess = (x2 - x.mean(0)) / x.std(0) @ w + y.mean(0)
            row.append((norm(guess - y2) / norm(y2)).mean())
        error.append(row)
    mean = [(norm(y.mean(0) - y2) / norm(y2)).mean()
            for y, y2 in zip(streams_of(target, b, fit), streams_of(target, b, held))]
    return dict(error=error, mean_error=mean, fit_tokens=len(fit), held_tokens=len(held))


def authors(clone):
    """The released function on llama3, with the little of nnsight that it uses."""
    text = (pathlib.Path(clone) / "analysis/analyze_norms.py").read_text()
    tree = ast.parse(text)
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "analyze_norms")
    node.decorator_list = []
    scope = {"torch": torch, "F": F, "print": lambda *_: None}
    exec(compile(ast.Module([node], []), "analyze_norms", "exec"), scope)

    model = transformers.AutoModelForCausalLM.from_pretrained(GOLDENS / "llama3", attn_implementation="eager").eval()
    views = []
    for layer in model.model.layers:
        view = SimpleNamespace(self_attn=SimpleNamespace(), mlp=SimpleNamespace())
        views.append(view)
        tensor = lambda out: out[0] if isinstance(out, tuple) else out

        def keep(_, args, kwargs, out, view=view):
            view.inputs = ((args[0] if args else kwargs["hidden_states"],), {})
            view.output = (tensor(out),)

        layer.register_forward_hook(keep, with_kwargs=True)
        layer.self_attn.register_forward_hook(
            lambda _, args, out, view=view: setattr(view.self_attn, "output", (tensor(out),)))
        layer.mlp.register_forward_hook(lambda _, args, out, view=view: setattr(view.mlp, "output", tensor(out)))

    @contextmanager
    def trace(ids, remote=False):
        model(input_ids=torch.tensor(ids.astype(np.int64))[None])
        yield

    @contextmanager
    def session(remote=False):
        yield

    torch.Tensor.save = lambda self: self
    llm = SimpleNamespace(model=SimpleNamespace(layers=views), trace=trace, session=session, remote=False)
    found = scope["analyze_norms"](llm, [p["ids"] for p in prompts_of("llama3")])
    names = ("attn_norm", "mlp_norm", "norm", "attn_norm_max", "mlp_norm_max", "norm_max", "attn_ratio", "mlp_ratio",
             "block_ratio", "attn_ratio_max", "mlp_ratio_max", "block_cos", "attn_cos", "mlp_cos", "stream_cos")
    return {n: v.tolist() for n, v in zip(names, found)}


def main():
    path = HERE / "depth.json"
    out = {}
    for name in NAMES:
        prompts = prompts_of(name)
        entry = out[name] = {}
        for label, skip, every in (("all", 0, 1), ("some", 1, 3)):
            tokens = chosen(prompts, skip, every)
            entry[label] = dict(
                tokens=len(tokens), contributions=contributions(name, prompts, tokens), growth=growth(name, prompts, tokens),
                angular=angular(name, prompts, tokens), sparsity=sparsity(name, prompts, tokens),
                magnitudes=magnitudes(prompts, tokens), unit_rate=coding_rate(name, prompts, tokens, True, 0.5),
                raw_rate=coding_rate(name, prompts, tokens, False, 0.1))
            if name in ("llama3", "gpt2"):
                entry[label]["exit"] = exits(name, prompts, tokens)
    out["maps"] = linear_maps("llama3", "gpt2", 0.05, 3, 1)
    if len(sys.argv) > 1:
        out["authors"] = authors(sys.argv[1])
    elif path.exists():
        out["authors"] = json.loads(path.read_text())["authors"]
    path.write_text(json.dumps(out, indent=None, separators=(",", ":")) + "\n")


main()
