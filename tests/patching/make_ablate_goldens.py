#!/usr/bin/env python3
"""Reference values for the ablation tests, from transformers, torch and numpy in float64.

Writes beside this script: ablate_model/ (a tiny random Llama) and ablate.safetensors (float32):
  x, y, distance.<kind>        rows of logits and their distances
  prompt.<i>                   token ids of the prompts
  lim, zd, zd_two_sided        of the model's layers
  order.<kind>, trace.<kind>   greedy removal by angular, norm, kl, js: sublayers (2·layer + mlp), distances
  nll, kl, agreement           of the path that is left after three removals by angular distance
"""
import json
import pathlib
import shutil

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
KINDS = ["angular", "norm", "kl", "js"]
f64 = np.float64


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def row_distances(kind, x, y):
    x, y = x.astype(f64), y.astype(f64)
    if kind == "angular":
        cos = (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
        return np.arccos(np.clip(cos, -1, 1))
    if kind == "norm":
        return np.sqrt(((x - y) ** 2).sum(-1))
    lp, lq = log_softmax(x), log_softmax(y)
    p, q = np.exp(lp), np.exp(lq)
    if kind == "kl":
        return (p * (lp - lq)).sum(-1)
    lm = np.log((p + q) / 2)
    return 0.5 * (p * (lp - lm)).sum(-1) + 0.5 * (q * (lq - lm)).sum(-1)


def distance(kind, whole, path):
    """Lists of [tokens, V] arrays, one per prompt."""
    rows = [row_distances(kind, x, y) for x, y in zip(whole, path)]
    if kind == "norm":
        return np.mean([np.sqrt((r ** 2).sum()) for r in rows])
    return np.concatenate(rows).mean()


def tiny_model():
    torch.manual_seed(7)
    config = LlamaConfig(vocab_size=53, hidden_size=24, intermediate_size=40, num_hidden_layers=4, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=10000.0,
                         tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                p.copy_(torch.randn_like(p) * (1.0 if "embed_tokens" in name else 1.2 / p.shape[1] ** 0.5))
            else:
                p.copy_(1 + 0.2 * torch.randn_like(p))
        # Layers of different strength, so that their order is not a matter of rounding.
        for l, (a, m) in enumerate([(1.0, 0.6), (0.25, 0.45), (0.8, 0.12), (0.35, 1.1)]):
            model.model.layers[l].self_attn.o_proj.weight.mul_(a)
            model.model.layers[l].mlp.down_proj.weight.mul_(m)
    return model


def save_model(model, folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    c = model.config
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": c.vocab_size, "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size, "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads, "num_key_value_heads": c.num_key_value_heads,
        "max_position_embeddings": c.max_position_embeddings, "rms_norm_eps": c.rms_norm_eps, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "float32"}, indent=1) + "\n")


def zero_output(module, _inputs, output):
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]),) + output[1:]
    return torch.zeros_like(output)


def run(model, prompts, removed):
    """Logits of every prompt with these sublayers' outputs set to zero."""
    hooks = []
    for s in removed:
        layer = model.model.layers[s // 2]
        hooks.append((layer.mlp if s % 2 else layer.self_attn).register_forward_hook(zero_output))
    with torch.no_grad():
        out = [model(torch.tensor([ids])).logits[0].numpy() for ids in prompts]
    for h in hooks:
        h.remove()
    return out


def main():
    out = {}
    rng = np.random.default_rng(3)
    x = rng.normal(size=(6, 37)).astype(np.float32) * 2
    y = (x + rng.normal(size=x.shape) * np.array([0.0, 1e-4, 0.1, 1, 3, 10])[:, None]).astype(np.float32)
    out["x"], out["y"] = x, y
    for kind in KINDS:
        out["distance." + kind] = row_distances(kind, x, y)

    model = tiny_model()
    save_model(model, HERE / "ablate_model")
    model = model.double().eval()
    prompts = [rng.integers(0, 53, size=n).tolist() for n in (5, 9, 7)]
    for i, ids in enumerate(prompts):
        out[f"prompt.{i}"] = np.array(ids)

    lim = []
    states = {}
    hooks = [layer.register_forward_hook(
        lambda m, i, o, l=l: states.setdefault(l, []).append((i[0][0], (o[0] if isinstance(o, tuple) else o).reshape(i[0].shape)[0])))
        for l, layer in enumerate(model.model.layers)]
    whole = run(model, prompts, [])
    for h in hooks:
        h.remove()
    for l in range(4):
        cos = torch.cat([torch.nn.functional.cosine_similarity(a, b, dim=-1) for a, b in states[l]])
        lim.append(-cos.mean().item())
    out["lim"] = np.array(lim)
    for name, two in (("zd", False), ("zd_two_sided", True)):
        shares = []
        for layer in model.model.layers:
            w = np.concatenate([p.detach().numpy().ravel() for p in layer.parameters() if p.dim() > 1])
            z = (w - w.mean()) / w.std()
            shares.append(((np.abs(z) if two else z) > 1).mean())
        out[name] = np.array(shares)

    for kind in KINDS:
        removed, trace = [], []
        while len(removed) < 8:
            tried = {s: distance(kind, whole, run(model, prompts, removed + [s])) for s in range(8) if s not in removed}
            best = min(tried, key=tried.get)
            second = sorted(tried.values())[1] if len(tried) > 1 else np.inf
            assert second > tried[best] * (1 + 1e-4), "a tie: choose other weights"
            removed.append(best)
            trace.append(tried[best])
        out["order." + kind], out["trace." + kind] = np.array(removed), np.array(trace)
        print(kind, removed, np.round(trace, 4))

    path = run(model, prompts, out["order.angular"][:3].tolist())
    nll = [-log_softmax(y)[t, ids[t + 1]] for y, ids in zip(path, prompts) for t in range(len(ids) - 1)]
    out["nll"] = np.array([np.mean(nll)])
    out["kl"] = np.array([distance("kl", whole, path)])
    out["agreement"] = np.array([np.mean(np.concatenate([x.argmax(-1) == y.argmax(-1) for x, y in zip(whole, path)]))])
    save_file({k: torch.tensor(np.asarray(v, dtype=np.float32)) for k, v in out.items()}, HERE / "ablate.safetensors")


main()
