"""Makes the golden folders of the canonical family: random models run by TransformerLens.

    python make_canonical.py      needs torch, safetensors, transformer-lens 3 (HookedTransformer
                                  was removed in 4.0)

TransformerLens gives the site names their meaning, so its cached values are taken as they are.
Only what HookedTransformer can run is covered here (post-norm: make_post_norm.py).
"""

import json
import pathlib
import shutil

import torch
import transformer_lens
from safetensors.torch import save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig

HERE = pathlib.Path(__file__).resolve().parent
PROMPT_LENGTHS = (1, 5, 19, 11)
SIZES = dict(n_layers=2, d_model=24, n_heads=4, d_head=8, d_vocab=96, n_ctx=32, device="cpu",
             default_prepend_bos=False, seed=0, init_weights=False)
LN = dict(normalization_type="LN", eps=1e-5)
RMS = dict(normalization_type="RMS", eps=1e-6)
BIASES = dict(qkv_bias=True, out_bias=True, mlp_bias=True, head_bias=True)

# name: (TransformerLens configuration, config.json of lamina)
MODELS = {
    "lamina_attn_only": (dict(attn_only=True, normalization_type=None),
                         dict(norm="none", positions="learned", qkv_bias=True, out_bias=True, head_bias=True)),
    "lamina_relu": (dict(LN, d_mlp=40, act_fn="relu"), dict(norm="layer", d_mlp=40, act="relu", **BIASES)),
    "lamina_solu_ln": (dict(LN, d_mlp=40, act_fn="solu_ln"),
                       dict(norm="layer", d_mlp=40, act="solu_ln", **BIASES)),
    "lamina_bidirectional": (dict(LN, d_mlp=40, act_fn="gelu", attention_dir="bidirectional"),
                             dict(norm="layer", d_mlp=40, act="gelu", causal=False, **BIASES)),
    "lamina_parallel": (
        dict(RMS, d_mlp=40, act_fn="gelu_new", parallel_attn_mlp=True, positional_embedding_type="rotary",
             rotary_dim=4, rotary_adjacent_pairs=True, n_key_value_heads=2, attn_scale=2.0),
        dict(norm="rms", norm_eps=1e-6, d_mlp=40, act="gelu_tanh", parallel=True, positions="rotary",
             rotary_dim=4, rope_style="interleaved", n_kv_heads=2, attn_scale=0.5, **BIASES)),
    "lamina_sandwich": (
        dict(RMS, d_mlp=40, act_fn="silu", gated_mlp=True, use_normalization_before_and_after=True,
             use_qk_norm=True, positional_embedding_type="rotary", rotary_dim=8, rotary_base=500,
             attn_scores_soft_cap=3.0, output_logits_soft_cap=6.0, use_local_attn=True,
             attn_types=["local", "local"], window_size=4),
        dict(norm="rms", norm_place="sandwich", norm_eps=1e-6, d_mlp=40, act="silu", gated=True,
             qk_norm=True, positions="rotary", rotary_dim=8, rope_theta=500.0, attn_softcap=3.0,
             final_softcap=6.0, window=4, **BIASES)),
}
# Cached by TransformerLens, no sites of lamina.
NOT_SITES = ("q_norm.", "k_norm.", "mlp.ln.", "mlp.hook_mid", "unembed.")


def randomize(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            value = torch.randn(p.shape, generator=generator)
            if name.endswith(".w"):
                value = 1.0 + 0.3 * value
            elif ".b" in name:
                value = 0.2 * value
            elif "W_O" in name:
                value = value * 1.2 / (p.shape[0] * p.shape[1]) ** 0.5
            elif not name.startswith(("embed", "pos_embed")):
                value = value * 1.2 / p.shape[-2] ** 0.5
            p.copy_(value)
        # TransformerLens adds a gated MLP's b_in after the product, lamina (like Llama) before it.
        for block in model.blocks:
            if model.cfg.gated_mlp:
                block.mlp.b_in.zero_()


def weights(model, config):
    """The model's tensors under lamina's names, without what this configuration does not have."""
    out = {}
    for name, value in model.state_dict().items():
        name = name.replace("attn._", "attn.")  # grouped keys and values: _W_K
        if name == "unembed.b_U" and not config.get("head_bias"):
            continue
        out[name] = value.contiguous().clone()  # mask and IGNORE buffers stay: lamina must ignore them
    if config.get("gated"):  # TransformerLens' gate has no bias
        for l in range(config["n_layers"]):
            out[f"blocks.{l}.mlp.b_gate"] = torch.zeros(config["d_mlp"])
    return out


def main():
    torch.set_num_threads(1)
    for seed, (name, (tl, lamina)) in enumerate(MODELS.items()):
        model = HookedTransformer(HookedTransformerConfig(**SIZES, **tl)).eval()
        model.set_use_attn_result(True)
        randomize(model, 200 + seed)
        config = dict(model_type="lamina", n_layers=2, d_model=24, n_heads=4, d_head=8, d_vocab=96, n_ctx=32,
                      **lamina)
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(weights(model, config), folder / "model.safetensors")
        generator, out = torch.Generator().manual_seed(7), {}
        for i, length in enumerate(PROMPT_LENGTHS):
            ids = torch.randint(0, 96, (length,), generator=generator)
            with torch.no_grad():
                logits, cache = model.run_with_cache(ids[None], return_type="logits")
            out[f"p{i}/ids"] = ids.int()
            out[f"p{i}/logits"] = logits[0].clone()
            for site, value in cache.items():
                if not any(part in site for part in NOT_SITES):
                    out[f"p{i}/{site}"] = value[0].float().contiguous().clone()
        metadata = {"torch": torch.__version__, "transformer_lens": "HookedTransformer"}
        save_file(out, folder / "golden.safetensors", metadata)
        size = sum(p.stat().st_size for p in folder.iterdir())
        print(f"{name}: {len(out)} values, {size / 1000:.0f} kB, largest |logit| {out['p2/logits'].abs().max():.2f}")


if __name__ == "__main__":
    main()
