"""Makes tests/feature_paths/goldens/: what the released code of the transcoder paper computes on a tiny GPT-2.

    python make_author_goldens.py CHECKOUT     CHECKOUT: a clone of github.com/jacobdunefsky/transcoder_circuits

Needs torch, transformers, transformer-lens (2.16 was used), einops, jaxtyping, safetensors. Their modules for plots, tables and
logging (plotly, matplotlib, IPython, wandb) are replaced by stand-ins; all numbers come from their functions, except the logit
direction's norm constant, which their functions leave to the caller.

The model is tests/goldens/gpt2, loaded as their notebooks load theirs (LayerNorm folded, writing weights centred, unembedding
centred, value biases folded), in double precision. Transcoders are random, seeded; their decoder rows and output
biases have mean 0, because in such a model nothing reads the mean (their functions would count it, the model and lamina do not).
The greedy search runs with do_raw_attribution (no cap at activations).

    transcoders.safetensors   W_enc [D, F], b_enc, W_dec [F, D], b_dec (subtracted), b_dec_out of layers 0 to 2
    expected.json             weights: de-embeddings, OV norms, pulled-back features, logits;
                              prompt: what each part contributes to roots; paths by length
"""
import argparse
import importlib.machinery
import json
import pathlib
import sys
import types
from unittest.mock import MagicMock

import numpy as np
import torch

for name in ["plotly", "plotly.graph_objs", "matplotlib", "matplotlib.pyplot", "IPython", "IPython.display", "wandb", "datasets",
             "datasets.arrow_dataset", "datasets.load"]:
    sys.modules[name] = MagicMock(__spec__=None)
sys.modules["IPython.display"].HTML = str

for name in ["wandb", "datasets", "matplotlib"]:  # others look whether these are there
    sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformer_lens import HookedTransformer, HookedTransformerConfig  # noqa: E402
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
IDS = [7, 21, 3, 58, 90, 11, 40]
FEATURES, LAYERS = 20, 3
LOGITS = (17, 52)  # a token and the one it is set against
BRANCHES, ITERATIONS = 4, 3


def load_model():
    hf = transformers.AutoModelForCausalLM.from_pretrained(HERE.parent / "goldens/gpt2").double()
    c = hf.config
    config = HookedTransformerConfig(
        n_layers=c.n_layer, d_model=c.n_embd, n_ctx=c.n_positions, n_heads=c.n_head, d_head=c.n_embd // c.n_head, d_mlp=c.n_inner,
        d_vocab=c.vocab_size, act_fn="gelu_new", eps=c.layer_norm_epsilon, normalization_type="LNPre", device="cpu", seed=0,
        init_weights=False, dtype=torch.float64)
    model = HookedTransformer(config)
    model.load_and_process_state_dict(convert_gpt2_weights(hf, config), fold_ln=True, center_writing_weights=True,
                                      center_unembed=True, fold_value_biases=True)
    model.to_str_tokens = lambda ids: [str(int(i)) for i in np.ravel(ids)]
    ours, theirs = model(torch.tensor([IDS])), hf(torch.tensor([IDS])).logits
    ours, theirs = (x - x.mean(-1, keepdim=True) for x in (ours, theirs))
    assert torch.allclose(ours, theirs, atol=1e-9)
    return model.eval()


def load_transcoders(cls, d):
    generator = torch.Generator().manual_seed(5)
    out, weights = [], {}
    for layer in range(LAYERS):
        cfg = types.SimpleNamespace(
            d_in=d, d_sae=FEATURES, d_out=d, dtype=torch.float64, device="cpu", l1_coefficient=0.0, is_transcoder=True,
            is_sparse_connection=False, use_ghost_grads=False, hook_point=f"blocks.{layer}.ln2.hook_normalized",
            hook_point_layer=layer, out_hook_point=f"blocks.{layer}.hook_mlp_out", out_hook_point_layer=layer)
        tc = cls(cfg).eval()
        with torch.no_grad():
            for name, scale in [("W_enc", d ** -0.5), ("b_enc", 0.3), ("W_dec", 0.5), ("b_dec", 0.2), ("b_dec_out", 0.2)]:
                p = getattr(tc, name)
                value = scale * torch.randn(p.shape, generator=generator, dtype=torch.float64)
                if name in ("W_dec", "b_dec_out"):
                    value -= value.mean(-1, keepdim=True)
                value = value.float()
                weights[f"{layer}.{name}"] = value.clone()
                p.copy_(value.double())
        out.append(tc)
    return out, weights


def name_of(vector):
    component, at = vector.component_path[-1], vector.token
    kind = component.component_type.value
    if kind == "attn":
        return f"a{component.layer}.h{component.attn_head}@{at}"
    return f"token@{at}" if kind == "embed" else f"{component.layer}.{component.feature_idx}@{at}"


def numbers(x):
    return [float(v) for v in torch.as_tensor(x).flatten()]


def root_expected(ca, model, tcs, cache, root, spare):
    """Parts and paths of a root. `spare`: their search scales the vector of a feature by the norm constant itself."""
    scaled = root
    if spare:
        scaled = ca.copy.deepcopy(root)
        scaled.vector = scaled.vector * ca.get_ln_constant(model, cache, root.vector, root.layer, root.token, is_ln2=True)
    layers = root.layer + (1 if root.sublayer == "resid_post" else 0)
    attention_layers = root.layer + 1
    parts = {}
    for layer in range(layers):
        ixg, active = ca.get_transcoder_ixg(tcs[layer], cache, scaled.vector, layer, root.token)
        for f in np.flatnonzero(active):
            parts[f"{layer}.{f}@{root.token}"] = float(ixg[f])
    for layer in range(attention_layers):
        contribs = ca.get_attn_head_contribs(model, cache, layer, scaled.vector)[0, :, root.token]
        for h in range(contribs.shape[0]):
            for s in range(root.token + 1):
                parts[f"a{layer}.h{h}@{s}"] = float(contribs[h, s])
    parts[f"token@{root.token}"] = float(cache["resid_pre", 0][0, root.token] @ scaled.vector)
    paths = ca.greedy_get_top_paths(model, tcs, cache, root, num_iters=ITERATIONS, num_branches=BRANCHES, do_raw_attribution=True)
    levels = [[{"nodes": [name_of(v) for v in p[1:]], "contribution": float(p[-1].contrib)} for p in level] for level in paths]
    out = {"parts": parts, "levels": levels}
    edges, nodes = ca.paths_to_graph(paths)
    # Distinct prefixes, summed: only numbers of edges between features and heads, not their names for errors.
    out["edges"] = sorted(float(v) for v in edges.values())
    if spare:
        root_name = scaled.__str__(show_contrib=False, show_last_token=True, show_full=False)
        with_errors, _ = ca.add_error_nodes_to_graph(model, cache, tcs, edges, nodes)
        of_root = {c: v for (c, p), v in with_errors.items() if p == root_name}
        out["error"] = float(next(v for c, v in of_root.items() if "tc_error" in c))
        out["bias"] = float(next(v for c, v in of_root.items() if "bias_error" in c))
        out["value"] = float(tcs[root.layer](cache[tcs[root.layer].cfg.hook_point])[1][0, root.token,
                                                                                      root.component_path[-1].feature_idx])
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout", type=pathlib.Path)
    checkout = parser.parse_args().checkout
    sys.path.insert(0, str(checkout))
    import transcoder_circuits.circuit_analysis as ca
    import transcoder_circuits.feature_dashboards as fd
    from sae_training.sparse_autoencoder import SparseAutoencoder

    fd.plt.subplots = lambda *a, **k: (MagicMock(), MagicMock())
    torch.set_grad_enabled(False)
    model = load_model()
    d = model.cfg.d_model
    tcs, weights = load_transcoders(SparseAutoencoder, d)
    _, cache = model.run_with_cache(torch.tensor([IDS]))

    by_weights = []
    for layer, feature in [(0, 3), (1, 11), (2, 7)]:
        tc = tcs[layer]
        logits = list(fd.get_logits_for_feature(model, tc, feature, k=model.cfg.d_vocab))
        order = {int(token): float(value) for value, token, _, _ in logits}
        vector = ca.make_sae_feature_vector(tc, feature)
        one = {"feature": f"{layer}.{feature}",
               "deembedding": numbers(fd.get_deembeddings_for_transcoder_feature(model, tc, feature, k=0)),
               "head_norms": numbers(fd.get_ov_norms_for_transcoder_feature(model, tc, feature, layer=layer)),
               "logits": [order[i] for i in range(model.cfg.d_vocab)],
               "through": {f"a{l}.h{h}": numbers(fd.get_deembeddings_for_transcoder_feature(model, tc, feature, attn_head=h,
                                                                                              attn_layer=l, k=0))
                           for l in range(layer + 1) for h in [0, 2]},
               "sources": {str(l): numbers(fd.plot_pulledback_feature(model, vector, tcs[l], do_plot=False)) for l in range(layer)},
               # Through heads their package has no function: the paper's (f_dec)^T W_OV^T f_enc.
               "sources_through": {f"{s} a{l}.h{h}": numbers(tcs[s].W_dec @ (model.OV[l, h] @ tc.W_enc[:, feature]))
                                   for l in range(layer + 1) for s in range(l) for h in [1, 3]}}
        by_weights.append(one)

    # Roots: the most active feature of each of layers 1 and 2 at a late token, and a logit difference at the last one.
    roots = []
    for layer, token in [(1, 4), (2, 6), (2, 5)]:
        acts = tcs[layer](cache[tcs[layer].cfg.hook_point])[1][0, token]
        feature = int(acts.argmax())
        root = ca.make_sae_feature_vector(tcs[layer], feature, token=token)
        roots.append({"root": f"{layer}.{feature}@{token}", **root_expected(ca, model, tcs, cache, root, True)})
    vector = model.W_U[:, LOGITS[0]] - model.W_U[:, LOGITS[1]]
    difference = torch.zeros(model.cfg.d_vocab, dtype=torch.float64)
    difference[LOGITS[0]], difference[LOGITS[1]] = 1, -1
    last = len(IDS) - 1
    x, y = cache["resid_post", LAYERS - 1][0, last], cache["ln_final.hook_normalized"][0, last]
    component = ca.Component(layer=LAYERS, component_type=ca.ComponentType.MLP, token=last)
    root = ca.FeatureVector(component_path=[component], vector=vector * (vector @ y) / (vector @ x), layer=LAYERS - 1,
                            sublayer="resid_post", token=last, contrib=float(vector @ y))
    roots.append({"root": f"logit{LOGITS[0]}-{LOGITS[1]}@{last}", "value": float(model(torch.tensor([IDS]))[0, last] @ difference),
                  **root_expected(ca, model, tcs, cache, root, False)})

    out = HERE / "goldens"
    out.mkdir(exist_ok=True)
    save_file(weights, out / "transcoders.safetensors")
    (out / "expected.json").write_text(json.dumps({"ids": IDS, "branches": BRANCHES, "iterations": ITERATIONS,
                                                   "weights": by_weights, "roots": roots}, indent=0) + "\n")


if __name__ == "__main__":
    main()
