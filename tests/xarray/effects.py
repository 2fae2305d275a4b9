"""Opens what `lamina effects -o` writes with xarray's h5netcdf engine: names, shapes, and values
against what --json printed.

    python tests/xarray/effects.py build/lamina

Needs h5py, xarray, h5netcdf and numpy.
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
        path = pathlib.Path(folder) / "effects.h5"
        prompts = pathlib.Path(folder) / "prompts.jsonl"
        prompts.write_text(json.dumps({"text": "When Mary and John went to the store , John gave a drink to", "target": " Mary"})
                           + "\n" + json.dumps({"text": "The capital of France is", "target": " Paris"}) + "\n")
        printed = json.loads(subprocess.run(
            [sys.argv[1], "-q", "effects", "organism", "--prompts", prompts, "--variant", "future,local", "--erase", "2",
             "--jacobian", "2", "--gradients", "2", "--gradient-steps", "8", "--json", "-o", path], check=True, capture_output=True, text=True).stdout)
        skip = xr.open_dataset(path, engine="h5netcdf", group="analyses/layer_effects")
        assert skip.effect.dims == ("variant", "statistic", "layer_skipped", "layer"), skip.effect.dims
        assert list(skip.variant.values) == ["future", "local"]
        assert list(skip.statistic.values) == ["max", "prompt_mean", "token_mean"]
        for table in printed["layer_effects"]:
            for name in skip.statistic.values:
                found = skip.sel(variant=table["variant"], statistic=name)
                assert np.array_equal(found.effect, np.array(table[name]["effect"]))
                assert np.array_equal(found.layer_effect, np.array(table[name]["layer_effect"]))
                assert float(found.depth_score) == table[name]["depth_score"]
                if table["variant"] == "future":
                    assert np.array_equal(found.out_effect, np.array(table[name]["out_effect"]))
                else:
                    assert np.isnan(found.out_effect).all()
        assert skip.attrs["part"] == "layer" and "[ours]" in skip.attrs["splits"], skip.attrs
        erasure = xr.open_dataset(path, engine="h5netcdf", group="analyses/residual_erasure")
        assert erasure.effect.dims == ("stream", "erased")
        for i, prompt in enumerate(printed["residual_erasure"]["prompts"]):
            mine = erasure.isel(erased=np.flatnonzero(erasure.prompt_index == i))
            assert np.array_equal(mine.effect, np.array(prompt["effect"]))
            assert list(np.flatnonzero(mine["read"])) == prompt["read"]
        jacobian = xr.open_dataset(path, engine="h5netcdf", group="analyses/block_jacobian")
        for name in ("own", "own_error", "all", "all_error"):
            assert jacobian[name].dims == ("layer",)
            assert np.array_equal(jacobian[name], np.array(printed["block_jacobian"][name]))
        gradients = xr.open_dataset(path, engine="h5netcdf", group="analyses/depth_gradients")
        assert gradients.attribution.dims == ("layer", "token")
        assert gradients.baseline_probability.dims == ("prompt", "layer")
        for i, prompt in enumerate(printed["depth_gradients"]["prompts"]):
            mine = gradients.isel(token=np.flatnonzero(gradients.prompt_index == i))
            assert np.array_equal(mine.attribution, np.array(prompt["attribution"]))
            assert np.array_equal(gradients.baseline_probability[i], np.array(prompt["baseline_probability"]))
    print("xarray opens every group by name")


if __name__ == "__main__":
    main()
