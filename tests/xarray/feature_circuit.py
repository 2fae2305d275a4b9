"""Runs lamina feature-circuit on the organism and opens its results in xarray by name.

    python tests/xarray/feature_circuit.py build/lamina

Needs h5py, xarray, h5netcdf and numpy.
"""

import pathlib
import sys
import tempfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from results import ORGANISM_PROMPTS, REPO, open_all, run  # noqa: E402


def main():
    lamina = str(pathlib.Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        run(lamina, folder, "transcoder", "train", "--model", "organism", "--prompts", ORGANISM_PROMPTS, "--kind", "sae",
            "--layers", "2,4", "--features", "64", "--activation", "topk", "--k", "4", "--batch", "64", "--buffer", "256",
            "--steps", "20", "-o", "saes")
        run(lamina, folder, "feature-circuit", "organism", "--saes", "saes", "--pairs", REPO / "data/organism/pairs/ioi.jsonl",
            "--limit", "4", "--by-position", "--exact", "10", "--edges", "12", "-o", "out.h5")
        results = open_all(folder / "out.h5")
        nodes = results["feature_circuit"]
        assert nodes.effect.dims == ("estimator", "node")
        assert list(nodes.estimator.values) == ["atp", "ig", "relp"]
        assert list(nodes.dictionary.values) == ["blocks.2.hook_resid_post", "blocks.4.hook_resid_post"]
        error = nodes.sel(node="blocks.4.hook_resid_post/error@-1")
        assert int(error.node_feature) == -1 and int(error.node_position) == -1
        for part in ("drawn", "largest"):
            check = results[f"feature_circuit_exact_{part}"]
            assert check.exact.shape == (10,)
            assert np.allclose(check.effect, nodes.effect.sel(node=check.node))
        edges = results["feature_circuit_edges"].weight
        assert edges.dims == ("estimator", "to", "from") and edges.shape == (3, 13, 12)
        direct = edges.sel(to="metric").to_series()  # the last site's nodes have no other way
        for (method, node), weight in direct.items():
            if node.startswith("blocks.4") and method == "atp":
                assert np.isclose(weight, nodes.effect.sel(estimator=method, node=node), rtol=1e-4, atol=1e-7), node
        sweep = results["feature_circuit_thresholds"]
        assert float(sweep.nodes.sel(estimator="ig").diff("threshold").max()) <= 0
        counts = results["feature_circuit_counts"]
        want = (counts.metric - counts.attrs["metric_empty"]) / (counts.attrs["metric_model"] - counts.attrs["metric_empty"])
        assert np.allclose(counts.faithfulness, want)
        assert counts.attrs["ablation"] == "mean" and counts.attrs["ig_steps"] == "10"
    print("every result of feature-circuit opens in xarray by name")


if __name__ == "__main__":
    main()
