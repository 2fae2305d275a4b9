#!/usr/bin/env python3
"""CKA of all layer pairs: lamina beside straightforward numpy and torch on the same recording.

Every contestant reads the recording and computes linear CKA of all pairs of layers, in fp32 on the same number of threads:
  numpy, torch   each layer centred once, norms ||X'X|| once a layer, one product Y'X a pair
  textbook       a function of two matrices called for every pair: centres both, three products (numpy)
  lamina         lamina cka --measure linear, the whole program; and with --mode minibatch, which estimates debiased
                 CKA instead (its values are compared with the debiased ones of lamina's exact sums)
Times are the whole job, the reading included (page cache warm). The largest difference of any value stands beside each time.

Then the reading alone: a cheap probe (lamina void) over the recording against a plain read of the file, with the file's pages dropped
before (cold) and in memory (warm).

    pip install numpy torch h5py
    python bench/peers/cka.py --lamina build/lamina --model MODEL.gguf --text FILE.txt
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--lamina", required=True, type=Path, help="the built command line program")
    p.add_argument("--model", required=True, type=Path)
    p.add_argument("--text", required=True, type=Path, help="plain text to cut prompts from")
    p.add_argument("--tokens", type=int, default=20000, help="about this many")
    p.add_argument("--words", type=int, default=180, help="of a prompt")
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--skip-textbook", action="store_true", help="leave out the slowest")
    p.add_argument("--json", type=Path, help="also write the figures here")
    return p.parse_args()


ARGS = arguments()
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(ARGS.threads)  # before numpy is imported

import h5py  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402


def lamina(*arguments):
    command = [ARGS.lamina, "--quiet", "--threads", str(ARGS.threads), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def make_recording(folder):
    """Prompts of equal numbers of words until there are enough tokens."""
    words = ARGS.text.read_text(encoding="utf-8", errors="ignore").split()
    chunks = [" ".join(words[i:i + ARGS.words]) for i in range(0, len(words) - ARGS.words, ARGS.words)]
    path, prompts = folder / "run.h5", folder / "prompts.jsonl"
    per_prompt = ARGS.words * 1.35
    while True:
        take = chunks[:int(ARGS.tokens / per_prompt) + 1]
        prompts.write_text("".join(json.dumps({"text": c}) + "\n" for c in take))
        tokens = json.loads(lamina("record", ARGS.model, "--prompts", prompts, "--sites", "resid_post,resid_pre:0", "--topk", 0,
                                   "--force", "--json", "-o", path))["tokens"]
        if tokens >= 0.9 * ARGS.tokens or len(take) == len(chunks):
            return path, tokens
        per_prompt = tokens / len(take)


def layers(path):
    with h5py.File(path) as f:
        sites = f["activations"]
        count = sum(".hook_resid_post" in name for name in sites)
        yield sites["blocks.0.hook_resid_pre"][:].astype(np.float32, copy=False)
        for layer in range(count):
            yield sites[f"blocks.{layer}.hook_resid_post"][:].astype(np.float32, copy=False)


def by_numpy(path):
    x = [layer - layer.mean(0) for layer in layers(path)]
    norm = [np.linalg.norm(a.T @ a) for a in x]
    out = np.ones((len(x), len(x)))
    for i in range(len(x)):
        for j in range(i):
            out[i, j] = out[j, i] = np.linalg.norm(x[j].T @ x[i]) ** 2 / (norm[i] * norm[j])
    return out


def by_torch(path):
    torch.set_num_threads(ARGS.threads)
    x = [t - t.mean(0) for t in map(torch.from_numpy, layers(path))]
    norm = [torch.linalg.norm(a.T @ a) for a in x]
    out = np.ones((len(x), len(x)))
    for i in range(len(x)):
        for j in range(i):
            out[i, j] = out[j, i] = float(torch.linalg.norm(x[j].T @ x[i]) ** 2 / (norm[i] * norm[j]))
    return out


def linear_cka(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def by_textbook(path):
    x = list(layers(path))
    return np.array([[linear_cka(a, b) for b in x] for a in x])


def by_lamina(path):
    return np.array(json.loads(lamina("cka", path, "--measure", "linear", "--json"))["linear"])


def by_minibatch(path):
    return np.array(json.loads(lamina("cka", path, "--mode", "minibatch", "--json"))["debiased"])


def timed(function, path, runs):
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        value = function(path)
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2], value


def drop_pages(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def plain_read(path):
    buffer = bytearray(1 << 22)
    with open(path, "rb", buffering=0) as f:
        while f.readinto(buffer):
            pass


def main():
    figures = {"threads": ARGS.threads}
    with tempfile.TemporaryDirectory() as folder:
        path, tokens = make_recording(Path(folder))
        megabytes = path.stat().st_size / 1e6
        figures.update(tokens=tokens, megabytes=megabytes)
        print(f"{tokens} tokens, {megabytes:.0f} MB, {ARGS.threads} threads, medians of {ARGS.runs}")

        exact, value = timed(by_lamina, path, ARGS.runs)
        debiased = np.array(json.loads(lamina("cka", path, "--measure", "debiased", "--json"))["debiased"])
        print(f"  {'lamina, exact':24} {exact:8.2f} s")
        figures["lamina"] = exact
        peers = [("numpy", by_numpy, ARGS.runs), ("torch", by_torch, ARGS.runs)]
        if not ARGS.skip_textbook:
            peers.append(("textbook", by_textbook, 1))
        fast, estimate = timed(by_minibatch, path, ARGS.runs)
        print(f"  {'lamina, minibatches':24} {fast:8.2f} s   debiased CKA, largest difference from exact sums "
              f"{np.nanmax(np.abs(estimate - debiased)):.2g}")
        figures["minibatch"] = {"seconds": fast, "difference": float(np.nanmax(np.abs(estimate - debiased)))}
        for name, function, runs in peers:
            seconds, other = timed(function, path, runs)
            difference = np.nanmax(np.abs(other - value))
            print(f"  {name:24} {seconds:8.2f} s   {seconds / exact:5.2f} × exact, {seconds / fast:5.1f} × minibatches; "
                  f"largest difference from exact {difference:.2g}")
            figures[name] = {"seconds": seconds, "over_exact": seconds / exact, "over_minibatch": seconds / fast,
                             "difference": float(difference)}

        void = ("void", path, "--no-tokens", "--alpha", "0.8", "--json")
        for state in ("cold", "warm"):
            rates = {}
            for name, function in (("plain read", lambda: plain_read(path)), ("lamina void", lambda: lamina(*void))):
                times = []
                for _ in range(ARGS.runs):
                    if state == "cold":
                        drop_pages(path)
                    else:
                        plain_read(path)
                    start = time.perf_counter()
                    function()
                    times.append(time.perf_counter() - start)
                rates[name] = megabytes / sorted(times)[len(times) // 2]
            print(f"  {state}: " + ", ".join(f"{name} {rate:.0f} MB/s" for name, rate in rates.items()))
            figures[state] = rates
    if ARGS.json:
        ARGS.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
