#!/usr/bin/env python3
"""First steps of tuned-lens training on the golden model of lens.safetensors, by torch's autograd and Adam in float64.

Writes tuned.safetensors beside this script: the mean loss of every step and site before its update, and the maps after the
last step. The batches are the token indices in BATCHES, which the test repeats.
"""
import pathlib

import torch
from safetensors.torch import load_file, save_file

EPS, CAP, RATE = 1e-5, 7.5, 1e-2
BATCHES = [[0, 1, 2, 3], [4, 5, 6, 7, 8], [8, 0, 4], [2, 2, 7, 1]]

here = pathlib.Path(__file__).resolve().parent
data = {k: v.double() for k, v in load_file(here / "lens.safetensors").items()}
resid, gamma, unembed = data["resid"], data["gamma"], data["unembed"]
sites, _, width = resid.shape


def log_probabilities(x):
    normed = x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS) * gamma
    return torch.log_softmax(CAP * torch.tanh(normed @ unembed.T / CAP), -1)


out = {"loss": torch.zeros(len(BATCHES), sites - 1)}
a = [torch.zeros(width, width, dtype=torch.float64, requires_grad=True) for _ in range(sites - 1)]
b = [torch.zeros(width, dtype=torch.float64, requires_grad=True) for _ in range(sites - 1)]
adam = torch.optim.Adam(a + b, lr=RATE)
for step, batch in enumerate(BATCHES):
    final = log_probabilities(resid[-1, batch])
    adam.zero_grad()
    for s in range(sites - 1):
        h = resid[s, batch]
        logp = log_probabilities(h + h @ a[s].T + b[s])
        loss = (final.exp() * (final - logp)).sum(-1).mean()
        loss.backward()
        out["loss"][step, s] = loss.item()
    adam.step()
out["a"] = torch.stack([m.detach() for m in a])
out["b"] = torch.stack([m.detach() for m in b])
save_file({k: v.float().contiguous() for k, v in out.items()}, here / "tuned.safetensors")
print(out["loss"])
