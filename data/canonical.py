"""Reference forward pass (PyTorch) for models in lamina's own format, and reading and writing of that format.

Letters: B rows, T tokens, D d_model, H query heads, K key/value heads, d d_head, M d_mlp, V vocabulary.
Only what the models under data/ use is implemented; anything else is refused.
"""
import json
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

DEFAULTS = {
    "model_type": "lamina", "n_layers": 0, "d_model": 0, "n_heads": 0, "n_kv_heads": 0, "d_head": 0, "d_mlp": 0,
    "d_vocab": 0, "n_ctx": 0, "norm": "none", "norm_place": "none", "norm_eps": 1e-6, "final_norm": False,
    "positions": "none", "rope_theta": 10000.0, "rotary_dim": 0, "rope_style": "half", "causal": True,
    "attn_scale": None, "attn_softcap": 0.0, "final_softcap": 0.0, "qk_norm": False, "window": 0, "qkv_bias": False,
    "out_bias": False, "mlp_bias": False, "gated": False, "act": "relu", "parallel": False, "embed_scale": 1.0,
    "tied": False, "head_bias": False,
}
ACTS = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


def make_config(**keys):
    """All keys of config.json, with `keys` over the defaults."""
    unknown = set(keys) - set(DEFAULTS)
    if unknown:
        raise ValueError(f"unknown configuration keys: {sorted(unknown)}")
    return DEFAULTS | keys


def shapes(c):
    """Tensor name -> shape, for a configuration."""
    L, D, H, K, d, M, V = (c[k] for k in ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_mlp", "d_vocab"))
    s = {"embed.W_E": (V, D)}
    if c["positions"] == "learned":
        s["pos_embed.W_pos"] = (c["n_ctx"], D)

    def norm(name):
        if c["norm"] != "none":
            s[name + ".w"] = (D,)
        if c["norm"] == "layer":
            s[name + ".b"] = (D,)

    for l in range(L):
        b = f"blocks.{l}."
        norm(b + "ln1")
        s |= {b + "attn.W_Q": (H, D, d), b + "attn.W_K": (K, D, d), b + "attn.W_V": (K, D, d), b + "attn.W_O": (H, d, D)}
        if c["qkv_bias"]:
            s |= {b + "attn.b_Q": (H, d), b + "attn.b_K": (K, d), b + "attn.b_V": (K, d)}
        if c["out_bias"]:
            s[b + "attn.b_O"] = (D,)
        if M:
            norm(b + "ln2")
            s[b + "mlp.W_in"] = (D, M)
            if c["gated"]:
                s[b + "mlp.W_gate"] = (D, M)
            s[b + "mlp.W_out"] = (M, D)
            if c["mlp_bias"]:
                s |= {b + "mlp.b_in": (M,), b + "mlp.b_out": (D,)}
    if c["final_norm"]:
        norm("ln_final")
    if not c["tied"]:
        s["unembed.W_U"] = (D, V)
    if c["head_bias"]:
        s["unembed.b_U"] = (V,)
    return s


def check_supported(c):
    for key, allowed in {"norm": ("none", "rms", "layer"), "norm_place": ("none", "pre"), "rope_style": ("half",),
                         "attn_softcap": (0,), "final_softcap": (0,), "qk_norm": (False,), "window": (0,),
                         "parallel": (False,), "act": tuple(ACTS)}.items():
        if c[key] not in allowed:
            raise NotImplementedError(f"reference forward pass: {key}={c[key]!r}, supported: {allowed}")


def normalise(c, w, name, x):
    """x [.., D] through the norm `name`; the identity where the model has no norm."""
    if c["norm"] == "none":
        return x
    if c["norm"] == "rms":
        return F.rms_norm(x, x.shape[-1:], w[name + ".w"], c["norm_eps"])
    return F.layer_norm(x, x.shape[-1:], w[name + ".w"], w[name + ".b"], c["norm_eps"])


def rotate(x, cos, sin):
    """x [B,H,T,d]; cos, sin [B,1,T,r]: rotates the first r values, pairing i with i + r/2."""
    r = cos.shape[-1]
    head, tail = x[..., :r], x[..., r:]
    swapped = torch.cat((-head[..., r // 2:], head[..., :r // 2]), -1)
    return torch.cat((head * cos + swapped * sin, tail), -1) if tail.shape[-1] else head * cos + swapped * sin


def hidden(c, w, ids, pos=None, doc=None):
    """ids [B,T] -> residual after the last block [B,T,D].

    pos [B,T]: positions (default 0..T-1). doc [B,T]: several documents may share a row; a token sees its own only.
    """
    B, T = ids.shape
    if pos is None:
        pos = torch.arange(T).expand(B, T)
    visible = torch.ones(T, T, dtype=torch.bool).tril() if c["causal"] else torch.ones(T, T, dtype=torch.bool)
    visible = visible[None, None]
    if doc is not None:
        visible = visible & (doc[:, None, :, None] == doc[:, None, None, :])
    h = w["embed.W_E"][ids] * c["embed_scale"]
    if c["positions"] == "learned":
        h = h + w["pos_embed.W_pos"][pos]
    if c["positions"] == "rotary":
        r = c["rotary_dim"]
        freq = c["rope_theta"] ** (-torch.arange(0, r, 2, dtype=torch.float32) / r)
        angle = (pos[..., None].float() * freq).repeat(1, 1, 2)[:, None]
        cos, sin = angle.cos().to(h.dtype), angle.sin().to(h.dtype)
    scale = c["d_head"] ** -0.5 if c["attn_scale"] is None else c["attn_scale"]

    def project(x, b, m):
        y = torch.einsum("btd,hde->bhte", x, w[b + "attn.W_" + m])
        return y + w[b + "attn.b_" + m][None, :, None, :] if c["qkv_bias"] else y

    for l in range(c["n_layers"]):
        b = f"blocks.{l}."
        x = normalise(c, w, b + "ln1", h)
        q, k, v = (project(x, b, m) for m in "QKV")
        if c["positions"] == "rotary":
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = c["n_heads"] // c["n_kv_heads"]
        if group > 1:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale)
        h = h + torch.einsum("bhte,hed->btd", z, w[b + "attn.W_O"])
        if c["out_bias"]:
            h = h + w[b + "attn.b_O"]
        if not c["d_mlp"]:
            continue
        x = normalise(c, w, b + "ln2", h)
        up = x @ w[b + "mlp.W_in"]
        if c["mlp_bias"]:
            up = up + w[b + "mlp.b_in"]
        post = ACTS[c["act"]](x @ w[b + "mlp.W_gate"]) * up if c["gated"] else ACTS[c["act"]](up)
        h = h + post @ w[b + "mlp.W_out"]
        if c["mlp_bias"]:
            h = h + w[b + "mlp.b_out"]
    return h


def unembed(c, w, h):
    """Residual [.., D] -> logits [.., V]."""
    if c["final_norm"]:
        h = normalise(c, w, "ln_final", h)
    logits = h @ (w["embed.W_E"].T if c["tied"] else w["unembed.W_U"])
    return logits + w["unembed.b_U"] if c["head_bias"] else logits


def save(folder, c, w, vocabulary, dtype, bos="<bos>", unk="<unk>"):
    """Writes config.json, model.safetensors (as `dtype`) and tokenizer.json (word level, white space, BOS first)."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    expected = shapes(c)
    for name in expected.keys() | w.keys():
        got = tuple(w[name].shape) if name in w else None
        if got != expected.get(name):
            raise ValueError(f"{name}: shape {got}, expected {expected.get(name)}")
    (folder / "config.json").write_text(json.dumps(c, indent=1) + "\n", encoding="utf-8")
    save_file({n: w[n].detach().to(dtype).contiguous() for n in sorted(w)}, folder / "model.safetensors")
    t = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=unk))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    t.add_special_tokens([bos, unk])
    t.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocabulary.index(bos))])
    t.save(str(folder / "tokenizer.json"))


def load(folder):
    """-> (configuration, {name: float32 tensor}, Tokenizer); shapes are checked."""
    folder = pathlib.Path(folder)
    c = make_config(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    check_supported(c)
    w = {n: t.float() for n, t in load_file(folder / "model.safetensors").items()}
    for name, shape in shapes(c).items():
        if tuple(w[name].shape) != shape:
            raise ValueError(f"{folder}: {name}: shape {tuple(w[name].shape)}, expected {shape}")
    return c, w, Tokenizer.from_file(str(folder / "tokenizer.json"))
