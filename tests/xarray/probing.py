"""Runs lamina probe, clue and infoplane and opens their results with xarray's h5netcdf engine, by name.

    python tests/xarray/probing.py build/lamina

Needs xarray, h5netcdf and numpy. Also checks that the file of directions holds the fit's own numbers.
"""

import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import xarray as xr



def load_file(path):
    with open(path, "rb") as file:
        data = file.read()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    out = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        assert entry["dtype"] in ("F32", "F64"), entry
        kind = np.float32 if entry["dtype"] == "F32" else np.float64
        out[name] = np.frombuffer(data[start + first:start + last], kind).reshape(entry["shape"])
    return out


WORDS = ["The", "keys", "to", "the", "cabinet", "man", "Mary", "and", "John", "store"]


def main():
    program = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        at = lambda name: os.path.join(folder, name)
        with open(at("p.jsonl"), "w") as f:
            for i in range(30):
                text = " ".join(WORDS[(i + 3 * w) % 10] for w in range(2 + i % 3))
                labels = {"side": ["a", "b", "c"][i % 3], "two": i % 2, "right": i % 4 == 0, "q": i // 3}
                f.write(json.dumps({"text": text, "labels": labels}) + "\n")
        run = lambda *words: subprocess.run([program, "-q", *words], check=True, stdout=subprocess.DEVNULL, cwd=folder)
        run("record", "organism", "--prompts", "p.jsonl", "--generate", "2", "--sites", "resid_post,mlp_out,post", "-o", "run.h5")
        run("probe", "run.h5", "--label", "side", "--sites", "resid_post,mlp_out:0,post:1", "-o", "probe.h5", "--directions", "d.safetensors")
        run("probe", "run.h5", "--label", "two", "--kind", "ridge", "-o", "ridge.h5")
        run("probe", "run.h5", "--label", "side", "--apply", "d.safetensors", "-o", "applied.h5")
        run("clue", "run.h5", "--label", "right", "--group", "q", "-o", "clue.h5")
        run("infoplane", "run.h5", "--label", "side", "-o", "plane.h5")

        opened = lambda name, group: xr.open_dataset(at(name), engine="h5netcdf", group="/analyses/" + group)
        probe = opened("probe.h5", "probe")
        assert probe["accuracy"].dims == ("site",) and probe["path_loss"].dims == ("site", "strength")
        assert probe["weight"].dims == ("site", "output", "component") and probe["control"].dims == ("site", "repetition")
        assert probe["fold_score"].dims == ("site", "fold") and probe["decision"].dims == ("site", "row", "output")
        assert list(probe["output"].values) == ["a", "b", "c"]
        kept = load_file(at("d.safetensors"))
        for site in probe["site"].values:
            one = probe.sel(site=site)
            width = int(one["width"])
            assert np.array_equal(one["weight"].values[:, :width].astype(np.float32), kept[site + ".weight"])
            assert np.isnan(one["weight"].values[:, width:]).all()
            unit = one["direction"].values[:, :width]
            unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
            assert np.abs(unit - kept[site + ".unit"]).max() < 1e-7
        assert opened("ridge.h5", "probe")["r2"].dims == ("site",)
        applied = opened("applied.h5", "probe_apply")
        assert applied["projection"].dims == ("site", "row", "output") and applied["predicted"].dims == ("site", "row")
        clue = opened("clue.h5", "clue")
        assert clue["to_success"].dims == ("trace",) and clue["centroid"].dims == ("site", "outcome", "component")
        assert clue["accuracy"].sel(score="low") <= clue["accuracy"].sel(score="value")
        plane = opened("plane.h5", "infoplane")
        assert plane["target_information"].dims == ("site",) and plane["target_information"].attrs["units"] == "nats"
        assert plane["target_information"].sel(site="blocks.3.hook_resid_post") <= plane.attrs["target_entropy"] + 1e-12
    print("all readable by xarray", xr.__version__)


if __name__ == "__main__":
    main()
