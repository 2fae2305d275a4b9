#!/usr/bin/env python3
"""EAP-IG with 5 steps over all edges of a Llama-like model: lamina beside the authors' code, on the same pairs.

Both sides take the pairs of the most frequent length, fp32, the same weights and threads; the authors' code one batch.
Scores are compared first. Timed on both sides: everything from token ids to scores; loading the model is left out.
Their code is used unchanged but for two things it takes for granted: a GPU, and prompts as text. The runs alternate.

    pip install "transformer-lens<4" transformers gguf einops matplotlib
    lamina pairs ioi --model MODEL.gguf -n 60 --solved -o ioi.jsonl
    python bench/peers/eap_ig.py --lamina build/lamina --model MODEL.gguf --pairs ioi.jsonl --eap-ig CHECKOUT
"""

import argparse
import collections
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOLERANCE = 1e-3  # of the largest score: fp32 through 30 layers, sums in another order


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--lamina", required=True, type=Path, help="the built command line program")
    p.add_argument("--model", required=True, type=Path, help="GGUF file of a Llama-like model")
    p.add_argument("--pairs", required=True, type=Path, help="pair file of `lamina pairs`")
    p.add_argument("--eap-ig", required=True, type=Path, help="checkout of hannamw/EAP-IG")
    p.add_argument("--count", type=int, default=8, help="pairs at most")
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    return p.parse_args()


def hooked_model(args):
    import torch
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights
    from transformers import AutoModelForCausalLM, AutoTokenizer
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model.parent, gguf_file=args.model.name)
    hf = AutoModelForCausalLM.from_pretrained(args.model.parent, gguf_file=args.model.name, dtype=torch.float32).eval()
    c = hf.config
    d_head = c.hidden_size // c.num_attention_heads
    theta = getattr(c, "rope_theta", None) or c.rope_parameters["rope_theta"]
    cfg = HookedTransformerConfig(
        n_layers=c.num_hidden_layers, d_model=c.hidden_size, n_heads=c.num_attention_heads, d_head=d_head,
        d_mlp=c.intermediate_size, d_vocab=c.vocab_size, n_ctx=256, act_fn="silu", eps=c.rms_norm_eps,
        n_key_value_heads=c.num_key_value_heads, normalization_type="RMS", gated_mlp=True, final_rms=True,
        positional_embedding_type="rotary", rotary_dim=d_head, rotary_base=int(theta),
        rotary_adjacent_pairs=False, original_architecture="LlamaForCausalLM", init_weights=False, device="cpu")
    model = HookedTransformer(cfg)
    model.load_state_dict(convert_llama_weights(hf, cfg), strict=False)
    for flag in ("use_split_qkv_input", "use_attn_result", "use_hook_mlp_in", "ungroup_grouped_query_attention"):
        setattr(model.cfg, flag, True)
    model.setup()
    return model, tokenizer


class Peer:
    def __init__(self, args):
        import torch
        self.torch, self.steps = torch, args.steps
        sys.path.insert(0, str(args.eap_ig / "src"))
        import eap.attribute
        import eap.graph
        import eap.utils
        self.eap = eap
        zeros = torch.zeros
        torch.zeros = lambda *a, **k: zeros(*a, **{n: ("cpu" if v == "cuda" else v) for n, v in k.items()})
        ids = lambda model, x, max_length=None: (x, torch.ones_like(x), torch.full((len(x),), x.shape[1]), x.shape[1])
        eap.attribute.tokenize_plus = eap.utils.tokenize_plus = ids
        self.model, self.tokenizer = hooked_model(args)
        self.graph = eap.graph.Graph.from_model(self.model)

    def ids(self, text):
        return self.tokenizer(text, add_special_tokens=True)["input_ids"]

    def scores(self, pairs):
        t = self.torch
        clean, corrupted = (t.tensor([p[side] for p in pairs]) for side in ("clean", "corrupted"))
        labels = t.tensor([[p["correct"][0], p["wrong"][0]] for p in pairs])

        def loss(logits, clean_logits, lengths, labels):
            value = logits[t.arange(len(logits)), lengths - 1].gather(1, labels)
            return -(value[:, 0] - value[:, 1]).mean()

        start = time.perf_counter()
        self.eap.attribute.attribute(self.model, self.graph, [(clean, corrupted, labels)], loss, "EAP-IG-inputs",
                                     ig_steps=self.steps, quiet=True)
        seconds = time.perf_counter() - start
        self.model.zero_grad()
        # Their scores are divided by the batch size twice.
        return {e.name: e.score.item() * len(pairs) for e in self.graph.edges.values()}, seconds


def run_lamina(args, pairs_file):
    environment = dict(os.environ, OMP_WAIT_POLICY=os.environ.get("OMP_WAIT_POLICY", "passive"))
    done = subprocess.run(
        [args.lamina, "--threads", str(args.threads), "--quiet", "edges", args.model, "--pairs", pairs_file,
         "--method", "eap-ig", "--steps", str(args.steps), "--show", "1000000", "--json"],
        check=True, capture_output=True, text=True, env=environment)
    result = json.loads(done.stdout)
    return {e["edge"]: e["score"] for e in result["largest"]}, result["seconds"]


def prepare(args, peer, path):
    """The pairs as token ids, those of the most frequent length, written for lamina."""
    pairs = []
    for line in args.pairs.read_text().splitlines():
        pair = json.loads(line)
        one = lambda words: [peer.tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in words]
        pairs.append({"id": pair["id"], "clean": peer.ids(pair["clean"]), "corrupted": peer.ids(pair["corrupted"]),
                      "correct": one(pair["correct"]), "wrong": one(pair["wrong"])})
    length, _ = collections.Counter(len(p["clean"]) for p in pairs).most_common(1)[0]
    pairs = [p for p in pairs if len(p["clean"]) == length][:args.count]
    path.write_text("".join(json.dumps(p) + "\n" for p in pairs))
    return pairs, length


def main():
    args = arguments()
    peer = Peer(args)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        pairs, length = prepare(args, peer, file)
        print(f"{len(pairs)} pairs of {length} tokens, {args.steps} steps, {args.threads} threads, {args.runs} runs")
        (theirs, first_theirs), (mine, first_mine) = peer.scores(pairs), run_lamina(args, file)
        if theirs.keys() != mine.keys():
            sys.exit(f"{len(theirs)} edges against {len(mine)}")
        unit = max(map(abs, theirs.values()))
        worst = max(abs(mine[e] - theirs[e]) for e in theirs) / unit
        print(f"  {len(theirs)} edges, largest difference {worst:.1e} of the largest score ({unit:.4g})", flush=True)
        if worst > TOLERANCE:
            sys.exit(f"the scores differ by more than {TOLERANCE:g}: nothing was timed")
        times = {"EAP-IG's code": [first_theirs], "lamina": [first_mine]}
        for _ in range(args.runs - 1):
            times["EAP-IG's code"].append(peer.scores(pairs)[1])
            times["lamina"].append(run_lamina(args, file)[1])
    medians = {name: statistics.median(t) for name, t in times.items()}
    for name, seconds in medians.items():
        print(f"  {name:>14}: {seconds:.3f} s ({min(times[name]):.3f} … {max(times[name]):.3f})")
    theirs, mine = medians.values()
    print(f"  ratio {theirs / mine:.1f}")


if __name__ == "__main__":
    main()
