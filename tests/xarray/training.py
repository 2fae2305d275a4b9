"""Opens the learning curves of `transcoder train` with xarray's h5netcdf engine, by name.

    python tests/xarray/training.py build/lamina

Needs xarray and h5netcdf.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import xarray as xr

PROMPTS = pathlib.Path(__file__).resolve().parents[2] / "data/organism/prompts.jsonl"


def main():
    lamina = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([lamina, "-q", "transcoder", "train", "--model", "organism", "--prompts", PROMPTS, "-o", "out",
                        "--layers", "1,3", "--features", "96", "--batch", "32", "--buffer", "256", "--steps", "20",
                        "--activation", "topk", "--k", "8"], check=True, stdout=subprocess.DEVNULL, cwd=folder)
        curves = xr.open_dataset(os.path.join(folder, "out/curves.h5"), engine="h5netcdf",
                                 group="/analyses/transcoder_training")
        assert curves["loss"].dims == ("dictionary", "step") and curves["loss"].shape == (2, 20), curves["loss"]
        assert curves["l0"].sel(dictionary="layer_3", step=20) == 8
        assert curves["loss"].isel(step=-1).sum() < curves["loss"].isel(step=0).sum()
        assert curves.attrs["loss"] == "text" and curves.attrs["batch"] == 32, curves.attrs
    print("all readable by xarray", xr.__version__)


if __name__ == "__main__":
    main()
