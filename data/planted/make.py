#!/usr/bin/env python3
"""Builds the planted models (numpy only), proves their circuits, and writes everything a method needs to be judged by them.

For each model: config.json, model.safetensors (float32), tokenizer.json, circuit.json, prompts.jsonl, pairs.jsonl.

Proofs, over all pairs, any failure of which stops the script:
  - the model's answer is right on every prompt;
  - zeroing any node outside the circuit changes no answer logit (the right and the wrong answer's); zeroing any node
    inside breaks answers;
  - giving an edge outside the circuit the value 0, or its value from the corrupted prompt, changes no answer logit;
  - zeroing an edge inside breaks answers;
  - a forward pass in which *only* the circuit's edges carry their values, all others 0, answers every prompt.
"""
import argparse
import json
import pathlib
import sys

import numpy as np
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import lamina_format  # noqa: E402
import programs  # noqa: E402

TOLERANCE = 1e-9  # of a logit; the arithmetic is float64, answers differ by 1 or more


def margins(model, ids, right, wrong, **how):
    """(logit of the right answer, of the wrong one, whether the right one is the largest of all)."""
    logits = model.run(ids, **how)[0][-1]
    best = logits.argmax()
    unique = (logits >= logits[best] - TOLERANCE).sum() == 1
    return logits[right], logits[wrong], bool(unique and best == right)


def check(condition, message):
    if not condition:
        raise SystemExit(f"planted model is wrong: {message}")


def verify(name, model, circuit_edges, pairs):
    """Runs the proofs; returns the numbers for circuit.json."""
    cases = []
    for clean, corrupted, right, wrong in pairs:
        ids, other = ([0] + [model.id[x] for x in words] for words in (clean, corrupted))
        right, wrong = model.id[right], model.id[wrong]
        base = margins(model, ids, right, wrong)
        check(base[2], f"{name}: {' '.join(clean)}: wrong answer")
        check(margins(model, other, wrong, right)[2], f"{name}: {' '.join(corrupted)}: wrong answer")
        cases.append((ids, right, wrong, base, model.run(ids)[1], model.run(other)[1]))

    def effect(how):
        """(largest change of the two answer logits, prompts still answered) under `how(clean outputs, corrupted outputs)`."""
        change, good = 0.0, 0
        for ids, right, wrong, base, clean, corrupted in cases:
            a = margins(model, ids, right, wrong, **how(clean, corrupted))
            change = max(change, abs(a[0] - base[0]), abs(a[1] - base[1]))
            good += a[2]
        return change, good

    edges = model.edges()
    inside = {tuple(e.split("->")) for e in circuit_edges}
    check(inside <= set(edges), f"{name}: the circuit names an edge that does not exist")
    nodes_in = {x.split("<")[0] for e in inside for x in e}
    nodes = {}
    for node in model.nodes()[1:-1]:
        change, good = effect(lambda clean, corrupted: {"zero_nodes": {node}})
        nodes[node] = {"zero_accuracy": good / len(cases)}
        if node in nodes_in:
            check(good < 0.7 * len(cases), f"{name}: zeroing {node} leaves {good}/{len(cases)} right")
        else:
            check(change < TOLERANCE, f"{name}: zeroing {node}, not in the circuit, moves an answer by {change}")
    counterfactual, accuracy = [], {}
    for e in edges:
        label = "->".join(e)
        z_change, z_good = effect(lambda clean, corrupted: {"edge_value": {e: np.zeros_like(clean[e[0]])}})
        c_change, _ = effect(lambda clean, corrupted: {"edge_value": {e: corrupted[e[0]]}})
        if e in inside:
            accuracy[label] = z_good / len(cases)
            check(z_good < 0.9 * len(cases), f"{name}: zeroing {label} leaves {z_good}/{len(cases)} right")
            if c_change > TOLERANCE:
                counterfactual.append(label)
        else:
            check(max(z_change, c_change) < TOLERANCE,
                  f"{name}: {label}, not in the circuit, moves an answer by {max(z_change, c_change)}")
    _, alone = effect(lambda clean, corrupted: {"edge_value": {e: np.zeros_like(clean[e[0]]) for e in edges if e not in inside}})
    check(alone == len(cases), f"{name}: the circuit alone answers {alone}/{len(cases)}")
    return nodes, accuracy, counterfactual, len(edges)


def build(name, out, seed, count):
    rng = np.random.default_rng([seed, *name.encode()])
    model, edges, pair, task = programs.PROGRAMS[name]()
    pairs, seen = [], set()
    while len(pairs) < count:
        p = pair(rng)
        check(len(p[0]) == len(p[1]), f"{name}: prompts of a pair differ in length")
        if tuple(p[0]) not in seen:
            seen.add(tuple(p[0]))
            pairs.append(tuple([str(w) for w in x] if isinstance(x, list) else str(x) for x in p))
    nodes, edge_accuracy, counterfactual, n_edges = verify(name, model, edges, pairs)

    folder = out / name
    config = lamina_format.make_config(**model.config())
    weights = {n: np.ascontiguousarray(t, np.float32) for n, t in sorted(model.w.items())}
    lamina_format.check_shapes(config, weights, name)
    lamina_format.write_config(folder, config)
    lamina_format.write_tokenizer(folder, model.vocabulary)
    save_file(weights, folder / "model.safetensors")
    with open(folder / "prompts.jsonl", "w", encoding="utf-8") as f:
        for i, (clean, _, right, _) in enumerate(pairs[:24]):
            f.write(json.dumps({"id": f"{name}-{i}", "text": " ".join(clean), "target": right, "labels": {"task": name}},
                               ensure_ascii=False) + "\n")
    with open(folder / "pairs.jsonl", "w", encoding="utf-8") as f:
        for clean, corrupted, right, wrong in pairs[:32]:
            f.write(json.dumps({"clean": " ".join(clean), "corrupted": " ".join(corrupted), "correct": [right],
                                "wrong": [wrong]}, ensure_ascii=False) + "\n")
    parts = {p: [s.start, s.stop] for p, s in model.part.items()}
    body = {
        "name": name, "task": task, "metric": "logit_diff", "n_edges": n_edges,
        "accuracy": {"prompts": 2 * len(pairs), "correct": 2 * len(pairs)},
        "residual_parts": parts,
        "nodes": [{"name": "input", "does": "token and position embedding, one-hot, in `tok` and `pos`"}]
        + [{"name": n, "does": s, "accuracy_when_zeroed": round(nodes[n]["zero_accuracy"], 4)} for n, s in model.circuit.items()]
        + [{"name": "logits", "does": "reads one part of the residual stream"}],
        "distractors": [{"name": n, "does": s} for n, s in sorted(model.distractors.items())],
        "edges": [{"edge": e, "accuracy_when_zeroed": round(edge_accuracy[e], 4), "counterfactual": e in counterfactual}
                  for e in edges],
    }
    check({n["name"] for n in body["nodes"]} | set(model.distractors) == set(model.nodes()), f"{name}: a node is not described")
    head = {k: v for k, v in body.items() if not isinstance(v, list)}
    text = json.dumps(head, ensure_ascii=False, indent=1)[:-2]
    for key in ("nodes", "distractors", "edges"):
        text += f',\n "{key}": [\n' + ",\n".join("  " + json.dumps(x, ensure_ascii=False) for x in body[key]) + "\n ]"
    (folder / "circuit.json").write_text(text + "\n}\n", encoding="utf-8")
    size = (folder / "model.safetensors").stat().st_size
    print(f"{name}: {2 * len(pairs)}/{2 * len(pairs)} prompts right, {len(edges)} of {n_edges} edges in the circuit "
          f"({len(counterfactual)} carry the difference between the prompts of a pair), {size} bytes")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("names", nargs="*", help=f"models to build, of {', '.join(programs.PROGRAMS)} (default: all)")
    ap.add_argument("--out", type=pathlib.Path, default=HERE, help="folder for the models (default: beside this script)")
    ap.add_argument("--seed", type=int, default=1, help="of the prompts; the weights do not depend on it")
    ap.add_argument("--pairs", type=int, default=100, help="pairs of prompts to verify on")
    args = ap.parse_args()
    for name in args.names or programs.PROGRAMS:
        if name not in programs.PROGRAMS:
            ap.error(f"no program {name!r}; there are {', '.join(programs.PROGRAMS)}")
        build(name, args.out, args.seed, args.pairs)


if __name__ == "__main__":
    main()
