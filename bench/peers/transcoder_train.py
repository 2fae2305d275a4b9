#!/usr/bin/env python3
"""Training a transcoder: lamina against a plain PyTorch loop with the same first weights, batches and settings.

    transcoder_train.py --lamina build/lamina --model MODEL --recording run.h5 --layer 15 [--activation topk] …

The recording must hold ln2.hook_normalized and hook_mlp_out of the layer. Both read it, mix it in the same order
(lamina's shuffle buffer is rebuilt here) and start from the same weights, so the losses can be compared step by step.
PyTorch's time is that of its steps alone, with the batches in memory; lamina's is its whole training, reading included.
Runs alternate; the medians are compared. Needs torch, numpy, h5py.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import h5py
import numpy as np
import torch

GAMMA = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


class SplitMix:
    def __init__(self, seed):
        self.state = seed

    def block(self, n):
        with np.errstate(over="ignore"):
            z = np.uint64(self.state) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(GAMMA)
            self.state = (self.state + n * GAMMA) & MASK
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            return z ^ (z >> np.uint64(31))

    def next(self):
        return int(self.block(1)[0])

    def gaussians(self, n):
        u = (self.block(2 * n) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return (np.sqrt(-2 * np.log(1 - u[0::2])) * np.cos(2 * np.pi * u[1::2])).astype(np.float32)

    def shuffle(self, values):
        draws = self.block(max(len(values) - 1, 0))
        for i, draw in zip(range(len(values) - 1, 0, -1), draws):
            j = int(draw) % (i + 1)
            values[i], values[j] = values[j], values[i]


def batches(rows, capacity, batch, steps, seed):
    """Row numbers of every batch, as lamina's shuffle buffer gives them."""
    random, order, next_row, out = SplitMix(seed), [], 0, []
    while len(out) < steps:
        while len(order) < capacity:
            order.append(next_row % rows)
            next_row += 1
        if not out:
            first = list(order)
        random.shuffle(order)
        while len(order) - batch >= capacity // 2 and len(out) < steps:
            out.append(order[-batch:])
            del order[-batch:]
    return first, out


def directions(random, rows, width):
    w = random.gaussians(rows * width).reshape(rows, width)
    return torch.from_numpy((w / np.linalg.norm(w.astype(np.float64), axis=1, keepdims=True)).astype(np.float32))


def torch_loop(args, x, y, first, plan, weights):
    """Returns losses, L0s and the seconds of the steps."""
    p = {name: torch.nn.Parameter(w.clone()) for name, w in weights.items()}
    p["b_enc"] = torch.nn.Parameter(torch.zeros(args.features))
    p["b_dec"] = torch.nn.Parameter(y[first].double().mean(0).float())
    if args.loss == "code":
        p["b_in"] = torch.nn.Parameter(x[first].double().mean(0).float())
    adam = torch.optim.Adam(p.values(), lr=args.lr, fused=True)
    data = [(x[rows], y[rows]) for rows in plan]
    losses, counts = [], []
    start = time.perf_counter()
    for xb, yb in data:
        u = (xb - p["b_in"] if "b_in" in p else xb) @ p["W_enc"].T + p["b_enc"]
        if args.activation == "topk":
            values, ids = u.topk(args.k, dim=1)
            z = torch.zeros_like(u).scatter_(1, ids, torch.relu(values))
        else:
            z = torch.relu(u)
        error = (z @ p["W_dec"] + p["b_dec"] - yb).pow(2).sum(1)
        if args.loss == "code":
            error = error / (yb.norm(dim=1) * yb.shape[1])
        loss = error.mean()
        if args.activation == "relu":
            loss = loss + args.lam * z.sum(1).mean()
        adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            g, w = p["W_dec"].grad, p["W_dec"]
            g -= (g * w).sum(1, keepdim=True) * w
            adam.step()
            w /= w.norm(dim=1, keepdim=True)
            losses.append(loss.item())
            counts.append((z > 0).sum().item() / len(xb))
    return losses, counts, time.perf_counter() - start


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--lamina", required=True)
    parse.add_argument("--model", required=True)
    parse.add_argument("--recording", required=True)
    parse.add_argument("--layer", type=int, required=True)
    parse.add_argument("--activation", choices=["relu", "topk"], default="topk")
    parse.add_argument("--loss", choices=["text", "code"], default="text")
    parse.add_argument("--features", type=int, default=4608)
    parse.add_argument("--k", type=int, default=32)
    parse.add_argument("--lam", type=float, default=1e-3)
    parse.add_argument("--lr", type=float, default=4e-4)
    parse.add_argument("--batch", type=int, default=2048)
    parse.add_argument("--buffer", type=int, default=16384)
    parse.add_argument("--steps", type=int, default=100)
    parse.add_argument("--repeats", type=int, default=3)
    parse.add_argument("--threads", type=int, default=2)
    args = parse.parse_args()
    torch.set_num_threads(args.threads)

    with h5py.File(args.recording) as f:
        read = lambda site: torch.from_numpy(f[f"activations/blocks.{args.layer}.{site}"][:].astype(np.float32))
        x, y = read("ln2.hook_normalized"), read("hook_mlp_out")
    seeds = SplitMix(0)  # lamina's --seed 0: one for the buffer, then one per dictionary
    first, plan = batches(len(x), args.buffer, args.batch, args.steps, seeds.next())
    random = SplitMix(seeds.next())
    weights = {"W_dec": directions(random, args.features, y.shape[1])}
    weights["W_enc"] = directions(random, args.features, x.shape[1])

    command = [args.lamina, "-q", "--threads", str(args.threads), "transcoder", "train", args.recording, "--model", args.model,
               "--layers", str(args.layer), "--from", "ln2_normalized", "--features", str(args.features), "--activation",
               args.activation, "--loss", args.loss, "--batch", str(args.batch), "--buffer", str(args.buffer), "--steps",
               str(args.steps), "--lr", str(args.lr), "--lambda", str(args.lam if args.activation == "relu" else 0), "--dead",
               "none", "--checkpoint-every", "0", "--json", "--force"]
    if args.activation == "topk":
        command += ["--k", str(args.k)]
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "run"
        for _ in range(args.repeats):
            result = json.loads(subprocess.run(command + ["-o", str(out)], check=True, capture_output=True, text=True).stdout)
            ours.append(result["seconds"])
            losses, counts, seconds = torch_loop(args, x, y, first, plan, weights)
            theirs.append(seconds)
        with h5py.File(out / "curves.h5") as f:
            curves = f["analyses/transcoder_training"]
            loss, l0 = curves["loss"][0], curves["l0"][0]
    difference = np.abs(loss - losses) / np.abs(losses)
    early = min(50, args.steps)
    a, b = statistics.median(ours), statistics.median(theirs)
    print(f"{args.activation}, loss {args.loss}, {len(x)} tokens of {x.shape[1]}, {args.features} features, batch {args.batch}, "
          f"{args.steps} steps, {args.threads} threads")
    print(f"lamina {a:.2f} s ({args.steps * args.batch / a:,.0f} tokens/s), torch {b:.2f} s: {b / a:.2f} times as fast")
    print(f"loss: first {loss[0]:.6g} / {losses[0]:.6g}, last {loss[-1]:.6g} / {losses[-1]:.6g} (lamina / torch); largest relative "
          f"difference {difference[:early].max():.1e} in {early} steps, {difference.max():.1e} in all")
    print(f"L0: first {l0[0]:.2f} / {counts[0]:.2f}, last {l0[-1]:.2f} / {counts[-1]:.2f}")


if __name__ == "__main__":
    main()
