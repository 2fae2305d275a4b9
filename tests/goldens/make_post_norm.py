"""Makes the golden folder of the post-norm placement: a random BERT encoder of transformers.

    python make_post_norm.py      needs torch, safetensors, transformers

HookedTransformer has no post-norm, so BertEncoder is the reference: norms after each residual
addition, attention in both directions. The encoder runs on W_E[ids] + W_pos[positions]; the logits
are its output times W_U. Nothing is masked, since each prompt is run alone.
"""

import json
import pathlib
import shutil

import torch
import transformers
from safetensors.torch import save_file
from transformers import BertConfig
from transformers.models.bert import modeling_bert

from capture import norm_sites

HERE = pathlib.Path(__file__).resolve().parent
PROMPT_LENGTHS = (1, 5, 19, 11)
LAYERS, D, HEADS, D_HEAD, D_MLP, VOCAB, CTX = 2, 24, 3, 8, 40, 96, 32
EPS = 1e-3  # large enough to be felt

# Whose output is which site.
PROJECTIONS = {
    "attn.hook_q": "attention.self.query",
    "attn.hook_k": "attention.self.key",
    "attn.hook_v": "attention.self.value",
    "hook_attn_out": "attention.output.dense",
    "mlp.hook_pre": "intermediate.dense",
    "mlp.hook_post": "intermediate",
    "hook_mlp_out": "output.dense",
}
# Each norm and the sites of its input, the stream after an addition, and of its output.
NORMS = {
    "ln1": ("attention.output.LayerNorm", "hook_resid_mid", "hook_normalized_resid_mid"),
    "ln2": ("output.LayerNorm", "hook_resid_post", "hook_normalized_resid_post"),
}


def make_encoder():
    config = BertConfig(hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                        intermediate_size=D_MLP, hidden_act="gelu", layer_norm_eps=EPS, vocab_size=VOCAB,
                        max_position_embeddings=CTX)
    config._attn_implementation = "eager"
    encoder = modeling_bert.BertEncoder(config).eval()
    generator = torch.Generator().manual_seed(300)
    with torch.no_grad():
        for name, p in sorted(encoder.named_parameters()):
            value = torch.randn(p.shape, generator=generator)
            if name.endswith("bias"):
                value = 0.2 * value
            elif "LayerNorm" in name:
                value = 1.0 + 0.3 * value
            else:
                value = value * 1.2 / p.shape[1] ** 0.5
            p.copy_(value)
    ends = {"embed.W_E": torch.randn(VOCAB, D, generator=generator),
            "pos_embed.W_pos": torch.randn(CTX, D, generator=generator),
            "unembed.W_U": torch.randn(D, VOCAB, generator=generator) * 1.2 / D**0.5}
    return encoder, ends


def output_matrix(layer):
    """W_O [head, d_head, d_model]."""
    return layer.attention.output.dense.weight.T.reshape(HEADS, D_HEAD, D)


def weights(encoder, ends):
    """The tensors under lamina's names; torch's Linear keeps [out, in]."""
    out = dict(ends)
    for l, layer in enumerate(encoder.layer):
        block, attention = f"blocks.{l}.", layer.attention
        for letter, part in zip("QKV", (attention.self.query, attention.self.key, attention.self.value)):
            out[block + f"attn.W_{letter}"] = part.weight.reshape(HEADS, D_HEAD, D).transpose(1, 2)
            out[block + f"attn.b_{letter}"] = part.bias.reshape(HEADS, D_HEAD)
        out[block + "attn.W_O"] = output_matrix(layer)
        out[block + "attn.b_O"] = attention.output.dense.bias
        for letter, part in (("in", layer.intermediate.dense), ("out", layer.output.dense)):
            out[block + f"mlp.W_{letter}"] = part.weight.T
            out[block + f"mlp.b_{letter}"] = part.bias
        for name, (path, *_) in NORMS.items():
            norm = layer.get_submodule(path)
            out[block + name + ".w"], out[block + name + ".b"] = norm.weight, norm.bias
    return {name: value.detach().contiguous().clone() for name, value in out.items()}


class Capture:
    """Sites of one pass in `sites`, [1, T, …]; attention's inside is seen through its function."""

    def __init__(self, encoder):
        self.sites, self.attention = {}, []
        for l, layer in enumerate(encoder.layer):
            block = f"blocks.{l}."
            layer.register_forward_hook(self._input(block + "hook_resid_pre"))
            for site, path in PROJECTIONS.items():
                layer.get_submodule(path).register_forward_hook(self._output(block + site))
            for name, (path, *ends) in NORMS.items():
                layer.get_submodule(path).register_forward_hook(self._norm(block, name, ends))
        eager = modeling_bert.eager_attention_forward

        def spy(module, query, key, value, mask, scaling, **kwargs):
            assert mask is None
            z, pattern = eager(module, query, key, value, mask, scaling=scaling, **kwargs)
            scores = query @ key.transpose(2, 3) * scaling
            assert torch.allclose(scores.softmax(-1), pattern, atol=2e-6)
            self.attention.append({"hook_attn_scores": scores, "hook_pattern": pattern, "hook_z": z})
            return z, pattern

        modeling_bert.eager_attention_forward = spy

    def _input(self, site):
        def hook(_, args, output):
            self.sites[site] = args[0]
        return hook

    def _output(self, site):
        heads = site.endswith(("hook_q", "hook_k", "hook_v"))

        def hook(_, args, output):
            self.sites[site] = output.unflatten(-1, (HEADS, D_HEAD)) if heads else output
        return hook

    def _norm(self, block, name, ends):
        def hook(module, args, output):
            self.sites[block + ends[0]], self.sites[block + ends[1]] = args[0], output
            norm_sites(block + name, module, args[0], "layer", EPS, 0.0, self.sites, output)
        return hook


def run(encoder, ends, capture, ids):
    """All sites and the logits of one prompt, without the batch dimension."""
    capture.sites, capture.attention = {}, []
    embed, pos_embed = ends["embed.W_E"][ids], ends["pos_embed.W_pos"][: len(ids)]
    last = encoder((embed + pos_embed)[None]).last_hidden_state
    out = {"hook_embed": embed, "hook_pos_embed": pos_embed, "logits": last[0] @ ends["unembed.W_U"]}
    for l, (layer, inside) in enumerate(zip(encoder.layer, capture.attention, strict=True)):
        for site, value in inside.items():
            capture.sites[f"blocks.{l}.attn.{site}"] = value
        result = torch.einsum("bthd,hdm->bthm", inside["hook_z"], output_matrix(layer))
        total = result.sum(2) + layer.attention.output.dense.bias
        assert torch.allclose(total, capture.sites[f"blocks.{l}.hook_attn_out"], atol=2e-6)
        capture.sites[f"blocks.{l}.attn.hook_result"] = result
    out.update((site, value[0]) for site, value in capture.sites.items())
    return out


def main():
    torch.set_num_threads(1)
    encoder, ends = make_encoder()
    folder = HERE / "lamina_post"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = dict(model_type="lamina", n_layers=LAYERS, d_model=D, n_heads=HEADS, d_head=D_HEAD,
                  d_vocab=VOCAB, n_ctx=CTX, norm="layer", norm_place="post", norm_eps=EPS,
                  final_norm=False, positions="learned", causal=False, d_mlp=D_MLP, act="gelu",
                  qkv_bias=True, out_bias=True, mlp_bias=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(weights(encoder, ends), folder / "model.safetensors")
    capture, out = Capture(encoder), {}
    generator = torch.Generator().manual_seed(7)
    for i, length in enumerate(PROMPT_LENGTHS):
        ids = torch.randint(0, VOCAB, (length,), generator=generator)
        with torch.no_grad():
            sites = run(encoder, ends, capture, ids)
        out[f"p{i}/ids"] = ids.int()
        for site, value in sites.items():
            out[f"p{i}/{site}"] = value.float().contiguous().clone()
    save_file(out, folder / "golden.safetensors",
              {"torch": torch.__version__, "transformers": transformers.__version__})
    size = sum(p.stat().st_size for p in folder.iterdir())
    print(f"lamina_post: {len(out)} values, {size / 1000:.0f} kB, "
          f"largest |logit| {out['p2/logits'].abs().max():.2f}")


if __name__ == "__main__":
    main()
