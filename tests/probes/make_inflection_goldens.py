"""Makes inflection.json: what `lamina inflection` must find on golden models, computed here with
transformers, autograd and numpy in double precision.

    python make_inflection_goldens.py      needs torch, transformers >= 5, numpy

Two pairs of models of one shape: llama2 against mistral (next-token loss, windows), and the BERT
against the DistilBERT classifier (loss of labels). Nothing of the project is used but the golden
models and the numbers of the prompts.
"""

import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
import transformers

HERE = pathlib.Path(__file__).resolve().parent
GOLDENS = HERE.parent / "goldens"
T = transformers
LABELS = 3


def prompts(vocab=96):
    generator = torch.Generator().manual_seed(23)
    return [torch.randint(2, vocab, (n,), generator=generator) for n in (9, 1, 14, 6, 11, 17)]


def load(name):
    kind = T.AutoModelForSequenceClassification if name.endswith("classifier") else T.AutoModelForCausalLM
    return kind.from_pretrained(GOLDENS / name, attn_implementation="eager").double().eval()


def layers_of(model):
    base = model.base_model
    if hasattr(base, "layers"):
        return base.layers
    return base.encoder.layer if hasattr(base, "encoder") else base.transformer.layer


def run(model, ids):
    """logits [T or 1, V], streams [L + 1] (in the graph), patterns [L][H, T, T]"""
    streams, handles = [], []
    for l, layer in enumerate(layers_of(model)):
        def hook(_, args, kwargs, output, l=l):
            if l == 0:
                streams.append(args[0] if args else kwargs["hidden_states"])
            streams.append(output[0] if isinstance(output, tuple) else output)
        handles.append(layer.register_forward_hook(hook, with_kwargs=True))
    out = model(input_ids=ids[None], output_attentions=True)
    for handle in handles:
        handle.remove()
    logits = out.logits if out.logits.dim() == 2 else out.logits[0]
    return logits, streams, [a[0] for a in out.attentions]


def entropies(model, ids_list):
    """mean and normalised entropy [L, H]"""
    window = getattr(model.config, "sliding_window", None) or 0
    causal = not hasattr(model.base_model, "embeddings")
    total, norm, n, open_ = 0, 0, 0, 0
    for ids in ids_list:
        with torch.no_grad():
            patterns = torch.stack(run(model, ids)[2]).numpy()  # [L, H, T, T]
        h = -np.where(patterns > 0, patterns * np.log(np.where(patterns > 0, patterns, 1)), 0).sum(-1)
        t = len(ids)
        visible = np.arange(1, t + 1) if causal else np.full(t, t)
        if window:
            visible = np.minimum(visible, window)
        many = visible > 1
        total, n = total + h.sum(-1), n + t
        norm = norm + (h[..., many] / np.log(visible[many])).sum(-1)
        open_ += many.sum()
    return total / n, norm / open_


def batches(ids_list, most):
    out = []
    for i, ids in enumerate(ids_list):
        if out and sum(len(ids_list[j]) for j in out[-1]) + len(ids) <= most:
            out[-1].append(i)
        else:
            out.append([i])
    return out


def gradients(model, ids_list, most, classifier):
    count, loss_sum, hits, results = 0, 0.0, 0, []
    token = 0.0
    for batch in batches(ids_list, most):
        terms, streams = [], []
        for i in batch:
            logits, s, _ = run(model, ids_list[i])
            streams.append(s)
            if classifier:
                rows, answers = logits, torch.tensor([i % LABELS])
            else:
                rows, answers = logits[:-1], ids_list[i][1:]
            if len(answers):
                terms.append(F.cross_entropy(rows, answers, reduction="none"))
                hits += (rows.argmax(-1) == answers).sum().item()
        if not terms:
            continue
        each = torch.cat(terms)
        loss = each.mean()
        flat = [x for s in streams for x in s]
        named = dict(model.named_parameters())
        found = torch.autograd.grad(loss, flat + list(named.values()), allow_unused=True)
        width = len(streams[0])
        at = lambda p, s: torch.zeros_like(flat[p * width + s][0]) if found[p * width + s] is None \
            else found[p * width + s][0]
        rows = [[at(p, s) for p in range(len(streams))] for s in range(width)]
        token = token + np.array([sum(g.norm(dim=-1).sum().item() for g in r) for r in rows]) * len(each)
        whole = [sum(g.pow(2).sum().item() for g in r) ** 0.5 for r in rows]
        weights = {n: (0.0 if g is None else g.pow(2).sum().item())
                   for n, g in zip(named, found[len(flat):])}
        prefixes = [next(n for n, m in model.named_modules() if m is layer) + "." for layer in layers_of(model)]
        per_layer = [sum(v for n, v in weights.items() if n.startswith(p)) ** 0.5 for p in prefixes]
        results.append((whole, per_layer, {n: v ** 0.5 for n, v in weights.items()}))
        count, loss_sum = count + len(each), loss_sum + each.sum().item()
    mean = lambda pick: np.mean([pick(r) for r in results], 0).tolist()
    tokens = sum(len(ids) for ids in ids_list)
    names = {"llama2": {"0.q": "model.layers.0.self_attn.q_proj.weight", "unembed": "lm_head.weight",
                        "embed": "model.embed_tokens.weight"},
             "bert": {"1.out": "bert.encoder.layer.1.output.dense.weight", "head": "bert.pooler.dense.weight",
                      "unembed.b": "classifier.bias", "embed": "bert.embeddings.word_embeddings.weight",
                      "type_embed": "bert.embeddings.token_type_embeddings.weight"}}
    some = names.get(model.config.model_type if classifier else "llama2" if "llama" in model.config.model_type
                     else "", {})
    return dict(loss=loss_sum / count, accuracy=hits / count, predicted=count, batches=len(results),
                token_gradient=(token / tokens).tolist(), batch_gradient=mean(lambda r: r[0]),
                layer_gradient=mean(lambda r: r[1]),
                parameters={k: mean(lambda r, n=n: r[2][n]) for k, n in some.items()})


def min_max(x):
    x = np.asarray(x)
    return (x - x.min()) / (x.max() - x.min())


def score(entropy, gradient, w):
    return (w * min_max(-np.asarray(entropy)) + (1 - w) * min_max(-np.log(gradient))).tolist()


def delta_cka(a, b, components, variance):
    """a, b [T, D]: by the stacked rows' singular vectors, no sums of products."""
    a, b = a - a.mean(0), b - b.mean(0)
    _, s, vt = np.linalg.svd(np.concatenate([a, b]), full_matrices=False)
    share = np.cumsum(s**2) / (s**2).sum()
    k = min(int(np.searchsorted(share, variance)) + 1, components)
    cka = lambda x, y: np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    p = vt[:k].T
    return 1 - cka(a @ p, b @ p), 1 - cka(a, b), k, share[k - 1]


def main():
    torch.set_num_threads(1)
    ids_list, out = prompts(), {"prompts": [ids.tolist() for ids in prompts()], "cases": []}
    for pair in (("llama2", "mistral"), ("bert_classifier", "distilbert_classifier")):
        models = [load(name) for name in pair]
        classifier = pair[0].endswith("classifier")
        case = dict(models=pair, runs=[])
        for model in models:
            heads, normalized = entropies(model, ids_list)
            result = dict(head_entropy=heads.tolist(), head_entropy_normalized=normalized.tolist(),
                          one=gradients(model, ids_list, 512, classifier),
                          small=gradients(model, ids_list, 25, classifier))
            entropy = heads.mean(-1)
            result["score_token"] = score(entropy, result["one"]["token_gradient"][1:], 0.5)
            result["score_batch"] = score(entropy, result["one"]["batch_gradient"][1:], 0.3)
            case["runs"].append(result)
        with torch.no_grad():
            rows = [[torch.cat([run(m, ids)[1][s][0] for ids in ids_list]).numpy()
                     for s in range(len(layers_of(m)) + 1)] for m in models]
        later = np.concatenate([np.arange(len(ids)) > 0 for ids in ids_list])
        for name, components, variance, keep in (("default", 64, 0.95, later >= 0), ("five", 5, 1.0, later >= 0),
                                                 ("skip", 64, 0.95, later)):
            found = [delta_cka(a[keep], b[keep], components, variance) for a, b in zip(*rows)]
            case[name] = [list(map(float, column)) for column in zip(*found)]
        out["cases"].append(case)
    (HERE / "inflection.json").write_text(json.dumps(out) + "\n")
    for case in out["cases"]:
        print(case["models"], "loss", case["runs"][0]["one"]["loss"], "delta", case["default"][0])


if __name__ == "__main__":
    main()
