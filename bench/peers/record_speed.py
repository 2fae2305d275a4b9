#!/usr/bin/env python3
"""Recording and generation speed of lamina beside transformers and TransformerLens.

Every program does the same job on the same machine in the same run: PROMPTS prompts of LENGTH
tokens through the model, the residual stream after every block written to an fp32 HDF5 file. The
runs alternate; medians are reported, after the recordings have been compared with each other.

    pip install torch transformers transformer-lens h5py gguf
    python bench/peers/record_speed.py --lamina build/lamina --model MODEL.gguf --text FILE.txt
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--lamina", required=True, type=Path, help="the built command line program")
    p.add_argument("--model", required=True, type=Path, help="GGUF file that transformers can read")
    p.add_argument("--text", required=True, type=Path, help="plain text to cut prompts from")
    p.add_argument("--prompts", type=int, default=64)
    p.add_argument("--length", type=int, default=256)
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--batch", type=int, default=4, help="prompts per batch of the peers")
    p.add_argument("--new-tokens", type=int, default=64)
    p.add_argument("--json", type=Path, help="also write the figures here")
    return p.parse_args()


class Lamina:
    """Times are the program's own (`record --json`): the model's loading is left out for all."""

    def __init__(self, args, prompts_file):
        self.args, self.prompts_file = args, prompts_file

    def record(self, out):
        done = subprocess.run(
            [self.args.lamina, "--threads", str(self.args.threads), "--quiet", "record", self.args.model,
             "--prompts", self.prompts_file, "--sites", "resid_post", "--topk", "0", "--force", "--json", "-o", out],
            check=True, capture_output=True, text=True)
        return json.loads(done.stdout)["seconds"]["record"]


class Peer:
    def __init__(self, args, ids):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(args.threads)
        self.torch, self.args, self.ids = torch, args, torch.tensor(ids)
        self.model = AutoModelForCausalLM.from_pretrained(
            args.model.parent, gguf_file=args.model.name, dtype=torch.float32).eval()
        self.layers = self.model.config.num_hidden_layers
        self.width = self.model.config.hidden_size

    def datasets(self, file):
        shape = (self.args.prompts * self.args.length, self.width)
        return [file.create_dataset(f"activations/blocks.{l}.hook_resid_post", shape, "f4") for l in range(self.layers)]

    def batches(self):
        for start in range(0, self.args.prompts, self.args.batch):
            yield start * self.args.length, self.ids[start:start + self.args.batch]

    def transformers_record(self, out):
        import h5py

        start = time.perf_counter()
        with h5py.File(out, "w") as file, self.torch.no_grad():
            sets = self.datasets(file)
            for row, ids in self.batches():
                states = self.model.model(ids, output_hidden_states=True, use_cache=False).hidden_states
                for l, dataset in enumerate(sets):
                    values = states[l + 1].reshape(-1, self.width)
                    dataset[row:row + len(values)] = values.numpy()
        return time.perf_counter() - start

    def transformers_forward(self):
        start = time.perf_counter()
        with self.torch.no_grad():
            for _, ids in self.batches():
                self.model.model(ids, use_cache=False)
        return time.perf_counter() - start

    def transformers_generate(self, prompt):
        with self.torch.no_grad():
            start = time.perf_counter()
            self.model.generate(prompt, attention_mask=self.torch.ones_like(prompt), do_sample=False,
                                min_new_tokens=self.args.new_tokens, max_new_tokens=self.args.new_tokens)
            return time.perf_counter() - start

    def start_transformer_lens(self):
        from transformer_lens.model_bridge import TransformerBridge
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.args.model.parent, gguf_file=self.args.model.name)
        if hasattr(self.model.config, "quantization_config"):
            del self.model.config.quantization_config
        self.bridge = TransformerBridge.boot_transformers(
            self.args.model.stem, hf_model=self.model, tokenizer=tokenizer, device="cpu", dtype=self.torch.float32)

    def transformer_lens_record(self, out):
        import h5py

        names = {f"blocks.{l}.hook_out" for l in range(self.layers)}
        start = time.perf_counter()
        with h5py.File(out, "w") as file, self.torch.no_grad():
            sets = self.datasets(file)
            for row, ids in self.batches():
                _, cache = self.bridge.run_with_cache(ids, names_filter=lambda n: n in names, return_type=None)
                for l, dataset in enumerate(sets):
                    values = cache[f"blocks.{l}.hook_out"].reshape(-1, self.width)
                    dataset[row:row + len(values)] = values.numpy()
        return time.perf_counter() - start


def compare(a, b, layers):
    """Largest difference of the layers, relative to each layer's largest magnitude."""
    import h5py
    import numpy as np

    worst = 0.0
    with h5py.File(a) as fa, h5py.File(b) as fb:
        for l in range(layers):
            x, y = (np.asarray(f[f"activations/blocks.{l}.hook_resid_post"]) for f in (fa, fb))
            worst = max(worst, float(np.abs(x - y).max() / np.abs(x).max()))
    return worst


def main():
    args = arguments()
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    lines = subprocess.run([args.lamina, "tokenize", args.model, "--ids", "--bos", "never"], check=True,
                           capture_output=True, text=True, input=args.text.read_text()).stdout
    flat = [int(i) for i in lines.split()][: args.prompts * args.length]
    if len(flat) < args.prompts * args.length:
        sys.exit(f"{args.text}: {len(flat)} tokens, {args.prompts * args.length} are needed")
    ids = [flat[i * args.length:(i + 1) * args.length] for i in range(args.prompts)]

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        prompts_file = folder / "prompts.jsonl"
        prompts_file.write_text("".join(json.dumps({"ids": p}) + "\n" for p in ids))
        ours, peer = Lamina(args, prompts_file), Peer(args, ids)
        peer.start_transformer_lens()

        jobs = {
            "lamina": lambda: ours.record(folder / "lamina.h5"),
            "transformers": lambda: peer.transformers_record(folder / "transformers.h5"),
            "TransformerLens": lambda: peer.transformer_lens_record(folder / "lens.h5"),
            "transformers, forward only": peer.transformers_forward,
        }
        times = {name: [] for name in jobs}
        for run in range(args.runs + 1):  # the first round warms up and is not counted
            for name, job in jobs.items():
                seconds = job()
                if run > 0:
                    times[name].append(seconds)

        # The last hidden state of transformers is taken after the final norm: it is left out there.
        print(f"equality: lamina and transformers {compare(folder / 'lamina.h5', folder / 'transformers.h5', peer.layers - 1):.1e}, "
              f"lamina and TransformerLens {compare(folder / 'lamina.h5', folder / 'lens.h5', peer.layers):.1e}")
        medians = {name: statistics.median(t) for name, t in times.items()}
        tokens = args.prompts * args.length
        for name, seconds in medians.items():
            print(f"{name:28s} {seconds:7.2f} s  {tokens / seconds:8.0f} tokens/s  "
                  f"{seconds / medians['lamina']:5.2f} × lamina's time  (min {min(times[name]):.2f}, max {max(times[name]):.2f})")
        if args.json:
            args.json.write_text(json.dumps({"tokens": tokens, "medians": medians, "times": times}, indent=1))


if __name__ == "__main__":
    main()
