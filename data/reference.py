"""Reference forward pass (PyTorch) for models in lamina's own format.

Letters: B rows, T tokens, D d_model, H query heads, K key/value heads, d d_head, M d_mlp, V vocabulary.
Only what the models under data/ use is implemented; anything else is refused.
"""
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import lamina_format

ACTS = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


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


def hidden(c, w, ids, pos=None, doc=None, mlp=None):
    """ids [B,T] -> residual after the last block [B,T,D].

    mlp: {layer: function [B,T,D] -> [B,T,D]} computed in place of those layers' MLPs, from their normalised input.
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
        if mlp and l in mlp:
            h = h + mlp[l](x)
            continue
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


def save(folder, c, w, vocabulary, dtype):
    """Writes config.json, model.safetensors (as `dtype`) and tokenizer.json."""
    lamina_format.check_shapes(c, w, folder)
    lamina_format.write_config(folder, c)
    lamina_format.write_tokenizer(folder, vocabulary)
    save_file({n: w[n].detach().to(dtype).contiguous() for n in sorted(w)}, pathlib.Path(folder) / "model.safetensors")


def load(folder):
    """-> (configuration, {name: float32 tensor}, Tokenizer)."""
    folder = pathlib.Path(folder)
    c = lamina_format.read_config(folder)
    check_supported(c)
    w = {n: t.float() for n, t in load_file(folder / "model.safetensors").items()}
    lamina_format.check_shapes(c, w, folder / "model.safetensors")
    return c, w, Tokenizer.from_file(str(folder / "tokenizer.json"))
