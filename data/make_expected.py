#!/usr/bin/env python3
"""Writes expected.json: what the PyTorch reference computes, in float32, from the saved files of every model under data/.

Per prompt: token ids (with <bos>), and the five most probable next tokens after the last one with their natural
log-probabilities. For the organism also the residual stream's norm after the embedding and after every block, at the last token.
"""
import argparse
import json
import pathlib

import torch

import reference

HERE = pathlib.Path(__file__).resolve().parent


def describe(folder, per_task):
    c, w, tokenizer = reference.load(folder)
    prompts, taken = [], {}
    for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines():
        p = json.loads(line)
        task = p["labels"]["task"]
        taken[task] = taken.get(task, 0) + 1
        if taken[task] <= per_task:
            prompts.append(p)
    out = []
    with torch.no_grad():
        for p in prompts:
            ids = tokenizer.encode(p["text"]).ids
            row = torch.tensor([ids])
            h = reference.hidden(c, w, row)[0, -1]
            norms = [reference.hidden(c | {"n_layers": l}, w, row)[0, -1].norm().item() for l in range(c["n_layers"] + 1)]
            lp = reference.unembed(c, w, h).log_softmax(-1)
            top = lp.topk(5)
            out.append({"id": p["id"], "text": p["text"], "ids": ids, "top_ids": top.indices.tolist(),
                        "top_tokens": [tokenizer.id_to_token(i) for i in top.indices.tolist()],
                        "top_logprobs": [round(x, 6) for x in top.values.tolist()],
                        "target": p["target"], "target_logprob": round(lp[tokenizer.token_to_id(p["target"])].item(), 6),
                        "resid_norms": [round(x, 6) for x in norms]})
    return out


def compare(want, got):
    """Ids must agree exactly, numbers to 1e-4: sums are taken in another order elsewhere."""
    if want.keys() != got.keys():
        raise SystemExit(f"models differ: file {sorted(want)}, computed {sorted(got)}")
    worst = 0.0
    for name in want:
        for a, b in zip(want[name], got[name], strict=True):
            if a["ids"] != b["ids"] or a["top_ids"][0] != b["top_ids"][0]:
                raise SystemExit(f"{name}: {a['id']}: token ids differ")
            pairs = [*zip(a["top_logprobs"], b["top_logprobs"]), *zip(a["resid_norms"], b["resid_norms"])]
            worst = max([worst] + [abs(x - y) for x, y in pairs])
    if worst > 1e-4:
        raise SystemExit(f"largest difference {worst}, allowed 0.0001")
    print(f"agrees; largest difference {worst:.1e}")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=pathlib.Path, default=HERE / "expected.json")
    ap.add_argument("--per-task", type=int, default=2, help="prompts of each task")
    ap.add_argument("--check", action="store_true", help="write nothing; compare with the file that is there")
    args = ap.parse_args()
    torch.set_num_threads(1)
    folders = sorted(p.parent for p in HERE.rglob("model.safetensors"))
    lines, found = [], {}
    for f in folders:
        name = f.relative_to(HERE).as_posix()
        rows = describe(f, args.per_task if name == "organism" else 5)
        found[name] = rows
        lines.append(f' "{name}": [\n' + ",\n".join("  " + json.dumps(r, ensure_ascii=False) for r in rows) + "\n ]")
        print(f"{name}: {len(rows)} prompts")
    if args.check:
        compare(json.loads(args.out.read_text(encoding="utf-8")), found)
        return
    args.out.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
