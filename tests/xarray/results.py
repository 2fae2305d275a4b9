"""Runs the verbs on the shipped models and opens every result in xarray by name.

    python tests/xarray/results.py build/lamina

Needs h5py, xarray, h5netcdf and numpy. Every dataset of every file must have
named dimensions, every dimension of an axis its coordinate, and every dataset a description.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import h5py
import numpy as np
import xarray as xr

REPO = pathlib.Path(__file__).resolve().parents[2]
ORGANISM_PROMPTS = REPO / "data/organism/prompts.jsonl"


def run(lamina, folder, *words):
    words = [str(word) for word in words]
    done = subprocess.run([lamina, "-q", *words], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"lamina {' '.join(words)}: {done.stderr}")


def open_all(path):
    """{analysis: dataset} of one results file, everything in it checked for names."""
    with h5py.File(path) as file:
        groups = list(file["analyses"])
        for group in groups:
            for name, dataset in file["analyses"][group].items():
                if dataset.attrs.get("CLASS") == b"DIMENSION_SCALE":
                    continue
                labels = [dimension.label for dimension in dataset.dims]
                assert all(labels), f"{path.name}: {group}/{name} has dimensions without names: {labels}"
                assert dataset.attrs.get("description"), f"{path.name}: {group}/{name} says not what it is"
    opened = {}
    for group in groups:
        data = xr.open_dataset(path, group=f"analyses/{group}", engine="h5netcdf")
        for name, variable in data.data_vars.items():
            for dimension in variable.dims:
                assert dimension in data.coords, f"{path.name}: {group}/{name}: no coordinate {dimension}"
        assert data.data_vars, f"{path.name}: {group} is empty"
        opened[group] = data
    return opened


def main():
    lamina = str(pathlib.Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model = ["--model", "organism", "--prompts", ORGANISM_PROMPTS]

        def results(*words):
            run(lamina, folder, *words, "-o", "out.h5", "--force")
            return open_all(folder / "out.h5")

        void = results("void", *model)["void"]
        assert set(void.usage.dims) == {"alpha", "phase", "layer"}
        assert 0 <= float(void.usage.sel(alpha=0.8, phase="PP", layer=3)) <= 1
        assert void.active.sel(alpha=0.8).dims == ("token", "layer")

        (folder / "q.jsonl").write_text(
            json.dumps({"question": "The capital of France is", "options": ["Paris", "Rome"], "answer": "A"}) + "\n")
        choices = results("eval", "organism", "--task", "q.jsonl", "--skip", "last-active", "--alpha", "0,0.8")["eval"]
        assert 0 <= float(choices.accuracy.sel(mode="last-active", alpha=0.8, score="letter")) <= 1

        entropy = results("entropy", *model)
        assert 0 <= float(entropy["entropy"].entropy_normalized.sel(layer=2, head=1)) <= 1

        survey = results("survey", "organism", "--prompts", ORGANISM_PROMPTS)
        for analysis in ("next_token", "void", "entropy", "massive", "cka", "depth_contributions", "depth_growth",
                         "depth_angular", "depth_sparsity", "depth_coding_rate", "depth_exit", "inflection"):
            assert analysis in survey, analysis
        cka = survey["cka"]
        assert np.allclose(np.diag(cka.debiased), 1, atol=1e-6)
        assert float(cka.debiased.sel(layer="0", layer_other="5")) <= 1 + 1e-6
        growth = survey["depth_growth"]
        assert float(growth["norm"].sel(stream="embed")) > 0

        pairs = folder / "pairs.jsonl"
        run(lamina, folder, "pairs", "ioi", "--model", "organism", "--count", "4", "-o", pairs)
        for words in (["patch", "organism", "--pairs", pairs, "--site", "resid_pre"],
                      ["patch", "organism", "--pairs", pairs, "--site", "z", "--method", "atp"],
                      ["edges", "organism", "--pairs", pairs],
                      ["lens", *model], ["inflection", "organism", "--prompts", ORGANISM_PROMPTS]):
            results(*words)
    print("every result opens in xarray by name")


if __name__ == "__main__":
    main()
