"""Makes the golden folders of the encoder families: tiny random BERT, RoBERTa and DistilBERT models
of transformers, and one of them in the project's own format.

    python make_encoders.py [--only NAME...]    needs torch, transformers >= 5, safetensors

The folders look as make_goldens.py's. Each prompt is run alone, so nothing is padded or masked. What
transformers computes inside one function (scores, norm denominators, results of heads) is computed
from captured values and checked against what the module returned. "p{i}/logits" are those of every
token [T, d_out]: a classifier's head, which transformers applies to the first token, is applied here to
every token, and checked against the model's own answer at the first.
"""

import argparse
import json
import pathlib
import shutil

import torch
import transformers
from safetensors.torch import save_file

from capture import norm_sites
from make_goldens import randomize

HERE = pathlib.Path(__file__).resolve().parent
PROMPT_LENGTHS = (1, 5, 19, 11)
EPS = 1e-3  # large enough to be felt
SMALL = dict(vocab_size=96, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
             num_attention_heads=3, max_position_embeddings=32, layer_norm_eps=EPS)
T = transformers

# Where the pieces of a layer are.
BERT = dict(
    layers=lambda base: base.encoder.layer, eps=EPS,
    q="attention.self.query", k="attention.self.key", v="attention.self.value",
    o="attention.output.dense", ln1="attention.output.LayerNorm", pre="intermediate.dense",
    post="intermediate", out="output.dense", ln2="output.LayerNorm")
DISTIL = dict(
    layers=lambda base: base.transformer.layer, eps=1e-12,
    q="attention.q_lin", k="attention.k_lin", v="attention.v_lin", o="attention.out_lin",
    ln1="sa_layer_norm", pre="ffn.lin1", post="ffn.activation", out="ffn.lin2", ln2="output_layer_norm")
# name: (pieces, class, configuration, head(model, last hidden states [T, D]) → logits [T, d_out])
LABELS = {0: "negative", 1: "neutral", 2: "positive"}
GOLDENS = {
    "bert": (BERT, T.BertForMaskedLM, lambda: T.BertConfig(**SMALL), lambda m, x: m.cls(x)),
    "bert_classifier": (
        BERT, T.BertForSequenceClassification, lambda: T.BertConfig(**SMALL, id2label=LABELS),
        lambda m, x: m.classifier(m.bert.pooler(x[:, None]))),
    "bert_headless": (BERT, T.BertModel, lambda: T.BertConfig(**dict(SMALL, hidden_act="gelu_new")), None),
    "roberta": (BERT, T.RobertaForMaskedLM,
                lambda: T.RobertaConfig(**dict(SMALL, hidden_act="relu"), type_vocab_size=1),
                lambda m, x: m.lm_head(x)),
    "roberta_classifier": (BERT, T.RobertaForSequenceClassification,
                           lambda: T.RobertaConfig(**SMALL, type_vocab_size=1),
                           lambda m, x: m.classifier(x[:, None])),
    "distilbert": (DISTIL, T.DistilBertForMaskedLM,
                   lambda: T.DistilBertConfig(vocab_size=96, dim=24, hidden_dim=40, n_layers=2, n_heads=3,
                                              max_position_embeddings=32),
                   lambda m, x: m.vocab_projector(m.vocab_layer_norm(m.activation(m.vocab_transform(x))))),
    "distilbert_classifier": (
        DISTIL, T.DistilBertForSequenceClassification,
        lambda: T.DistilBertConfig(vocab_size=96, dim=24, hidden_dim=40, n_layers=2, n_heads=3,
                                   max_position_embeddings=32, id2label=LABELS),
        lambda m, x: m.classifier(m.pre_classifier(x).relu())),
}


def build(name):
    pieces, kind, make, head = GOLDENS[name]
    config = make()
    config._attn_implementation = "eager"
    model = kind(config).eval()
    randomize(model, 400 + list(GOLDENS).index(name))
    model.tie_weights()
    return model


class Capture:
    """The sites of one model, in the graph, each with the batch dimension 1."""

    def __init__(self, model, pieces):
        self.model, self.p = model, pieces
        self.base = model.base_model
        self.layers = pieces["layers"](self.base)
        self.got, self.attention, self.handles = {}, [], []
        for l, layer in enumerate(self.layers):
            self._hook(f"{l}.layer", layer)
            for part in ("q", "k", "v", "o", "ln1", "pre", "out", "ln2"):
                self._hook(f"{l}.{part}", layer.get_submodule(pieces[part]))
        embeddings = self.base.embeddings
        for part in ("word_embeddings", "position_embeddings", "LayerNorm"):
            self._hook(part, embeddings.get_submodule(part))
        import importlib
        self.module = importlib.import_module(type(model).__module__)
        self.eager = self.module.eager_attention_forward

        def spy(mod, query, key, value, mask, *args, **kwargs):
            assert mask is None or bool((mask == 0).all()), "nothing is masked"
            z, pattern = self.eager(mod, query, key, value, mask, *args, **kwargs)
            scores = query @ key.transpose(2, 3) * kwargs.get("scaling", query.shape[-1] ** -0.5)
            assert torch.allclose(scores.softmax(-1), pattern, atol=2e-6), "pattern"
            self.attention.append(dict(scores=scores, pattern=pattern, z=z))
            return z, pattern

        self.module.eager_attention_forward = spy

    def _hook(self, name, module):
        def hook(_, args, kwargs, output):
            value = args[0] if args else next(iter(kwargs.values()))
            self.got[name] = (value, output[0] if isinstance(output, tuple) else output)
        self.handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def close(self):
        for handle in self.handles:
            handle.remove()
        self.module.eager_attention_forward = self.eager

    def run(self, ids):
        """(output of the model, {site: value [1, T, …]})"""
        self.got.clear()
        self.attention.clear()
        answer = self.model(input_ids=ids[None])
        got, out, p = self.got, {}, self.p
        heads = self.model.config.num_attention_heads
        out["hook_embed"] = got["word_embeddings"][1]
        out["hook_pos_embed"] = got["position_embeddings"][1].expand_as(out["hook_embed"])
        x, y = got["LayerNorm"]
        norm_sites("embed.ln", self.base.embeddings.LayerNorm, x, "layer", p["eps"], 0.0, out, y)
        assert torch.equal(got["0.layer"][0], y)
        for l, layer in enumerate(self.layers):
            b, at = f"blocks.{l}.", self.attention[l]
            out[b + "hook_resid_pre"] = got[f"{l}.layer"][0]
            for letter in "qkv":
                out[b + "attn.hook_" + letter] = got[f"{l}.{letter}"][1].unflatten(-1, (heads, -1))
            out[b + "attn.hook_attn_scores"] = at["scores"]
            out[b + "attn.hook_pattern"] = at["pattern"]
            out[b + "attn.hook_z"] = at["z"]
            o = layer.get_submodule(p["o"])
            result = torch.einsum("bthd,hdm->bthm", at["z"], o.weight.T.reshape(heads, -1, o.weight.shape[0]))
            assert torch.allclose(result.sum(2) + o.bias, got[f"{l}.o"][1], atol=1e-5), "result"
            out[b + "attn.hook_result"] = result
            out[b + "hook_attn_out"] = got[f"{l}.o"][1]
            for norm, before, after in (("ln1", "hook_resid_mid", "hook_normalized_resid_mid"),
                                        ("ln2", "hook_resid_post", "hook_normalized_resid_post")):
                x, y = got[f"{l}.{norm}"]
                out[b + before], out[b + after] = x, y
                norm_sites(b + norm, layer.get_submodule(p[norm]), x, "layer", p["eps"], 0.0, out, y)
            out[b + "mlp.hook_pre"] = got[f"{l}.pre"][1]
            out[b + "mlp.hook_post"] = got[f"{l}.out"][0]
            out[b + "hook_mlp_out"] = got[f"{l}.out"][1]
        return answer, out


def final_norm(model):
    """The norm in front of the words and its epsilon; None without words."""
    for path, eps in (("cls.predictions.transform.LayerNorm", EPS), ("lm_head.layer_norm", EPS),
                      ("vocab_layer_norm", 1e-12)):
        try:
            return model.get_submodule(path), eps
        except AttributeError:
            pass
    return None


def sites_and_logits(capture, head, ids):
    """{site: value [1, T, …]} and, if there is a head, logits [T, d_out]; all in the graph."""
    seen, norm = {}, final_norm(capture.model)
    answer, out = capture.run(ids)
    if head is None:
        return out, None
    if norm is not None:
        handle = norm[0].register_forward_hook(lambda m, args, output: seen.update(norm=(args[0], output)))
    last = out[f"blocks.{len(capture.layers) - 1}.hook_normalized_resid_post"][0]
    logits = head(capture.model, last)
    own = answer.logits[0]  # [T, V], or [labels]
    assert torch.allclose(own, logits if own.dim() == 2 else logits[0], atol=2e-6), "head"
    if norm is not None:
        handle.remove()
        x, y = (v[None] for v in seen["norm"])
        norm_sites("ln_final", norm[0], x, "layer", norm[1], 0.0, out, y)
    return out, logits


def prompts(vocab=96, seed=7):
    """Without id 1, which RoBERTa takes for padding."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, vocab, (n,), generator=generator) for n in PROMPT_LENGTHS]


@torch.no_grad()
def golden_values(model, pieces, head):
    capture, out = Capture(model, pieces), {}
    for i, ids in enumerate(prompts()):
        sites, logits = sites_and_logits(capture, head, ids)
        values = {site: value[0] for site, value in sites.items()}
        if logits is not None:
            values["logits"] = logits
        out[f"p{i}/ids"] = ids.int()
        for site, value in values.items():
            assert value.isfinite().all(), site
            out[f"p{i}/{site}"] = value.float().contiguous().clone()
    capture.close()
    return out


def own_format(model, folder):
    """The BERT classifier as a folder of the project's own family."""
    c = model.config
    heads = c.num_attention_heads
    config = dict(model_type="lamina", n_layers=c.num_hidden_layers, d_model=c.hidden_size, n_heads=heads,
                  d_head=c.hidden_size // heads, d_mlp=c.intermediate_size, d_vocab=c.vocab_size,
                  n_ctx=c.max_position_embeddings, norm="layer", norm_place="post", norm_eps=EPS,
                  causal=False, act="gelu", qkv_bias=True, out_bias=True, mlp_bias=True, n_types=2,
                  embed_norm=True, head="classifier", labels=list(LABELS.values()), head_dense=True,
                  head_act="tanh", head_bias=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    e = model.bert.embeddings
    out = {"embed.W_E": e.word_embeddings.weight, "pos_embed.W_pos": e.position_embeddings.weight,
           "type_embed.W_type": e.token_type_embeddings.weight, "embed.ln.w": e.LayerNorm.weight,
           "embed.ln.b": e.LayerNorm.bias, "head.W": model.bert.pooler.dense.weight.T,
           "head.b": model.bert.pooler.dense.bias, "unembed.W_U": model.classifier.weight.T,
           "unembed.b_U": model.classifier.bias}
    for l, layer in enumerate(model.bert.encoder.layer):
        b, d = f"blocks.{l}.", c.hidden_size
        for letter, part in zip("QKV", "qkv"):
            m = layer.get_submodule(BERT[part])
            out[b + f"attn.W_{letter}"] = m.weight.reshape(heads, -1, d).transpose(1, 2)
            out[b + f"attn.b_{letter}"] = m.bias.reshape(heads, -1)
        o = layer.get_submodule(BERT["o"])
        out[b + "attn.W_O"], out[b + "attn.b_O"] = o.weight.T.reshape(heads, -1, d), o.bias
        for letter, part in (("in", "pre"), ("out", "out")):
            m = layer.get_submodule(BERT[part])
            out[b + f"mlp.W_{letter}"], out[b + f"mlp.b_{letter}"] = m.weight.T, m.bias
        for norm in ("ln1", "ln2"):
            m = layer.get_submodule(BERT[norm])
            out[b + norm + ".w"], out[b + norm + ".b"] = m.weight, m.bias
    save_file({k: v.detach().contiguous().clone() for k, v in out.items()}, folder / "model.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    metadata = {"torch": torch.__version__, "transformers": transformers.__version__}
    for name, (pieces, _, _, head) in GOLDENS.items():
        if args.only and name not in args.only:
            continue
        model = build(name)
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        values = golden_values(model, pieces, head)
        save_file(values, folder / "golden.safetensors", metadata)
        size = sum(p.stat().st_size for p in folder.iterdir())
        print(f"{name}: {len(values)} values, {size / 1000:.0f} kB")
        if name == "bert_classifier":
            folder = HERE / "lamina_classifier"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            own_format(model, folder)
            save_file(values, folder / "golden.safetensors", metadata)


if __name__ == "__main__":
    main()
