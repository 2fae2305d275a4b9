"""The golden folders as (Config, canonical weights) of canonical_block.py, and autograd through the
models they came from: transformers, TransformerLens, BertEncoder."""

import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import load_file

from canonical_block import Config

GOLDENS = pathlib.Path(__file__).resolve().parent.parent / "goldens"
sys.path.insert(0, str(GOLDENS))
import make_goldens  # noqa: E402  (capture tables of the families)

LLAMA_NAMES = {"self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v",
               "self_attn.o_proj": "o", "mlp.gate_proj": "gate", "mlp.up_proj": "in", "mlp.down_proj": "out",
               "self_attn.q_norm": "q_norm", "self_attn.k_norm": "k_norm", "input_layernorm": "ln1",
               "post_attention_layernorm": "ln2"}
SANDWICH_NAMES = dict(LLAMA_NAMES, post_attention_layernorm="ln1_post", pre_feedforward_layernorm="ln2",
                      post_feedforward_layernorm="ln2_post")
LLAMA_ENDS = {"model.embed_tokens.weight": "embed", "model.norm.weight": "ln_final.w",
              "lm_head.weight": "unembed"}
GPT2_NAMES = {"ln_1": "ln1", "ln_2": "ln2", "attn.c_proj": "o", "mlp.c_fc": "in", "mlp.c_proj": "out"}
GPT2_ENDS = {"transformer.wte.weight": "embed", "transformer.wpe.weight": "pos_embed",
             "transformer.ln_f.weight": "ln_final.w", "transformer.ln_f.bias": "ln_final.b"}
NEOX_NAMES = {"input_layernorm": "ln1", "post_attention_layernorm": "ln2", "attention.dense": "o",
              "mlp.dense_h_to_4h": "in", "mlp.dense_4h_to_h": "out"}
NEOX_ENDS = {"gpt_neox.embed_in.weight": "embed", "gpt_neox.final_layer_norm.weight": "ln_final.w",
             "gpt_neox.final_layer_norm.bias": "ln_final.b", "lm_head.weight": "unembed"}
ACTS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "silu": "silu"}


def layer_tensor(name, names):
    """"….3.mlp.c_fc.bias" → ("3.", "in", "bias"); None if it is no layer's tensor."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if at is None:
        return None
    return parts[at] + ".", names.get(".".join(parts[at + 1:-1])), parts[-1]


def put(out, layer, stem, kind, value):
    if stem in ("q_norm", "k_norm"):
        out[layer + stem] = value
    elif stem.startswith("ln"):
        out[layer + stem + (".b" if kind == "bias" else ".w")] = value
    else:
        out[layer + stem + (".b" if kind == "bias" else "")] = value


def fused(out, layer, kind, value, neox, heads):
    """q, k, v of one tensor whose outputs come first: [3·D, …]; NeoX keeps them head by head."""
    if neox:
        parts = value.unflatten(0, (heads, 3, -1)).unbind(1)
        parts = [p.flatten(0, 1) for p in parts]
    else:
        parts = value.chunk(3, 0)
    for stem, part in zip("qkv", parts):
        put(out, layer, stem, kind, part)


def hf_weights(model, tied):
    kind = model.config.model_type
    names, ends = {"gpt2": (GPT2_NAMES, GPT2_ENDS), "gpt_neox": (NEOX_NAMES, NEOX_ENDS)}.get(
        kind, (SANDWICH_NAMES if kind in ("gemma2", "gemma3_text") else LLAMA_NAMES, LLAMA_ENDS))
    out = {}
    for name, value in model.state_dict().items():
        value = value.detach().double()
        if name in ends:
            if not (tied and ends[name] == "unembed"):
                out[ends[name]] = value
            continue
        if tied and name == "lm_head.weight":
            continue
        layer, stem, part = layer_tensor(name, names)
        if kind == "gpt2" and value.dim() == 2:
            value = value.T  # Conv1D keeps [in, out]
        if "c_attn" in name or "query_key_value" in name:
            fused(out, layer, part, value, kind == "gpt_neox", model.config.num_attention_heads)
        else:
            assert stem, name
            put(out, layer, stem, part, value)
    return out


def hf_config(model):
    c, base = model.config, model.base_model
    kind = c.model_type
    if kind == "gpt2":
        return Config(c.n_layer, c.n_embd, c.n_head, c.n_head, c.n_embd // c.n_head,
                      (c.n_embd // c.n_head) ** -0.5, norm="layer", eps=c.layer_norm_epsilon, learned=True,
                      act=ACTS[c.activation_function])
    heads = c.num_attention_heads
    d_head = getattr(c, "head_dim", None) or c.hidden_size // heads
    types = getattr(c, "layer_types", None) or ["sliding_attention" if getattr(c, "sliding_window", None)
                                                else "full_attention"] * c.num_hidden_layers
    rotary = base.rotary_emb
    frequencies = [getattr(rotary, t + "_inv_freq") if kind == "gemma3_text" else rotary.inv_freq
                   for t in types]
    if kind == "gpt_neox":
        return Config(c.num_hidden_layers, c.hidden_size, heads, heads, d_head, d_head**-0.5, norm="layer",
                      eps=c.layer_norm_eps, rotary_dim=2 * len(frequencies[0]), frequencies=frequencies,
                      act=ACTS[c.hidden_act], parallel=c.use_parallel_residual)
    gemma = kind.startswith("gemma")
    scale = d_head**-0.5 if kind not in ("gemma2", "gemma3_text") else c.query_pre_attn_scalar**-0.5
    return Config(
        c.num_hidden_layers, c.hidden_size, heads, c.num_key_value_heads, d_head, scale,
        eps=c.rms_norm_eps, offset=1.0 if gemma else 0.0,
        place="sandwich" if kind in ("gemma2", "gemma3_text") else "pre", rotary_dim=d_head,
        frequencies=frequencies,
        windows=[c.sliding_window if t == "sliding_attention" else 0 for t in types],
        attn_softcap=getattr(c, "attn_logit_softcapping", None) or 0.0,
        final_softcap=getattr(c, "final_logit_softcapping", None) or 0.0,
        qk_norm=kind in ("qwen3", "gemma3_text"), gated=True,
        act=ACTS[getattr(c, "hidden_activation", None) or c.hidden_act],
        embed_scale=float(torch.tensor(c.hidden_size**0.5)) if gemma else 1.0)


def lamina_model(folder):
    """Config and weights of a folder in the project's own format (TransformerLens' names)."""
    c = json.loads((folder / "config.json").read_text())
    layers, rotary = c["n_layers"], c.get("rotary_dim", 0) if c.get("positions") == "rotary" else 0
    theta = torch.tensor(c.get("rope_theta", 10000.0))
    frequencies = 1.0 / theta ** (torch.arange(0, rotary, 2).float() / max(rotary, 1))
    norm, place = c.get("norm", "layer"), c.get("norm_place", "pre")
    config = Config(
        layers, c["d_model"], c["n_heads"], c.get("n_kv_heads", c["n_heads"]), c["d_head"],
        c.get("attn_scale", c["d_head"] ** -0.5), norm=norm, place=place, eps=c.get("norm_eps", 1e-5),
        final_norm=c.get("final_norm", norm != "none" and place != "post"),
        learned=c.get("positions", "learned") == "learned", rotary_dim=rotary,
        interleaved=c.get("rope_style") == "interleaved", frequencies=[frequencies] * layers,
        windows=[c.get("window", 0)] * layers, causal=c.get("causal", True),
        attn_softcap=c.get("attn_softcap", 0.0), final_softcap=c.get("final_softcap", 0.0),
        qk_norm=c.get("qk_norm", False), mlp=c.get("d_mlp", 0) > 0, gated=c.get("gated", False),
        act=c.get("act", "relu"), parallel=c.get("parallel", False))
    ends = {"embed.W_E": "embed", "pos_embed.W_pos": "pos_embed", "unembed.W_U": "unembed",
            "unembed.b_U": "unembed.b", "ln_final.w": "ln_final.w", "ln_final.b": "ln_final.b"}
    out = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if name.endswith((".mask", ".IGNORE", "rotary_sin", "rotary_cos")):
            continue
        value = value.double()
        if name in ends:
            out[ends[name]] = value.T if name == "unembed.W_U" else value
            continue
        _, layer, *rest = name.split(".")
        part = rest[-1]
        if part in ("W_Q", "W_K", "W_V"):
            key, value = part[-1].lower(), value.transpose(1, 2).flatten(0, 1)
        elif part in ("b_Q", "b_K", "b_V"):
            key, value = part[-1].lower() + ".b", value.flatten()
        elif part == "W_O":
            key, value = "o", value.permute(2, 0, 1).flatten(1)
        elif part == "b_O":
            key = "o.b"
        elif rest[0] == "mlp" and rest[1] == "ln":
            key = "mlp_ln." + part
        elif rest[0] == "mlp":
            key, value = part[2:] + (".b" if part[0] == "b" else ""), value.T if part[0] == "W" else value
        elif rest[0] == "attn":
            key = rest[1]  # q_norm, k_norm
        else:
            key = rest[0] + "." + part
        out[f"{layer}.{key}"] = value
    return config, out


class HuggingFace:
    """Autograd through transformers' own modules, fp32, at the places modules hand on."""

    lacks = ()  # canonical tensors that parameters() leaves out

    def __init__(self, name):
        self.family = make_goldens.GOLDENS[name][0]
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            GOLDENS / name, attn_implementation="eager", dtype=torch.float32).eval()

    def load(self):
        tied = self.model.config.tie_word_embeddings
        return hf_config(self.model), hf_weights(self.model, tied)

    def parameters(self):
        return list(self.model.parameters())

    def run(self, ids):
        """logits [T, V] and {site: (tensors in the graph, how their gradient becomes the site's)}."""
        capture = make_goldens.Capture(self.model, self.family)
        f, same = self.family, lambda g: g[0]
        logits = self.model(input_ids=ids[None], use_cache=False).logits[0]
        got, sites, c = capture.got, {}, self.model.config
        heads, kv = f["heads"](c)
        sites["hook_embed"] = got["embed"][1], same
        if f.get("pos_embed"):
            sites["hook_pos_embed"] = got["pos_embed"][1], lambda g: g.sum(0)

        def norm(site, part, module):
            weight = (f.get("offset", 0.0) + module.weight).detach()
            sites[site + ".hook_normalized"] = got[part][1], lambda g: g[0] * weight

        for l in range(len(capture.layers)):
            b, at, layer = f"blocks.{l}.", capture.attention[l], capture.layers[l]
            for part in f["norms"]:
                norm(b + part, f"{l}.{part}", capture._get(layer, f["paths"][part]))
            sites[b + "hook_resid_pre"], sites[b + "hook_resid_post"] = [(x, same) for x in got[f"{l}.layer"]]
            if not f.get("parallel"):
                sites[b + "hook_resid_mid"] = got[f"{l}.ln2"][0], same
            for i, letter in enumerate("qkv"):
                if "qkv" in f["projections"]:
                    # The gradient of the fused output, cut as the family cuts the output.
                    cut = lambda g, i=i, l=l: f["qkv"]({f"{l}.qkv": (None, g)}, l, heads, kv)[i][0]
                    sites[b + "attn.hook_" + letter] = got[f"{l}.qkv"][1], cut
                else:
                    cut = lambda g, n=heads if letter == "q" else kv: g[0].unflatten(-1, (n, -1))
                    sites[b + "attn.hook_" + letter] = got[f"{l}.{letter}"][1], cut
            if f.get("rotary", True):
                for letter in "qk":
                    sites[b + "attn.hook_rot_" + letter] = at["rot_" + letter], lambda g: g[0].transpose(0, 1)
            sites[b + "attn.hook_pattern"] = at["pattern"], same
            sites[b + "attn.hook_z"] = at["z"], same
            sites[b + "hook_attn_out"] = got[f"{l}.ln1_post" if "ln1_post" in f["norms"] else f"{l}.o"][1], same
            sites[b + "mlp.hook_pre"] = got[f"{l}.{'gate' if 'gate' in f['projections'] else 'in'}"][1], same
            if "gate" in f["projections"]:
                sites[b + "mlp.hook_pre_linear"] = got[f"{l}.in"][1], same
            sites[b + "mlp.hook_post"] = got[f"{l}.out"][0], same
            sites[b + "hook_mlp_out"] = got[f"{l}.ln2_post" if "ln2_post" in f["norms"] else f"{l}.out"][1], same
        norm("ln_final", "ln_final", capture._get(capture.base, f["ln_final"]))
        capture.close()
        return logits, {site: ([tensor], form) for site, (tensor, form) in sites.items()}


class TransformerLens:
    """Autograd through HookedTransformer, fp32, at every hook."""

    def __init__(self, name):
        import make_canonical
        tl, self.lamina = make_canonical.MODELS[name]
        self.skip, self.folder = make_canonical.NOT_SITES, GOLDENS / name
        self.model = make_canonical.HookedTransformer(
            make_canonical.HookedTransformerConfig(**make_canonical.SIZES, **tl)).eval()
        # A gated MLP's b_in stands after the product here (and is zero), and its gate has no bias.
        self.lacks = (".in.b", ".gate.b") if self.lamina.get("gated") else ()
        self.model.set_use_attn_result(True)
        make_canonical.randomize(self.model, 200 + list(make_canonical.MODELS).index(name))

    def load(self):
        return lamina_model(self.folder)

    def parameters(self):
        # b_U is always there.
        return [p for name, p in self.model.named_parameters()
                if not (name == "unembed.b_U" and not self.lamina.get("head_bias"))
                and not (self.lamina.get("gated") and name.endswith("mlp.b_in"))]

    def run(self, ids):
        sites = {}

        def see(value, hook):  # ln1 runs once each for q, k and v
            if not any(part in hook.name for part in self.skip):
                sites.setdefault(hook.name, ([], lambda g: g[0]))[0].append(value)

        logits = self.model.run_with_hooks(ids[None], return_type="logits",
                                           fwd_hooks=[(lambda name: True, see)])
        # Grouped keys and values are cached before they are repeated: k, v [T, kv heads, d].
        return logits[0], sites


class Bert:
    """Autograd through transformers' BertEncoder, fp32."""

    lacks = ()

    def __init__(self, name):
        import make_post_norm
        self.m, self.folder = make_post_norm, GOLDENS / name
        self.encoder, self.ends = make_post_norm.make_encoder()
        self.ends = {key: value.requires_grad_() for key, value in self.ends.items()}
        self.capture = make_post_norm.Capture(self.encoder)

    def load(self):
        return lamina_model(self.folder)

    def parameters(self):
        return list(self.encoder.parameters()) + list(self.ends.values())

    def run(self, ids):
        self.capture.sites, self.capture.attention = {}, []
        embed, pos = self.ends["embed.W_E"][ids], self.ends["pos_embed.W_pos"][:len(ids)]
        logits = self.encoder((embed + pos)[None]).last_hidden_state[0] @ self.ends["unembed.W_U"]
        same, first = (lambda g: g), (lambda g: g[0])
        sites = {"hook_embed": (embed, same), "hook_pos_embed": (pos, same)}
        for site, value in self.capture.sites.items():
            if site.endswith(("hook_q", "hook_k", "hook_v", "hook_scale", "hook_normalized")):
                continue  # computed beside the graph
            sites[site] = value, first
        for l, inside in enumerate(self.capture.attention):
            for site in ("hook_pattern", "hook_z"):
                sites[f"blocks.{l}.attn.{site}"] = inside[site], first
        return logits, {site: ([tensor], form) for site, (tensor, form) in sites.items()}


def model(name):
    if name == "lamina_post":
        return Bert(name)
    return TransformerLens(name) if name.startswith("lamina_") else HuggingFace(name)


def names():
    import make_canonical
    return [*make_goldens.GOLDENS, *make_canonical.MODELS, "lamina_post"]
