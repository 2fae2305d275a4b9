"""The canonical block in PyTorch, written plainly, with every site in the graph and the backward rules.

Reference for the gradients in this folder. Works on canonical tensor names and shapes (y = W x, as
in Backward::parameter_norms): {"embed": [V, D], "0.q": [H·d, D], "0.ln1.w": [D], …}. What it computes
is checked by make_gradient_goldens.py against the forward goldens and against autograd through
transformers and TransformerLens; it knows nothing of lamina's C++.
"""

import dataclasses

import torch
import torch.nn.functional as F


@dataclasses.dataclass
class Config:
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    attn_scale: float
    norm: str = "rms"  # none, layer, rms
    place: str = "pre"  # pre, post, sandwich
    eps: float = 1e-5
    offset: float = 0.0  # norms multiply by offset + weight
    final_norm: bool = True
    learned: bool = False  # learned positions
    rotary_dim: int = 0  # 0: nothing turns
    interleaved: bool = False
    frequencies: list = None  # per layer: [rotary_dim / 2]
    windows: list = None  # per layer: 0 = all
    causal: bool = True
    attn_softcap: float = 0.0
    final_softcap: float = 0.0
    qk_norm: bool = False
    mlp: bool = True
    gated: bool = False
    act: str = "silu"
    parallel: bool = False
    embed_scale: float = 1.0


@dataclasses.dataclass
class Rules:
    norm: bool = False
    pattern: bool = False
    activation: bool = False
    gate: bool = False


ACTIVATIONS = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "solu": lambda x: x * x.softmax(-1),
    "solu_ln": lambda x: x * x.softmax(-1),
}


class Reference:
    """One model; run() returns logits [T, V] and the sites {name: tensor in the graph}."""

    def __init__(self, config, weights, rules=Rules()):
        self.c, self.w, self.rules = config, weights, rules

    def keep(self, name, value):
        self.sites[name] = value
        return value

    def linear(self, name, x):
        y = x @ self.w[name].T
        return y + self.w[name + ".b"] if name + ".b" in self.w else y

    def norm(self, name, kind, x, site=None):
        """x / scale · (offset + weight) + bias over the last dimension; centred if `kind` is layer."""
        if kind == "none":
            return x
        if kind == "layer":
            x = x - x.mean(-1, keepdim=True)
        scale = (x.pow(2).mean(-1, keepdim=True) + self.c.eps).sqrt()
        if self.rules.norm:
            scale = scale.detach().requires_grad_()
        if site:
            self.keep(site + ".hook_scale", scale)
        normalized = x / scale
        if site:
            self.keep(site + ".hook_normalized", normalized)
        weight = self.w[name + ".w"] if name + ".w" in self.w else self.w[name]
        y = normalized * ((0.0 if name.endswith("mlp_ln") else self.c.offset) + weight)
        return y + self.w[name + ".b"] if kind == "layer" else y

    def turn(self, x, l):
        """x [T, heads, d]: the first rotary_dim values of every head, position = row."""
        c = self.c
        angle = torch.outer(torch.arange(x.shape[0], dtype=torch.float32), c.frequencies[l].float())
        cos, sin = angle.cos().to(x.dtype)[:, None], angle.sin().to(x.dtype)[:, None]
        head, tail = x[..., :c.rotary_dim], x[..., c.rotary_dim:]
        if c.interleaved:
            a, b = head[..., 0::2], head[..., 1::2]
        else:
            a, b = head.chunk(2, -1)
        a, b = a * cos - b * sin, b * cos + a * sin
        head = torch.stack((a, b), -1).flatten(-2) if c.interleaved else torch.cat((a, b), -1)
        return torch.cat((head, tail), -1)

    def attention(self, l, x):
        c, b = self.c, f"blocks.{l}.attn."
        q = self.keep(b + "hook_q", self.linear(f"{l}.q", x).unflatten(-1, (c.n_heads, c.d_head)))
        k = self.keep(b + "hook_k", self.linear(f"{l}.k", x).unflatten(-1, (c.n_kv_heads, c.d_head)))
        v = self.keep(b + "hook_v", self.linear(f"{l}.v", x).unflatten(-1, (c.n_kv_heads, c.d_head)))
        if c.qk_norm:
            q, k = self.norm(f"{l}.q_norm", "rms", q), self.norm(f"{l}.k_norm", "rms", k)
        if c.rotary_dim:
            q = self.keep(b + "hook_rot_q", self.turn(q, l))
            k = self.keep(b + "hook_rot_k", self.turn(k, l))
        group, t = c.n_heads // c.n_kv_heads, x.shape[0]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * c.attn_scale
        if c.attn_softcap:
            scores = c.attn_softcap * torch.tanh(scores / c.attn_softcap)
        behind = torch.arange(t)[:, None] - torch.arange(t)
        hidden = torch.zeros(t, t, dtype=torch.bool)
        if c.causal:
            hidden |= behind < 0
        if c.windows and c.windows[l]:
            hidden |= behind >= c.windows[l]
        scores = self.keep(b + "hook_attn_scores", scores.masked_fill(hidden, float("-inf")))
        pattern = scores.softmax(-1)
        if self.rules.pattern:
            pattern = pattern.detach().requires_grad_()
        pattern = self.keep(b + "hook_pattern", pattern)
        z = self.keep(b + "hook_z", torch.einsum("hqk,khd->qhd", pattern, v))
        w_o = self.w[f"{l}.o"].unflatten(-1, (c.n_heads, c.d_head))
        result = self.keep(b + "hook_result", torch.einsum("qhd,mhd->qhm", z, w_o))
        out = result.sum(1)
        return out + self.w[f"{l}.o.b"] if f"{l}.o.b" in self.w else out

    def activate(self, x):
        act = ACTIVATIONS[self.c.act]
        if not self.rules.activation or self.c.act == "relu":
            return act(x)
        moved = x + 1e-6 * (x.sign() + (x == 0))
        ratio = (act(x) / moved).detach()
        return act(x).detach() + ratio * (x - x.detach())

    def mlp(self, l, x):
        c, b = self.c, f"blocks.{l}.mlp."
        if c.gated:
            gate = self.keep(b + "hook_pre", self.linear(f"{l}.gate", x))
            up = self.keep(b + "hook_pre_linear", self.linear(f"{l}.in", x))
            post = self.activate(gate) * up
            if self.rules.gate:
                post = 0.5 * post + 0.5 * post.detach()
        else:
            post = self.activate(self.keep(b + "hook_pre", self.linear(f"{l}.in", x)))
            if c.act == "solu_ln":
                post = self.norm(f"{l}.mlp_ln", "layer", post)
        return self.linear(f"{l}.out", self.keep(b + "hook_post", post))

    def run(self, ids):
        c, self.sites = self.c, {}
        x = self.keep("hook_embed", self.w["embed"][ids] * c.embed_scale)
        if c.learned:
            x = x + self.keep("hook_pos_embed", self.w["pos_embed"][:len(ids)])
        for l in range(c.n_layers):
            b, before = f"blocks.{l}.", c.norm if c.place != "post" else "none"
            after = c.norm if c.place == "sandwich" else "none"
            pre = x = self.keep(b + "hook_resid_pre", x)
            attn = self.attention(l, self.norm(f"{l}.ln1", before, x, b + "ln1"))
            attn = self.keep(b + "hook_attn_out", self.norm(f"{l}.ln1_post", after, attn, b + "ln1_post"))
            x = x + attn
            if c.mlp:
                if not c.parallel:
                    x = self.keep(b + "hook_resid_mid", x)
                    if c.place == "post":
                        x = self.norm(f"{l}.ln1", c.norm, x, b + "ln1")
                mlp = self.mlp(l, self.norm(f"{l}.ln2", before, pre if c.parallel else x, b + "ln2"))
                x = x + self.keep(b + "hook_mlp_out", self.norm(f"{l}.ln2_post", after, mlp, b + "ln2_post"))
            x = self.keep(b + "hook_resid_post", x)
            if c.place == "post":
                x = self.norm(f"{l}.ln2", c.norm, x, b + "ln2")
        if c.final_norm:
            x = self.norm("ln_final", c.norm, x, "ln_final")
        logits = x @ self.w["unembed" if "unembed" in self.w else "embed"].T
        if "unembed.b" in self.w:
            logits = logits + self.w["unembed.b"]
        if c.final_softcap:
            logits = c.final_softcap * torch.tanh(logits / c.final_softcap)
        return logits, self.sites


def site_gradients(metric, sites):
    """∂metric/∂site of every site; zeros where nothing flows."""
    wanted = {name: value for name, value in sites.items() if value.requires_grad}
    found = torch.autograd.grad(metric, list(wanted.values()), allow_unused=True, retain_graph=True)
    out = {name: torch.zeros_like(value) for name, value in sites.items()}
    out.update((name, g) for name, g in zip(wanted, found) if g is not None)
    return out
