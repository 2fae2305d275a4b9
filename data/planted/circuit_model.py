"""A residual stream with named parts, heads and neurons written by hand into it, and a forward pass cut into edges.

The residual stream is a direct sum of named parts ("tok", "pos", …), each with its own coordinates, so what a head
reads and writes can be said exactly. There are no norms: a circuit is then exact, not approximate.
"""
import collections

import numpy as np

SHARP = 60.0  # attention score of a match; softmax weight of a non-match is e^-60


class Planted:
    def __init__(self, vocabulary, n_ctx, parts, n_layers, n_heads, d_head, d_mlp=0):
        self.vocabulary = ["<bos>", "<unk>", *vocabulary]
        self.id = {w: i for i, w in enumerate(self.vocabulary)}
        self.n_ctx, self.n_layers, self.n_heads, self.d_head, self.d_mlp = n_ctx, n_layers, n_heads, d_head, d_mlp
        V = len(self.vocabulary)
        self.part, at = {}, 0
        for name, size in {"tok": V, "pos": n_ctx, **parts}.items():
            self.part[name] = slice(at, at + size)
            at += size
        D = self.d_model = at
        w = self.w = {"embed.W_E": np.zeros((V, D)), "pos_embed.W_pos": np.zeros((n_ctx, D)), "unembed.W_U": np.zeros((D, V))}
        w["embed.W_E"][:, self.part["tok"]] = np.eye(V)
        w["pos_embed.W_pos"][:, self.part["pos"]] = np.eye(n_ctx)
        for l in range(n_layers):
            for m in "QKV":
                w[f"blocks.{l}.attn.W_{m}"] = np.zeros((n_heads, D, d_head))
            w[f"blocks.{l}.attn.W_O"] = np.zeros((n_heads, d_head, D))
            if d_mlp:
                w |= {f"blocks.{l}.mlp.W_in": np.zeros((D, d_mlp)), f"blocks.{l}.mlp.b_in": np.zeros(d_mlp),
                      f"blocks.{l}.mlp.W_out": np.zeros((d_mlp, D)), f"blocks.{l}.mlp.b_out": np.zeros(D)}
        self.circuit, self.distractors = {}, {}

    def config(self):
        return dict(n_layers=self.n_layers, d_model=self.d_model, n_heads=self.n_heads, n_kv_heads=self.n_heads,
                    d_head=self.d_head, d_mlp=self.d_mlp, d_vocab=len(self.vocabulary), n_ctx=self.n_ctx,
                    positions="learned", attn_scale=1.0, mlp_bias=self.d_mlp > 0, act="relu")

    def tokens(self, words):
        """Diagonal selector [V] of the given words."""
        s = np.zeros(len(self.vocabulary))
        s[[self.id[x] for x in words]] = 1.0
        return s

    def head(self, layer, h, q, k, v, out):
        """Writes one head. q, k: lists of (part, matrix [part, d_head]); v: (part, matrix [part, n]); out: (part, matrix
        [n, part]). Matrices wider than needed are cut, narrower ones are padded with zeros."""
        p = f"blocks.{layer}.attn.W_"

        def put(name, part, m):
            m = np.asarray(m, float)
            assert m.shape[0] == self.part[part].stop - self.part[part].start and m.shape[1] <= self.d_head, (part, m.shape)
            self.w[p + name][h, self.part[part], :m.shape[1]] += m

        for part, m in q:
            put("Q", part, m)
        for part, m in k:
            put("K", part, m)
        put("V", *v)
        part, m = out
        m = np.asarray(m, float)
        self.w[p + "O"][h, :m.shape[0], self.part[part]] += m

    def neuron(self, layer, n, reads, bias, writes):
        """One ReLU neuron; reads and writes: lists of (part, index, weight)."""
        b = f"blocks.{layer}.mlp."
        for part, i, x in reads:
            self.w[b + "W_in"][self.part[part].start + i, n] += x
        self.w[b + "b_in"][n] = bias
        for part, i, x in writes:
            self.w[b + "W_out"][n, self.part[part].start + i] += x

    def output(self, part, scale=1.0):
        """The unembedding reads token v's logit from coordinate v of `part`."""
        self.w["unembed.W_U"][self.part[part]] = scale * np.eye(len(self.vocabulary))

    # ---- the graph -------------------------------------------------------------------------------------------------

    def nodes(self):
        """Names in the order in which they are computed: input, a0.h0, …, m0, a1.h0, …, logits."""
        out = ["input"]
        for l in range(self.n_layers):
            out += [f"a{l}.h{h}" for h in range(self.n_heads)] + ([f"m{l}"] if self.d_mlp else [])
        return out + ["logits"]

    def edges(self):
        """All edges as (source, destination); destinations are head inputs a{l}.h{h}<q>, …, MLPs and the logits."""
        before, out = ["input"], []
        for l in range(self.n_layers):
            out += [(s, f"a{l}.h{h}<{x}>") for h in range(self.n_heads) for x in "qkv" for s in before]
            before = before + [f"a{l}.h{h}" for h in range(self.n_heads)]
            if self.d_mlp:
                out += [(s, f"m{l}") for s in before]
                before = before + [f"m{l}"]
        return out + [(s, "logits") for s in before]

    def run(self, ids, zero_nodes=(), edge_value=None):
        """ids [T] -> (logits [T, V], {node: output [T, D]}).

        zero_nodes: nodes whose output is 0. edge_value: {(source, destination): [T, D]}: what that destination receives
        from that source instead of the source's output.
        """
        w, T = self.w, len(ids)
        edge_value = edge_value or {}
        swaps = collections.defaultdict(list)
        for (s, d), value in edge_value.items():
            swaps[d].append((s, value))
        out = {}

        def emit(name, value):
            out[name] = np.zeros_like(value) if name in zero_nodes else value

        def read(dest):
            x = sum(out.values())
            for s, value in swaps[dest]:
                x = x - out[s] + value
            return x

        emit("input", w["embed.W_E"][ids] + w["pos_embed.W_pos"][:T])
        mask = np.tril(np.ones((T, T), bool))
        for l in range(self.n_layers):
            p = f"blocks.{l}.attn.W_"
            heads = {}
            for h in range(self.n_heads):
                q, k, v = (read(f"a{l}.h{h}<{x.lower()}>") @ w[p + x][h] for x in "QKV")
                score = np.where(mask, q @ k.T, -np.inf)
                e = np.exp(score - score.max(1, keepdims=True))
                heads[f"a{l}.h{h}"] = e / e.sum(1, keepdims=True) @ v @ w[p + "O"][h]
            for name, value in heads.items():  # heads of a layer do not see one another
                emit(name, value)
            if self.d_mlp:
                b = f"blocks.{l}.mlp."
                emit(f"m{l}", np.maximum(read(f"m{l}") @ w[b + "W_in"] + w[b + "b_in"], 0) @ w[b + "W_out"] + w[b + "b_out"])
        return read("logits") @ w["unembed.W_U"], out
