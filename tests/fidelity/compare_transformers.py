"""Compares lamina with transformers on a real GGUF model: next-token distributions and greedy text.

    python compare_transformers.py MODEL.gguf --text FILE... --cache FOLDER --lamina PROGRAM

Needs torch, transformers >= 5, gguf, h5py. transformers reads the same file (its weights expanded to
fp32, eager attention). Its side is computed once and kept in the cache folder; `--reference-only`
stops there. Reported:

  argmax      share of positions where both rank the same token first, and how close the reference's
              first two are wherever not
  log-prob    mean and largest |difference| of the log-probability of the token that follows, in nats
  top-5       mean |difference| over the reference's five likeliest tokens that lamina lists too
  greedy      prompts of 20 whose 64 greedily chosen tokens are the same

Exit 1 if any of the limits below is exceeded.
"""

import argparse
import hashlib
import json
import pathlib
import subprocess
import sys
import time

import numpy as np

# fp32 against fp32: differences come from the order of sums only.
LIMITS = {"argmax": 0.999, "logprob_mean": 1e-4, "greedy_equal": 19}
CHUNKS = (64, 700, 128, 256, 33, 17)  # prompt lengths, in turn; 700 is beyond Gemma 3's window of 512
GREEDY_PROMPTS, GREEDY_TOKENS, GREEDY_LENGTH = 20, 64, 24


def cut(ids, positions, bos):
    """Prompts of CHUNKS lengths with at least `positions` tokens in all."""
    prompts, at, i = [], 0, 0
    while sum(map(len, prompts)) < positions:
        length = CHUNKS[i % len(CHUNKS)]
        piece = ids[at:at + length]
        if len(piece) < length:
            sys.exit(f"the text has only {len(ids)} tokens; {positions} positions were asked for")
        prompts.append(([bos] if bos is not None else []) + piece)
        at, i = at + length, i + 1
    starts = range(at, len(ids) - GREEDY_LENGTH, max(1, (len(ids) - at) // (GREEDY_PROMPTS + 1)))
    greedy = [([bos] if bos is not None else []) + ids[s:s + GREEDY_LENGTH]
              for s in list(starts)[:GREEDY_PROMPTS]]
    if len(greedy) < GREEDY_PROMPTS:
        sys.exit(f"the text gives only {len(greedy)} greedy prompts of {GREEDY_PROMPTS}")
    return prompts, greedy


def reference(model_path, texts, positions, threads):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    folder, name = str(model_path.parent), model_path.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    text = "".join(path.read_text(encoding="utf-8")[:200_000] for path in texts)
    ids = tokenizer(text[:200_000], add_special_tokens=False)["input_ids"]
    with_bos = tokenizer("a")["input_ids"]
    bos = tokenizer.bos_token_id if with_bos[:1] == [tokenizer.bos_token_id] else None
    prompts, greedy = cut(ids, positions, bos)
    print(f"{sum(map(len, prompts))} positions in {len(prompts)} prompts, bos {bos}", flush=True)

    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32,
                                                 attn_implementation="eager").eval()
    out = {"target": [], "top_ids": [], "top_logprobs": []}
    with torch.no_grad():
        for i, prompt in enumerate(prompts):
            logits = model(torch.tensor([prompt]), use_cache=False).logits[0]
            logprobs = logits.double().log_softmax(-1)
            top = logprobs.topk(5, -1)
            following = torch.tensor(prompt[1:])
            target = logprobs[:-1].gather(1, following[:, None])[:, 0]
            out["target"].append(np.append(target.numpy(), np.nan))
            out["top_ids"].append(top.indices.numpy())
            out["top_logprobs"].append(top.values.numpy())
            print(f"  prompt {i + 1}/{len(prompts)}", end="\r", flush=True)
        chosen, gaps = [], []
        for i, prompt in enumerate(greedy):
            past, step, made, gap = None, torch.tensor([prompt]), [], []
            for _ in range(GREEDY_TOKENS):
                result = model(step, past_key_values=past, use_cache=True)
                past, last = result.past_key_values, result.logits[0, -1]
                best = last.topk(2)
                made.append(int(best.indices[0]))
                gap.append(float(best.values[0] - best.values[1]))
                step = torch.tensor([[made[-1]]])
            chosen.append(made)
            gaps.append(gap)
            print(f"  greedy {i + 1}/{len(greedy)}  ", end="\r", flush=True)
    arrays = {key: np.concatenate(value) for key, value in out.items()}
    eos = model.config.eos_token_id
    meta = {"prompts": prompts, "greedy": greedy, "greedy_ids": chosen, "greedy_gaps": gaps,
            "eos": eos if isinstance(eos, list) else [eos]}
    return arrays, meta


def cached_reference(args):
    digest = hashlib.sha256()
    with open(args.model, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    for path in args.text:
        digest.update(path.read_bytes())
    digest.update(f"{args.positions} {CHUNKS} {GREEDY_PROMPTS} {GREEDY_LENGTH} 1".encode())
    stem = args.cache / f"{args.model.stem}-{digest.hexdigest()[:12]}"
    arrays_file, meta_file = stem.with_name(stem.name + ".npz"), stem.with_name(stem.name + ".json")
    if not meta_file.exists():
        started = time.time()
        arrays, meta = reference(args.model, args.text, args.positions, args.threads)
        args.cache.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(arrays_file, **arrays)
        meta_file.write_text(json.dumps(meta))
        print(f"reference: {time.time() - started:.0f} s, kept as {arrays_file.name}")
    with np.load(arrays_file) as file:
        return dict(file), json.loads(meta_file.read_text()), stem


def write_prompts(path, prompts):
    with open(path, "w") as file:
        for i, ids in enumerate(prompts):
            file.write(json.dumps({"id": str(i), "ids": ids}) + "\n")


def run(command):
    started = time.time()
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nexit {done.returncode}: {done.stderr.strip()}")
    return done.stdout, time.time() - started


def compare_distributions(args, arrays, meta, stem):
    import h5py

    prompts, recording = stem.with_name(stem.name + ".prompts.jsonl"), stem.with_name(stem.name + ".h5")
    write_prompts(prompts, meta["prompts"])
    recording.unlink(missing_ok=True)
    _, seconds = run([args.lamina, "record", args.model, "--prompts", prompts, "-o", recording,
                      "--sites", "resid_post:-1", "--topk", "5"])
    with h5py.File(recording) as file:
        ids = file["/inputs/input_ids"][:]
        top_ids, top_logprobs = file["/logits/topk_ids"][:], file["/logits/topk_logprobs"][:]
        target = file["/logits/target_logprob"][:].astype(np.float64)
    expected = np.concatenate([np.array(p) for p in meta["prompts"]])
    if not np.array_equal(ids, expected):
        sys.exit(f"{recording}: input_ids differ from the prompts that were given")
    same = top_ids[:, 0] == arrays["top_ids"][:, 0]
    gaps = arrays["top_logprobs"][:, 0] - arrays["top_logprobs"][:, 1]
    known = ~np.isnan(arrays["target"])
    if np.isnan(target[known]).any():
        sys.exit(f"{recording}: target_logprob is NaN where a token follows")
    delta = np.abs(target[known] - arrays["target"][known])
    both = arrays["top_ids"][:, :, None] == top_ids[:, None, :]
    top_delta = np.abs(arrays["top_logprobs"][:, :, None] - top_logprobs[:, None, :])[both]
    return {"positions": int(len(ids)), "argmax": float(same.mean()), "argmax_different": int((~same).sum()),
            "largest_gap_where_different": float(gaps[~same].max()) if (~same).any() else 0.0,
            "logprob_mean": float(delta.mean()), "logprob_max": float(delta.max()),
            "top5_mean": float(top_delta.mean()), "top5_shared": float(both.sum() / both.shape[0] / 5),
            "record_seconds": round(seconds, 1)}


def compare_greedy(args, meta, stem):
    prompts = stem.with_name(stem.name + ".greedy.jsonl")
    write_prompts(prompts, meta["greedy"])
    text, seconds = run([args.lamina, "generate", args.model, "--prompts", prompts, "--max-new",
                         GREEDY_TOKENS, "--json"])
    made = {}
    for line in text.splitlines():
        item = json.loads(line)
        made[item["id"]] = item["ids"][item["given"]:]
    equal, notes = 0, []
    for i, want in enumerate(meta["greedy_ids"]):
        got = made[str(i)]
        stops = [k for k, token in enumerate(want) if token in meta["eos"]]
        length = stops[0] + 1 if stops else len(want)  # lamina stops at the end-of-text token
        # It may or may not keep that token itself.
        if got == want[:length] or (stops and got == want[:length - 1]):
            equal += 1
            continue
        at = next((k for k, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), length))
        gap = meta["greedy_gaps"][i][min(at, len(want) - 1)]
        notes.append(f"prompt {i}: parts at token {at}, where the reference's first two logits are "
                     f"{gap:.2e} apart")
    return {"greedy_prompts": len(meta["greedy_ids"]), "greedy_equal": equal, "greedy_notes": notes,
            "generate_seconds": round(seconds, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--text", type=pathlib.Path, nargs="+", required=True)
    parser.add_argument("--cache", type=pathlib.Path, required=True)
    parser.add_argument("--lamina", help="the program to compare")
    parser.add_argument("--positions", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reference-only", action="store_true")
    parser.add_argument("--json", type=pathlib.Path, help="write the result there too")
    args = parser.parse_args()
    arrays, meta, stem = cached_reference(args)
    if args.reference_only:
        return
    if not args.lamina:
        parser.error("--lamina PROGRAM is needed unless --reference-only")
    result = {"model": args.model.name, **compare_distributions(args, arrays, meta, stem),
              **compare_greedy(args, meta, stem)}
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    failed = [name for name, limit in LIMITS.items()
              if (result[name] > limit if name == "logprob_mean" else result[name] < limit)]
    if failed:
        sys.exit(f"outside the limits: {', '.join(failed)}")


if __name__ == "__main__":
    main()
