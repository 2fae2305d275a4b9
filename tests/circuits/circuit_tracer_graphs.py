"""Writes tests/circuits/graphs/: attribution graphs of tiny models by circuit-tracer itself.

Needs circuit-tracer 0.5.0, transformer-lens 3 (circuit-tracer's older backend), transformers, safetensors, torch:
    pip install circuit-tracer==0.5.0 'transformer-lens<4'
    python tests/circuits/circuit_tracer_graphs.py
The models are those of tests/goldens/; transcoders are random, seeded. What is stored: the transcoders, the adjacency
matrix, and what circuit-tracer's own pruning and scores make of it. Stand-ins: a tokenizer that decodes numbers, and a
constant that newer huggingface_hub versions lack.
"""
import argparse
from pathlib import Path

import huggingface_hub.constants

if not hasattr(huggingface_hub.constants, "HF_HUB_ENABLE_HF_TRANSFER"):
    huggingface_hub.constants.HF_HUB_ENABLE_HF_TRANSFER = False

import torch
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.graph import compute_graph_scores, prune_graph
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
from safetensors.torch import save_file
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import (
    convert_gemma_weights,
    convert_gpt2_weights,
    convert_llama_weights,
)
from transformers import AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
CASES = {  # name: model, input hook, output hook, activation, skip, features kept
    "llama": ("llama2", "mlp.hook_in", "mlp.hook_out", "relu", False, None),
    "llama_skip": ("llama2", "hook_resid_mid", "hook_mlp_out", "topk", True, None),
    "llama_some": ("llama2", "mlp.hook_in", "mlp.hook_out", "relu", False, 40),
    "gemma2": ("gemma2", "ln2.hook_normalized", "hook_mlp_out", "jump_relu", False, None),
    "llama_cross": ("llama2", "hook_resid_mid", "hook_mlp_out", "cross", False, None),
    "gpt2": ("gpt2", "mlp.hook_in", "hook_mlp_out", "relu", False, None),
}
IDS = [7, 21, 3, 58, 90, 11]
FEATURES = 14


def config_of(name, c):
    both = dict(n_layers=3, d_model=24, n_ctx=64, n_heads=4, d_mlp=40, d_vocab=96, device="cpu", seed=0,
                model_name=name, init_weights=False, dtype=torch.float32)
    if name == "gpt2":
        return HookedTransformerConfig(d_head=6, act_fn="gelu_new", eps=c.layer_norm_epsilon, normalization_type="LN",
                                       **both)
    common = dict(d_head=c.head_dim, eps=c.rms_norm_eps, normalization_type="RMS", final_rms=True, gated_mlp=True,
                  positional_embedding_type="rotary", rotary_dim=c.head_dim, rotary_base=10000, **both)
    if name == "llama2":
        return HookedTransformerConfig(act_fn="silu", rotary_adjacent_pairs=False, **common)
    return HookedTransformerConfig(act_fn="gelu_pytorch_tanh", n_key_value_heads=2, attn_scale=5**0.5, window_size=6,
                                   use_local_attn=True, attn_types=["local", "global", "local"],
                                   attn_scores_soft_cap=2.0, output_logits_soft_cap=12.0,
                                   use_normalization_before_and_after=True, **common)


class Numbers:
    """A tokenizer for messages only."""

    bos_token_id = pad_token_id = eos_token_id = None
    all_special_ids = IDS[:1]  # otherwise circuit-tracer puts another token in front
    special_tokens_map = {}
    padding_side = "right"
    vocab_size = 96

    def decode(self, ids, **_):
        return " ".join(map(str, torch.as_tensor(ids).flatten().tolist()))


def random_transcoders(d, kind, skip, generator):
    out = {}
    for layer in range(3):
        activation = {"relu": torch.nn.functional.relu, "topk": TopK(3), "jump_relu": JumpReLU(torch.zeros(FEATURES), 0.1)}
        t = SingleLayerTranscoder(d, FEATURES, activation[kind], layer, skip_connection=skip)
        with torch.no_grad():
            for name, p in t.named_parameters():
                scale = {"W_enc": d**-0.5, "W_dec": d**-0.5, "W_skip": 0.5 * d**-0.5}.get(name, 0.3)
                p.copy_(scale * torch.randn(p.shape, generator=generator))
            if kind == "jump_relu":
                t.activation_function.threshold.abs_()
        out[layer] = t
    return out


def random_cross_layer(d, hook_in, hook_out, generator):
    t = CrossLayerTranscoder(3, FEATURES, d, "jump_relu", lazy_decoder=False, feature_input_hook=hook_in,
                             feature_output_hook=hook_out, scan="test", device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():
        for name, p in t.named_parameters():
            p.copy_((d**-0.5 if "W_" in name else 0.3) * torch.randn(p.shape, generator=generator))
        t.activation_function.threshold.abs_()
    return t


def make(case, folder):
    name, hook_in, hook_out, kind, skip, kept = CASES[case]
    hf = AutoModelForCausalLM.from_pretrained(HERE.parent / "goldens" / name, dtype=torch.float32,
                                              attn_implementation="eager").eval()
    cfg = config_of(name, hf.config)
    convert = {"llama2": convert_llama_weights, "gemma2": convert_gemma_weights, "gpt2": convert_gpt2_weights}[name]
    generator = torch.Generator().manual_seed(sum(map(ord, case)))
    if kind == "cross":
        chosen = random_cross_layer(cfg.d_model, hook_in, hook_out, generator)
    else:
        ts = random_transcoders(cfg.d_model, kind, skip, generator)
        chosen = TranscoderSet(ts, hook_in, hook_out, scan="test")
    model = TransformerLensReplacementModel(cfg, tokenizer=None)
    state = convert(hf, cfg)
    if name == "gpt2" and "unembed.b_U" not in state:
        state["unembed.b_U"] = torch.zeros(cfg.d_vocab)
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert not [k for k in missing if not k.endswith(("mask", "IGNORE", "rotary_sin", "rotary_cos", "b_U"))], missing
    if "unembed.b_U" in missing:
        model.unembed.b_U.data.zero_()
    ids = torch.tensor(IDS)
    with torch.no_grad():
        ours, theirs = model(ids[None])[0], hf(ids[None]).logits[0]
    print(case, "logits off transformers by", (ours - theirs).abs().max().item())
    assert (ours - theirs).abs().max() < 1e-4
    model._configure_replacement_model(chosen)
    model.tokenizer = Numbers()
    graph = attribute(ids, model, batch_size=4 if kept else 64, update_interval=2, max_feature_nodes=kept)
    nodes, edges, cumulative = prune_graph(graph)
    replacement, completeness = compute_graph_scores(graph)
    print(f"  {len(graph.selected_features)} features, {len(graph.logit_targets)} logits, {int(nodes.sum())} nodes and "
          f"{int(edges.sum())} edges pruned, replacement {replacement:.4f}, completeness {completeness:.4f}")
    # Their TopK keeps values below 0 among the k largest, lamina (as SAELens) does not: none here.
    assert (graph.activation_values > 0).all()
    tensors = {
        "ids": ids.int(),
        "features": graph.active_features[graph.selected_features].int(),
        "activations": graph.activation_values[graph.selected_features].float(),
        "adjacency": graph.adjacency_matrix.float(),
        "logit_tokens": torch.tensor([t.vocab_idx for t in graph.logit_targets]).int(),
        "logit_probabilities": graph.logit_probabilities.float(),
        "node_mask": nodes.to(torch.uint8),
        "edge_mask": edges.to(torch.uint8),
        "cumulative": cumulative.float(),
        "scores": torch.tensor([replacement, completeness]),
    }
    for layer in range(3) if kind == "cross" else ():  # tensors as circuit-tracer's own files have them
        tensors |= {f"W_enc_{layer}": chosen.W_enc[layer], f"b_enc_{layer}": chosen.b_enc[layer],
                    f"b_dec_{layer}": chosen.b_dec[layer], f"W_dec_{layer}": chosen.W_dec[layer],
                    f"threshold_{layer}": chosen.activation_function.threshold[layer].squeeze(0)}
    for layer, t in ts.items() if kind != "cross" else ():
        tensors |= {f"{layer}.W_enc": t.W_enc, f"{layer}.b_enc": t.b_enc, f"{layer}.W_dec": t.W_dec,
                    f"{layer}.b_dec": t.b_dec}
        if skip:
            tensors[f"{layer}.W_skip"] = t.W_skip
        if kind == "jump_relu":
            tensors[f"{layer}.threshold"] = t.activation_function.threshold
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, folder / f"{case}.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "graphs")
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    for case in CASES:
        make(case, args.out)


if __name__ == "__main__":
    main()
