"""What `transcoder eval` must find, computed with transformers and torch in double precision.

    python tests/transcoder/make_eval_goldens.py       needs torch, transformers >= 5, safetensors

Writes tests/transcoder/eval/: three dictionaries for the golden GPT-2 (tests/goldens/gpt2) in
SAELens' layout, their decoders fitted by least squares so that they rebuild something; prompts.jsonl;
expected.json. The first token of each prompt is left out (--skip 1).
"""

import json
import pathlib
import shutil

import torch
import transformers
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE / "eval"
MODEL = HERE.parent / "goldens" / "gpt2"
D, SKIP, TOP = 24, 1, 3
LENGTHS = (3, 17, 30, 2, 25, 40)
torch.set_default_dtype(torch.float64)


class Dictionary:
    """kind: transcoder (reads the norm with its weights), skip (reads it without), sae."""

    def __init__(self, name, kind, layer, features, k=0):
        self.name, self.kind, self.layer, self.features, self.k = name, kind, layer, features, k

    def place(self):
        l = self.layer
        if self.kind == "sae":
            return f"blocks.{l}.hook_resid_post", None
        read = "mlp.hook_in" if self.kind == "transcoder" else "ln2.hook_normalized"
        return f"blocks.{l}.{read}", f"blocks.{l}.hook_mlp_out"

    def fit(self, x, y, g):
        draw = lambda *shape: torch.randn(*shape, generator=g).float().double()
        self.W_enc = draw(self.features, D) / D**0.5
        self.b_enc = draw(self.features) * 0.1 - 0.3
        self.b_dec = y.mean(0).float().double()
        self.threshold = (draw(self.features).abs() * 0.3).float().double()
        self.W_skip = (draw(D, D) * 0.02).float().double()
        self.W_dec = torch.zeros(self.features, D)
        self.b_enc[:3] = -50.0  # never fire
        z = self.encode(x)
        rest = y - self.decode(z, x)
        fit = torch.linalg.lstsq(torch.cat([z, 0.3 * torch.eye(self.features)]),
                                 torch.cat([rest, torch.zeros(self.features, D)])).solution
        self.W_dec = fit.float().double()

    def encode(self, x):
        shift = self.b_dec if self.kind == "sae" else 0.0
        u = (x - shift) @ self.W_enc.T + self.b_enc
        if self.k:
            top = u.topk(self.k, dim=-1)
            return torch.zeros_like(u).scatter(-1, top.indices, top.values.relu())
        if self.kind == "skip":
            return u.relu() * (u > self.threshold)
        return u.relu()

    def decode(self, z, x):
        y = z @ self.W_dec + self.b_dec
        return y + x @ self.W_skip.T if self.kind == "skip" else y

    def save(self):
        folder = OUT / self.name
        folder.mkdir()
        reads, rebuilds = self.place()
        cfg = {"d_in": D, "d_sae": self.features, "dtype": "float32",
               "apply_b_dec_to_input": self.kind == "sae", "normalize_activations": "none",
               "architecture": {"sae": "topk", "transcoder": "transcoder",
                                "skip": "jumprelu_skip_transcoder"}[self.kind],
               "metadata": {"sae_lens_version": "6.0.0", "model_name": "gpt2", "hook_name": reads}}
        if rebuilds:
            cfg["d_out"] = D
            cfg["metadata"]["hook_name_out"] = rebuilds
        if self.k:
            cfg["k"] = self.k
        (folder / "cfg.json").write_text(json.dumps(cfg, indent=1))
        tensors = {"W_enc": self.W_enc.T, "b_enc": self.b_enc, "W_dec": self.W_dec,
                   "b_dec": self.b_dec}
        if self.kind == "skip":
            tensors.update(threshold=self.threshold, W_skip=self.W_skip)
        save_file({n: t.float().contiguous() for n, t in tensors.items()},
                  folder / "sae_weights.safetensors")


class Runner:
    """The model with hooks: reads what dictionaries read and rebuild, and splices."""

    def __init__(self):
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            MODEL, dtype=torch.float64, attn_implementation="eager").eval()

    def run(self, ids, dictionaries=(), zero=False, read=()):
        seen, handles = {}, []
        blocks = self.model.transformer.h

        def put(d, x, y):
            new = torch.zeros_like(y) if zero else d.decode(d.encode(x), x)
            return torch.cat([y[:, :SKIP], new[:, SKIP:]], 1)

        for d in {*dictionaries, *read}:
            spliced, block = d in dictionaries, blocks[d.layer]
            if d.kind == "sae":
                def hook(_, inputs, out, d=d, spliced=spliced):
                    y = out[0] if isinstance(out, tuple) else out
                    seen[d] = (y[0], y[0])
                    if not spliced:
                        return None
                    new = put(d, y, y)
                    return (new, *out[1:]) if isinstance(out, tuple) else new
                handles.append(block.register_forward_hook(hook))
                continue

            def norm(module, inputs, out, d=d):
                d.read = out
                if d.kind == "skip":
                    x = inputs[0]
                    x = x - x.mean(-1, keepdim=True)
                    d.read = x / (x.pow(2).mean(-1, keepdim=True) + module.eps).sqrt()

            def mlp(_, inputs, out, d=d, spliced=spliced):
                seen[d] = (d.read[0], out[0])
                return put(d, d.read, out) if spliced else None

            handles.append(block.ln_2.register_forward_hook(norm))
            handles.append(block.mlp.register_forward_hook(mlp))
        with torch.no_grad():
            logits = self.model(torch.tensor([ids])).logits[0]
        for handle in handles:
            handle.remove()
        return logits, seen

    def loss(self, prompts, dictionaries=(), zero=False):
        losses = []
        for ids in prompts:
            logits, _ = self.run(ids, dictionaries, zero)
            logp = logits.log_softmax(-1)
            losses += [-logp[i, ids[i + 1]].item() for i in range(SKIP, len(ids) - 1)]
        return sum(losses) / len(losses), len(losses)


def measures(d, rows):
    x, y = (torch.cat([r[i] for r in rows]) for i in (0, 1))
    z = d.encode(x)
    e = y - d.decode(z, x)
    rebuilt = y - e
    centred = (y - y.mean(0)).pow(2).sum(-1)
    active = z > 0
    count = active.sum(0)
    top = []
    for f in range(d.features):
        order = sorted((i for i in range(len(z)) if z[i, f] > 0), key=lambda i: (-z[i, f].item(), i))
        top.append([[i, z[i, f].item()] for i in order[:TOP]])
    frequency = count / len(z)
    return {
        "l0": active.sum(-1).double().mean().item(),
        "explained_variance": (1 - e.pow(2).sum() / centred.sum()).item(),
        "explained_variance_per_token": (1 - e.pow(2).sum(-1) / centred).mean().item(),
        "mse": e.pow(2).mean().item(),
        "normalized_mse": (e.pow(2).sum() / y.pow(2).sum()).item(),
        "cosine": torch.cosine_similarity(y, rebuilt, dim=-1).mean().item(),
        "norm_ratio": (rebuilt.norm(dim=-1) / y.norm(dim=-1)).mean().item(),
        "dead": int((frequency <= 0).sum()),
        "dense": int((frequency > 0.5).sum()),
        "count": count.tolist(),
        "mean": [(z[:, f].sum() / count[f]).item() if count[f] else None
                 for f in range(d.features)],
        "max": z.max(0).values.tolist(),
        "top": top,
    }


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    runner = Runner()
    g = torch.Generator().manual_seed(20)
    vocabulary = runner.model.config.vocab_size
    prompts = [torch.randint(vocabulary, (n,), generator=g).tolist() for n in LENGTHS]
    (OUT / "prompts.jsonl").write_text(
        "".join(json.dumps({"id": f"p{i}", "ids": ids}) + "\n" for i, ids in enumerate(prompts)))
    dictionaries = [Dictionary("mlp1", "transcoder", 1, 32), Dictionary("resid0", "sae", 0, 48, k=6),
                    Dictionary("skip2", "skip", 2, 32)]
    rows = {d: [] for d in dictionaries}
    for ids in prompts:
        _, seen = runner.run(ids, read=dictionaries)
        for d in dictionaries:
            rows[d].append(tuple(v[SKIP:] for v in seen[d]))
    for d in dictionaries:
        d.fit(*(torch.cat([r[i] for r in rows[d]]) for i in (0, 1)), g)
        d.save()
    original, tokens = runner.loss(prompts)
    result = {"tokens": sum(len(p) - SKIP for p in prompts), "loss_tokens": tokens,
              "dictionaries": {}}
    for d in dictionaries:
        m = measures(d, rows[d])
        m["ce"] = {"original": original, "spliced": runner.loss(prompts, [d])[0],
                   "zero": runner.loss(prompts, [d], zero=True)[0]}
        result["dictionaries"][d.name] = m
    result["together"] = {"spliced": runner.loss(prompts, dictionaries)[0],
                          "zero": runner.loss(prompts, dictionaries, zero=True)[0]}
    (OUT / "expected.json").write_text(json.dumps(result, indent=1))
    for name, m in result["dictionaries"].items():
        print(name, {k: v for k, v in m.items() if k not in ("count", "mean", "max", "top")})
    print(result["together"])


if __name__ == "__main__":
    main()
