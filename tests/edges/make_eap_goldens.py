"""Makes goldens/: tiny random models with the edge scores and circuit runs of EAP-IG's own code.

    python make_eap_goldens.py EAP-IG-CHECKOUT            writes goldens/
    python make_eap_goldens.py EAP-IG-CHECKOUT --check graph.json
                                                          reads a graph that lamina wrote

The checkout is github.com/hannamw/EAP-IG. Needs torch, safetensors, einops, matplotlib and
transformer-lens 2 or 3 (HookedTransformer was removed in 4.0). Their code is used unchanged but for
two things it takes for granted: a GPU (tensors go to the CPU here) and prompts as text (token ids
here). Batches hold one pair each: their scores are divided by the batch size once too often.
"""

import argparse
import functools
import json
import pathlib
import sys

import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
TOKENS, PAIRS, STEPS, VOCAB = 6, 4, 5, 61
SIZES = dict(n_layers=2, d_model=16, n_heads=4, d_head=4, d_mlp=24, d_vocab=VOCAB, n_ctx=16, device="cpu", seed=0,
             init_weights=False, default_prepend_bos=False)
ROTARY = dict(positional_embedding_type="rotary", rotary_dim=4)
BIASES = dict(qkv_bias=True, out_bias=True, mlp_bias=True, head_bias=True)
MODELS = {
    "layer_norm": (dict(normalization_type="LN", eps=1e-5, act_fn="gelu_new"),
                   dict(norm="layer", norm_eps=1e-5, act="gelu_tanh", positions="learned", **BIASES)),
    "gated_grouped": (dict(ROTARY, normalization_type="RMS", eps=1e-6, act_fn="silu", gated_mlp=True,
                           n_key_value_heads=2),
                      dict(norm="rms", norm_eps=1e-6, act="silu", gated=True, positions="rotary", rotary_dim=4,
                           n_kv_heads=2, **BIASES)),
    "parallel": (dict(ROTARY, normalization_type="LN", eps=1e-5, act_fn="gelu", parallel_attn_mlp=True),
                 dict(norm="layer", norm_eps=1e-5, act="gelu", parallel=True, positions="rotary", rotary_dim=4,
                      **BIASES)),
}


def import_eap(checkout):
    """Their package, made to run on the CPU with token ids for prompts."""
    sys.path.insert(0, str(pathlib.Path(checkout) / "src"))
    import eap.attribute
    import eap.evaluate
    import eap.graph
    import eap.utils

    zeros = torch.zeros
    torch.zeros = lambda *a, **k: zeros(*a, **{n: ("cpu" if v == "cuda" else v) for n, v in k.items()})

    def token_ids(model, inputs, max_length=None):
        return inputs, torch.ones_like(inputs), torch.full((len(inputs),), inputs.shape[1]), inputs.shape[1]

    for module in (eap.attribute, eap.evaluate, eap.utils):
        module.tokenize_plus = token_ids
    return eap


def randomize(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            value = torch.randn(p.shape, generator=generator)
            if name.endswith(".w"):
                value = 1.0 + 0.3 * value
            elif p.dim() == 1 or ".b_" in name:
                value = 0.2 * value
            elif "embed" not in name:
                value = value * (1.3 / p.shape[-2] ** 0.5)
            p.copy_(value)


def make_model(name):
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    tl, own = MODELS[name]
    model = HookedTransformer(HookedTransformerConfig(**SIZES, **tl))
    randomize(model, 7)
    if tl.get("gated_mlp"):  # TransformerLens adds this bias behind the gate, lamina before it
        for block in model.blocks:
            block.mlp.b_in.data.zero_()
    config = dict(model_type="lamina", n_kv_heads=4, rotary_dim=0, final_norm=True, norm_place="pre", causal=True,
                  **{k: SIZES[k] for k in ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx")})
    config |= own
    state = {}
    for key, value in model.state_dict().items():
        if key.endswith(("mask", "IGNORE", "rotary_sin", "rotary_cos")):
            continue
        state[key.replace("._W_", ".W_").replace("._b_", ".b_").replace("ln_final.", "ln_final.")] = \
            value.detach().clone().contiguous()
    if config.get("gated"):  # lamina has a gate's bias, TransformerLens none
        state |= {f"blocks.{l}.mlp.b_gate": torch.zeros(SIZES["d_mlp"]) for l in range(SIZES["n_layers"])}
    for flag in ("use_split_qkv_input", "use_attn_result", "use_hook_mlp_in"):
        setattr(model.cfg, flag, True)
    if model.cfg.n_key_value_heads is not None:
        model.cfg.ungroup_grouped_query_attention = True
    model.setup()
    return model, config, state


def make_pairs(seed):
    """Clean and corrupted ids [pair, token] that differ from another position on in each pair, and labels."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(VOCAB, (PAIRS, TOKENS), generator=generator)
    corrupted = clean.clone()
    for pair, places in enumerate([(2,), (3, 4), (0, 5), (5,)]):
        for place in places:
            corrupted[pair, place] = (clean[pair, place] + 1 + pair) % VOCAB
    labels = torch.randint(VOCAB // 2, (PAIRS, 2), generator=generator)
    labels[:, 1] += VOCAB // 2
    return clean, corrupted, labels


def logit_diff(logits, clean_logits, input_length, labels, mean=True, loss=False):
    last = logits[torch.arange(len(logits)), input_length - 1]
    value = last.gather(1, labels)
    value = value[:, 0] - value[:, 1]
    value = -value if loss else value
    return value.mean() if mean else value


def write_model(eap, name, out):
    model, config, state = make_model(name)
    clean, corrupted, labels = make_pairs(3)
    loader = [(clean[i:i + 1], corrupted[i:i + 1], labels[i:i + 1]) for i in range(PAIRS)]
    attribute = functools.partial(eap.attribute.attribute, quiet=True)
    loss = functools.partial(logit_diff, loss=True)
    golden = dict(clean=clean.int(), corrupted=corrupted.int(), labels=labels.int())

    graph = eap.graph.Graph.from_model(model)
    runs = {"eap": dict(method="EAP"), "eap_ig": dict(method="EAP-IG-inputs", ig_steps=STEPS),
            "eap_ig_activations": dict(method="EAP-IG-activations", ig_steps=STEPS),
            "eap_mean": dict(method="EAP", intervention="mean-positional", intervention_dataloader=loader)}
    for key, arguments in runs.items():
        attribute(model, graph, loader, loss, **arguments)
        golden[key] = graph.scores.clone()

    # Exact scores with their evaluate_graph, every edge from the whole graph: their own loop does not put back
    # what pruning took away with an earlier edge.
    baseline = eap.evaluate.evaluate_baseline(model, loader, loss, quiet=True).mean()
    golden["exact"] = torch.zeros_like(graph.scores)
    for edge in graph.edges.values():
        graph.reset(empty=False)
        edge.in_graph = False
        without = eap.evaluate.evaluate_graph(model, graph, loader, loss, quiet=True).mean()
        golden["exact"][edge.matrix_index] = without - baseline

    golden["real"] = graph.real_edge_mask.to(torch.uint8)
    generator = torch.Generator().manual_seed(11)
    circuits, values = [], {"patching": [], "zero": [], "mean-positional": []}
    for share in (0.1, 0.4, 0.8, 0.97):
        graph.reset(empty=True)
        graph.in_graph[:] = graph.real_edge_mask & (torch.rand(graph.in_graph.shape, generator=generator) < share)
        graph.nodes_in_graph[:] = True
        circuits.append(graph.in_graph.clone().to(torch.uint8))
        kept = graph.in_graph.clone()
        for way, found in values.items():
            graph.in_graph[:] = kept
            graph.nodes_in_graph[:] = True
            found.append(eap.evaluate.evaluate_graph(model, graph, loader, functools.partial(logit_diff, mean=False),
                                                     quiet=True, intervention=way, intervention_dataloader=loader))
    golden["circuits"] = torch.stack(circuits)
    for way, found in values.items():
        golden["run_" + way.split("-")[0]] = torch.stack(found)
    golden["clean_metric"] = eap.evaluate.evaluate_baseline(model, loader, functools.partial(logit_diff, mean=False),
                                                            quiet=True)

    # What their selection and pruning make of the EAP-IG scores.
    graph.scores[:] = golden["eap_ig"]
    for n in (5, 20, 60):
        graph.apply_topn(n, True)
        golden[f"top_{n}"] = graph.in_graph.clone().to(torch.uint8)
        graph.apply_greedy(n, absolute=True)
        golden[f"greedy_{n}"] = graph.in_graph.clone().to(torch.uint8)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    graph.to_json(str(folder / "graph.json"))
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(state, folder / "model.safetensors")
    save_file({k: v.float().contiguous() for k, v in golden.items()}, folder / "golden.safetensors")
    print(f"{name}: {int(golden['real'].sum())} edges, largest score {golden['eap'].abs().max():.3g}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout")
    parser.add_argument("--check", metavar="GRAPH.JSON", help="only read this graph with their code")
    args = parser.parse_args()
    eap = import_eap(args.checkout)
    if args.check:
        graph = eap.graph.Graph.from_json(args.check)
        print(f"{len(graph.edges)} edges, {graph.count_included_edges()} in the circuit, "
              f"{graph.count_included_nodes()} nodes in it, sum of |scores| {graph.scores.abs().sum():.6g}")
        return
    for name in MODELS:
        write_model(eap, name, HERE / "goldens")


if __name__ == "__main__":
    main()
