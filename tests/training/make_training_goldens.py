#!/usr/bin/env python3
"""Reference curves for the training of dictionaries: a plain PyTorch loop with autograd and torch.optim.Adam.

Writes training.safetensors: initial weights, batches, and per variant the loss, L0 and explained variance of
every step and the weights after the last one. `gradients` holds the gradients of the first step.
Needs torch, numpy and safetensors. Run: tests/training/make_training_goldens.py
"""
import math
import pathlib

import numpy as np
import torch
from safetensors.numpy import save_file

D_IN, D_OUT, F, N, BATCHES, STEPS = 12, 10, 40, 16, 8, 60
HERE = pathlib.Path(__file__).parent

# name: activation, loss and the rest; "sae" has the outputs' rows as inputs and a tied bias.
VARIANTS = {
    "relu_text": dict(act="relu", loss="text", penalty="l1", lam=0.05, warmup=20),
    "relu_few": dict(act="relu", loss="text", penalty="l1", lam=0.05, shift=-1.5),
    "relu_few_code": dict(act="relu", loss="code", penalty="l1", lam=0.002, shift=-1.5),
    "relu_code": dict(act="relu", loss="code", penalty="l1", lam=0.002, warmup=20, rate_warmup=5),
    "relu_free": dict(act="relu", loss="text", penalty="tanh", lam=0.05, unit=False, decay=20),
    "relu_sae": dict(act="relu", loss="code", penalty="l1", lam=0.002, sae=True),
    "relu_skip": dict(act="relu", loss="text", penalty="l1", lam=0.05, skip=True),
    "topk_text": dict(act="topk", k=5, loss="text", penalty="none", skip=True),
    "topk_code": dict(act="topk", k=5, loss="code", penalty="none", auxk=6, window=4),
    "topk_auxk": dict(act="topk", k=3, loss="text", penalty="none", auxk=6, window=4),
    "batch_topk_text": dict(act="batch_topk", k=4, loss="text", penalty="none"),
    "batch_topk_code": dict(act="batch_topk", k=4, loss="code", penalty="none"),
    "jump_relu_text": dict(act="jump_relu", loss="text", penalty="l0", lam=0.05, threshold=0.3, width=0.4),
    "jump_relu_code": dict(act="jump_relu", loss="code", penalty="l0", lam=0.002, threshold=0.3, width=0.4),
    "jump_relu_sparse": dict(act="jump_relu", loss="text", penalty="l0", lam=0.05, threshold=1.2, width=0.1),
    "jump_relu_tanh": dict(act="jump_relu", loss="text", penalty="tanh", lam=0.05, threshold=0.3, width=0.4),
}
RATE, BETAS, EPS = 3e-3, (0.9, 0.99), 1e-8


def rectangle(x):
    return ((x > -0.5) & (x < 0.5)).to(x.dtype)


class Jump(torch.autograd.Function):
    """u where u > theta; pseudo-derivative to theta of Rajamanoharan et al. 2024, equation 11."""

    @staticmethod
    def forward(ctx, u, theta, width):
        ctx.save_for_backward(u, theta)
        ctx.width = width
        return u * (u > theta)

    @staticmethod
    def backward(ctx, slope):
        u, theta = ctx.saved_tensors
        by_theta = -(theta / ctx.width) * rectangle((u - theta) / ctx.width) * slope
        return slope * (u > theta), by_theta.sum(0), None


class Step(torch.autograd.Function):
    """u > theta; pseudo-derivative of equation 12."""

    @staticmethod
    def forward(ctx, u, theta, width):
        ctx.save_for_backward(u, theta)
        ctx.width = width
        return (u > theta).to(u.dtype)

    @staticmethod
    def backward(ctx, slope):
        u, theta = ctx.saved_tensors
        return None, (-(1 / ctx.width) * rectangle((u - theta) / ctx.width) * slope).sum(0), None


def start(generator):
    """The same numbers for all variants."""
    rand = lambda *shape: torch.from_numpy(generator.standard_normal(shape).astype(np.float32))
    w = {"W_enc": rand(F, D_IN) / math.sqrt(D_IN), "b_enc": 0.1 * rand(F), "W_dec": rand(F, D_OUT), "b_dec": 0.1 * rand(D_OUT),
         "W_enc_sae": rand(F, D_OUT) / math.sqrt(D_OUT), "W_skip": 0.1 * rand(D_OUT, D_IN)}
    # Targets that a few directions explain, with means that are not zero.
    x = rand(BATCHES, N, D_IN) + 0.3
    mix = rand(D_IN, 24)
    y = torch.relu(x @ mix - 2.0) @ rand(24, D_OUT) * 0.3 + 0.2
    return w, x, y


def run(variant, weights, xs, ys, steps=STEPS, gradients=None):
    v = dict(k=0, lam=0.0, warmup=0, rate_warmup=0, decay=0, unit=True, sae=False, skip=False, auxk=0, window=10**9, shift=0.0)
    v.update(variant)
    p = {"W_enc": weights["W_enc_sae" if v["sae"] else "W_enc"], "b_enc": weights["b_enc"] + v["shift"],
         "W_dec": weights["W_dec"], "b_dec": weights["b_dec"]}
    xs = ys if v["sae"] else xs
    if v["unit"]:
        p["W_dec"] = p["W_dec"] / p["W_dec"].norm(dim=1, keepdim=True)
    if v["skip"]:
        p["W_skip"] = weights["W_skip"]
    p["b_dec"] = ys[0].mean(0)
    if v["loss"] == "code" and not v["sae"]:
        p["b_in"] = xs[0].mean(0)
    if v["act"] == "jump_relu":
        p["log_threshold"] = torch.full((F,), math.log(v["threshold"]))
    p = {name: torch.nn.Parameter(value.clone()) for name, value in p.items()}
    adam = torch.optim.Adam(p.values(), lr=RATE, betas=BETAS, eps=EPS)
    last_active = torch.zeros(F)
    running = -1.0
    curves = {"loss": [], "l0": [], "explained_variance": [], "dead": []}
    for step in range(steps):
        x, y = xs[step % BATCHES], ys[step % BATCHES]
        if v["unit"] and step > 0:
            with torch.no_grad():
                p["W_dec"] /= p["W_dec"].norm(dim=1, keepdim=True)
        lam = v["lam"] * min(1.0, (step + 1) / (v["warmup"] + 1))
        rate = RATE * min(1.0, (step + 1) / (v["rate_warmup"] + 1))
        if v["decay"] and steps - step <= v["decay"]:
            rate *= (steps - step) / (v["decay"] + 1)
        adam.param_groups[0]["lr"] = rate
        shift = p["b_dec"] if v["sae"] else p.get("b_in", 0.0)
        u = (x - shift) @ p["W_enc"].T + p["b_enc"]
        if v["act"] == "relu":
            z = torch.relu(u)
        elif v["act"] == "topk":
            keep = torch.zeros_like(u).scatter(1, u.topk(v["k"], dim=1).indices, 1.0)
            z = torch.relu(u) * keep
        elif v["act"] == "batch_topk":
            keep = torch.zeros(u.numel()).scatter(0, u.flatten().topk(v["k"] * N).indices, 1.0).view_as(u)
            z = torch.relu(u) * keep
        else:
            theta = p["log_threshold"].exp()
            z = Jump.apply(u, theta, v["width"])
        out = z @ p["W_dec"] + p["b_dec"]
        if v["skip"]:
            out = out + x @ p["W_skip"].T
        measure = 1.0 if v["loss"] == "text" else 1.0 / (y.norm(dim=1) * D_OUT)
        loss = ((out - y).pow(2).sum(1) * measure).mean()
        if v["penalty"] == "l1":
            loss = loss + lam * z.sum(1).mean()
        elif v["penalty"] == "l0":
            loss = loss + lam * Step.apply(u, theta, v["width"]).sum(1).mean()
        elif v["penalty"] == "tanh":
            loss = loss + lam * torch.tanh(4.0 * z).sum(1).mean()
        dead = step - last_active >= v["window"]
        curves["dead"].append(dead.float().mean().item())
        if v["auxk"] and dead.any():
            ids = dead.nonzero()[:, 0]
            top = u[:, ids].topk(min(v["auxk"], len(ids)), dim=1)
            aux = torch.zeros_like(u).scatter(1, ids[top.indices], torch.relu(top.values)) @ p["W_dec"]
            left = (y - out).detach()
            loss = loss + (((aux - left).pow(2).sum(1) * measure).mean()) / 32
        adam.zero_grad()
        loss.backward()
        curves["loss"].append(loss.item())
        curves["l0"].append((z > 0).float().sum(1).mean().item())
        curves["explained_variance"].append(1 - ((out - y).pow(2).sum() / (y - y.mean(0)).pow(2).sum()).item())
        last_active[(z > 0).any(0)] = step + 1
        if v["act"] == "batch_topk":
            least = z[z > 0].min().item()
            running = least if running < 0 else 0.99 * running + 0.01 * least
        if v["unit"]:
            with torch.no_grad():
                g = p["W_dec"].grad
                g -= (g * p["W_dec"]).sum(1, keepdim=True) * p["W_dec"]
        if gradients is not None and step == 0:
            gradients.update({name: value.grad.clone().numpy() for name, value in p.items()})
        adam.step()
    if v["unit"]:
        with torch.no_grad():
            p["W_dec"] /= p["W_dec"].norm(dim=1, keepdim=True)
    end = {name: value.detach().numpy() for name, value in p.items()}
    if v["act"] == "batch_topk":
        end["running_threshold"] = np.float32([running])
    return {name: np.float32(values) for name, values in curves.items()}, end


def main():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    weights, x, y = start(np.random.default_rng(20240613))
    tensors = {name: value.numpy() for name, value in weights.items()} | {"x": x.numpy(), "y": y.numpy()}
    for name, variant in VARIANTS.items():
        gradients = {}
        curves, end = run(variant, weights, x, y, gradients=gradients)
        for curve, values in curves.items():
            if curve != "dead" or variant.get("auxk"):
                tensors[f"{name}.{curve}"] = values
        tensors |= {f"{name}.gradient.{p}": g for p, g in gradients.items()}
        if name in ("relu_code", "relu_few", "jump_relu_text", "batch_topk_text"):
            tensors |= {f"{name}.end.{p}": w for p, w in end.items()}
        print(f"{name:18s} loss {curves['loss'][0]:.5f} → {curves['loss'][-1]:.5f}  L0 {curves['l0'][0]:.1f} → {curves['l0'][-1]:.1f}"
              f"  EV {curves['explained_variance'][-1]:.3f}  dead {curves['dead'][-1]:.2f}")
    (HERE / "training.safetensors").unlink(missing_ok=True)
    save_file({k: np.ascontiguousarray(t) for k, t in tensors.items()}, HERE / "training.safetensors")


if __name__ == "__main__":
    main()
