"""Captures every site of a Hugging Face decoder under lamina's site names.

Reference values for tests/goldens. Values are taken from the modules' own inputs and outputs by
forward hooks; what transformers computes inside one function (scores, norm denominators, per-head
results) is recomputed from captured values with the same operations and checked against what the
module returned.
"""

import importlib

import torch


def norm_sites(name, module, x, kind, eps, offset, out, y):
    """hook_scale and hook_normalized (before the weight) of a norm with input x and output y."""
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    scale = (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    normalized = x / scale
    expected = normalized * (offset + module.weight)
    if kind == "layer":
        expected = expected + module.bias
    worst = (expected - y).abs().max().item() / max(y.abs().max().item(), 1e-30)
    assert worst < 3e-6, f"{name}: {worst}"
    out[name + ".hook_scale"] = scale
    out[name + ".hook_normalized"] = normalized


class Capture:
    """Hooks on one model; `parts` names its pieces (see FAMILIES in make_goldens.py)."""

    def __init__(self, model, family):
        self.model, self.f = model, family
        self.got = {}
        self.handles = []
        base = family["base"](model)
        self.base, self.layers = base, family["layers"](base)
        for l, layer in enumerate(self.layers):
            self._hook(f"{l}.layer", layer)
            for part in ("attn", "mlp", *family["norms"], *family["projections"]):
                self._hook(f"{l}.{part}", self._get(layer, family["paths"][part]))
        self._hook("ln_final", self._get(base, family["ln_final"]))
        self._hook("embed", self._get(base, family["embed"]))
        if family.get("pos_embed"):
            self._hook("pos_embed", self._get(base, family["pos_embed"]))
        # Rotated q and k, scores and pattern: inside eager_attention_forward of the family's module.
        attn_class = type(self._get(self.layers[0], family["paths"]["attn"]))
        module = importlib.import_module(attn_class.__module__)
        self.module, self.eager = module, module.eager_attention_forward
        self.attention = []

        def spy(mod, query, key, value, mask, *args, **kwargs):
            z, pattern = self.eager(mod, query, key, value, mask, *args, **kwargs)
            scaling = kwargs.get("scaling")
            scaling = mod.head_dim**-0.5 if scaling is None else scaling
            groups = query.shape[1] // key.shape[1]
            scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * scaling
            cap = kwargs.get("softcap")
            if cap is not None:
                scores = torch.tanh(scores / cap) * cap
            hidden = torch.zeros_like(scores, dtype=torch.bool)
            if mask is not None:
                hidden = (mask < -1.0).expand_as(scores)
            scores = scores.masked_fill(hidden, float("-inf"))
            assert torch.allclose(scores.softmax(-1), pattern, atol=2e-6), "pattern"
            self.attention.append(
                {"rot_q": query, "rot_k": key, "v": value, "scores": scores, "pattern": pattern, "z": z})
            return z, pattern

        module.eager_attention_forward = spy

    @staticmethod
    def _get(obj, path):
        for name in path.split("."):
            obj = getattr(obj, name)
        return obj

    def _hook(self, name, module):
        def hook(_, args, kwargs, output):
            value = args[0] if args else next(iter(kwargs.values()))
            out = output[0] if isinstance(output, tuple) else output
            self.got[name] = (value, out)

        self.handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def close(self):
        for handle in self.handles:
            handle.remove()
        self.module.eager_attention_forward = self.eager

    @torch.no_grad()
    def run(self, ids):
        """Sites of one prompt (token ids), each without the batch dimension."""
        self.got.clear()
        self.attention.clear()
        f, c = self.f, self.model.config
        logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits
        heads, kv = f["heads"](c)
        got, out = self.got, {}
        out["hook_embed"] = got["embed"][1]
        if f.get("pos_embed"):
            out["hook_pos_embed"] = got["pos_embed"][1].expand_as(got["embed"][1])
        else:
            assert torch.equal(got["0.layer"][0], out["hook_embed"])
        for l in range(len(self.layers)):
            layer, b, at = self.layers[l], f"blocks.{l}.", self.attention[l]
            out[b + "hook_resid_pre"], out[b + "hook_resid_post"] = got[f"{l}.layer"]

            def norm(site, part):
                x, y = got[f"{l}.{part}"]
                norm_sites(b + site, self._get(layer, f["paths"][part]), x, f["norm"], f["eps"](c),
                           f.get("offset", 0.0), out, y)

            norm("ln1", "ln1")
            q, k, v = f["qkv"](got, l, heads, kv)
            assert torch.equal(v.transpose(1, 2), at["v"]), "v"
            out[b + "attn.hook_q"], out[b + "attn.hook_k"], out[b + "attn.hook_v"] = q, k, v
            if f.get("rotary", True):
                out[b + "attn.hook_rot_q"] = at["rot_q"].transpose(1, 2)
                out[b + "attn.hook_rot_k"] = at["rot_k"].transpose(1, 2)
            out[b + "attn.hook_attn_scores"] = at["scores"]
            out[b + "attn.hook_pattern"] = at["pattern"]
            out[b + "attn.hook_z"] = at["z"]
            w_o = f["w_o"](self._get(layer, f["paths"]["o"]))  # [heads, d_head, d_model]
            result = torch.einsum("bthd,hdm->bthm", at["z"], w_o.reshape(heads, -1, w_o.shape[-1]))
            out[b + "attn.hook_result"] = result
            o_bias = getattr(self._get(layer, f["paths"]["o"]), "bias", None)
            total = result.sum(2) + (0 if o_bias is None else o_bias)
            assert torch.allclose(total, got[f"{l}.o"][1], atol=2e-5), "result"
            if "ln1_post" in f["norms"]:
                norm("ln1_post", "ln1_post")
                out[b + "hook_attn_out"] = got[f"{l}.ln1_post"][1]
            else:
                out[b + "hook_attn_out"] = got[f"{l}.attn"][1]
            if not f.get("parallel", False):
                out[b + "hook_resid_mid"] = got[f"{l}.ln2"][0]
                assert torch.allclose(out[b + "hook_resid_mid"],
                                      out[b + "hook_resid_pre"] + out[b + "hook_attn_out"], atol=1e-5)
            norm("ln2", "ln2")
            out[b + "mlp.hook_pre"] = got[f"{l}.{'gate' if 'gate' in f['projections'] else 'in'}"][1]
            if "gate" in f["projections"]:
                out[b + "mlp.hook_pre_linear"] = got[f"{l}.in"][1]
            out[b + "mlp.hook_post"] = got[f"{l}.out"][0]
            if "ln2_post" in f["norms"]:
                norm("ln2_post", "ln2_post")
                out[b + "hook_mlp_out"] = got[f"{l}.ln2_post"][1]
            else:
                out[b + "hook_mlp_out"] = got[f"{l}.mlp"][1]
            parts = [out[b + "hook_attn_out"], out[b + "hook_mlp_out"], out[b + "hook_resid_pre"]]
            assert torch.allclose(sum(parts), out[b + "hook_resid_post"], atol=2e-5), "resid_post"
        x, y = got["ln_final"]
        norm_sites("ln_final", self._get(self.base, f["ln_final"]), x, f["norm"], f["eps"](c),
                   f.get("offset", 0.0), out, y)
        out["logits"] = logits
        return {name: value[0].detach().float().contiguous().clone() for name, value in out.items()}
