"""Every void decision of lamina on a real GGUF model against the transcription of the authors' rule
(tests/probes/void_reference.py), on prompts and on the answers lamina generates to them.

    python void_transformers.py MODEL.gguf --lamina PROGRAM --work FOLDER [--generate 16] [--threads N]

Needs torch, transformers >= 5, gguf, h5py, and some 100 KB of disk a token in FOLDER. The prompts are the
shipped questions twice, once with their options and once without: 240. Two comparisons, float32 norms on
Python's side:

  same states   the hidden states of lamina's recording go through the transcription
  transformers  so do those that transformers computes for the same ids from the same file

A decision that differs is excused only if |delta - threshold| is within the noise that the states and
fp32 norms carry; both are counted. Noise, relative to the token's largest norm so far: for the same states
8 * 2^-24 * (1 + alpha), a few roundings of the norms that delta and threshold are made of; for transformers
that and 4 times the largest difference of norms at that token up to that layer. Exit 1 if a decision differs beyond that.
"""
import argparse
import json
import pathlib
import subprocess
import sys

import h5py
import numpy as np
import torch

REPO = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests" / "probes"))
from void_reference import release_rule  # noqa: E402


def write_prompts(path):
    lines = []
    for line in (REPO / "data/questions/questions.jsonl").read_text(encoding="utf-8").splitlines():
        q = json.loads(line)
        options = "".join(f"{letter}. {text}\n" for letter, text in zip("ABCD", q["options"]))
        lines.append(json.dumps({"id": q["id"], "text": f"Question: {q['question']}\n{options}Answer:"}))
        lines.append(json.dumps({"id": q["id"] + "-bare", "text": q["question"]}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def transformers_states(model, ids):
    """[L + 1, T, D]: entering the first decoder layer, then leaving every one (no final norm)."""
    states, handles = [], []
    layers = model.model.layers

    def entering(_, args, kwargs):
        states.append((args[0] if args else kwargs["hidden_states"])[0])

    def leaving(_, __, output):
        states.append((output[0] if isinstance(output, tuple) else output)[0])

    handles.append(layers[0].register_forward_pre_hook(entering, with_kwargs=True))
    handles += [layer.register_forward_hook(leaving) for layer in layers]
    with torch.no_grad():
        model.model(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(states).float()


class Tally:
    def __init__(self, name):
        self.name, self.total, self.excused, self.bad, self.near = name, 0, 0, 0, 0
        self.phase = np.zeros((2, 2), int)      # [phase][decisions, different]
        self.worst = 0.0

    def add(self, want, got, gap, noise, generated):
        """all [L, T] of one prompt and alpha; gap and noise relative to the token's largest norm."""
        different = want != got
        self.total += want.size
        self.near += int((gap <= noise).sum())
        self.excused += int((different & (gap <= noise)).sum())
        self.bad += int((different & (gap > noise)).sum())
        if different.any():
            self.worst = max(self.worst, float(gap[different].max()))
        for p in (0, 1):
            self.phase[p] += (different[:, generated == p].size, int(different[:, generated == p].sum()))

    def report(self):
        print(f"{self.name}: {self.total} decisions (PP {self.phase[0][0]}, RG {self.phase[1][0]}), "
              f"{self.excused + self.bad} different (PP {self.phase[0][1]}, RG {self.phase[1][1]}), of them "
              f"{self.bad} beyond noise; {self.near} within noise; largest gap of a different one {self.worst:.1e}")
        return self.bad == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--lamina", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--generate", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reuse", action="store_true", help="take the recording that is in FOLDER already")
    parser.add_argument("--same-states-only", action="store_true",
                        help="the first comparison only: needs no transformers and is quick")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    prompts, recording, results = (args.work / name for name in ("prompts.jsonl", "run.h5", "void.h5"))
    write_prompts(prompts)
    lamina = [args.lamina, "--threads", str(args.threads)]
    if not args.reuse:
        subprocess.run([*lamina, "record", args.model, "--prompts", prompts, "--generate", str(args.generate),
                        "-o", recording, "--force"], check=True)
    subprocess.run([*lamina, "void", recording, "-o", results, "--force"], check=True,
                   stdout=subprocess.DEVNULL)

    model = None
    if not args.same_states_only:
        from transformers import AutoModelForCausalLM
        model = AutoModelForCausalLM.from_pretrained(str(args.model.parent), gguf_file=args.model.name,
                                                     dtype=torch.float32, attn_implementation="eager").eval()
    same, theirs = Tally("same states"), Tally("transformers")
    with h5py.File(results) as file, h5py.File(recording) as run:
        void = file["analyses/void"]
        alphas, active, phase = void["alpha"][:], void["active"][:], void["token_phase"][:]
        ids, offsets = run["inputs/input_ids"][:], run["inputs/offsets"][:]
        layers = active.shape[2]
        sites = ["activations/blocks.0.hook_resid_pre"] + \
            [f"activations/blocks.{l}.hook_resid_post" for l in range(layers)]
        print(f"{len(offsets) - 1} prompts, {len(ids)} tokens, {int(phase.sum())} of them generated, {layers} layers")
        for p in range(len(offsets) - 1):
            rows = slice(offsets[p], offsets[p + 1])
            own = torch.from_numpy(np.stack([run[site][rows] for site in sites]))
            other = transformers_states(model, ids[rows].tolist()) if model is not None else own
            norms = [torch.linalg.norm(x.double(), dim=-1) for x in (own, other)]
            largest = torch.cummax(norms[0], 0).values[1:]
            apart = torch.cummax((norms[0] - norms[1]).abs(), 0).values[1:] / largest
            for a, alpha in enumerate(alphas):
                got = active[a, rows].T.astype(bool)
                for tally, states, noise in ((same, own, torch.full_like(apart, 8 * 2.0**-24 * (1 + alpha))),
                                             (theirs, other, 4 * apart + 8 * 2.0**-24 * (1 + alpha))):
                    want, delta, threshold, _ = release_rule(states, float(alpha))
                    gap = (delta.double() - threshold.double()).abs() / largest
                    tally.add(want.numpy(), got, gap.numpy(), noise.numpy(), phase[rows])
            print(f"  prompt {p + 1}/{len(offsets) - 1}", end="\r", flush=True)
    print()
    ok = [tally.report() for tally in ((same,) if model is None else (same, theirs))]
    sys.exit(0 if all(ok) else 1)


if __name__ == "__main__":
    main()
