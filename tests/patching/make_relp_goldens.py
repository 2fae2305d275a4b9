"""Makes tests/patching/goldens/relp_*.safetensors: what the released code of relevance patching
(github.com/FarnoushRJ/RelP, its modified TransformerLens) computes on three of the golden models.

    python make_relp_goldens.py CHECKOUT     CHECKOUT: a clone of that repository

Needs torch, transformers and the fork's own dependencies (beartype, better-abc, fancy-einsum …).
Models: gpt2, qwen2 and gemma2 of tests/goldens, run in double precision. Every file holds

    clean, corrupted   token ids of a pair          answers  [correct, wrong]
    logits             of the corrupted prompt's last position
    metric             logit difference of the clean and of the corrupted prompt
    RULES/SITE         gradient of the logit difference at the site in the corrupted run
    score/RULES/SITE   Σ_d (clean − corrupted) · gradient, [position]
    terms/RULES/SITE   Σ_d |(clean − corrupted) · gradient|: what rounding errors are measured against
    zeros              index into d_mlp and value of the pre-activations written in RULES = "stabiliser"

RULES: none (the plain gradient), ln, identity, half, ah (each rule alone), relp (ln + identity +
half, the authors' default), all (the four together), stabiliser (relp, with pre-activations at and
around exact zero). The fork selects the activation when a model is built, before its README has
switched the rules on, so that its Identity rule never engages; here the activation is selected
again after the rules are set.
"""

import argparse
import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
MODELS = HERE.parent / "goldens"
RULES = {
    "none": [], "ln": ["LN-rule"], "identity": ["Identity-rule"], "half": ["Half-rule"], "ah": ["AH-rule"],
    "relp": ["LN-rule", "Identity-rule", "Half-rule"],
    "all": ["LN-rule", "Identity-rule", "Half-rule", "AH-rule"],
    "stabiliser": ["LN-rule", "Identity-rule", "Half-rule"],
}
SITES = ["hook_resid_pre", "hook_resid_mid", "hook_attn_out", "hook_mlp_out", "attn.hook_q", "attn.hook_k",
         "attn.hook_v", "attn.hook_z", "mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post"]
# Written to neurons 0 … of every layer's hook_pre, as computed value + constant.
ZEROS = [0.0, 1e-7, -1e-7, 1e-6, -1e-6, 3e-6]
TOKENS = 7  # more than the windows of qwen2 (5) and gemma2 (6)


def import_fork(checkout):
    transformers.TRANSFORMERS_CACHE = ""  # gone from transformers 5; the fork only stores it
    sys.path.insert(0, str(pathlib.Path(checkout) / "TransformerLens"))
    import transformer_lens
    assert pathlib.Path(transformer_lens.__file__).is_relative_to(pathlib.Path(checkout).resolve())
    import transformer_lens.lrp_utils  # only the fork has it
    return transformer_lens


def config_of(hf, fork):
    c = hf.config
    common = dict(n_layers=c.num_hidden_layers, d_model=c.hidden_size, n_heads=c.num_attention_heads,
                  n_ctx=c.max_position_embeddings, d_vocab=c.vocab_size, dtype=torch.float64,
                  device="cpu", init_weights=False)
    if c.model_type == "gpt2":
        return fork.HookedTransformerConfig(
            **common, d_head=c.hidden_size // c.num_attention_heads, d_mlp=c.n_inner, act_fn="gelu_new",
            eps=c.layer_norm_epsilon, normalization_type="LN")
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    windows = dict(
        use_local_attn=True, window_size=c.sliding_window,
        attn_types=["local" if t == "sliding_attention" else "global" for t in c.layer_types])
    common |= dict(d_head=head, d_mlp=c.intermediate_size, eps=c.rms_norm_eps, normalization_type="RMS",
                   final_rms=True, gated_mlp=True, positional_embedding_type="rotary", rotary_dim=head,
                   rotary_base=int(c.rope_parameters["rope_theta"]),
                   n_key_value_heads=c.num_key_value_heads, **windows)
    if c.model_type == "qwen2":
        return fork.HookedTransformerConfig(**common, act_fn="silu")
    return fork.HookedTransformerConfig(
        **common, act_fn="gelu_pytorch_tanh", attn_scale=c.query_pre_attn_scalar**0.5, use_attn_scale=True,
        use_normalization_before_and_after=True, attn_scores_soft_cap=c.attn_logit_softcapping,
        output_logits_soft_cap=c.final_logit_softcapping)


def load(name, fork):
    hf = transformers.AutoModelForCausalLM.from_pretrained(
        MODELS / name, dtype=torch.float64, attn_implementation="eager").eval()
    cfg = config_of(hf, fork)
    from transformer_lens.pretrained import weight_conversions as convert
    make = dict(gpt2=convert.convert_gpt2_weights, qwen2=convert.convert_qwen2_weights,
                gemma2=convert.convert_gemma_weights)[name]
    model = fork.HookedTransformer(cfg)
    state = {k: v.detach().clone().to(torch.float64) for k, v in make(hf, cfg).items()}
    state.setdefault("unembed.b_U", torch.zeros(cfg.d_vocab, dtype=torch.float64))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all("mask" in k or "IGNORE" in k or "rotary" in k for k in missing), missing
    return hf, model


def set_rules(model, rules):
    model.cfg.use_lrp, model.cfg.LRP_rules = bool(rules), rules
    for block in model.blocks:
        block.mlp._modules.pop("act_fn", None)  # torch replaces no module by a plain function
        block.mlp.select_activation_function()
        assert block.mlp.cfg is model.cfg


def run(model, ids, answers, write_zeros=False):
    """The metric, and value and gradient at every site."""
    values, gradients = {}, {}

    def forward(act, hook):
        values[hook.name] = act.detach().clone()

    def backward(grad, hook):
        gradients[hook.name] = grad.detach().clone()

    def zero(act, hook):
        target = act.detach().clone()
        target[..., :len(ZEROS)] = torch.tensor(ZEROS, dtype=act.dtype)
        return torch.where(target == act.detach(), act, act - act.detach() + target)

    model.reset_hooks()
    if write_zeros:
        model.add_hook(lambda n: n.endswith("mlp.hook_pre"), zero, "fwd")
    wanted = lambda n: n == "hook_embed" or any(n.startswith("blocks.") and n.endswith(s) for s in SITES)
    model.add_hook(wanted, forward, "fwd")
    model.add_hook(wanted, backward, "bwd")
    last = model(torch.tensor([ids]))[0, -1]
    metric = last[answers[0]] - last[answers[1]]
    metric.backward()
    model.reset_hooks()
    return metric.item(), last.detach(), values, gradients


def golden(name, fork):
    hf, model = load(name, fork)
    generator = torch.Generator().manual_seed(11)
    clean = torch.randint(0, model.cfg.d_vocab, (TOKENS,), generator=generator).tolist()
    corrupted = list(clean)
    corrupted[2], corrupted[5] = (clean[2] + 17) % 96, (clean[5] + 31) % 96
    answers = [23, 71]
    out = {"clean": torch.tensor(clean, dtype=torch.int32),
           "corrupted": torch.tensor(corrupted, dtype=torch.int32),
           "answers": torch.tensor(answers, dtype=torch.int32), "zeros": torch.tensor(ZEROS)}
    with torch.no_grad():
        want = hf(torch.tensor([corrupted])).logits[0, -1]
    for rules, names in RULES.items():
        set_rules(model, names)
        zeros = rules == "stabiliser"
        at_clean, _, clean_values, _ = run(model, clean, answers, zeros)
        at_corrupted, logits, values, gradients = run(model, corrupted, answers, zeros)
        if not zeros:  # the rules leave the forward pass alone, and it is transformers' own
            worst = (logits - want).abs().max()  # transformers turns q and k in single precision
            assert worst < 3e-5, (name, rules, worst)
            out["logits"] = logits
            out["metric"] = torch.tensor([at_clean, at_corrupted])
        for site, gradient in gradients.items():
            out[f"{rules}/{site}"] = gradient[0]
            if rules in ("none", "relp"):
                product = (clean_values[site] - values[site])[0] * gradient[0]
                out[f"score/{rules}/{site}"] = product.flatten(1).sum(1)
                out[f"terms/{rules}/{site}"] = product.flatten(1).abs().sum(1)
    # Each switch must matter where it can: else the reference would test nothing.
    different = lambda a, b: (out[f"{a}/hook_embed"] - out[f"{b}/hook_embed"]).abs().max() > 1e-3 * out[
        f"{b}/hook_embed"].abs().max()
    gated = hasattr(model.blocks[0].mlp, "W_gate")
    for rule in ("ln", "identity", "ah", "relp"):
        assert different(rule, "none"), rule
    assert different("half", "none") == gated
    assert different("all", "relp")
    return {k: v.contiguous() if v.dtype == torch.int32 else v.float().contiguous() for k, v in out.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkout")
    args = parser.parse_args()
    torch.set_num_threads(1)
    fork = import_fork(args.checkout)
    (HERE / "goldens").mkdir(exist_ok=True)
    for name in ("gpt2", "qwen2", "gemma2"):
        values = golden(name, fork)
        path = HERE / "goldens" / f"relp_{name}.safetensors"
        save_file(values, path, {"torch": torch.__version__, "code": "FarnoushRJ/RelP"})
        print(f"{name}: {len(values)} tensors, {path.stat().st_size / 1000:.0f} kB, "
              f"metric {values['metric'].tolist()}")


if __name__ == "__main__":
    main()
