#!/usr/bin/env python3
"""Void decisions for void_test.cpp, by the transcription in void_reference.py. Writes void.safetensors:

deep.states [L + 1, T, D]   a made-up stream of 12 layers, whose norms rise, fall and stay
deep.active [A, L, T]       the release's decisions over it, float32 norms; deep.halting: LAC's
deep.kept   [A, T, D]       what the release sends to the final norm
NAME.active, NAME.margin    the same for the hidden states that transformers computed for a golden model
                            (tests/goldens/NAME), prompts one after the other; margin [A, L, T] is
                            |delta - threshold| over the larger of the two norms

Needs torch and safetensors.
"""
import pathlib

import torch
from safetensors.torch import load_file, save_file

from void_reference import halting_rule, release_rule

HERE = pathlib.Path(__file__).resolve().parent
ALPHAS = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
MODELS = ["gemma3", "gpt2", "llama3", "mistral", "qwen2", "qwen3"]


def deep():
    g = torch.Generator().manual_seed(20250514)
    layers, tokens, width = 12, 40, 8
    states = [torch.randn(tokens, width, generator=g)]
    for layer in range(layers):
        step = torch.randn(tokens, width, generator=g) * (1.5 if layer in (1, 6) else 0.5)
        shrink = 0.7 if layer in (4, 9) else 1.0
        states.append(states[-1] * shrink + step)
    states = torch.stack(states)
    states[3, 5] = states[2, 5]        # a layer that changes nothing: delta exactly 0
    states[1:, 7] = states[0, 7]       # and a token that no layer changes
    return states


out = {"alphas": torch.tensor(ALPHAS, dtype=torch.float64)}
states = deep()
out["deep.states"] = states
out["deep.active"] = torch.stack([release_rule(states, a)[0] for a in ALPHAS])
out["deep.halting"] = torch.stack([halting_rule(states, a) for a in ALPHAS])
out["deep.kept"] = torch.stack([release_rule(states, a)[3] for a in ALPHAS])
for model in MODELS:
    golden = load_file(HERE.parent / "goldens" / model / "golden.safetensors")
    active, margin = [], []
    prompt = 0
    while f"p{prompt}/ids" in golden:
        at = lambda site: golden[f"p{prompt}/{site}"]
        layers = sum(f"p{prompt}/blocks.{l}.hook_resid_post" in golden for l in range(100))
        states = torch.stack([at("blocks.0.hook_resid_pre")] +
                             [at(f"blocks.{l}.hook_resid_post") for l in range(layers)])
        norms = states.norm(dim=-1)
        larger = torch.maximum(norms[1:], norms[:-1])
        runs = [release_rule(states, a) for a in ALPHAS]
        active.append(torch.stack([r[0] for r in runs]))
        margin.append(torch.stack([(r[1] - r[2]).abs() / larger for r in runs]))
        prompt += 1
    out[f"{model}.active"] = torch.cat(active, -1)
    out[f"{model}.margin"] = torch.cat(margin, -1)
    print(f"{model}: {out[f'{model}.active'].numel()} decisions, smallest margin "
          f"{out[f'{model}.margin'][:, 1:].min():.1e}")
save_file({k: (v.to(torch.uint8) if v.dtype == torch.bool else v).contiguous() for k, v in out.items()},
          HERE / "void.safetensors")
