"""Opens what `lamina circuit -o FILE` wrote with xarray's h5netcdf engine, and checks names and numbers.

    python tests/circuits/open_with_xarray.py results.h5

Influence, replacement and completeness are computed again, densely, from the edges. Needs xarray, h5netcdf, numpy.
"""
import sys

import numpy as np
import xarray as xr


def main():
    data = xr.open_dataset(sys.argv[1], group="analyses/circuit", engine="h5netcdf")
    assert data["influence"].dims == ("node",) and data["weight"].dims == ("edge",), data
    assert data["unexplained"].dims == ("layer",)
    for name in data.data_vars:
        assert data[name].attrs.get("description") or data[name].attrs.get("semantics"), (name, data[name].attrs)
    n = data.sizes["node"]
    a = np.zeros((n, n))
    a[data["target"].values, data["source"].values] = data["weight"].values
    kind = np.array([k.decode() if isinstance(k, bytes) else str(k) for k in data["kind"].values])
    # Weights and bias add up, as long as every active feature is a node.
    if data.attrs["active_features"] == (kind == "feature").sum():
        target = (kind == "feature") | (kind == "logit")
        off = np.abs(a.sum(1) + data["bias"].values - data["pre_activation"].values)[target]
        size = (np.abs(a).sum(1) + np.abs(data["bias"].values))[target]
        print(f"weights and bias: off the pre-activations by at most {np.max(off / size):.1e}")
        assert np.max(off / size) < 1e-5
    share = np.abs(a) / np.maximum(np.abs(a).sum(1, keepdims=True), 1e-10)
    w = data["probability"].values
    influence = np.linalg.solve(np.eye(n) - share.T, w) - w
    off = np.abs(influence - data["influence"].values).max()
    tokens, errors = influence[kind == "token"].sum(), influence[kind == "error"].sum()
    replacement = tokens / (tokens + errors)
    output = influence + w
    completeness = ((1 - share[:, kind == "error"].sum(1)) * output).sum() / output.sum()
    print(f"influence off by {off:.1e}; replacement {replacement:.6f}, completeness {completeness:.6f}")
    assert off < 1e-9
    assert abs(replacement - data.attrs["replacement_score"]) < 1e-9
    assert abs(completeness - data.attrs["completeness_score"]) < 1e-9
    print(f"{n} nodes, {data.sizes['edge']} edges: all as stated")


if __name__ == "__main__":
    main()
