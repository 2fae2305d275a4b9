"""Goldens of exact patching from TransformerLens' `patching` functions: patching.safetensors.

    python make_patching_goldens.py      needs torch, safetensors, transformer-lens 2 or 3
                                         (HookedTransformer was removed in 4.0)

The models are the golden models of the canonical family in tests/goldens (their weights are read
from there), the prompts random. Each array is the metric (logit of the correct minus logit of the
wrong answer, mean over the pairs) after denoising: corrupted tokens run, clean values put in.
"""

import json
import pathlib

import torch
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig, patching

HERE = pathlib.Path(__file__).resolve().parent
GOLDENS = HERE.parent / "goldens"
MODELS = ("lamina_relu", "lamina_parallel", "lamina_sandwich", "lamina_attn_only")
PAIRS, TOKENS = 3, 8
# Array name: TransformerLens' function, and the order of its result's dimensions.
SWEEPS = {
    "resid_pre": (patching.get_act_patch_resid_pre, "layer, position"),
    "resid_mid": (patching.get_act_patch_resid_mid, "layer, position"),
    "attn_out": (patching.get_act_patch_attn_out, "layer, position"),
    "mlp_out": (patching.get_act_patch_mlp_out, "layer, position"),
    "z": (patching.get_act_patch_attn_head_out_all_pos, "layer, head"),
    "q": (patching.get_act_patch_attn_head_q_all_pos, "layer, head"),
    "k": (patching.get_act_patch_attn_head_k_all_pos, "layer, head"),
    "v": (patching.get_act_patch_attn_head_v_all_pos, "layer, head"),
    "pattern": (patching.get_act_patch_attn_head_pattern_all_pos, "layer, head"),
    "z_by_pos": (patching.get_act_patch_attn_head_out_by_pos, "layer, position, head"),
    "q_by_pos": (patching.get_act_patch_attn_head_q_by_pos, "layer, position, head"),
    "pattern_by_pos": (patching.get_act_patch_attn_head_pattern_by_pos, "layer, head, position"),
}


def load(name):
    """The HookedTransformer of a golden folder: make_canonical.py wrote its weights as they are."""
    import sys

    sys.path.insert(0, str(GOLDENS))
    import make_canonical

    tl, _ = make_canonical.MODELS[name]
    model = HookedTransformer(HookedTransformerConfig(**make_canonical.SIZES, **tl)).eval()
    state = dict(model.state_dict())
    for key, value in load_file(GOLDENS / name / "model.safetensors").items():
        for candidate in (key, key.replace("attn.W_K", "attn._W_K").replace("attn.W_V", "attn._W_V")
                          .replace("attn.b_K", "attn._b_K").replace("attn.b_V", "attn._b_V")):
            if candidate in state and state[candidate].shape == value.shape:
                state[candidate] = value
    model.load_state_dict(state)
    golden = load_file(GOLDENS / name / "golden.safetensors")
    with torch.no_grad():  # the weights are really those of the golden folder
        difference = (model(golden["p2/ids"].long()[None])[0] - golden["p2/logits"]).abs().max()
    assert difference < 1e-5, (name, difference)
    return model


def main():
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    out = {}
    for seed, name in enumerate(MODELS):
        model = load(name)
        generator = torch.Generator().manual_seed(seed)
        clean = torch.randint(0, 96, (PAIRS, TOKENS), generator=generator)
        corrupted = clean.clone()
        corrupted[:, 2] = (clean[:, 2] + 11) % 96
        corrupted[0, 5] = (clean[0, 5] + 5) % 96
        # The answers that tell the two prompts apart most, so that the metric has a range.
        change = model(clean)[:, -1] - model(corrupted)[:, -1]
        answers = torch.stack([change.argmax(-1), change.argmin(-1)], -1)

        def metric(logits):
            last = logits[:, -1]
            rows = torch.arange(PAIRS)
            return (last[rows, answers[:, 0]] - last[rows, answers[:, 1]]).mean()

        _, cache = model.run_with_cache(clean)
        out[f"{name}/clean_ids"], out[f"{name}/corrupted_ids"] = clean.int(), corrupted.int()
        out[f"{name}/answers"] = answers.int()
        out[f"{name}/metric"] = torch.stack([metric(model(clean)), metric(model(corrupted))]).float()
        for site, (function, _) in SWEEPS.items():
            if name == "lamina_attn_only" and site in ("mlp_out", "resid_mid"):
                continue
            if name == "lamina_parallel" and site == "resid_mid":
                continue
            if model.cfg.n_key_value_heads and site in ("k", "v"):
                continue  # TransformerLens counts query heads there
            out[f"{name}/{site}"] = function(model, corrupted, cache, metric).float().contiguous()
        print(name, {k.split("/")[1]: tuple(v.shape) for k, v in out.items() if k.startswith(name)})
    metadata = {"torch": torch.__version__, "dims": json.dumps({s: d for s, (_, d) in SWEEPS.items()})}
    save_file(out, HERE / "goldens" / "patching.safetensors", metadata)


if __name__ == "__main__":
    main()
