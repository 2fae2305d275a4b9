"""Opens what test_record writes with h5py and with xarray's h5netcdf engine, and checks names and values.

    python tests/record/open_with_xarray.py build/tests/record/test_record

Needs h5py, xarray, h5netcdf and numpy.
"""

import os
import subprocess
import sys
import tempfile

import h5py
import numpy as np
import xarray as xr

SITE = "blocks.1.attn.hook_z"
PATTERN = "blocks.0.attn.hook_pattern"


def check_recording(path, dtype, exact):
    with h5py.File(path) as f:
        assert f.attrs["format"] == "lamina-recording"
        assert f.attrs["complete"] == 1
        assert f.attrs["seed"] == 0xFFFFFFFFFFFFFFF0
        z = f["activations"][SITE]
        assert z.dtype == dtype, (z.dtype, dtype)
        assert z.shape == (20, 4, 3)
        assert [d.label for d in z.dims] == ["token", "head", "d_head"]
        assert [d[0].name for d in z.dims] == ["/token", "/head", "/d_head"]
        assert z.attrs["site"] == SITE and z.attrs["semantics"] and z.attrs["units"] == "1"
        every = []
        f.visititems(lambda name, o: every.append(name) if isinstance(o, h5py.Dataset) else None)
        for name in every:
            data = f[name]
            if data.is_scale:
                continue
            for size, d in zip(data.shape, data.dims):
                assert d.label and len(d) == 1 and len(d[0]) == size, name
        offsets = f["inputs/offsets"][:]
        assert list(np.diff(offsets)) == [3, 1, 5, 2, 8, 1]
        assert f["inputs/text"].asstr()[0] == "text né 0"
        assert f["inputs/labels/language"].asstr()[1] == "français"
        assert list(f["inputs/label_present/language"][:]) == [0, 1, 0, 1, 0, 1]
        assert f["inputs/labels/a%2Fb%25"].attrs["label"] == "a/b%"
        a = f["attention"][PATTERN]
        start, stop = a["offsets"][2:4]
        pattern = a["values"][start:stop].reshape(4, 5, 5)
        values = z[:].astype(np.float64)
    ds = xr.open_dataset(path, engine="h5netcdf", group="activations")
    assert ds[SITE].dims == ("token", "head", "d_head"), ds[SITE].dims
    assert np.array_equal(ds[SITE].values.astype(np.float64), values)
    assert ds["blocks.0.attn.hook_k"].dims == ("token", "kv_head", "d_head")
    logits = xr.open_dataset(path, engine="h5netcdf", group="logits")
    assert logits["topk_logprobs"].dims == ("token", "k")
    assert logits["topk_logprobs"].attrs["units"] == "nats"
    attention = xr.open_dataset(path, engine="h5netcdf", group=f"attention/{PATTERN}")
    assert attention["values"].dims == ("element",)
    inputs = xr.open_dataset(path, engine="h5netcdf", group="inputs")
    assert inputs["input_ids"].dims == ("token",) and inputs["text"].dims == ("prompt",)
    if exact is not None:
        tolerance = {"float16": 1e-3, "bfloat16": 1e-2}.get(exact[0], 0)
        assert np.allclose(values, exact[1], rtol=tolerance, atol=0), path
        assert np.allclose(pattern.astype(np.float64), exact[2], rtol=tolerance, atol=0), path
    return values, pattern.astype(np.float64)


def check_results(path):
    ds = xr.open_dataset(path, engine="h5netcdf", group="/analyses/lens")
    assert ds["entropy"].dims == ("layer", "token")
    assert list(ds["layer"].values) == [0, 4]
    assert list(ds["token"].values) == ["the", "é", ""]
    assert ds["entropy"].sel(layer=4).values.tolist() == [4, 5, 6]
    assert ds["entropy"].attrs["units"] == "nats" and ds.attrs["kind"] == "logit"
    assert ds["top"].values[1, 2] == "f"
    assert int(ds["count"]) == 42
    assert xr.open_dataset(path, engine="h5netcdf", group="/analyses/cka")["best"].dims == ("layer",)


def main():
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.abspath(sys.argv[1])
        subprocess.run([program, "--gtest_filter=Sample.*"], check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "LAMINA_RECORD_SAMPLE": folder})
        at = lambda name: os.path.join(folder, name)
        z, pattern = check_recording(at("f32.h5"), np.float32, None)
        check_recording(at("f16.h5"), np.float16, ("float16", z, pattern))
        check_recording(at("bf16.h5"), np.float32, ("bfloat16", z, pattern))
        check_recording(at("sharded.h5"), np.float32, ("float32", z, pattern))
        here = os.getcwd()
        os.chdir("/")  # the index finds its shards from anywhere
        check_recording(at("sharded.h5"), np.float32, ("float32", z, pattern))
        os.chdir(here)
        check_results(at("results.h5"))
    print("all readable by h5py", h5py.__version__, "and xarray", xr.__version__)


if __name__ == "__main__":
    main()
