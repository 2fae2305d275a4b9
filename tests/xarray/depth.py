#!/usr/bin/env python3
"""Opens what `lamina depth` writes with xarray, by name, and compares it with numpy on the recording.

    python tests/xarray/depth.py build/lamina

Needs h5py, xarray, h5netcdf and numpy.
"""
import os
import pathlib
import subprocess
import sys
import tempfile

import h5py
import numpy as np
import xarray as xr

PROMPTS = pathlib.Path(__file__).resolve().parents[2] / "data/organism/prompts.jsonl"


def main():
    program = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        def lamina(*words):
            subprocess.run([program, "-q", *words], check=True, cwd=folder, stdout=subprocess.DEVNULL)

        lamina("record", "organism", "--prompts", str(PROMPTS), "--sites", "resid_pre:0,resid_post,attn_out,mlp_out,post",
               "-o", "run.h5")
        lamina("depth", "run.h5", "--against", "organism", "-o", "depth.h5")
        group = lambda name: xr.load_dataset(f"{folder}/depth.h5", engine="h5netcdf", group=f"/analyses/depth_{name}")
        with h5py.File(f"{folder}/run.h5") as f:
            at = lambda site: f["activations"][site][:].astype(np.float64)
            h = [at("blocks.0.hook_resid_pre")] + [at(f"blocks.{l}.hook_resid_post") for l in range(6)]
            a = [at(f"blocks.{l}.hook_attn_out") for l in range(6)]
            m = [at(f"blocks.{l}.hook_mlp_out") for l in range(6)]
            post = [at(f"blocks.{l}.mlp.hook_post") for l in range(6)]
        norm = lambda x: np.linalg.norm(x, axis=-1)
        cos = lambda x, y: (x * y).sum(-1) / norm(x) / norm(y)

        c = group("contributions")
        assert c["mlp_ratio"].dims == ("layer",) and c.attrs["mlp_base"] == "h + a" and c.attrs["tokens"] == len(h[0])
        np.testing.assert_allclose(c["mlp_ratio"].sel(layer=2), (norm(m[2]) / norm(h[2] + a[2])).mean(), rtol=1e-12)
        np.testing.assert_allclose(c["block_cos"].sel(layer=5), cos(h[6] - h[5], h[5]).mean(), rtol=1e-12)
        g = group("growth")
        np.testing.assert_allclose(g["variance"].sel(stream="3"), h[4].var(-1).mean(), rtol=1e-12)
        d = group("angular")
        assert d["distance"].dims == ("layer", "n")
        np.testing.assert_allclose(d["distance"].sel(layer=1, n=3), np.arccos(cos(h[1], h[4])).mean() / np.pi, rtol=1e-9)
        assert np.isnan(d["distance"].sel(layer=4, n=3))
        s = group("sparsity")
        assert s["neuron_active"].dims == ("layer", "neuron")
        rms = np.sqrt((post[3] ** 2).mean(-1, keepdims=True))
        np.testing.assert_allclose(s["active"].sel(layer=3), (np.abs(post[3]) > 0.1 * rms).mean(), atol=2e-6)
        e = group("exit")
        assert e["agreement"].dims == ("stream",) and float(e["agreement"].sel(stream="5")) == 1.0
        np.testing.assert_allclose(e["exit_share"].sum(), 1.0)
        q = group("magnitudes")
        assert q["histogram"].dims == ("output", "layer", "bin")
        np.testing.assert_allclose(q["histogram"].sum("bin"), 1.0)
        u = np.abs(post[0]) / np.abs(post[0]).sum(-1, keepdims=True) * post[0].shape[1]
        np.testing.assert_allclose(q["mean_mlp_post"].sel(layer=0), u.mean(0), rtol=1e-12)
        z = h[6] / norm(h[6])[:, None]
        rate = 0.5 * np.linalg.slogdet(np.eye(128) + 128 / (len(z) * 0.25) * z.T @ z)[1]
        np.testing.assert_allclose(group("coding_rate")["coding_rate"].sel(stream="5"), rate, rtol=1e-6)
        w = group("linear_map")
        assert w["error"].dims == ("source", "target") and float(w["error"].sel(source="2", target="2")) < 0.02
    print("all readable by xarray", xr.__version__)


main()
