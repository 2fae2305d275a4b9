#!/usr/bin/env python3
"""Rows and similarities for cka_test.cpp. Writes cka.safetensors and cka.json:

a [S, T, D]   the streams of a made-up model, T tokens in prompts of LENGTHS; b [S', T, D'] of another one
json          similarities of a with itself ("self") and of a with b ("cross"), by formulas over T x T kernel
              matrices and over singular vectors of the rows, in float64: lamina uses sums of products instead

Needs numpy and safetensors.
"""
import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).resolve().parent
LENGTHS = [17, 5, 30, 9, 1, 24, 12]
MINIBATCH, BANDWIDTH, VARIANCE, FLOOR, SKIP = 16, 0.5, 0.9, 1e-6, 2


def make_rows():
    g = np.random.default_rng(20190501)
    tokens = sum(LENGTHS)
    a = [g.normal(size=(tokens, 12)) @ np.diag(np.linspace(2.0, 0.2, 12)) + g.normal(size=12) * 3]
    for scale in (0.3, 1.0, 0.6):
        a.append(1.1 * a[-1] + scale * np.tanh(a[-1] @ g.normal(size=(12, 12)) / 3) + scale * g.normal(size=(tokens, 12)))
    b = [a[1] @ g.normal(size=(12, 7)) + g.normal(size=(tokens, 7))]
    for scale in (0.5, 2.0):
        b.append(b[-1] + scale * g.normal(size=(tokens, 7)))
    return np.float32(a), np.float32(b)


def centred(k):
    return k - k.mean(0) - k.mean(1)[:, None] + k.mean()


def biased(k, l):
    return np.sum(centred(k) * centred(l))


def unbiased(k, l):
    """HSIC_1 of Song et al. 2012, equation 5."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    one = np.ones(n)
    return (np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))


def cka(hsic, kernels_a, kernels_b):
    return [[hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l)) for l in kernels_b] for k in kernels_a]


def linear(x):
    return x @ x.T


def gaussian(x):
    distance = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    sigma = BANDWIDTH * np.median(distance[np.triu_indices(len(x), 1)])
    return np.exp(-distance ** 2 / (2 * sigma ** 2)), sigma


def minibatches(a, b):
    """Ratio of mean HSIC_1, and its standard error from each minibatch's influence."""
    count = a.shape[1] // MINIBATCH
    parts = [slice(i * MINIBATCH, (i + 1) * MINIBATCH) for i in range(count)]
    value, error = [], []
    for x in a:
        value.append([])
        error.append([])
        for y in b:
            h = np.array([[unbiased(linear(p[s]), linear(q[s])) for s in parts]
                          for p, q in ((x, y), (x, x), (y, y))])
            xy, xx, yy = h.mean(1)
            r = xy / np.sqrt(xx * yy)
            influence = (h[0] / np.sqrt(xx * yy) - r * h[1] / (2 * xx) - r * h[2] / (2 * yy))
            value[-1].append(r)
            error[-1].append(np.sqrt(np.sum(influence ** 2) / (count * (count - 1))))
    return value, error


def directions(x, keep):
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return u[:, :keep(s ** 2)], s


def by_share(values):
    return int(np.searchsorted(np.cumsum(values) / values.sum(), VARIANCE) + 1)


def by_floor(values):
    return int(np.sum(values > FLOOR * values[0]))


def svcca(x, y):
    u, v = directions(x, by_share)[0], directions(y, by_share)[0]
    return np.linalg.svd(u.T @ v, compute_uv=False).mean()


def pwcca(x, y):
    u, v = directions(x, by_floor)[0], directions(y, by_floor)[0]
    left, rho, _ = np.linalg.svd(u.T @ v, full_matrices=False)
    variates = u @ left
    alpha = np.abs(variates.T @ (x - x.mean(0))).sum(1)
    return alpha @ rho / alpha.sum()


def similarities(a, b):
    out = {"linear": cka(biased, [linear(x) for x in a], [linear(y) for y in b]),
           "debiased": cka(unbiased, [linear(x) for x in a], [linear(y) for y in b])}
    ka, kb = [gaussian(x) for x in a], [gaussian(y) for y in b]
    out["rbf"] = cka(biased, [k for k, _ in ka], [k for k, _ in kb])
    out["rbf_debiased"] = cka(unbiased, [k for k, _ in ka], [k for k, _ in kb])
    out["sigma"] = [s for _, s in ka]
    out["minibatch"], out["minibatch_error"] = minibatches(a, b)
    out["svcca"] = [[svcca(x, y) for y in b] for x in a]
    out["components"] = [directions(x, by_share)[0].shape[1] for x in a]
    out["pwcca"] = [[pwcca(x, y) for y in b] for x in a]
    return out


def main():
    a, b = make_rows()
    save_file({"a": a, "b": b}, HERE / "cka.safetensors")
    a, b = np.float64(a), np.float64(b)
    start = np.concatenate([[0], np.cumsum(LENGTHS)])
    position = np.concatenate([np.arange(n) for n in LENGTHS])
    out = {"lengths": LENGTHS, "minibatch": MINIBATCH, "bandwidth": BANDWIDTH, "variance": VARIANCE,
           "floor": FLOOR, "skip": SKIP, "self": similarities(a, a), "cross": similarities(a, b)}
    kept = position >= SKIP
    out["skipped"] = {"linear": cka(biased, [linear(x) for x in a[:, kept]], [linear(x) for x in a[:, kept]]),
                      "debiased": cka(unbiased, [linear(x) for x in a[:, kept]], [linear(x) for x in a[:, kept]])}
    first = (a - a.mean(1, keepdims=True))
    out["first_token"] = [float((x[position == 0] ** 2).sum() / (x ** 2).sum()) for x in first]
    mean = lambda x: np.float32([x[s:e].mean(0) for s, e in zip(start[:-1], start[1:])]).astype(np.float64)
    last = lambda x: x[start[1:] - 1]
    for name, pool in (("mean", mean), ("last", last)):
        ka, kb = [linear(pool(x)) for x in a], [linear(pool(y)) for y in b]
        out[name] = {"linear": cka(biased, ka, kb), "debiased": cka(unbiased, ka, kb)}
    (HERE / "cka.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
