"""Makes effects.json: skip effects and residual erasure by the released code of "Do Language Models
Use Their Depth Efficiently?", and exact block Jacobians by autograd, on the golden llama3.

    git clone https://github.com/RobertCsordas/llm_effective_depth
    python make_effects_goldens.py llm_effective_depth      needs torch, transformers >= 5

The authors' functions (test_effect, test_local_effect, measure_token_skip, effect_layer_score) run
as released; integrated gradients are transcribed. nnsight, which they are written for, is replaced by Stepper below: it runs one model
layer by layer as far as a value is asked for, so that values set before are what later layers see.
Their plotting, caching and data sets are replaced by empty stand-ins, and Tensor.float by double,
so that the goldens have no rounding of their own.
"""

import contextlib
import importlib
import json
import os
import pathlib
import sys
import types
from unittest import mock

import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
LENGTHS = (34, 21, 40)
ANSWERS = (2, 1, 3)  # last tokens of each prompt that are its answer
JACOBIAN_LENGTHS = (7, 4)


class Sublayer:
    """self_attn or mlp of a layer: .output to read and to set."""

    def __init__(self, layer, name, pack):
        self.layer, self.name, self.pack = layer, name, pack

    @property
    def output(self):
        return self.pack(self.layer.value(self.name))

    @output.setter
    def output(self, new):
        self.layer.values[self.name] = new[0] if isinstance(new, tuple) else new


class Layer:
    def __init__(self, stepper, index):
        self.stepper, self.index, self.values = stepper, index, {}
        self.self_attn = Sublayer(self, "attn", lambda x: (x, None))
        self.mlp = Sublayer(self, "mlp", lambda x: x)

    def value(self, name):
        if name not in self.values:
            self.values[name] = getattr(self, "make_" + name)()
        return self.values[name]

    def make_input(self):
        if self.index > 0:
            return self.stepper.model.layers[self.index - 1].value("output")
        return self.stepper.hf.model.embed_tokens(self.stepper.ids)

    def make_attn(self):
        hf, x = self.stepper.hf.model, self.value("input")
        block, n = hf.layers[self.index], x.shape[1]
        positions = torch.arange(n)[None]
        mask = torch.full((n, n), float("-inf"), dtype=x.dtype).triu(1)[None, None]
        return block.self_attn(block.input_layernorm(x), attention_mask=mask,
                               position_embeddings=hf.rotary_emb(x, positions))[0]

    def make_mlp(self):
        block = self.stepper.hf.model.layers[self.index]
        return block.mlp(block.post_attention_layernorm(self.value("input") + self.value("attn")))

    def make_output(self):
        # as the block adds them: (x + attention) + mlp
        return self.value("input") + self.value("attn") + self.value("mlp")

    @property
    def inputs(self):
        return ((self.value("input"),), {})

    @property
    def output(self):
        return (self.value("output"),)

    @output.setter
    def output(self, new):
        self.values["output"] = new[0]


class Stepper:
    """What the authors' code uses of nnsight's LanguageModel. Prompts are lists of ids."""

    remote = False

    def __init__(self, hf):
        self.hf = hf
        self.model = types.SimpleNamespace(layers=[Layer(self, i) for i in range(len(hf.model.layers))])
        self.tokenizer = lambda ids, add_special_tokens=True: {"input_ids": ids}
        self.tokenizer = mock.Mock(side_effect=self.tokenizer)
        self.tokenizer.convert_ids_to_tokens = lambda ids: [str(i) for i in ids]

    @contextlib.contextmanager
    def session(self, remote=False):
        yield self

    @contextlib.contextmanager
    def trace(self, prompt):
        self.ids = torch.tensor([prompt])
        for layer in self.model.layers:
            layer.values = {}
        yield self

    @property
    def output(self):
        last = self.model.layers[-1].value("output")
        return types.SimpleNamespace(logits=self.hf.lm_head(self.hf.model.norm(last)))


def authors(repository, corpus):
    """Their modules, with stand-ins for what is not computation."""
    os.environ["NDIF_TOKEN"] = "none"
    for name in ("nnsight", "datasets", "matplotlib", "matplotlib.pyplot", "mpl_toolkits",
                 "mpl_toolkits.axes_grid1", "tqdm", "lib.matplotlib_config", "lib.models",
                 "lib.igrad", "lib.datasets", "lib.ndif_cache"):
        sys.modules[name] = mock.MagicMock()
    sys.modules["lib.ndif_cache"].ndif_cache_wrapper = lambda function: function
    sys.modules["lib.datasets"].GSM8K = lambda: iter(corpus)
    sys.path.insert(0, str(pathlib.Path(repository) / "analysis"))
    return [importlib.import_module(name) for name in
            ("analyze_future_effects", "analyze_future_local_effects", "lib.token_skip", "skip_max_depth")]


def summary(per_prompt):
    """(effects [L, L], outputs [L] or None) of every prompt -> max and mean over prompts"""
    out = {}
    for i, name in ((0, "effect"), (1, "out")):
        if per_prompt[0][i] is None:
            continue
        values = torch.stack([p[i] for p in per_prompt])
        values = values if name == "effect" else values.squeeze(-1)
        out[name + "_max"] = values.max(0).values.tolist()
        out[name + "_mean"] = values.mean(0).tolist()
    return out


def jacobians(hf, ids):
    """Mean over tokens of |J - I|^2 of every block: own token, and all tokens."""
    stepper = Stepper(hf)
    with stepper.trace(ids):
        streams = [layer.inputs[0][0].detach() for layer in stepper.model.layers]
    own, every = [], []
    for l, x in enumerate(streams):
        def block(value, l=l):
            layer = Layer(stepper, l)
            layer.values["input"] = value
            return layer.value("output")

        jacobian = torch.autograd.functional.jacobian(block, x)[0, :, :, 0]  # [T, D, T, D]
        n, d = x.shape[1:]
        squares = (jacobian.reshape(n * d, n * d) - torch.eye(n * d)).reshape(n, d, n, d).square().sum((1, 3))
        own.append(squares.diagonal().mean().item())
        every.append((squares.sum() / n).item())
    return own, every


def integrated_gradients(hf, ids, answer, part, steps):
    """[L, T] as get_igrads_multiple computes it. A transcription: the released function asks for
    gradients before it calls backward, which only nnsight's deferred tensors understand."""
    stepper, name = Stepper(hf), {"layer": "output", "attention": "attn", "mlp": "mlp"}[part]
    out = []
    for l in range(len(stepper.model.layers)):
        with stepper.trace(ids):
            original = stepper.model.layers[l].value(name).detach()
        baseline = original.mean(dim=1, keepdims=True)
        total = 0
        for step in range(steps):
            with stepper.trace(ids):
                r = step / steps
                target = (original * r + baseline * (1 - r)).requires_grad_()
                stepper.model.layers[l].values[name] = target
                classes = stepper.output.logits[:, :-1].softmax(dim=-1)
                found = classes.gather(-1, stepper.ids[:, 1:].unsqueeze(-1))
                found[:, -answer:].sum().backward()
                total = total + target.grad * (original - baseline)
        out.append((total.sum(-1) / steps)[0].tolist())
    return out


def main():
    torch.set_default_dtype(torch.float64)
    torch.Tensor.save = lambda self: self
    torch.Tensor.float = torch.Tensor.double
    hf = transformers.LlamaForCausalLM.from_pretrained(HERE.parent / "goldens/llama3",
                                                       attn_implementation="eager").double().eval()
    generator = torch.Generator().manual_seed(8)
    prompts = [torch.randint(2, 96, (n,), generator=generator).tolist() for n in LENGTHS]
    llm = Stepper(hf)
    with llm.trace(prompts[0]):
        assert torch.allclose(llm.output.logits, hf(torch.tensor([prompts[0]])).logits, atol=1e-12)
    future, local, token_skip, depth = authors(sys.argv[1], prompts)
    splits = [list(range(8, len(p) - 4, 8)) for p in prompts]  # theirs, before they draw some
    golden = {"model": "llama3", "prompts": prompts, "answers": ANSWERS, "splits": splits, "skip": {}}
    for part in ("layer", "attention", "mlp"):
        golden["skip"]["future " + part] = summary(
            [future.test_effect(llm, p, s, part) for p, s in zip(prompts, splits)])
        golden["skip"]["current " + part] = summary(
            [future.test_effect(llm, p, [None], part) for p in prompts])
    golden["skip"]["local layer"] = summary(
        [(local.test_local_effect(llm, p, s), None) for p, s in zip(prompts, splits)])
    golden["skip"]["current-local layer"] = summary(
        [(local.test_local_effect(llm, p, [None]), None) for p in prompts])

    # As skip_max_depth.py's main: effects over the layers behind, then their score.
    layers = len(hf.model.layers)
    behind = torch.arange(layers - 1, -1, -1).clamp(min=1)
    found = golden["skip"]["future layer"]
    reduced = [torch.tensor(found[k]).sum(-1) / behind for k in ("effect_max", "effect_mean")]
    outs = [torch.tensor(found[k]) for k in ("out_max", "out_mean")]
    golden["layer_effect"] = [e.tolist() for e in reduced]
    golden["depth_score"] = depth.effect_layer_score(reduced)
    golden["out_depth_score"] = depth.effect_layer_score(outs)

    pairs = [(str(i), (p[:-a], p[-a:])) for i, (p, a) in enumerate(zip(prompts, ANSWERS))]
    results, _ = token_skip.measure_token_skip(llm, pairs)
    golden["erasure"] = [results[name].tolist() for name, _ in pairs]

    for parameter in hf.parameters():
        parameter.requires_grad_(False)
    golden["gradient_steps"] = 16
    golden["gradients"] = {part: [integrated_gradients(hf, p, a, part, 16) for p, a in zip(prompts, ANSWERS)]
                           for part in ("layer", "attention", "mlp")}

    golden["jacobian_prompts"] = [p[:n] for p, n in zip(prompts, JACOBIAN_LENGTHS)]
    golden["jacobian"] = [jacobians(hf, p) for p in golden["jacobian_prompts"]]
    text = json.dumps(golden, separators=(",", ":"))
    (HERE / "effects.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
