#!/usr/bin/env python3
"""Reference values for the lens and latent-language tests, computed by torch in float64.

Writes lens.safetensors beside this script: the stream of a small made-up model (three blocks, RMS norm, soft-capped
logits), and what METHODS' formulas give for it. Ids are stored as float32 (all below 2^24).
"""
import math
import pathlib

import torch
from safetensors.torch import save_file

S, T, D, V, K, OVERLAP = 4, 9, 16, 53, 6, 5
EPS, CAP = 1e-5, 7.5
LENGTHS = [4, 5]                       # tokens of the two prompts
TARGETS = [7, None]                    # of their last tokens
SETS = [[[3, 17, 40], [5]], [[0, 1, 52], [8, 9]]]   # [prompt][language]: token ids that begin the word

torch.manual_seed(20240611)
f64 = torch.float64
resid = torch.randn(S, T, D) * torch.tensor([1.5, 1.2, 0.8, 0.4])[:, None, None]
resid[1, 5] = 0                        # a token that the first block leaves alone
resid[1:, 8] *= 0.1                    # and one that hardly changes: its embedding is the exit
for s in range(1, S):                  # a stream: every block adds to the one before
    resid[s] += resid[s - 1]
gamma = 1 + 0.3 * torch.randn(D)
unembed = torch.randn(V, D) * 1.3
unembed[11] = 0                        # an unused vocabulary row, as padded models have
ids = torch.randint(0, V, (T,))
A = 0.05 * torch.randn(S - 1, D, D)
b = 0.05 * torch.randn(S - 1, D)


def decode(x):
    x = x.to(f64)
    normed = x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS) * gamma.to(f64)
    return CAP * torch.tanh(normed @ unembed.to(f64).T / CAP)


for t in (0, 2, 4):                    # some tokens that the model predicts
    ids[t + 1] = decode(resid[-1, t]).argmax()


def lens(stream, tag, out):
    logp = torch.log_softmax(decode(stream), -1)           # [S, T, V]
    p = logp.exp()
    final = logp[-1]
    order = torch.sort(logp, dim=-1, descending=True, stable=True).indices
    out[tag + "topk_ids"] = order[..., :K].permute(1, 0, 2)
    out[tag + "topk_logprobs"] = logp.gather(-1, order[..., :K]).permute(1, 0, 2)
    out[tag + "entropy"] = (-(p * logp).sum(-1) / math.log(2)).T
    out[tag + "kl_to_final"] = (p * (logp - final)).sum(-1).T
    out[tag + "kl_from_final"] = (final.exp() * (final - logp)).sum(-1).T
    top = [[set(order[s, t, :OVERLAP].tolist()) for t in range(T)] for s in range(S)]
    out[tag + "overlap"] = torch.tensor([[len(top[s][t] & top[-1][t]) / OVERLAP for s in range(S)] for t in range(T)])
    argmax = order[..., 0]
    exits = []
    for t in range(T):
        first = S - 1
        while first > 0 and argmax[first - 1, t] == argmax[-1, t]:
            first -= 1
        exits.append(first - 1)                            # site 0 is the embedding: layer -1
    out[tag + "exit_layer"] = torch.tensor(exits)
    target, at = [], 0
    for length, last in zip(LENGTHS, TARGETS):
        target += ids[at + 1:at + length].tolist() + [-1 if last is None else last]
        at += length
    out[tag + "target"] = torch.tensor(target)
    rank, score = torch.full((T, S), -1.0), torch.full((T, S), math.nan)
    for t in range(T):
        for s in range(S):
            if target[t] >= 0:
                rank[t, s] = (order[s, t] == target[t]).nonzero().item() + 1
                score[t, s] = logp[s, t, target[t]]
    out[tag + "target_rank"], out[tag + "target_logprob"] = rank, score
    return p


out = {"resid": resid, "gamma": gamma, "unembed": unembed, "ids": ids, "translator_a": A, "translator_b": b}
p = lens(resid, "", out)
moved = resid.to(f64).clone()
for s in range(S - 1):
    moved[s] += moved[s] @ A[s].to(f64).T + b[s].to(f64)
lens(moved, "tuned_", out)

last = [sum(LENGTHS[:i + 1]) - 1 for i in range(len(LENGTHS))]
out["latent"] = torch.stack([torch.stack([torch.stack([p[s, last[i], SETS[i][g]].sum() for g in range(2)])
                                          for s in range(S)]) for i in range(len(LENGTHS))])
# Token energy straight from its definition, over the whole vocabulary.
weighted = unembed.to(f64) * gamma.to(f64)
norms = weighted.norm(dim=1, keepdim=True)
unit = torch.where(norms > 0, weighted / norms.clamp_min(1e-300), torch.zeros_like(weighted))
scale = math.sqrt((unit @ unit.T).square().sum().item() / V**2)
h = resid[:, last].to(f64)
h = h / h.norm(dim=-1, keepdim=True)
out["energy"] = ((h @ unit.T).square().mean(-1).sqrt() / scale).T
mean, sd = out["latent"].mean(0), out["latent"].std(0)     # n - 1
out["latent_mean"], out["latent_half_width"] = mean, 1.96 * sd / math.sqrt(len(LENGTHS))

here = pathlib.Path(__file__).resolve().parent
save_file({k: v.to(torch.float32).contiguous() for k, v in out.items()}, here / "lens.safetensors")
print({k: tuple(v.shape) for k, v in out.items()})
