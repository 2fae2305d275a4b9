"""Opens what `lamina cka` writes with xarray's h5netcdf engine, and checks names, dimensions and settings.

    python tests/xarray/cka.py build/lamina

Needs xarray, h5netcdf and numpy.
"""

import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import xarray as xr

PROMPTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../data/organism/prompts.jsonl")


def main():
    program = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "cka.h5")
        ask = [program, "--quiet", "cka", "--model", "organism", "--prompts", PROMPTS, "--json", "-o", path]

        def run(*more):
            out = subprocess.run([*ask, "--force", *more], check=True, capture_output=True, text=True).stdout
            return json.loads(out), xr.open_dataset(path, engine="h5netcdf", group="/analyses/cka")

        printed, ds = run("--measure", "linear,debiased,rbf,svcca,pwcca", "--sample", "200")
        for name in ("linear", "debiased", "rbf", "rbf_debiased", "svcca", "pwcca"):
            assert ds[name].dims == ("layer", "layer_other"), (name, ds[name].dims)
            assert np.array_equal(ds[name].values, np.array(printed[name])), name
        for name in ("sigma", "components", "first_token"):
            assert ds[name].dims == ("layer",), name
        assert list(ds["layer"].values) == list(ds["layer_other"].values) == ["embed", *map(str, range(6))]
        assert ds["linear"].sel(layer="2", layer_other="2") == 1
        assert ds.attrs["mode"] == "exact" and ds.attrs["rows"] == 1154 and ds.attrs["bandwidth"] == 0.5
        assert ds.attrs["sample"] == 200 and ds.attrs["variance"] == 0.99 and ds.attrs["floor"] == 1e-6
        ds.close()

        printed, ds = run("--against", "organism", "--site", "resid_post:1-3", "--measure", "rbf", "--skip", "1")
        assert ds["rbf"].shape == (3, 3) and list(ds["layer_other"].values) == ["1", "2", "3"]
        assert ds["sigma_other"].dims == ("layer_other",) and ds.attrs["skip"] == 1
        ds.close()

        printed, ds = run("--mode", "minibatch", "--minibatch", "64")
        assert ds["debiased_error"].dims == ("layer", "layer_other")
        assert np.array_equal(ds["debiased_error"].values, np.array(printed["debiased_error"]))
        assert ds.attrs["minibatches"] == 18 and ds.attrs["rows_left_out"] == 2 and ds.attrs["minibatch"] == 64
        ds.close()
    print("all readable by xarray", xr.__version__)


if __name__ == "__main__":
    main()
