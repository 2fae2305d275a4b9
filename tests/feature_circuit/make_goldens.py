"""Makes tests/feature_circuit/goldens/*.safetensors: feature circuits of two golden models, computed with torch's autograd.

    python make_goldens.py CHECKOUT     CHECKOUT: a clone of github.com/FarnoushRJ/RelP (its modified TransformerLens)

Needs torch, transformers and the fork's own dependencies. Models gpt2 and gemma2 of tests/goldens, in double precision, with
random dictionaries at resid_post, attn_out and mlp_out of every layer (ReLU, JumpReLU, TopK in turn), spliced in as Marks et al.
do: x = decode(features) + error, features and errors leaves of the graph, gradients passed on to x as they are.

    W_enc/SITE [F, D], b_enc/SITE, W_dec/SITE [F, D], b_dec/SITE, threshold/SITE (JumpReLU), k/SITE (TopK)
    clean/i, corrupted/i            token ids of pair i             answers [correct, wrong]
    metric                          [run, pair]: logit difference, clean and corrupted
    BASELINE/METHOD/SITE            [position, F + 1], mean over the pairs: effect of every feature and, last, of the error:
                                    (value − baseline) · gradient; METHOD atp, ig (10 steps), relp; BASELINE pair, zero, mean
    terms/BASELINE/METHOD/SITE      [position]: what rounding errors are measured against
    exact/BASELINE/SITE             [F + 1] metric clean − metric with the node patched at all positions, of some sites
    keep/SITE                       [F + 1] 1: in a random circuit
    edges/METHOD                    [to, from], baseline pair: nodes are features 3 and 11 and the error of every site, all positions
                                    together, and as last `to` the metric; mean over the pairs
    circuit/BASELINE                [4, pair] metric of the circuit, of everything but it, of it with all errors kept, and of nothing
"""

import argparse
import pathlib
import sys

import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "patching"))
import make_relp_goldens as relp  # noqa: E402

FEATURES, STEPS, PAIRS, TOKENS = 20, 10, 3, 6
KINDS = ("hook_attn_out", "hook_mlp_out", "hook_resid_post")
BASELINES = ("pair", "zero", "mean")
EDGE_FEATURES = (-1, 3, 11)
RELP = ["LN-rule", "Identity-rule", "Half-rule"]


class Dictionary:
    def __init__(self, width, kind, generator):
        normal = lambda *shape, scale=1.0: (scale * torch.randn(*shape, generator=generator)).float().double()
        self.w_enc, self.w_dec = normal(FEATURES, width, scale=width**-0.5), normal(FEATURES, width, scale=width**-0.5)
        self.b_enc, self.b_dec = normal(FEATURES, scale=0.3), normal(width, scale=0.2)
        self.threshold = normal(FEATURES, scale=0.2).abs() if kind == 1 else None
        self.k = 4 if kind == 2 else 0

    def encode(self, x):
        u = x @ self.w_enc.T + self.b_enc
        if self.threshold is not None:
            return torch.where(u > self.threshold, u, 0).relu()
        if self.k:
            top = u.topk(self.k, dim=-1)
            return torch.zeros_like(u).scatter(-1, top.indices, top.values.relu())
        return u.relu()

    def decode(self, z):
        return z @ self.w_dec + self.b_dec

    def state(self, x):
        z = self.encode(x)
        return z, x - self.decode(z)


class Study:
    def __init__(self, model, answers, dictionaries):
        self.model, self.answers, self.dictionaries = model, answers, dictionaries

    def metric(self, logits):
        return logits[:, -1, self.answers[0]] - logits[:, -1, self.answers[1]]

    def run(self, ids, edits=None):
        """Metric [pair] with edits {site: x → x}."""
        self.model.reset_hooks()
        for site, edit in (edits or {}).items():
            self.model.add_hook(site, lambda x, hook, edit=edit: edit(x), "fwd")
        metric = self.metric(self.model(ids))
        self.model.reset_hooks()
        return metric

    def states(self, ids):
        found = {}

        def keep(site):
            def look(x):
                found[site] = self.dictionaries[site].state(x.detach())
                return x
            return look
        with torch.no_grad():
            self.run(ids, {s: keep(s) for s in self.dictionaries})
        return found

    def gradients(self, ids):
        """Gradients at features and errors of all sites, spliced in together."""
        leaves = {}

        def splice(site):
            def edit(x):
                z, e = (t.requires_grad_() for t in self.dictionaries[site].state(x.detach()))
                leaves[site] = z, e
                passed = x - x.detach()  # the gradient goes on to x as it is
                return self.dictionaries[site].decode(z) + e + passed
            return edit
        self.run(ids, {s: splice(s) for s in self.dictionaries}).sum().backward()
        return {s: (z.grad, e.grad) for s, (z, e) in leaves.items()}

    def integrated(self, ids, site, clean, baseline):
        total = [torch.zeros_like(t) for t in clean]
        for step in range(STEPS):
            alpha = step / STEPS
            z, e = (((1 - alpha) * a + alpha * b).requires_grad_() for a, b in zip(clean, baseline))
            self.run(ids, {site: lambda x: self.dictionaries[site].decode(z) + e}).sum().backward()
            total[0] += z.grad / STEPS
            total[1] += e.grad / STEPS
        return total


    def edge_gradient(self, ids, sites, clean, down, up, value):
        """Gradient at the nodes of site `up` of value(x at site `down`; None: the metric), the sites in between held."""
        z, e = (t.clone().requires_grad_() for t in clean[up])
        end = len(sites) if down is None else sites.index(down)
        edits, total = {}, []
        for site in sites[sites.index(up) + 1:end]:
            edits[site] = lambda x: x.detach()
        edits[up] = lambda x: self.dictionaries[up].decode(z) + e
        if down is not None:
            edits[down] = lambda x: (total.append(value(x)), x)[1]
        metric = self.run(ids, edits).sum()
        total = metric if down is None else total[0]
        if not total.requires_grad:
            return None, None
        return torch.autograd.grad(total, (z, e), allow_unused=True)


def edges(study, ids, sites, clean, baseline, gradient):
    nodes = [(s, f) for s in sites for f in EDGE_FEATURES]
    out = torch.zeros(len(nodes) + 1, len(nodes), dtype=torch.float64)
    for t, (down, feature) in enumerate([*nodes, (None, None)]):
        def value(x):
            z, e = study.dictionaries[down].state(x)
            grad_z, grad_e = (g.detach() for g in gradient[down])
            return (z * grad_z)[..., feature].sum() if feature >= 0 else (e * grad_e).sum()
        for up in sites[:len(sites) if down is None else sites.index(down)]:
            grad_z, grad_e = study.edge_gradient(ids, sites, clean, down, up, value)
            for i, (site, f) in enumerate(nodes):
                if site != up or grad_z is None:
                    continue
                part = ((clean[up][0] - baseline[up][0]) * grad_z)[..., f] if f >= 0 else (clean[up][1] - baseline[up][1]) * grad_e
                out[t, i] = part.sum() / len(ids)
    return out


def effects(clean, baseline, gradient):
    dz, de = clean[0] - baseline[0], clean[1] - baseline[1]
    features, error = dz * gradient[0], (de * gradient[1]).sum(-1, keepdim=True)
    terms = features.abs().sum(-1) + (de * gradient[1]).abs().sum(-1)
    return torch.cat([features, error], -1).mean(0), terms.mean(0)


def golden(name, fork):
    _, model = relp.load(name, fork)
    generator = torch.Generator().manual_seed(5)
    sites = [f"blocks.{layer}.{kind}" for layer in range(model.cfg.n_layers) for kind in KINDS]
    dictionaries = {s: Dictionary(model.cfg.d_model, i % 3, generator) for i, s in enumerate(sites)}
    clean = torch.randint(0, model.cfg.d_vocab, (PAIRS, TOKENS), generator=generator)
    corrupted = clean.clone()
    corrupted[:, 1], corrupted[:, 4] = (clean[:, 1] + 17) % 96, (clean[:, 4] + 31) % 96
    answers = [23, 71]
    study = Study(model, answers, dictionaries)
    relp.set_rules(model, [])
    out = {"answers": torch.tensor(answers, dtype=torch.int32)}
    for site, d in dictionaries.items():
        for key, value in dict(W_enc=d.w_enc, b_enc=d.b_enc, W_dec=d.w_dec, b_dec=d.b_dec, threshold=d.threshold).items():
            if value is not None:
                out[f"{key}/{site}"] = value
        if d.k:
            out[f"k/{site}"] = torch.tensor([d.k], dtype=torch.int32)
    for i in range(PAIRS):
        out[f"clean/{i}"], out[f"corrupted/{i}"] = clean[i].int(), corrupted[i].int()
    with torch.no_grad():
        plain = study.run(clean)
        out["metric"] = torch.stack([plain, study.run(corrupted)])
    at_clean, at_corrupted = study.states(clean), study.states(corrupted)
    gradients = {"atp": study.gradients(clean)}
    relp.set_rules(model, RELP)
    gradients["relp"] = study.gradients(clean)
    relp.set_rules(model, [])
    keep = {s: (torch.rand(FEATURES + 1, generator=generator) < 0.4) for s in sites}
    for s in sites:
        out[f"keep/{s}"] = keep[s].int()
    for how in BASELINES:
        baseline = {}
        for s in sites:
            baseline[s] = tuple({"pair": t, "zero": torch.zeros_like(t), "mean": t.mean(0, keepdim=True).expand_as(t)}[how]
                                for t in at_corrupted[s])
        for s in sites:
            of = {m: gradients[m][s] for m in ("atp", "relp")}
            of["ig"] = study.integrated(clean, s, at_clean[s], baseline[s])
            for method, gradient in of.items():
                out[f"{how}/{method}/{s}"], out[f"terms/{how}/{method}/{s}"] = effects(at_clean[s], baseline[s], gradient)
        if how == "pair":
            of = {m: {s: gradients[m][s] for s in sites} for m in ("atp", "relp")}
            of["ig"] = {s: study.integrated(clean, s, at_clean[s], baseline[s]) for s in sites}
            for method, gradient in of.items():
                relp.set_rules(model, RELP if method == "relp" else [])
                out[f"edges/{method}"] = edges(study, clean, sites, at_clean, baseline, gradient)
                assert (out[f"edges/{method}"] != 0).sum() > 50, method
            relp.set_rules(model, [])
        with torch.no_grad():
            for s in sites[::4]:
                d, measured = dictionaries[s], []
                for node in range(FEATURES + 1):
                    z, e = (t.clone() for t in at_clean[s])
                    if node < FEATURES:
                        z[..., node] = baseline[s][0][..., node]
                    else:
                        e = baseline[s][1]
                    measured.append((plain - study.run(clean, {s: lambda x: d.decode(z) + e})).mean())
                out[f"exact/{how}/{s}"] = torch.stack(measured)

            def circuit(kept_of):
                def splice(s):
                    def edit(x):
                        z, e = dictionaries[s].state(x)
                        kept = kept_of(s)
                        z = torch.where(kept[:-1], z, baseline[s][0])
                        e = e if kept[-1] else baseline[s][1]
                        return dictionaries[s].decode(z) + e
                    return edit
                return study.run(clean, {s: splice(s) for s in sites})
            with_errors = lambda s: torch.cat([keep[s][:-1], torch.tensor([True])])
            none = lambda s: torch.zeros(FEATURES + 1, dtype=torch.bool)
            out[f"circuit/{how}"] = torch.stack([circuit(lambda s: keep[s]), circuit(lambda s: ~keep[s]), circuit(with_errors),
                                                 circuit(none)])
    # The three methods must differ, else the reference would test nothing.
    last = sites[0]
    for a, b in (("atp", "ig"), ("atp", "relp"), ("ig", "relp")):
        x, y = out[f"pair/{a}/{last}"], out[f"pair/{b}/{last}"]
        assert (x - y).abs().max() > 1e-2 * x.abs().max(), (a, b)
    return {k: (v if v.dtype == torch.int32 else v.float()).detach().contiguous() for k, v in out.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkout")
    args = parser.parse_args()
    torch.set_num_threads(1)
    fork = relp.import_fork(args.checkout)
    (HERE / "goldens").mkdir(exist_ok=True)
    for name in ("gpt2", "gemma2"):
        values = golden(name, fork)
        path = HERE / "goldens" / f"{name}.safetensors"
        save_file(values, path, {"torch": torch.__version__})
        print(f"{name}: {len(values)} tensors, {path.stat().st_size / 1000:.0f} kB, metric {values['metric'].tolist()}")


if __name__ == "__main__":
    main()
