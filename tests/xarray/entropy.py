"""Opens what `lamina entropy -o` writes with xarray's h5netcdf engine: names, shapes, and values
against what --json printed.

    python tests/xarray/entropy.py build/lamina

Needs xarray, h5netcdf and numpy.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import xarray as xr


def main():
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "entropy.h5"
        printed = json.loads(subprocess.run(
            [sys.argv[1], "-q", "entropy", "--model", "organism", "--text", "The capital of France is Paris",
             "Once there was a cat . The cat sat . The cat was here", "--least", "10", "--ratio", "20",
             "--json", "-o", path], check=True, capture_output=True, text=True).stdout)
        attention = xr.open_dataset(path, engine="h5netcdf", group="analyses/entropy")
        for name in ("entropy", "entropy_normalized", "collapsed", "sink", "induction", "logit_max",
                     "query_norm", "state", "pattern"):
            assert attention[name].dims == ("layer", "head"), name
            want = np.array(printed["attention"][name])
            got = attention[name].values
            assert np.array_equal(got, want, equal_nan=want.dtype.kind == "f"), name
        assert attention.position_entropy.dims == ("layer", "head", "position_bin")
        assert list(attention.position_bin.values[:5]) == [0, 1, 2, 4, 8]
        assert attention.key_share.dims == ("layer", "head", "key")
        mean = attention.position_entropy.weighted(attention.position_queries).mean("position_bin")
        assert np.allclose(mean.fillna(0), attention.entropy, rtol=1e-12)
        assert attention.attrs["source"] == "queries and keys" and "collapse" in attention.attrs["ours"]
        massive = xr.open_dataset(path, engine="h5netcdf", group="analyses/massive")
        assert massive.dimension_count.dims == ("layer", "dimension")
        assert massive.largest.dims == ("layer",)
        assert list(massive.largest.values) == [l["largest"] for l in printed["massive"]["layers"]]
        assert len(printed["massive"]["listed"]) > 0
        assert list(massive.listed_value.values) == [a["value"] for a in printed["massive"]["listed"]]
        output = xr.open_dataset(path, engine="h5netcdf", group="analyses/output")
        assert output.log_z.dims == ("statistic",)
        assert float(output.log_z.sel(statistic="mean")) == printed["output"]["log_z"]["mean"]
    print("entropy: readable by xarray", xr.__version__)


if __name__ == "__main__":
    main()
