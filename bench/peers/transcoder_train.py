#!/usr/bin/env python3
"""Training transcoders: lamina against a plain PyTorch loop with the same first weights, batches and settings.

    transcoder_train.py --lamina build/lamina --model MODEL --recording run.h5 --layer 15 --held-out texts.txt [--work FOLDER]

The recording must hold ln2.hook_normalized and hook_mlp_out of the layer; the first token of every prompt is left out.
Both programs read it, mix it in the same order (lamina's shuffle buffer is rebuilt here) and start from the same weights,
so that losses can be compared step by step. Three parts, --parts names those to run:

speed   a few steps at --features and --batch, the two taking turns; medians of --repeats. PyTorch's time is that of its
        steps alone, with the batches in memory; lamina's is its whole training, reading and mixing included.
curves  the losses and L0 of the speed runs, step by step.
full    --steps steps at --full-features and --full-batch with --seeds seeds; both dictionaries of every seed are written as
        SAELens folders and judged by `lamina transcoder eval` on --held-out, texts of which the recording holds none.

Needs torch, numpy, h5py, safetensors.
"""
import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import h5py
import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests/training"))
from make_training_goldens import Jump, Step  # noqa: E402

GAMMA = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
# lamina's options beside --activation. The weights of the penalties give some tens of active features a token here.
VARIANTS = {
    "relu": {"lambda": 1.0},
    "topk": {"k": 32},
    "batch_topk": {"k": 32},
    "jump_relu": {"lambda": 2.0, "threshold": 1.0, "bandwidth": 0.5},
}


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
        for i, draw in zip(range(len(values) - 1, 0, -1), draws.tolist()):
            j = draw % (i + 1)
            values[i], values[j] = values[j], values[i]


def batches(rows, capacity, batch, steps, seed):
    """The first buffer's row numbers and those of every batch, as lamina's shuffle buffer gives them."""
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


def torch_loop(args, job, x, y):
    """One training. Returns losses, L0s, the seconds of the steps, and SAELens' tensors."""
    seeds = SplitMix(job["seed"])  # one for the buffer, then one per dictionary
    first, plan = batches(len(x), args.buffer, job["batch"], job["steps"], seeds.next())
    random, f, v = SplitMix(seeds.next()), job["features"], VARIANTS[job["variant"]]
    start = {"W_dec": directions(random, f, y.shape[1])}
    start["W_enc"] = directions(random, f, x.shape[1])
    start["b_enc"] = torch.zeros(f)
    start["b_dec"] = y[first].double().mean(0).float()
    if job["variant"] == "jump_relu":
        start["log_threshold"] = torch.full((f,), float(np.log(v["threshold"])))
    p = {name: torch.nn.Parameter(w) for name, w in start.items()}
    adam = torch.optim.Adam(p.values(), lr=args.lr, fused=True)
    losses, counts, seconds, running = [], [], 0.0, -1.0
    for rows in plan:
        xb, yb = x[rows], y[rows]
        begin = time.perf_counter()
        u = xb @ p["W_enc"].T + p["b_enc"]
        penalty = 0.0
        if job["variant"] == "relu":
            z = torch.relu(u)
            penalty = v["lambda"] * z.sum(1).mean()
        elif job["variant"] == "topk":
            values, ids = u.topk(v["k"], dim=1, sorted=False)
            z = torch.zeros_like(u).scatter_(1, ids, torch.relu(values))
        elif job["variant"] == "batch_topk":
            values, ids = u.flatten().topk(v["k"] * len(xb), sorted=False)
            z = torch.zeros(u.numel()).scatter_(0, ids, torch.relu(values)).view_as(u)
            least = values.min().item()
            running = least if running < 0 else 0.99 * running + 0.01 * least
        else:
            theta = p["log_threshold"].exp()
            z = Jump.apply(u, theta, v["bandwidth"])
            penalty = v["lambda"] * Step.apply(u, theta, v["bandwidth"]).sum(1).mean()
        loss = (z @ p["W_dec"] + p["b_dec"] - yb).pow(2).sum(1).mean() + penalty
        adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            g, w = p["W_dec"].grad, p["W_dec"]
            g -= (g * w).sum(1, keepdim=True) * w
            adam.step()
            w /= w.norm(dim=1, keepdim=True)
        losses.append(loss.item())
        counts.append(torch.count_nonzero(z).item() / len(xb))
        seconds += time.perf_counter() - begin
    out = {"W_enc": p["W_enc"].detach().T, "b_enc": p["b_enc"].detach(), "W_dec": p["W_dec"].detach(), "b_dec": p["b_dec"].detach()}
    if job["variant"] == "jump_relu":
        out["threshold"] = p["log_threshold"].detach().exp()
    if job["variant"] == "batch_topk":
        out["threshold"] = torch.full((f,), running)
    return np.array(losses), np.array(counts), seconds, {name: w.contiguous() for name, w in out.items()}


def lamina_training(args, job, out):
    """The same by lamina; the folder `out` holds what it writes."""
    v = VARIANTS[job["variant"]]
    command = [args.lamina, "-q", "--threads", args.threads, "--seed", job["seed"], "transcoder", "train", args.recording, "--model", args.model,
               "-o", out, "--force", "--json", "--layers", args.layer, "--from", "ln2_normalized", "--skip-first", 1, "--dead", "none",
               "--features", job["features"], "--batch", job["batch"], "--buffer", args.buffer, "--steps", job["steps"], "--lr", args.lr,
               "--checkpoint-every", 0, "--activation", job["variant"]]  # fmt: skip
    for name, value in v.items():
        command += ["--" + name, value]
    run = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    with h5py.File(out / "curves.h5") as f:
        curves = f["analyses/transcoder_training"]
        return curves["loss"][0], curves["l0"][0], json.loads(run.stdout)["seconds"]


def evaluate(args, folders):
    """What `lamina transcoder eval` says of every folder."""
    command = [args.lamina, "-q", "--threads", str(args.threads), "transcoder", "eval", args.model, "--transcoder", *map(str, folders),
               "--prompts", args.held_out, "--skip", "1", "--examples", "0", "--json"]  # fmt: skip
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["dictionaries"]


def spread(values):
    return f"{statistics.mean(values):.4g} ± {statistics.stdev(values) if len(values) > 1 else 0:.1g}"


def speed_and_curves(args, x, y, folder):
    print(f"\nFirst {args.speed_steps} steps: {args.features} features, batch {args.batch}; medians of {args.repeats} runs that take turns. "
          "Differences are relative, lamina to torch.\n")
    print("| variant | lamina, ms a step | torch, ms a step | lamina is faster by | loss, largest difference in 10 steps | in all | L0, largest difference |")
    print("|---|---|---|---|---|---|---|")
    found = {}
    for variant in args.variants:
        job = {"variant": variant, "seed": 0, "features": args.features, "batch": args.batch, "steps": args.speed_steps}
        ours, theirs = [], []
        for _ in range(args.repeats):
            loss, l0, seconds = lamina_training(args, job, folder / "run")
            ours.append(1e3 * seconds / args.speed_steps)
            losses, counts, seconds, _ = torch_loop(args, job, x, y)
            theirs.append(1e3 * seconds / args.speed_steps)
        a, b = statistics.median(ours), statistics.median(theirs)
        by_loss, by_l0 = np.abs(loss / losses - 1), np.abs(l0 / counts - 1)
        print(f"| {variant} | {a:.1f} ({min(ours):.1f} to {max(ours):.1f}) | {b:.1f} ({min(theirs):.1f} to {max(theirs):.1f}) | {b / a:.2f} × | "
              f"{by_loss[:10].max():.1e} | {by_loss.max():.1e} | {by_l0.max():.1e} |", flush=True)
        found[variant] = {"lamina_ms": ours, "torch_ms": theirs, "loss": [loss.tolist(), losses.tolist()], "l0": [l0.tolist(), counts.tolist()]}
    return found


def full(args, x, y, folder):
    made, folders = {}, []
    for variant in args.variants:
        for seed in range(args.seeds):
            job = {"variant": variant, "seed": seed, "features": args.full_features, "batch": args.full_batch, "steps": args.steps,
                   "lr": args.lr, "buffer": args.buffer, "threads": args.threads, "options": VARIANTS[variant]}
            run = folder / f"{variant}_{seed}"
            ours, theirs, done = run / f"layer_{args.layer}", folder / f"{run.name}_torch", folder / f"{run.name}.json"
            if done.exists() and json.loads(done.read_text())["job"] == job:
                a, b = json.loads(done.read_text())["seconds"]
            else:
                done.unlink(missing_ok=True)
                _, _, a = lamina_training(args, job, run)
                theirs.mkdir(exist_ok=True)
                _, _, b, tensors = torch_loop(args, job, x, y)
                save_file(tensors, theirs / "sae_weights.safetensors")
                shutil.copy(ours / "cfg.json", theirs / "cfg.json")
                done.write_text(json.dumps({"job": job, "seconds": [a, b]}))
            made[variant, seed] = (a, b)
            folders += [ours, theirs]
    judged = evaluate(args, folders)
    print(f"\n{args.steps} steps: {args.full_features} features, batch {args.full_batch}, {args.seeds} seeds (mean ± standard deviation); "
          "seconds are medians.\n")
    print("| variant | | L0 | explained variance | CE score | seconds | lamina is faster by |")
    print("|---|---|---|---|---|---|---|")
    found = {}
    for i, variant in enumerate(args.variants):
        mine = judged[2 * i * args.seeds : 2 * (i + 1) * args.seeds]
        seconds = [statistics.median(made[variant, s][side] for s in range(args.seeds)) for side in (0, 1)]
        columns = lambda side: [[d["l0"] for d in side], [d["explained_variance"] for d in side], [d["ce"]["score"] for d in side]]
        a, b = columns(mine[0::2]), columns(mine[1::2])
        print(f"| {variant} | lamina | {' | '.join(map(spread, a))} | {seconds[0]:.0f} | {seconds[1] / seconds[0]:.2f} × |")
        print(f"| | torch | {' | '.join(map(spread, b))} | {seconds[1]:.0f} | |")
        paired = [spread([u - v for u, v in zip(ca, cb)]) for ca, cb in zip(a, b)]
        print(f"| | difference, seed by seed | {' | '.join(paired)} | | |", flush=True)
        found[variant] = {"lamina": a, "torch": b, "seconds": [made[variant, s] for s in range(args.seeds)]}
    return found


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--lamina", required=True)
    parse.add_argument("--model", required=True)
    parse.add_argument("--recording", required=True)
    parse.add_argument("--layer", type=int, required=True)
    parse.add_argument("--held-out")
    parse.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parse.add_argument("--parts", nargs="+", choices=["speed", "full"], default=["speed", "full"])
    parse.add_argument("--lr", type=float, default=1e-3)
    parse.add_argument("--buffer", type=int, default=16384)
    parse.add_argument("--threads", type=int, default=2)
    parse.add_argument("--features", type=int, default=4608)
    parse.add_argument("--batch", type=int, default=2048)
    parse.add_argument("--speed-steps", type=int, default=20)
    parse.add_argument("--repeats", type=int, default=3)
    parse.add_argument("--full-features", type=int, default=2304)
    parse.add_argument("--full-batch", type=int, default=1024)
    parse.add_argument("--steps", type=int, default=500)
    parse.add_argument("--seeds", type=int, default=3)
    parse.add_argument("--work", type=pathlib.Path, help="keep the trained dictionaries and results.json here; trainings that it has are not repeated")
    args = parse.parse_args()
    if "full" in args.parts and not args.held_out:
        parse.error("--held-out is needed for the part 'full'")
    torch.set_num_threads(args.threads)

    with h5py.File(args.recording) as f:
        keep = np.ones(f[f"activations/blocks.{args.layer}.hook_mlp_out"].shape[0], bool)
        keep[f["inputs/offsets"][:-1]] = False
        read = lambda site: torch.from_numpy(f[f"activations/blocks.{args.layer}.{site}"][:].astype(np.float32)[keep])
        x, y = read("ln2.hook_normalized"), read("hook_mlp_out")
    print(f"layer {args.layer}, {len(x):,} tokens of {x.shape[1]} in and {y.shape[1]} out, learning rate {args.lr}, buffer {args.buffer}, "
          f"{args.threads} threads, torch {torch.__version__}; " + ", ".join(f"{name} {VARIANTS[name]}" for name in args.variants))
    results = {"tokens": len(x), "args": {k: str(v) for k, v in vars(args).items()}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work or pathlib.Path(temporary)
        folder.mkdir(exist_ok=True)
        if "speed" in args.parts:
            results["speed"] = speed_and_curves(args, x, y, folder)
        if "full" in args.parts:
            results["full"] = full(args, x, y, folder)
        if args.work:
            (args.work / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
