#!/usr/bin/env python3
"""Linear probes by scikit-learn, for linear_probe_test.cpp. Writes probing.json.

Each case: float32 features, labels, folds, strengths, and what the definition in docs/probing.md gives, done the
long way: every fit on its own, by scikit-learn's LogisticRegression or Ridge on StandardScaler's features.

Needs numpy and scikit-learn.
"""
import json
import pathlib

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

HERE = pathlib.Path(__file__).resolve().parent
STRENGTHS = [10.0, 0.01, 0.3]
SHRINKAGE = 0.2


def fit(kind, x, y, strength):
    scaler = StandardScaler().fit(x)
    z = scaler.transform(x)
    if kind == "ridge":
        model = Ridge(alpha=len(y) * strength, solver="cholesky").fit(z, y)
    else:
        model = LogisticRegression(C=1 / (len(y) * strength), solver="newton-cholesky", tol=1e-13, max_iter=10000).fit(z, y)
    weight = np.atleast_2d(model.coef_) / scaler.scale_
    bias = np.atleast_1d(model.intercept_)
    if len(bias) > 1:
        bias = bias - bias.mean()
    return weight, bias - weight @ scaler.mean_


def scores(model, x):
    return x @ model[0].T + model[1]


def loss(kind, s, y, classes):
    if kind == "ridge":
        return float(np.mean((s[:, 0] - y) ** 2))
    if classes == 2:
        p = 1 / (1 + np.exp(-s[:, 0]))
        p = np.stack([1 - p, p], 1)
    else:
        p = np.exp(s - s.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
    return float(log_loss(y, p, labels=range(classes)))


def guess(s, classes):
    return (s[:, 0] > 0).astype(int) if classes == 2 else s.argmax(1)


def pair_auroc(s, positive, fold):
    """Mean over folds, weighted by their pairs."""
    ordered = pairs = 0
    for f in np.unique(fold):
        m = fold == f
        n = positive[m].sum() * (~positive[m]).sum()
        if n:
            ordered += n * roc_auc_score(positive[m], s[m])
            pairs += n
    return float(ordered / pairs)


def case(kind, rng, n, width, classes, folds):
    x = rng.standard_normal((n, width)) * np.exp(rng.standard_normal(width)) + 3 * rng.standard_normal(width)
    x = x.astype(np.float32).astype(np.float64)
    if kind == "ridge":
        y = x @ rng.standard_normal(width) / width + 0.5 * rng.standard_normal(n)
    else:
        logits = (x - x.mean(0)) / x.std(0) @ rng.standard_normal((width, classes)) / np.sqrt(width) * 1.5
        y = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    fold = rng.permutation(np.arange(n) % folds)
    outputs = classes if classes > 2 else 1
    decision = np.zeros((n, outputs))
    chosen, path_loss, path_sum = [], np.zeros(len(STRENGTHS)), np.zeros(len(STRENGTHS))
    base = np.zeros(n)
    for f in range(folds):
        inner = [sum(loss(kind, scores(fit(kind, x[(fold != f) & (fold != g)], y[(fold != f) & (fold != g)], s), x[fold == g]),
                          y[fold == g], classes) for g in range(folds) if g != f) for s in STRENGTHS]
        chosen.append(STRENGTHS[int(np.argmin(inner))])
        test, rest = fold == f, fold != f
        base[test] = y[rest].mean()
        decision[test] = scores(fit(kind, x[rest], y[rest], chosen[-1]), x[test])
        for i, s in enumerate(STRENGTHS):
            found = scores(fit(kind, x[rest], y[rest], s), x[test])
            path_loss[i] += loss(kind, found, y[test], classes) * test.sum() / n
            path_sum[i] += np.sum((found[:, 0] - y[test]) ** 2) if kind == "ridge" else np.sum(guess(found, classes) == y[test])
    final = STRENGTHS[int(np.argmin(path_loss))]
    weight, bias = fit(kind, x, y, final)
    out = dict(kind=kind, width=width, values=x.astype(np.float32).ravel().tolist(), labels=y.tolist(), fold=fold.tolist(),
               strengths=STRENGTHS, shrinkage=SHRINKAGE, classes=classes, folds=folds, fold_strength=chosen,
               path_loss=path_loss.tolist(), strength=final, weight=weight.ravel().tolist(), bias=bias.tolist(),
               decision=decision.ravel().tolist())
    if kind == "ridge":
        total = np.sum((y - base) ** 2)
        out["path_score"] = (1 - path_sum / total).tolist()
        out["r2"] = float(1 - np.sum((decision[:, 0] - y) ** 2) / total)
        return out
    out["path_score"] = (path_sum / n).tolist()
    out["accuracy"] = float(np.mean(guess(decision, classes) == y))
    out["balanced_accuracy"] = float(balanced_accuracy_score(y, guess(decision, classes)))
    projection = np.zeros((n, outputs))
    for f in range(folds):
        rest = fold != f
        for c in range(outputs):
            one = y == (1 if classes == 2 else c)
            projection[fold == f, c] = x[fold == f] @ (x[rest & one].mean(0) - x[rest & ~one].mean(0))
    out["direction_auroc"] = [pair_auroc(projection[:, c], y == (1 if classes == 2 else c), fold) for c in range(outputs)]
    ones = [y == (1 if classes == 2 else c) for c in range(outputs)]
    out["direction"] = np.concatenate([x[o].mean(0) - x[~o].mean(0) for o in ones]).tolist()
    if classes == 2:
        out["auroc"] = pair_auroc(decision[:, 0], y == 1, fold)
        lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE).fit(x, y)
        out["whitened"] = (lda.coef_[0] * (n - 2) / n).tolist()  # it divides the scatter by n
    return out


def main():
    rng = np.random.default_rng(20261122)
    cases = {
        "binary": case("logistic", rng, 60, 6, 2, 4),
        "binary_wide": case("logistic", rng, 36, 50, 2, 3),
        "three": case("logistic", rng, 66, 5, 3, 4),
        "three_wide": case("logistic", rng, 33, 40, 3, 3),
        "ridge": case("ridge", rng, 40, 8, 0, 5),
        "ridge_wide": case("ridge", rng, 24, 40, 0, 4),
    }
    (HERE / "probing.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")


main()
