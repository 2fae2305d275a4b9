"""The table of docs/patching-methods.md: how well attribution patching, integrated gradients and
relevance patching agree with exact patching.

    python attribution_table.py LAMINA MODEL PAIRS.jsonl --folder FOLDER [--limit N] [--methods …]

Needs numpy, h5py. LAMINA: the program. PAIRS: a pair file, such as `lamina pairs ioi --model MODEL
-n 60 --solved` writes. The sweep of exact patching is run once, by

    lamina patch MODEL --pairs PAIRS --site resid_pre,attn_out,mlp_out --by position --method relp --check all

whose own statistics must equal those made here from the file. Results are kept in the folder: what
is there is not run again.
"""

import argparse
import json
import pathlib
import subprocess

import h5py
import numpy as np

METHODS = {
    "AtP": ["--method", "atp"],
    "AtP at clean": ["--method", "atp", "--at", "clean"],
    "IG, inputs": ["--method", "ig", "--ig-path", "inputs"],
    "IG, node": ["--method", "ig"],
    "RelP": ["--method", "relp"],
    "RelP + pattern": ["--method", "relp", "--rules", "norm,activation,gate,pattern"],
}
SITES = ("resid_pre", "attn_out", "mlp_out")
CHECKED = "RelP"


def run(args, name):
    """The results of one method: settings and values, from its file."""
    path = args.folder / (name.replace(" ", "_").replace(",", "") + ".h5")
    if not path.exists():
        limit = ["--limit", str(args.limit)] if args.limit else []
        check = ["--check", "all"] if name == CHECKED else []
        done = subprocess.run(
            [args.lamina, "--quiet", "patch", args.model, "--pairs", args.pairs, "--site", ",".join(SITES), "--by",
             "position", *METHODS[name], *check, *limit, "--show", "0", "--json", "-o", path],
            check=True, capture_output=True, text=True)
        path.with_suffix(".json").write_text(done.stdout)
    return path


def estimates(path):
    """{site: [node, pair]} of patched − base."""
    with h5py.File(path) as file:
        group = file["analyses/patch"]
        base = group["corrupted"][()]
        return {s: (group[s + "_patched"][()].reshape(len(base), -1) - base[:, None]).T for s in SITES}


def exact_values(path, like):
    with h5py.File(path) as file:
        values = file["analyses/patch/check_exact"][()]
    out, at = {}, 0
    for site in SITES:
        out[site] = values[at:at + len(like[site])]
        at += len(like[site])
    assert at == len(values)
    return out


def correlation(x, y, resamples=1000, seed=0):
    keep = ~(np.isnan(x) | np.isnan(y))
    x, y = x[keep], y[keep]
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        i = rng.integers(0, len(x), len(x))
        draws.append(np.corrcoef(x[i], y[i])[0, 1])
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return np.corrcoef(x, y)[0, 1], low, high


def sign(x, y):
    some = ~(np.isnan(x) | np.isnan(y)) & ((x != 0) | (y != 0))
    return np.mean(np.sign(x[some]) == np.sign(y[some]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("lamina")
    parser.add_argument("model")
    parser.add_argument("pairs")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="results are kept here")
    parser.add_argument("--limit", type=int, help="pairs at most")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    checked = run(args, CHECKED)
    exact = exact_values(checked, estimates(checked))
    pairs = exact[SITES[0]].shape[1]
    print(f"{pairs} pairs, {sum(map(len, exact.values()))} nodes\n")
    print("| method | over | " + " | ".join(SITES) + " | sign, all three |")
    print("|---|---|" + "---|" * 4)
    for name in [m for m in METHODS if m in args.methods]:
        got = estimates(run(args, name))
        for over in ("means", "pairs"):
            fold = (lambda v: np.nanmean(v, 1)) if over == "means" else np.ravel
            cells, values = [], []
            for site in SITES:
                x, y = fold(got[site]), fold(exact[site])
                value, low, high = correlation(x, y, 1000 if over == "means" else 100)
                cells.append(f"{value:.3f} [{low:.3f}, {high:.3f}]")
                values.append((site, value))
            if name == CHECKED:
                parts = json.loads(checked.with_suffix(".json").read_text())["check"]["sites"]
                for site, value in values:
                    part = next(p for p in parts if p["site"] == site)
                    said = part["by_node" if over == "means" else "by_pair"]["pearson"]["value"]
                    assert abs(said - value) < 1e-6, (site, over, said, value)
            every = lambda v: np.concatenate([fold(v[s]) for s in SITES])
            print(f"| {name} | {over} | " + " | ".join(cells) + f" | {sign(every(got), every(exact)):.3f} |", flush=True)


if __name__ == "__main__":
    main()
