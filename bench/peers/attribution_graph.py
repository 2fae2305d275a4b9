"""Times the attribution graph of a prompt: `lamina circuit` and circuit-tracer, same model, same transcoders, same targets.

    pip install circuit-tracer==0.5.0 'transformer-lens<4' gguf
    python bench/peers/attribution_graph.py --lamina build/lamina --model MODEL.gguf --work W

MODEL is a Llama-like model (SmolLM2-135M was used). Transcoders are random (seeded): TopK over
--features features a layer, so that both programs have the same --k active ones a token. Every run is the whole job
from the loaded weights to the adjacency matrix, pruned; loading is not counted on either side. Graphs are compared first:
the same features, and weights off by at most what is printed. Runs alternate; medians of --times.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import time

import huggingface_hub.constants

if not hasattr(huggingface_hub.constants, "HF_HUB_ENABLE_HF_TRANSFER"):
    huggingface_hub.constants.HF_HUB_ENABLE_HF_TRANSFER = False

import torch
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.graph import prune_graph
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.activation_functions import TopK
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
from safetensors.torch import save_file
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import AutoModelForCausalLM


class Numbers:
    """A tokenizer for messages only."""

    bos_token_id = pad_token_id = eos_token_id = None
    special_tokens_map = {}
    padding_side = "right"

    def __init__(self, first, size):
        self.all_special_ids = [first]  # otherwise circuit-tracer puts another token in front
        self.vocab_size = size

    def decode(self, ids, **_):
        return " ".join(map(str, torch.as_tensor(ids).flatten().tolist()))


def write_transcoders(folder, layers, d, features, k, name):
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    out = {}
    for layer in range(layers):
        t = SingleLayerTranscoder(d, features, TopK(k), layer, skip_connection=False)
        with torch.no_grad():
            for which, p in t.named_parameters():
                p.copy_((d**-0.5 if "W_" in which else 0.1) * torch.randn(p.shape, generator=generator))
        out[layer] = t
        save_file({n: p.detach().clone().contiguous() for n, p in t.named_parameters()}, folder / f"layer_{layer}.safetensors")
    (folder / "config.yaml").write_text(f"model_name: {name}\nmodel_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\n"
                                        f"feature_output_hook: hook_mlp_out\nactivation: topk\nk: {k}\n")
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lamina", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--features", type=int, default=2304)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--nodes", type=int, default=1000, help="feature nodes attributed")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--text", default="The capital of the state that holds Dallas is the city of")
    args = parser.parse_args()
    torch.set_num_threads(2)

    hf = AutoModelForCausalLM.from_pretrained(args.model.parent, gguf_file=args.model.name, dtype=torch.float32,
                                              attn_implementation="eager").eval()
    c = hf.config
    cfg = HookedTransformerConfig(
        n_layers=c.num_hidden_layers, d_model=c.hidden_size, n_ctx=512, n_heads=c.num_attention_heads,
        n_key_value_heads=c.num_key_value_heads, d_head=c.hidden_size // c.num_attention_heads, d_mlp=c.intermediate_size,
        d_vocab=c.vocab_size, device="cpu", seed=0, model_name="llama", init_weights=False, dtype=torch.float32, act_fn="silu",
        eps=c.rms_norm_eps, normalization_type="RMS", final_rms=True, gated_mlp=True, positional_embedding_type="rotary",
        rotary_dim=c.hidden_size // c.num_attention_heads, rotary_base=int(c.rope_parameters["rope_theta"]),
        rotary_adjacent_pairs=False)
    chosen = write_transcoders(args.work / "transcoders", c.num_hidden_layers, c.hidden_size, args.features, args.k,
                               args.model.stem)
    model = TransformerLensReplacementModel(cfg, tokenizer=None)
    missing = model.load_state_dict(convert_llama_weights(hf, cfg), strict=False).missing_keys
    assert not [k for k in missing if not k.endswith(("mask", "IGNORE", "rotary_sin", "rotary_cos", "b_U"))], missing
    model.unembed.b_U.data.zero_()

    said = subprocess.run([args.lamina, "tokenize", args.model, "--ids", "--text", args.text], capture_output=True, text=True, check=True)
    ids = torch.tensor([int(i) for i in said.stdout.split()])
    with torch.no_grad():
        off = (model(ids[None])[0] - hf(ids[None]).logits[0]).abs().max().item()
    print(f"{len(ids)} tokens; circuit-tracer's model is off transformers by {off:.1e}")
    assert off < 1e-2
    model._configure_replacement_model(TranscoderSet(chosen, "mlp.hook_in", "hook_mlp_out", scan="bench"))
    model.tokenizer = Numbers(int(ids[0]), c.vocab_size)

    graph_file = args.work / "graph.json"
    command = [args.lamina, "--threads", "2", "-q", "circuit", args.model, "--transcoders", args.work / "transcoders", "--other-model",
               "--constant-first", "--max-features", str(args.nodes), "--text", args.text, "--whole-graph", graph_file, "--force",
               "--json"]

    def ours():
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def theirs():
        start = time.perf_counter()
        graph = attribute(ids, model, batch_size=256, max_feature_nodes=args.nodes, verbose=False)
        prune_graph(graph)
        return graph, time.perf_counter() - start

    report, (graph, _) = ours(), theirs()
    # circuit-tracer's rows by lamina's ids.
    whole = json.loads(graph_file.read_text())
    selected = graph.active_features[graph.selected_features].tolist()
    names = [f"{l}_{f}_{p}" for l, p, f in selected]
    mine = {n["node_id"] for n in whole["nodes"] if n["feature_type"] == "cross layer transcoder"}
    print(f"features: {len(names)} theirs, {len(mine)} ours, {len(mine & set(names))} in both")
    n = len(names)
    index = {name: i for i, name in enumerate(names)}
    weights = torch.zeros(n, n)
    for link in whole["links"]:
        s, t = index.get(link["source"]), index.get(link["target"])
        if s is not None and t is not None:
            weights[t, s] = link["weight"]
    both = torch.tensor([name in mine for name in names])
    a = graph.adjacency_matrix[:n, :n][both][:, both]
    print(f"weights between them: off by {(a - weights[both][:, both]).abs().max() / a.abs().max():.1e} of the largest")

    times = {"lamina": [], "circuit-tracer": []}
    for _ in range(args.times):
        times["lamina"].append(ours()["seconds"])
        times["circuit-tracer"].append(theirs()[1])
    medians = {k: statistics.median(v) for k, v in times.items()}
    for name, seconds in medians.items():
        print(f"{name:15} {seconds:8.2f} s   {' '.join(f'{t:.2f}' for t in times[name])}")
    print(f"lamina is faster by {medians['circuit-tracer'] / medians['lamina']:.2f}")


if __name__ == "__main__":
    main()
