"""Runs lamina circuit and graph, opens their results with xarray's h5netcdf engine, by name, and checks the numbers.

    python tests/xarray/circuit.py build/lamina

Influence, replacement and completeness are computed again, densely, from the edges. Needs xarray, h5netcdf, numpy.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import xarray as xr


PROMPTS = pathlib.Path(__file__).resolve().parents[2] / "data/organism/prompts.jsonl"


def main():
    lamina = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        run = lambda *words: subprocess.run([lamina, "-q", *words], check=True, stdout=subprocess.DEVNULL, cwd=folder)
        run("transcoder", "train", "--model", "organism", "--prompts", PROMPTS, "-o", "t", "--features", "96", "--batch",
            "32", "--buffer", "256", "--steps", "20", "--activation", "topk", "--k", "8")
        run("circuit", "organism", "--transcoders", "t", "--text", "The war lasted from the year 17 32 to 17", "-o", "c.h5",
            "--whole-graph", "c.json", "--change", "*_err_*=0")
        run("graph", "c.json", "--prune", "--centrality", "--communities", "-o", "g.h5")
        check(os.path.join(folder, "c.h5"))
        changed = xr.open_dataset(os.path.join(folder, "c.h5"), group="/analyses/circuit_change", engine="h5netcdf")
        assert changed["measured"].dims == ("freedom", "node") and changed["correlation"].dims == ("freedom",)
        direct = changed.sel(freedom="direct")
        off = np.abs(direct["measured"] - direct["predicted"])
        assert float(off.max()) < 1e-4 * float(np.abs(direct["predicted"]).max()), float(off.max())
        graph = xr.open_dataset(os.path.join(folder, "g.h5"), group="/analyses/graph", engine="h5netcdf")
        for name in ("betweenness", "in_strength", "out_strength", "community", "influence"):
            assert graph[name].dims == ("node",), name
        assert set(graph["node"].values) <= set(changed["node"].values)


def check(path):
    data = xr.open_dataset(path, group="/analyses/circuit", engine="h5netcdf")
    assert data["influence"].dims == ("node",) and data["weight"].dims == ("edge",), data
    assert data["unexplained"].dims == ("layer",)
    for name in data.data_vars:
        assert data[name].attrs.get("description") or data[name].attrs.get("semantics"), (name, data[name].attrs)
    n = data.sizes["node"]
    a = np.zeros((n, n))
    a[data["target"].values, data["source"].values] = data["weight"].values
    kind = np.array([k.decode() if isinstance(k, bytes) else str(k) for k in data["kind"].values])
    # Weights and bias add up, as long as every active feature is a node.
    if data.attrs["active_features"] == (kind == "feature").sum():
        target = (kind == "feature") | (kind == "logit")
        off = np.abs(a.sum(1) + data["bias"].values - data["pre_activation"].values)[target]
        size = (np.abs(a).sum(1) + np.abs(data["bias"].values))[target]
        print(f"weights and bias: off the pre-activations by at most {np.max(off / size):.1e}")
        assert np.max(off / size) < 1e-5
    share = np.abs(a) / np.maximum(np.abs(a).sum(1, keepdims=True), 1e-10)
    w = data["probability"].values
    influence = np.linalg.solve(np.eye(n) - share.T, w) - w
    off = np.abs(influence - data["influence"].values).max()
    tokens, errors = influence[kind == "token"].sum(), influence[kind == "error"].sum()
    replacement = tokens / (tokens + errors)
    output = influence + w
    completeness = ((1 - share[:, kind == "error"].sum(1)) * output).sum() / output.sum()
    print(f"influence off by {off:.1e}; replacement {replacement:.6f}, completeness {completeness:.6f}")
    assert off < 1e-9
    assert abs(replacement - data.attrs["replacement_score"]) < 1e-9
    assert abs(completeness - data.attrs["completeness_score"]) < 1e-9
    print(f"{n} nodes, {data.sizes['edge']} edges: all as stated")


if __name__ == "__main__":
    main()
