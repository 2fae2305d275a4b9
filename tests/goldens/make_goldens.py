"""Makes the golden folders of tests/goldens: tiny random models of every family and what
transformers computes with them.

    python make_goldens.py [--only NAME...]     needs torch, transformers >= 5, safetensors

A golden folder holds config.json and model.safetensors as transformers writes them, and
golden.safetensors: "p{i}/ids" (int32), "p{i}/{site}" and "p{i}/logits" for a few prompts of different
lengths, each computed alone, fp32, eager attention. Weights are drawn from a fixed seed; biases and
norm weights are far from their usual 0 and 1, so that a forgotten one shows.
"""

import argparse
import pathlib
import shutil

import torch
import transformers
from safetensors.torch import save_file

from capture import Capture

HERE = pathlib.Path(__file__).resolve().parent
PROMPT_LENGTHS = (1, 5, 19, 11)


def split_projections(got, l, heads, kv):
    """q, k, v [1, T, heads, d] of families with one matrix each."""
    cut = lambda x, n: x.view(*x.shape[:2], n, -1)
    return cut(got[f"{l}.q"][1], heads), cut(got[f"{l}.k"][1], kv), cut(got[f"{l}.v"][1], kv)


def gpt2_qkv(got, l, heads, kv):
    parts = got[f"{l}.qkv"][1].chunk(3, -1)
    return tuple(x.view(*x.shape[:2], heads, -1) for x in parts)


def neox_qkv(got, l, heads, kv):
    x = got[f"{l}.qkv"][1]
    return x.view(*x.shape[:2], heads, -1).chunk(3, -1)


LLAMA = dict(
    base=lambda m: m.model, layers=lambda b: b.layers, embed="embed_tokens", ln_final="norm",
    norm="rms", eps=lambda c: c.rms_norm_eps, norms=("ln1", "ln2"),
    projections=("q", "k", "v", "o", "gate", "in", "out"),
    paths=dict(attn="self_attn", mlp="mlp", ln1="input_layernorm", ln2="post_attention_layernorm",
               q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj", o="self_attn.o_proj",
               gate="mlp.gate_proj", out="mlp.down_proj", **{"in": "mlp.up_proj"}),
    heads=lambda c: (c.num_attention_heads, c.num_key_value_heads), qkv=split_projections,
    w_o=lambda m: m.weight.T)
GEMMA = dict(LLAMA, offset=1.0)
GEMMA2 = dict(GEMMA, norms=("ln1", "ln1_post", "ln2", "ln2_post"),
              paths=dict(LLAMA["paths"], ln1_post="post_attention_layernorm",
                         ln2="pre_feedforward_layernorm", ln2_post="post_feedforward_layernorm"))
GPT2 = dict(
    base=lambda m: m.transformer, layers=lambda b: b.h, embed="wte", pos_embed="wpe", ln_final="ln_f",
    norm="layer", eps=lambda c: c.layer_norm_epsilon, norms=("ln1", "ln2"), rotary=False,
    projections=("qkv", "o", "in", "out"),
    paths=dict(attn="attn", mlp="mlp", ln1="ln_1", ln2="ln_2", qkv="attn.c_attn", o="attn.c_proj",
               out="mlp.c_proj", **{"in": "mlp.c_fc"}),
    heads=lambda c: (c.n_head, c.n_head), qkv=gpt2_qkv, w_o=lambda m: m.weight)
NEOX = dict(
    base=lambda m: m.gpt_neox, layers=lambda b: b.layers, embed="embed_in", ln_final="final_layer_norm",
    norm="layer", eps=lambda c: c.layer_norm_eps, norms=("ln1", "ln2"),
    projections=("qkv", "o", "in", "out"),
    paths=dict(attn="attention", mlp="mlp", ln1="input_layernorm", ln2="post_attention_layernorm",
               qkv="attention.query_key_value", o="attention.dense", out="mlp.dense_4h_to_h",
               **{"in": "mlp.dense_h_to_4h"}),
    heads=lambda c: (c.num_attention_heads,) * 2, qkv=neox_qkv, w_o=lambda m: m.weight.T)

SMALL = dict(vocab_size=96, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
             num_attention_heads=4, max_position_embeddings=64)
T = transformers
# name: (capture table, configuration)
GOLDENS = {
    "gpt2": (GPT2, lambda: T.GPT2Config(vocab_size=96, n_embd=24, n_layer=3, n_head=4, n_positions=64,
                                        n_inner=40)),
    "gpt_neox": (dict(NEOX, parallel=True),
                 lambda: T.GPTNeoXConfig(**dict(SMALL, hidden_size=32),
                                         rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                                              partial_rotary_factor=0.5))),
    "gpt_neox_sequential": (NEOX, lambda: T.GPTNeoXConfig(**dict(SMALL, hidden_size=32, num_hidden_layers=2),
                                                          use_parallel_residual=False, hidden_act="gelu_new",
                                                          tie_word_embeddings=True)),
    "llama2": (LLAMA, lambda: T.LlamaConfig(**SMALL, rms_norm_eps=1e-5)),
    # Context 64 and θ 100: of the four frequencies one is kept, two are blended, one is divided.
    "llama3": (LLAMA, lambda: T.LlamaConfig(
        **SMALL, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, attention_bias=True,
        mlp_bias=True, rope_parameters=dict(rope_type="llama3", rope_theta=100.0, factor=8.0,
                                            low_freq_factor=1.0, high_freq_factor=4.0,
                                            original_max_position_embeddings=63))),
    "llama_linear": (LLAMA, lambda: T.LlamaConfig(
        **dict(SMALL, num_hidden_layers=2), num_key_value_heads=1,
        rope_parameters=dict(rope_type="linear", rope_theta=500.0, factor=4.0))),
    "mistral": (LLAMA, lambda: T.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=6)),
    "qwen2": (LLAMA, lambda: T.Qwen2Config(**SMALL, num_key_value_heads=2, use_sliding_window=True,
                                           sliding_window=5, max_window_layers=1,
                                           tie_word_embeddings=True)),
    "qwen3": (LLAMA, lambda: T.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8)),
    "gemma": (GEMMA, lambda: T.GemmaConfig(**SMALL, num_key_value_heads=1, head_dim=8)),
    # Soft-caps low enough to bend these scores and logits.
    "gemma2": (GEMMA2, lambda: T.Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8,
                                              query_pre_attn_scalar=5, sliding_window=6,
                                              attn_logit_softcapping=2.0, final_logit_softcapping=12.0)),
    "gemma3": (GEMMA2, lambda: T.Gemma3TextConfig(
        **dict(SMALL, num_hidden_layers=4), num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=6,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        rope_parameters=dict(
            full_attention=dict(rope_type="linear", rope_theta=1000.0, factor=8.0),
            sliding_attention=dict(rope_type="default", rope_theta=100.0)))),
}


def randomize(model, seed, offset=0.0):
    """Draws every parameter: matrices ~ N(0, 1/inputs), embeddings ~ N(0, 1), norm weights around 1
    (around 1 − offset in the file), biases ~ N(0, 0.2)."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda p: torch.randn(p.shape, generator=generator)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    conv1d = {id(m.weight) for m in model.modules() if type(m).__name__ == "Conv1D"}
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if id(p) in embeddings:
                p.copy_(0.5 * draw(p) if model.config.model_type.startswith("gemma") else draw(p))
            elif p.dim() == 2:
                inputs = p.shape[0] if id(p) in conv1d else p.shape[1]
                p.copy_(draw(p) * 1.2 / inputs**0.5)
            elif name.endswith("bias"):
                p.copy_(0.2 * draw(p))
            else:
                p.copy_(1.0 - offset + 0.3 * draw(p))


def prompts(vocab, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocab, (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]


def golden_values(model, family, vocab):
    """All "p{i}/…" tensors."""
    capture, out = Capture(model, family), {}
    for i, ids in enumerate(prompts(vocab)):
        out[f"p{i}/ids"] = torch.tensor(ids, dtype=torch.int32)
        for site, value in capture.run(ids).items():
            assert not torch.isnan(value).any(), site
            out[f"p{i}/{site}"] = value
    capture.close()
    return out


def build(config, seed, offset):
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    assert model.config._attn_implementation == "eager"
    randomize(model, seed, offset)
    model.tie_weights()
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed, (name, (family, make)) in enumerate(GOLDENS.items()):
        if args.only and name not in args.only:
            continue
        model = build(make(), 100 + seed, family.get("offset", 0.0))
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        values = golden_values(model, family, model.config.vocab_size)
        metadata = {"torch": torch.__version__, "transformers": transformers.__version__}
        save_file(values, folder / "golden.safetensors", metadata)
        size = sum(p.stat().st_size for p in folder.iterdir())
        print(f"{name}: {len(values)} values, {size / 1000:.0f} kB, "
              f"largest |logit| {values['p2/logits'].abs().max():.2f}")


if __name__ == "__main__":
    main()
