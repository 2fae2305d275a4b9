#!/usr/bin/env python3
"""CLUE and the information plane by plain numpy, for clue_test.cpp. Writes clue.json.

Needs numpy.
"""
import itertools
import json
import math
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
MASK = (1 << 64) - 1


def mix(seed, stream):
    """The finaliser of splitmix64."""
    z = (seed + (stream + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def normal(seed, at):
    u, v = (((mix(seed, 2 * at + i) >> 11) + 0.5) * 2.0 ** -53 for i in (0, 1))
    return math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v)


def directions(width, count, seed):
    out = np.array([[normal(seed, c * width + i) for i in range(width)] for c in range(count)])
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def auroc(score, positive):
    a, b = score[positive], score[~positive]
    return ((a[:, None] > b).sum() + 0.5 * (a[:, None] == b).sum()), len(a) * len(b)


def clue(rng):
    """Eight candidates for each of 12 questions, 3 layers of 6, 5 and 6 values."""
    n, widths = 96, [6, 5, 6]
    question = np.repeat(np.arange(12), 8)
    correct = rng.random(n) < 0.4
    correct[:2] = [True, False]
    answer = np.where(correct, "right", np.array(["a", "b", "c"])[rng.integers(0, 3, n)])
    layers = []
    for width in widths:
        shift = rng.standard_normal(width) * 0.8
        layers.append((rng.standard_normal((n, width)) + correct[:, None] * shift).astype(np.float32).astype(np.float64))
    success = [x[correct].mean(0) for x in layers]
    failure = [x[~correct].mean(0) for x in layers]
    # Judged by given centroids: those of other traces, rounded to float32 as the file has them.
    given = [[rng.standard_normal(w).astype(np.float32).astype(np.float64) for w in widths] for _ in range(2)]
    near = sum(np.linalg.norm(x - c, axis=1) for x, c in zip(layers, given[0])) / len(layers)
    far = sum(np.linalg.norm(x - c, axis=1) for x, c in zip(layers, given[1])) / len(layers)
    ordered, pairs = auroc(far - near, correct)
    nearest = first = majority = oracle = 0
    for q in range(12):
        rows = np.flatnonzero(question == q)
        nearest += correct[rows[np.argmin(near[rows])]]
        first += correct[rows[0]]
        oracle += correct[rows].any()
        votes = {}
        for r in rows:
            votes.setdefault(answer[r], []).append(r)
        winner = max(votes.values(), key=len)  # the earliest of the largest
        majority += correct[winner[0]]
    return dict(widths=widths, question=question.tolist(), correct=correct.astype(int).tolist(), answer=answer.tolist(),
                layers=[x.astype(np.float32).ravel().tolist() for x in layers], success=[c.tolist() for c in success],
                failure=[c.tolist() for c in failure], given_success=[c.tolist() for c in given[0]],
                given_failure=[c.tolist() for c in given[1]], to_success=near.tolist(), to_failure=far.tolist(),
                accuracy=float(np.mean((near < far) == correct)), auroc=ordered / pairs, nearest=nearest / 12, first=first / 12,
                majority=majority / 12, oracle=oracle / 12)


def entropy(*columns):
    _, counts = np.unique(np.stack(columns, 1), axis=0, return_counts=True)
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum())


def information(x, y):
    return entropy(x) + entropy(y) - entropy(x, y)


def bins(x, count, equal):
    if equal == "width":
        return np.minimum(((x - x.min()) / (x.max() - x.min()) * count).astype(int), count - 1)
    return np.searchsorted(np.sort(x), x, side="left") * count // len(x)


def root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T


def wasserstein_1d(a, b):
    grid = np.sort(np.concatenate([a, b]))
    fa = np.searchsorted(np.sort(a), grid[:-1], side="right") / len(a)
    fb = np.searchsorted(np.sort(b), grid[:-1], side="right") / len(b)
    return float(np.sum(np.diff(grid) * np.abs(fa - fb)))


def plane(rng, n, width, classes, projection, equal):
    components, count, gaussian, slices, seed = 2, 5, 3, 7, 41
    y = rng.integers(0, classes, n)
    x = (rng.standard_normal((n, width)) * np.exp(rng.standard_normal(width) / 2) + y[:, None] * rng.standard_normal(width) * 0.7)
    x = x.astype(np.float32).astype(np.float64)
    given = rng.integers(0, 9, n)
    centred = x - x.mean(0)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    pca = centred @ vt.T
    projected = pca[:, :components] if projection == "pca" else centred @ directions(width, components, seed).T
    _, t = np.unique(np.stack([bins(projected[:, c], count, equal) for c in range(components)], 1), axis=0, return_inverse=True)
    t = t.ravel()
    z = pca[:, :gaussian]
    parts = []
    for c in range(classes):
        rows = z[y == c]
        parts.append((len(rows) / n, rows.mean(0), np.cov(rows.T) + 1e-6 * np.mean(z ** 2) * np.eye(z.shape[1])))

    def kl(a, b):
        inverse, d = np.linalg.inv(b[2]), b[1] - a[1]
        return 0.5 * (np.trace(inverse @ a[2]) + d @ inverse @ d - len(d) + np.log(np.linalg.det(b[2]) / np.linalg.det(a[2])))

    bound = -sum(a[0] * math.log(sum(b[0] * math.exp(-kl(a, b)) for b in parts)) for a in parts)
    w2 = [math.sqrt(np.sum((a[1] - b[1]) ** 2) + np.trace(a[2] + b[2] - 2 * root(root(a[2]) @ b[2] @ root(a[2]))))
          for a, b in itertools.combinations(parts, 2)]
    along = centred @ directions(width, slices, seed ^ 0x736C6963).T
    w1 = [wasserstein_1d(along[y == a, i], along[y == b, i])
          for i in range(slices) for a, b in itertools.combinations(range(classes), 2)]
    return dict(width=width, classes=classes, projection=projection, binning=equal, components=components, bins=count,
                gaussian=gaussian, slices=slices, seed=seed, values=x.astype(np.float32).ravel().tolist(), labels=y.tolist(),
                inputs=given.tolist(), states=int(t.max()) + 1, entropy=entropy(t), input=information(t, given),
                target=information(t, y), variance=float(np.sum(projected ** 2) / np.sum(centred ** 2)), kl_bound=bound,
                gaussian_wasserstein=float(np.mean(w2) / math.sqrt(np.sum(z ** 2) / n)),
                sliced_wasserstein=float(np.mean(w1) / math.sqrt(np.mean(centred ** 2))))


def main():
    rng = np.random.default_rng(20261123)
    out = {"clue": clue(rng), "plane": [plane(rng, 80, 6, 2, "pca", "width"), plane(rng, 60, 5, 3, "random", "width"),
                                        plane(rng, 70, 6, 3, "random", "count"), plane(rng, 20, 31, 2, "pca", "width")]}
    (HERE / "clue.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")


main()
