"""Opens what `transcoder eval` and `codebook` write with xarray's h5netcdf engine, by name.

    python tests/xarray/transcoder.py build/lamina

Needs xarray, h5netcdf, numpy.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import xarray as xr

ROOT = pathlib.Path(__file__).resolve().parents[2]
EVAL = ROOT / "tests/transcoder/eval"


def main():
    lamina = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out.h5")
        subprocess.run([lamina, "-q", "transcoder", "eval", ROOT / "tests/goldens/gpt2", "--transcoder",
                        EVAL / "mlp1", EVAL / "resid0", EVAL / "skip2", "--skip", "1", "--dense", "0.5",
                        "--examples", "3", "--prompts", EVAL / "prompts.jsonl", "--store-features",
                        "-o", out], check=True, stdout=subprocess.DEVNULL)
        expected = json.loads((EVAL / "expected.json").read_text())
        ds = xr.open_dataset(out, engine="h5netcdf", group="/analyses/transcoder_eval")
        assert ds["explained_variance"].dims == ("dictionary",)
        assert ds.attrs["dense"] == 0.5 and "[ours]" in ds.attrs["defaults"]
        for i, name in enumerate(ds["name"].values):
            golden = expected["dictionaries"][name]
            assert abs(ds["l0"].values[i] - golden["l0"]) < 1e-6
            assert abs(ds["ce_spliced"].values[i] - golden["ce"]["spliced"]) < 2e-5
            features = xr.open_dataset(out, engine="h5netcdf",
                                       group=f"/analyses/transcoder_features_{i}")
            assert features["count"].dims == ("feature",)
            assert features["top_context"].dims == ("feature", "example")
            assert list(features["count"].values) == golden["count"]
            # The sparse activations say the same as the counts.
            end = features["row_end"].values
            assert len(end) == expected["tokens"] and features["activation"].dims == ("entry",)
            counted = np.bincount(features["active_feature"].values, minlength=features.sizes["feature"])
            assert list(counted) == golden["count"] and end[-1] == sum(golden["count"])
        subprocess.run([lamina, "-q", "codebook", "--model", "organism", "--prompts",
                        ROOT / "data/organism/prompts.jsonl", "--site", "resid_post:1", "--codes", "16",
                        "--rows", "200", "-o", out, "--force"], check=True, stdout=subprocess.DEVNULL)
        ds = xr.open_dataset(out, engine="h5netcdf", group="/analyses/codebook")
        assert ds["codes"].dims == ("code", "value") and ds["frequent_token"].dims == ("code", "rank")
        assert (np.diff(ds["inertia"].values) <= 0).all()
        assert ds["count"].sum() == ds.attrs["tokens"]
        subprocess.run([lamina, "-q", "transcoder", "keep", "organism", "--transcoder", "organism", "--pairs",
                        ROOT / "data/organism/pairs/sva.jsonl", "--keep", "0,8,512", "-o", out, "--force"],
                       check=True, stdout=subprocess.DEVNULL)
        ds = xr.open_dataset(out, engine="h5netcdf", group="/analyses/transcoder_keep")
        assert ds["features_metric"].dims == ("dictionary", "kept") and list(ds["kept"].values) == [0, 8, 512]
        # All features kept is the dictionary as it is.
        assert np.allclose(ds["features_metric"].sel(kept=512), ds["spliced"], atol=1e-4)
    print("all readable by xarray", xr.__version__)


if __name__ == "__main__":
    main()
