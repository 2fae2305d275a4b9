"""Makes tests/patching/goldens/agreement.json: agreement statistics as numpy and scipy compute them.

    python make_agreement_goldens.py     needs numpy, scipy

Every resample is drawn here again from SplitMix64 (Steele, Lea, Flood 2014), one stream a resample,
its nodes are laid out one by one and handed to scipy.
"""

import json
import pathlib
import warnings

import numpy as np
from scipy import stats

MASK = (1 << 64) - 1


class SplitMix:
    def __init__(self, seed):
        self.state = seed & MASK

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)


def stream(seed, i):
    return SplitMix(SplitMix(seed ^ ((0xD1342543DE82EF95 * (i + 1)) & MASK)).next())


def top(values, k, nodes):
    """Positions of the k largest magnitudes; equal ones in the order of the nodes."""
    return sorted(range(len(values)), key=lambda i: (-abs(values[i]), nodes[i], i))[:k]


def statistics(x, y, k, nodes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant lists: NaN on both sides
        pearson = stats.pearsonr(x, y).statistic if len(x) > 1 else np.nan
        spearman = stats.spearmanr(x, y).statistic if len(x) > 1 else np.nan
    some = (x != 0) | (y != 0)
    sign = np.mean(np.sign(x[some]) == np.sign(y[some])) if some.any() else np.nan
    return pearson, spearman, sign, len(set(top(x, k, nodes)) & set(top(y, k, nodes))) / k


def case(name, x, y, k, resamples, seed):
    keep = ~(np.isnan(x) | np.isnan(y))
    a, b = x[keep], y[keep]
    n = len(a)
    k_used = min(k, n)
    value = statistics(a, b, k_used, range(n))
    draws = []
    for r in range(resamples):
        random = stream(seed, r)
        nodes = np.array(sorted(random.next() % n for _ in range(n)))
        draws.append(statistics(a[nodes], b[nodes], k_used, nodes))
    low, high = np.nanpercentile(np.array(draws, float), [2.5, 97.5], axis=0)
    number = lambda v: None if np.isnan(v) else float(v)
    triples = {s: [number(value[i]), number(low[i]), number(high[i])]
               for i, s in enumerate(("pearson", "spearman", "sign", "top_k"))}
    return dict(name=name, estimate=[number(v) for v in x], exact=[number(v) for v in y], k=k,
                resamples=resamples, seed=seed, nodes=n, **triples)


def main():
    rng = np.random.default_rng(3)
    y = rng.standard_normal(40)
    noisy = np.round(0.8 * y + 0.5 * rng.standard_normal(40), 6)
    ties = np.round(y, 0)
    zeros = np.where(rng.random(40) < 0.4, 0.0, noisy)
    gaps = np.where(rng.random(40) < 0.2, np.nan, noisy)
    cases = [
        case("noisy", noisy, np.round(y, 6), 5, 200, 1),
        case("ties", ties, np.round(noisy, 0), 8, 200, 2),
        case("zeros", zeros, np.where(zeros == 0, 0.0, np.round(y, 6)), 10, 200, 3),
        case("gaps", gaps, np.round(y, 6), 7, 100, 4),
        case("two nodes", np.array([1.0, -2.0]), np.array([0.5, 3.0]), 5, 50, 5),
        case("large offset", 1e6 + noisy, 3e6 - y, 4, 100, 6),
    ]
    path = pathlib.Path(__file__).resolve().parent / "goldens" / "agreement.json"
    path.write_text(json.dumps(cases) + "\n")
    for c in cases:
        print(c["name"], c["pearson"], c["spearman"], c["sign"], c["top_k"])


if __name__ == "__main__":
    main()
