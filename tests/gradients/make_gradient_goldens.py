"""Makes the gradient goldens: what torch's autograd says about the models of tests/goldens.

    python make_gradient_goldens.py [--only NAME...]    needs torch, transformers >= 5, transformer-lens 3

For every golden folder NAME.safetensors holds, for the prompts of its golden.safetensors,
"p{i}/rows" (int32) and "p{i}/c" [rows, V]: the metric m = Σ rows c·logits, c ~ N(0, 1) from a fixed
seed, its value "p{i}/metric", and "p{i}/{site}" = ∂m/∂site, each prompt alone. "norm/{tensor}" is the
norm of the gradient of the mean next-token negative log-likelihood over all prompts with respect to a
canonical tensor. NAME.RULE.safetensors holds the same of one prompt under one backward rule. A norm's
denominator is a node of its own, normalized = x / scale; a frozen denominator or pattern still has a
gradient, from which nothing flows on.

The gradients are taken through canonical_block.py in double precision, since transformers gives no
access to scores, norm denominators and per-head results. The script stops unless that block gives
the logits and every site of golden.safetensors, and unless autograd through the original models (fp32)
agrees with it wherever those hand a tensor on, and on the norm over all parameters.
"""

import argparse
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import golden_models
from canonical_block import Reference, Rules, site_gradients

HERE = pathlib.Path(__file__).resolve().parent
RULES = {"norm": Rules(norm=True), "pattern": Rules(pattern=True), "activation": Rules(activation=True),
         "gate": Rules(gate=True), "relp": Rules(norm=True, activation=True, gate=True)}
RULE_MODELS = ("gpt2", "qwen2", "gemma2", "gemma3", "lamina_parallel")
RULE_PROMPT = 3
FORWARD, BACKWARD = 1e-5, 3e-5  # of the site's largest magnitude: fp32 there, double precision here


def error(want, got):
    """Largest difference, relative to the largest finite magnitude of `want`."""
    same = want == got  # −inf too
    largest = torch.where(want.isfinite(), want, 0).abs().max().clamp_min(1e-30)
    return torch.where(same, 0, (want.double() - got.double()).abs() / largest).nan_to_num(1e30).max().item()


def rows_of(length):
    return torch.tensor(sorted({length - 1, length // 2, length // 5}))


def prompts_of(values):
    return [values[f"p{i}/ids"].long() for i in range(sum(name.endswith("/ids") for name in values))]


def mean_nll(run, prompts):
    """Over every position that has a next token, all prompts together."""
    total, count = 0.0, 0
    for ids in prompts:
        total = total + F.cross_entropy(run(ids)[0][:-1], ids[1:], reduction="sum")
        count += len(ids) - 1
    return total / count


def check_forward(name, reference, values):
    worst = 0.0
    for i, ids in enumerate(prompts_of(values)):
        logits, sites = reference.run(ids)
        for site, value in dict(sites, logits=logits).items():
            worst = max(worst, error(values[f"p{i}/{site}"], value.detach()))
        missing = {n for n in values if n.startswith(f"p{i}/")} - {f"p{i}/{s}" for s in (*sites, "logits", "ids")}
        assert not missing, f"{name}: sites the reference lacks: {sorted(missing)}"
    assert worst < FORWARD, f"{name}: the reference's sites differ by {worst:.1e}"
    return worst


def check_backward(name, original, prompts, cs, gradients):
    """Autograd through the original model at every site it hands on → largest difference, sites."""
    worst, seen = 0.0, set()
    for i, ids in enumerate(prompts):
        logits, sites = original.run(ids)
        metric = (logits[rows_of(len(ids))] * cs[i].float()).sum()
        for site, (tensors, form) in sites.items():
            want = gradients[i][site]
            got = form(sum(torch.autograd.grad(metric, tensors, retain_graph=True)))
            assert got.shape == want.shape, (site, got.shape, want.shape)
            largest = max(gradients[j][site].abs().max().item() for j in range(len(prompts)))
            worst_here = (got.double() - want).abs().max().item() / max(largest, 1e-30)
            assert worst_here < BACKWARD, f"{name}: prompt {i}: {site}: {worst_here:.1e}"
            worst = max(worst, worst_here)
            seen.add(site)
    return worst, seen


def parameter_norms(reference, prompts):
    tensors = list(reference.w)
    found = torch.autograd.grad(mean_nll(reference.run, prompts), [reference.w[t] for t in tensors])
    return {t: g.norm() for t, g in zip(tensors, found)}


def check_parameters(name, original, prompts, norms):
    found = torch.autograd.grad(mean_nll(original.run, prompts), original.parameters(), allow_unused=True)
    want = sum(g.double().pow(2).sum() for g in found if g is not None).sqrt().item()
    got = sum(n.pow(2) for t, n in norms.items() if not t.endswith(original.lacks)).sqrt().item()
    assert abs(got / want - 1) < 1e-5, f"{name}: norm over all parameters {got}, {want} in the original"
    return abs(got / want - 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    metadata, total = {"torch": torch.__version__}, 0
    for name in golden_models.names():
        if args.only and name not in args.only:
            continue
        original = golden_models.model(name)
        config, weights = original.load()
        weights = {key: value.requires_grad_() for key, value in weights.items()}
        reference = Reference(config, weights)
        values = load_file(golden_models.GOLDENS / name / "golden.safetensors")
        prompts = prompts_of(values)
        forward = check_forward(name, reference, values)
        generator = torch.Generator().manual_seed(11)
        cs = [torch.randn(len(rows_of(len(ids))), values["p0/logits"].shape[-1], generator=generator)
              for ids in prompts]

        def gradients_of(run, i):
            logits, sites = run(prompts[i])
            metric = (logits[rows_of(len(prompts[i]))] * cs[i].double()).sum()
            return metric.detach(), site_gradients(metric, sites)

        def packed(i, metric, gradients):
            out = {f"p{i}/{site}": g.float().contiguous() for site, g in gradients.items()}
            assert all(g.isfinite().all() for g in out.values())
            return dict(out, **{f"p{i}/ids": prompts[i].int(), f"p{i}/rows": rows_of(len(prompts[i])).int(),
                                f"p{i}/c": cs[i].clone(), f"p{i}/metric": metric.float().reshape(1)})

        results = [gradients_of(reference.run, i) for i in range(len(prompts))]
        backward, seen = check_backward(name, original, prompts, cs, [g for _, g in results])
        norms = parameter_norms(reference, prompts)
        parameters = check_parameters(name, original, prompts, norms)
        out = {f"norm/{t}": n.float().reshape(1) for t, n in norms.items()}
        for i, (metric, gradients) in enumerate(results):
            out.update(packed(i, metric, gradients))
        save_file(out, HERE / f"{name}.safetensors", metadata)
        size = (HERE / f"{name}.safetensors").stat().st_size
        if name in RULE_MODELS:
            for rule, rules in RULES.items():
                if rule == "gate" and not config.gated:
                    continue
                metric, gradients = gradients_of(Reference(config, weights, rules).run, RULE_PROMPT)
                assert abs(metric / results[RULE_PROMPT][0] - 1) < 1e-12, "a rule moved the forward pass"
                file = HERE / f"{name}.{rule}.safetensors"
                save_file(packed(RULE_PROMPT, metric, gradients), file, metadata)
                size += file.stat().st_size
        total += size
        print(f"{name}: {len(results[0][1])} sites, {size / 1000:.0f} kB; against the original model: sites "
              f"{forward:.1e}, gradients {backward:.1e} ({len(seen)} sites), parameter norm {parameters:.1e}",
              flush=True)
    print(f"{total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
