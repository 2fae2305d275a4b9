"""Metrics and their gradients from torch autograd in float64: writes metrics.json beside this file.

    python make_metric_goldens.py        (torch 2.x)

Logits are float32 values; "extreme" ones reach ±1e4, where a plain exp overflows.
"""
import json
import pathlib

import torch

V = 13


def metrics(x, reference, correct, wrong):
    logp = torch.log_softmax(x, -1)
    logr = torch.log_softmax(reference, -1)
    c, w = torch.tensor(correct), torch.tensor(wrong)
    logprob = torch.logsumexp(logp[c], -1)
    return {
        "logit_diff": x[c].mean() - x[w].mean(),
        "prob_diff": logp[c].exp().sum() - logp[w].exp().sum(),
        "prob": logp[c].exp().sum(),
        "logprob": logprob,
        "nll": -logprob,
        "kl": torch.nn.functional.kl_div(logp, logr, log_target=True, reduction="sum"),
    }


def main():
    generator = torch.Generator().manual_seed(7)
    cases = []
    for name, scale, correct, wrong in [
        ("plain", 2.0, [3], [5]),
        ("several", 2.0, [0, 12, 4], [7, 1]),
        ("certain", 2.0, [2], [9]),
        ("far", 30.0, [6, 8], [10, 11, 0]),
        ("extreme", 1e4, [1], [2, 3]),
    ]:
        logits = (torch.randn(V, generator=generator) * scale).clamp(-1e4, 1e4).float()
        if name == "certain":
            logits[2] = 25.0
        if name == "extreme":
            logits[5], logits[1] = 1e4, -1e4
        reference = (logits + torch.randn(V, generator=generator) * min(scale, 30.0) * 0.3).float()
        x = logits.double().requires_grad_()
        values, gradients = {}, {}
        for kind, value in metrics(x, reference.double(), correct, wrong).items():
            values[kind] = value.item()
            gradients[kind] = torch.autograd.grad(value, x, retain_graph=True)[0].tolist()
        cases.append({"name": name, "logits": logits.tolist(), "reference": reference.tolist(), "correct": correct,
                      "wrong": wrong, "values": values, "gradients": gradients})
    path = pathlib.Path(__file__).with_name("metrics.json")
    path.write_text(json.dumps(cases, indent=None, separators=(", ", ": ")).replace('{"name"', '\n{"name"') + "\n")


if __name__ == "__main__":
    main()
