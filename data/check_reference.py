#!/usr/bin/env python3
"""Checks the reference forward pass itself, against two others that share no code with it.

  organism   against LlamaForCausalLM of the transformers library, holding the same weights
  planted    against the float64 numpy pass of planted/circuit_model.py

Needs `transformers` as well. Differences above 1e-3 of a logit are an error.
"""
import argparse
import json
import pathlib
import sys

import torch

import reference

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "planted"))


def llama(c, w):
    """A transformers model with the organism's weights. Its matrices are [out, in]; ours [in, out], by head."""
    from transformers import LlamaConfig, LlamaForCausalLM
    D = c["d_model"]
    config = LlamaConfig(vocab_size=c["d_vocab"], hidden_size=D, intermediate_size=c["d_mlp"], num_hidden_layers=c["n_layers"],
                         num_attention_heads=c["n_heads"], num_key_value_heads=c["n_kv_heads"], head_dim=c["d_head"],
                         rms_norm_eps=c["norm_eps"], rope_theta=c["rope_theta"], max_position_embeddings=c["n_ctx"],
                         tie_word_embeddings=c["tied"], hidden_act=c["act"], attn_implementation="eager")
    model = LlamaForCausalLM(config).eval()
    state = {"model.embed_tokens.weight": w["embed.W_E"], "lm_head.weight": w["unembed.W_U"].T, "model.norm.weight": w["ln_final.w"]}
    for l in range(c["n_layers"]):
        a, b = f"model.layers.{l}.", f"blocks.{l}."
        for m in "QKV":
            state[f"{a}self_attn.{m.lower()}_proj.weight"] = w[f"{b}attn.W_{m}"].transpose(1, 2).reshape(-1, D)
        state[a + "self_attn.o_proj.weight"] = w[b + "attn.W_O"].reshape(-1, D).T
        state[a + "input_layernorm.weight"], state[a + "post_attention_layernorm.weight"] = w[b + "ln1.w"], w[b + "ln2.w"]
        for ours, theirs in (("W_gate", "gate_proj"), ("W_in", "up_proj"), ("W_out", "down_proj")):
            state[f"{a}mlp.{theirs}.weight"] = w[f"{b}mlp.{ours}"].T
    model.load_state_dict({k: t.contiguous() for k, t in state.items()}, strict=True)
    return model


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    failed = False
    for folder in sorted(p.parent for p in HERE.rglob("model.safetensors")):
        c, w, tokenizer = reference.load(folder)
        name = folder.relative_to(HERE).as_posix()
        if name == "organism":
            other = llama(c, w)
            run = lambda ids: other(torch.tensor([ids])).logits[0]  # noqa: E731
        else:
            import programs
            model = programs.PROGRAMS[folder.name]()[0]
            run = lambda ids: torch.from_numpy(model.run(ids)[0]).float()  # noqa: E731
        worst, right, total = 0.0, 0, 0
        with torch.no_grad():
            for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines():
                p = json.loads(line)
                ids = tokenizer.encode(p["text"]).ids
                assert tokenizer.token_to_id("<unk>") not in ids, p["text"]
                ours = reference.unembed(c, w, reference.hidden(c, w, torch.tensor([ids]))[0])
                worst = max(worst, (ours - run(ids)).abs().max().item())
                total += 1
                right += int(ours[-1].argmax()) == tokenizer.token_to_id(p["target"])
        print(f"{name}: {total} prompts, largest difference of a logit {worst:.1e}, target first on {right}")
        failed |= worst > 1e-3
    return failed


if __name__ == "__main__":
    sys.exit(main())
