"""lamina's own model format: configuration keys, tensor names and shapes, tokenizer. Needs no deep-learning library."""
import json
import pathlib

from tokenizers import Tokenizer, models, pre_tokenizers, processors

DEFAULTS = {
    "model_type": "lamina", "n_layers": 0, "d_model": 0, "n_heads": 0, "n_kv_heads": 0, "d_head": 0, "d_mlp": 0,
    "d_vocab": 0, "n_ctx": 0, "norm": "none", "norm_place": "none", "norm_eps": 1e-6, "final_norm": False,
    "positions": "none", "rope_theta": 10000.0, "rotary_dim": 0, "rope_style": "half", "causal": True,
    "attn_scale": None, "attn_softcap": 0.0, "final_softcap": 0.0, "qk_norm": False, "window": 0, "qkv_bias": False,
    "out_bias": False, "mlp_bias": False, "gated": False, "act": "relu", "parallel": False, "embed_scale": 1.0,
    "tied": False, "head_bias": False,
}


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


def check_shapes(c, w, where):
    """Raises if the tensors `w` are not exactly those the configuration asks for."""
    expected = shapes(c)
    for name in sorted(expected.keys() | w.keys()):
        got = tuple(w[name].shape) if name in w else "none"
        want = expected.get(name, "none")
        if got != want:
            raise ValueError(f"{where}: {name}: shape {got}, expected {want}")


def write_config(folder, c):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(c, indent=1) + "\n", encoding="utf-8")


def write_tokenizer(folder, vocabulary, bos="<bos>", unk="<unk>"):
    """tokenizer.json: whole words between white space; BOS is put before every text."""
    t = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=unk))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    t.add_special_tokens([bos, unk])
    t.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, list(vocabulary).index(bos))])
    t.save(str(pathlib.Path(folder) / "tokenizer.json"))


def read_config(folder):
    return make_config(**json.loads((pathlib.Path(folder) / "config.json").read_text(encoding="utf-8")))
