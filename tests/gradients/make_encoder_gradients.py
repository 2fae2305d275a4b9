"""Makes the gradient goldens of the encoder families (tests/goldens/make_encoders.py).

    python make_encoder_gradients.py      needs torch, transformers >= 5

bert.safetensors, roberta.safetensors, distilbert.safetensors are as make_gradient_goldens.py's.
encoders/NAME.safetensors holds the same of the classifiers: the metric reads the logits of the first
token, and "norm/{tensor}" is of the mean cross-entropy of label i mod n_labels at prompt i. For
them "label/p{i}/{site}" is the gradient of that mean loss at a few sites of the residual stream.

As there, gradients are taken in double precision through canonical_block.py, checked against the forward
goldens at every site, and against autograd through transformers (fp32) at every site that it hands on
and in the norm over all parameters.
"""

import pathlib
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from canonical_block import ACTIVATIONS, Config, Reference, site_gradients
from make_gradient_goldens import BACKWARD, FORWARD, error, mean_nll, prompts_of, rows_of

HERE = pathlib.Path(__file__).resolve().parent
GOLDENS = HERE.parent / "goldens"
sys.path.insert(0, str(GOLDENS))
import make_encoders  # noqa: E402

ACTS = {"gelu_new": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
ENDS = {"word_embeddings.weight": "embed", "position_embeddings.weight": "pos_embed",
        "token_type_embeddings.weight": "type_embed"}
# In transformers' name order of preference: what the head consists of.
HEADS = {"cls.predictions.transform.dense": "head", "cls.predictions.transform.LayerNorm": "ln_final",
         "bert.pooler.dense": "head", "lm_head.dense": "head", "lm_head.layer_norm": "ln_final",
         "classifier.dense": "head", "classifier.out_proj": "unembed", "vocab_transform": "head",
         "vocab_layer_norm": "ln_final", "pre_classifier": "head", "classifier": "unembed"}
WORD_BIASES = ("cls.predictions.bias", "lm_head.bias", "vocab_projector.bias")


class Encoder(Reference):
    """A post-norm block with the embeddings and the head of an encoder."""

    head_act = None

    def run(self, ids):
        c, self.sites = self.c, {}
        x = self.keep("hook_embed", self.w["embed"][ids])
        if "type_embed" in self.w:
            x = x + self.w["type_embed"][torch.zeros_like(ids)]
        x = x + self.keep("hook_pos_embed", self.w["pos_embed"][:len(ids)])
        x = self.norm("embed_norm", "layer", x, "embed.ln")
        for l in range(c.n_layers):
            b = f"blocks.{l}."
            x = self.keep(b + "hook_resid_pre", x)
            x = self.keep(b + "hook_resid_mid", x + self.keep(b + "hook_attn_out", self.attention(l, x)))
            x = self.keep(b + "hook_normalized_resid_mid", self.norm(f"{l}.ln1", "layer", x, b + "ln1"))
            x = self.keep(b + "hook_resid_post", x + self.keep(b + "hook_mlp_out", self.mlp(l, x)))
            x = self.keep(b + "hook_normalized_resid_post", self.norm(f"{l}.ln2", "layer", x, b + "ln2"))
        if "head" not in self.w:
            return None, self.sites
        x = self.head_act(self.linear("head", x))
        if "ln_final.w" in self.w:
            x = self.norm("ln_final", "layer", x, "ln_final")
        return x @ self.w["unembed" if "unembed" in self.w else "embed"].T + self.w["unembed.b"], self.sites


def load(name, model):
    """Config, canonical weights, activation of the head."""
    pieces, c = make_encoders.GOLDENS[name][0], model.config
    get = lambda *names: next(getattr(c, n) for n in names if hasattr(c, n))
    heads, d, layers = get("num_attention_heads"), get("hidden_size"), get("num_hidden_layers")
    act = ACTS[get("hidden_act", "activation")]
    config = Config(layers, d, heads, heads, d // heads, (d // heads) ** -0.5, norm="layer", place="post",
                    eps=pieces["eps"], learned=True, causal=False, act=act)
    part_of = {pieces[p]: stem for p, stem in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "o"), ("ln1", "ln1"),
                                               ("pre", "in"), ("out", "out"), ("ln2", "ln2"))}
    out = {}
    for full, value in model.state_dict().items():
        value = value.detach().double()
        if full in WORD_BIASES:
            out["unembed.b"] = value
            continue
        stem, kind = full.rsplit(".", 1)
        parts = stem.split(".")
        if "layer" in parts:
            at = parts.index("layer")
            key = parts[at + 1] + "." + part_of[".".join(parts[at + 2:])]
        elif "embeddings" in parts:
            tail = parts[-1] + "." + kind
            if tail in ENDS:
                out[ENDS[tail]] = value[2:] if ENDS[tail] == "pos_embed" and name.startswith("roberta") else value
                continue
            key = "embed_norm"
        elif stem in HEADS:
            key = HEADS[stem]
        else:
            assert "decoder" in stem or "vocab_projector" in stem or "pooler" in stem, full
            continue
        norm = key.endswith(("ln1", "ln2", "ln_final", "embed_norm"))
        out[key + ((".b" if kind == "bias" else ".w") if norm else (".b" if kind == "bias" else ""))] = value
    if not name.endswith("classifier"):
        head_act = "gelu" if name.startswith("roberta") else act
        return config, out, ACTIVATIONS[head_act]
    return config, out, torch.relu if name.startswith("distil") else torch.tanh


def label_loss(run, prompts, labels):
    """Mean cross-entropy of label i mod `labels` at the first token of prompt i."""
    return sum(F.cross_entropy(run(ids)[0][:1], torch.tensor([i % labels])) for i, ids in enumerate(prompts)
               ) / len(prompts)


def main():
    torch.set_num_threads(1)
    (HERE / "encoders").mkdir(exist_ok=True)
    for name, (pieces, _, _, head) in make_encoders.GOLDENS.items():
        if head is None:
            continue
        classifier = name.endswith("classifier")
        model = make_encoders.build(name)
        config, weights, head_act = load(name, model)
        reference = Encoder(config, {k: v.requires_grad_() for k, v in weights.items()})
        reference.head_act = head_act
        values = load_file(GOLDENS / name / "golden.safetensors")
        prompts = prompts_of(values)
        worst = 0.0
        for i, ids in enumerate(prompts):
            logits, sites = reference.run(ids)
            have = {f"p{i}/{s}": v.detach() for s, v in dict(sites, logits=logits).items()}
            assert set(have) == {n for n in values if n.startswith(f"p{i}/") and not n.endswith("/ids")}
            worst = max(worst, *(error(values[n], v) for n, v in have.items()))
        assert worst < FORWARD, f"{name}: {worst:.1e}"

        generator = torch.Generator().manual_seed(11)
        width = values["p0/logits"].shape[-1]
        rows = [torch.tensor([0]) if classifier else rows_of(len(ids)) for ids in prompts]
        cs = [torch.randn(len(r), width, generator=generator) for r in rows]
        out, backward = {}, 0.0
        capture = make_encoders.Capture(model, pieces)
        for i, ids in enumerate(prompts):
            logits, sites = reference.run(ids)
            metric = (logits[rows[i]] * cs[i].double()).sum()
            gradients = site_gradients(metric, sites)
            out.update({f"p{i}/{s}": g.float().contiguous() for s, g in gradients.items()})
            out.update({f"p{i}/ids": ids.int(), f"p{i}/rows": rows[i].int(), f"p{i}/c": cs[i].clone(),
                        f"p{i}/metric": metric.detach().float().reshape(1)})
            # transformers, where it hands the tensor of the graph on.
            seen, answer = make_encoders.sites_and_logits(capture, head, ids)
            m = (answer[rows[i]] * cs[i]).sum()
            handed = {s: v for s, v in seen.items() if s in gradients and v.requires_grad and not s.endswith(
                ("hook_q", "hook_k", "hook_v", "hook_scale", "hook_normalized", "hook_result", "attn_scores",
                 "hook_pos_embed"))}
            found = torch.autograd.grad(m, list(handed.values()), allow_unused=True)
            for s, g in zip(handed, found):
                assert g is not None, s
                backward = max(backward, error(gradients[s], g[0]))
        assert backward < BACKWARD, f"{name}: gradients {backward:.1e}"

        run_model = lambda ids: make_encoders.sites_and_logits(capture, head, ids)[::-1]
        loss = (lambda run: label_loss(run, prompts, width)) if classifier else (lambda run: mean_nll(run, prompts))
        tensors = list(reference.w)
        total = loss(reference.run)
        norms = {t: g.norm() for t, g in zip(tensors, torch.autograd.grad(total, [reference.w[t] for t in tensors]))}
        found = torch.autograd.grad(loss(run_model), model.parameters(), allow_unused=True)
        want = sum(g.double().pow(2).sum() for g in found if g is not None).sqrt().item()
        got = sum(n.pow(2) for n in norms.values()).sqrt().item()
        assert abs(got / want - 1) < 1e-5, f"{name}: {got} {want}"
        out.update({f"norm/{t}": n.float().reshape(1) for t, n in norms.items()})
        if classifier:
            runs = [reference.run(ids) for ids in prompts]
            total = label_loss(lambda ids, it=iter(runs): next(it), prompts, width)
            out["label/loss"] = total.detach().float().reshape(1)
            for i, (_, sites) in enumerate(runs):
                kept = {s: v for s, v in sites.items() if s.endswith(("resid_pre", "normalized_resid_post"))}
                found = torch.autograd.grad(total, list(kept.values()), retain_graph=True)
                out.update({f"label/p{i}/{s}": g.float().contiguous() for s, g in zip(kept, found)})
        capture.close()
        folder = HERE / "encoders" if classifier else HERE
        save_file(out, folder / f"{name}.safetensors", {"torch": torch.__version__})
        print(f"{name}: {len(gradients)} sites; against transformers: sites {worst:.1e}, gradients "
              f"{backward:.1e} ({len(handed)} sites), parameter norm {abs(got / want - 1):.1e}", flush=True)


if __name__ == "__main__":
    main()
