"""Opens what `lamina paths -o` writes with xarray's h5netcdf engine: names, shapes, and values
against what --json printed.

    python tests/xarray/paths.py build/lamina

Needs h5py, xarray, h5netcdf and numpy.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import xarray as xr

TEXT = "When Mary and John went to the store , John gave a drink to"


def main():
    lamina = sys.argv[1]

    def run(*arguments):
        return subprocess.run([lamina, "-q", *map(str, arguments)], check=True, capture_output=True, text=True).stdout

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        run("transcoder", "train", "--model", "organism", "--text", TEXT, "--features", "24", "--steps", "2", "--batch", "8",
            "--buffer", "64", "-o", folder / "tc")
        common = ["organism", "--transcoders", folder / "tc", "--json", "--force", "-o", folder / "out.h5"]

        printed = json.loads(run("paths", "weights", *common, "--feature", "4.3", "1.20", "--top", "6"))
        ds = xr.open_dataset(folder / "out.h5", engine="h5netcdf", group="analyses/paths_weights")
        assert ds.deembedding_top_gain.dims == ("feature", "rank"), ds.deembedding_top_gain.dims
        assert ds.source_bottom.dims == ("feature", "layer", "rank")
        assert list(ds.feature.values) == ["4.3", "1.20"] and "denominators" in ds.attrs["norms"]
        for i, one in enumerate(printed):
            for name, list_ in [("deembedding", one["deembedding"]), ("logit", one["logits"])]:
                for end in ["top", "bottom"]:
                    assert list(ds[f"{name}_{end}"].values[i]) == [t["token"] for t in list_[end]]
                    assert np.allclose(ds[f"{name}_{end}_gain"].values[i], [t["adds"] for t in list_[end]], rtol=1e-6)
            best = one["features"]["top"][0]
            assert ds.source_top.sel(layer=best["layer"], rank=0).values[i] == best["feature"]
        assert (ds.source_top.sel(feature="1.20", layer=1) == -1).all()
        assert np.isnan(ds.source_top_gain.sel(feature="1.20", layer=3)).all()
        heads = xr.open_dataset(folder / "out.h5", engine="h5netcdf", group="analyses/paths_weights_heads")
        assert heads["norm"].dims == ("feature", "layer", "head") and heads["norm"].shape == (2, 6, 4)
        assert heads.source_top.dims == ("feature", "through", "layer", "rank")
        assert np.isclose(heads["norm"].max(), heads.through_norm.max())
        first = printed[0]["heads"][0]
        assert (int(heads.through_layer[0, 0]), int(heads.through_head[0, 0])) == (first["layer"], first["head"])

        printed = json.loads(run("paths", "find", *common, "--text", TEXT, "--logit", "Mary", "--minus", "John"))
        ds = xr.open_dataset(folder / "out.h5", engine="h5netcdf", group="analyses/paths")
        assert ds.contribution.dims == ("prefix",) and ds.sizes["prefix"] == len(printed["prefixes"])
        assert list(ds["name"].values) == [p["name"] for p in printed["prefixes"]]
        assert np.allclose(ds.contribution, [p["contribution"] for p in printed["prefixes"]])
        parts = sum(ds[k] for k in ["kept", "features", "heads", "skips", "embeddings", "errors", "biases"])
        where = ds.expanded.values == 1
        assert where[0] and np.allclose(parts[where], ds.contribution[where], rtol=1e-4, atol=1e-4)

        printed = json.loads(run("paths", "contexts", *common, "--text", TEXT, "--feature", "0.1", "--every-place", "--examples", "4"))
        ds = xr.open_dataset(folder / "out.h5", engine="h5netcdf", group="analyses/paths_contexts")
        assert ds.activation.dims == ("feature", "example") and ds.activation.shape == (1, 4)
        places = printed[0]["places"]
        assert np.allclose(ds.activation.values[0, :len(places)], [p["activation"] for p in places], rtol=1e-6)
        assert list(ds.position.values[0, :len(places)]) == [p["position"] for p in places]
    print("ok")


if __name__ == "__main__":
    main()
