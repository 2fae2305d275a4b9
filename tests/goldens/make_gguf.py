"""Makes the GGUF golden folders: tiny random models written as llama.cpp's converter would.

    python make_gguf.py [--only NAME...]      needs torch, transformers >= 5, gguf, safetensors

Each folder holds model.gguf and golden.safetensors (ids, logits, and the sites in SITES). What the
converter does to weights is repeated here: Llama's q and k rows are interleaved, Gemma's norm weights
contain the + 1, GPT-NeoX' fused q, k, v are regrouped, Conv1D is transposed, llama3 scaling becomes a
tensor of frequency divisors. Where transformers can load the file itself, its logits are the
reference (marked "loader" in the output); otherwise those of the model the file was written from.
"""

import argparse
import pathlib
import re
import shutil

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from capture import Capture
from make_goldens import GEMMA, GEMMA2, GPT2, HERE, LLAMA, NEOX, build, prompts

SITES = re.compile(r"ids|logits|blocks\.\d+\.hook_resid_post|blocks\.[01]\.attn\.hook_(q|k|rot_q)")
T = transformers
SMALL = dict(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
             num_attention_heads=4, max_position_embeddings=64)
LLAMA_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down"}
SANDWICH_NAMES = dict(LLAMA_NAMES, post_attention_layernorm="post_attention_norm",
                      pre_feedforward_layernorm="ffn_norm", post_feedforward_layernorm="post_ffw_norm")
GPT2_NAMES = {
    "transformer.wte.weight": "token_embd.weight", "transformer.wpe.weight": "position_embd.weight",
    "transformer.ln_f.weight": "output_norm.weight", "transformer.ln_f.bias": "output_norm.bias",
    "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
NEOX_NAMES = {
    "gpt_neox.embed_in.weight": "token_embd.weight", "lm_head.weight": "output.weight",
    "gpt_neox.final_layer_norm.weight": "output_norm.weight",
    "gpt_neox.final_layer_norm.bias": "output_norm.bias", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output", "mlp.dense_h_to_4h": "ffn_up", "mlp.dense_4h_to_h": "ffn_down"}

# name: (architecture, capture table, names, quantisation, transformers can load it, configuration)
Q8 = gguf.GGMLQuantizationType.Q8_0
F32 = gguf.GGMLQuantizationType.F32
MODELS = {
    "gguf_llama": ("llama", LLAMA, LLAMA_NAMES, Q8, True,
                   lambda: T.LlamaConfig(**SMALL, num_key_value_heads=2, rope_theta=1000.0)),
    "gguf_llama3": ("llama", LLAMA, LLAMA_NAMES, F32, False, lambda: T.LlamaConfig(
        **SMALL, num_key_value_heads=2, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
        rope_parameters=dict(rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=63))),
    "gguf_qwen2": ("qwen2", LLAMA, LLAMA_NAMES, F32, True,
                   lambda: T.Qwen2Config(**SMALL, num_key_value_heads=2)),
    "gguf_qwen3": ("qwen3", LLAMA, LLAMA_NAMES, F32, False,
                   lambda: T.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16)),
    "gguf_gemma": ("gemma", GEMMA, LLAMA_NAMES, F32, False,
                   lambda: T.GemmaConfig(**SMALL, num_key_value_heads=1, head_dim=16)),
    # transformers' loader leaves the scale and caps at their defaults: heads of 256, caps 50 and 30.
    "gguf_gemma2": ("gemma2", GEMMA2, SANDWICH_NAMES, Q8, True, lambda: T.Gemma2Config(
        **dict(SMALL, num_attention_heads=2), num_key_value_heads=1, head_dim=256, sliding_window=6)),
    "gguf_gemma3": ("gemma3", GEMMA2, SANDWICH_NAMES, Q8, True, lambda: T.Gemma3TextConfig(
        **dict(SMALL, num_attention_heads=2, num_hidden_layers=7), num_key_value_heads=1, head_dim=256,
        sliding_window=6)),
    "gguf_gpt2": ("gpt2", GPT2, GPT2_NAMES, F32, False, lambda: T.GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "gguf_gptneox": ("gptneox", dict(NEOX, parallel=True), NEOX_NAMES, F32, False,
                     lambda: T.GPTNeoXConfig(**SMALL)),
}


def gguf_name(name, names):
    if name in names:
        return names[name]
    match = re.fullmatch(r"(?:model|transformer|gpt_neox)\.(?:layers|h)\.(\d+)\.(.*)\.(weight|bias)", name)
    return f"blk.{match[1]}.{names[match[2]]}.{match[3]}"


def converted(arch, name, value, c):
    """What convert_hf_to_gguf does to one tensor."""
    if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
        heads = c.num_attention_heads if ".q_proj." in name else c.num_key_value_heads
        rest = value.shape[1:]
        value = value.reshape(heads, 2, value.shape[0] // heads // 2, *rest).swapaxes(1, 2)
        return value.reshape(-1, *rest)
    if arch.startswith("gemma") and name.endswith("norm.weight"):
        return value + 1.0
    if arch == "gpt2" and value.ndim == 2 and "wte" not in name and "wpe" not in name:
        return value.T
    if arch == "gptneox" and "query_key_value" in name:
        rest = value.shape[1:]
        return np.concatenate([part.reshape(-1, *rest) for part in np.split(
            value.reshape(c.num_attention_heads, 3, -1, *rest), 3, axis=1)])
    return value


def write(path, arch, model, names, kind):
    c, w = model.config, gguf.GGUFWriter(path, arch)
    w.add_name(f"tiny random {arch}")
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(4 * c.hidden_size if arch == "gpt2" else c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_vocab_size(c.vocab_size)
    if arch == "gpt2":
        w.add_layer_norm_eps(c.layer_norm_epsilon)
    elif arch == "gptneox":
        w.add_layer_norm_eps(c.layer_norm_eps)
        w.add_parallel_residual(c.use_parallel_residual)
        w.add_rope_dimension_count(int(c.rope_parameters["partial_rotary_factor"] * c.hidden_size) //
                                   c.num_attention_heads)
    else:
        d_head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        w.add_head_count_kv(c.num_key_value_heads)
        w.add_layer_norm_rms_eps(c.rms_norm_eps)
        rope = c.rope_parameters.get("full_attention", c.rope_parameters)
        w.add_rope_freq_base(rope["rope_theta"])
        if arch in ("llama",):
            w.add_rope_dimension_count(d_head)
        else:
            w.add_key_length(d_head)
            w.add_value_length(d_head)
        if arch in ("gemma2", "gemma3"):
            w.add_sliding_window(c.sliding_window)
        if arch == "gemma2":
            w.add_attn_logit_softcapping(c.attn_logit_softcapping)
            w.add_final_logit_softcapping(c.final_logit_softcapping)
        if rope["rope_type"] == "llama3":
            plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, d_head, 2).float() / d_head)
            w.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy())
    tied = c.tie_word_embeddings
    for name, value in model.named_parameters():
        if tied and name in ("lm_head.weight", "embed_out.weight"):
            continue
        value = np.ascontiguousarray(converted(arch, name, value.detach().numpy(), c), dtype=np.float32)
        quantise = kind if value.ndim == 2 and value.shape[-1] % 32 == 0 else F32
        data = gguf.quants.quantize(value, quantise) if quantise != F32 else value
        w.add_tensor(gguf_name(name, names), data, raw_dtype=quantise)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed, (name, (arch, family, names, kind, loadable, make)) in enumerate(MODELS.items()):
        if args.only and name not in args.only:
            continue
        model = build(make(), 300 + seed, family.get("offset", 0.0))
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write(folder / "model.gguf", arch, model, names, kind)
        note = "written model"
        if loadable:
            loaded = T.AutoModelForCausalLM.from_pretrained(
                folder, gguf_file="model.gguf", dtype=torch.float32, attn_implementation="eager").eval()
            ids = torch.tensor([prompts(96)[2]])
            with torch.no_grad():
                a, b = model(ids).logits, loaded(ids).logits
            note = f"loader (differs from the written model by {(a - b).abs().max() / a.abs().max():.1e})"
            model = loaded
        capture, values = Capture(model, family), {}
        for i, ids in enumerate(prompts(model.config.vocab_size)):
            values[f"p{i}/ids"] = torch.tensor(ids, dtype=torch.int32)
            for site, value in capture.run(ids).items():
                if SITES.fullmatch(site):
                    values[f"p{i}/{site}"] = value
        capture.close()
        save_file(values, folder / "golden.safetensors", {"reference": note})
        size = sum(p.stat().st_size for p in folder.iterdir())
        print(f"{name}: {size / 1000:.0f} kB, reference: {note}")


if __name__ == "__main__":
    main()
