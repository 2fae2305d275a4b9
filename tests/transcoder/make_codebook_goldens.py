"""What k-means and codebooks must find, with scikit-learn and torch.

    python tests/transcoder/make_codebook_goldens.py      needs scikit-learn (made with 1.9.1), torch

Writes tests/transcoder/codebook.safetensors: rows x, first centres, the centres and sums of squares
of scikit-learn's Lloyd algorithm from there (run to the end), and for nearest = 1 and 3 the codes
that codebook-features' rule picks for y (inner products with codes of unit length, divided by the
row's norm; the mean of the picked codes is the output).
"""

import pathlib

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.cluster import KMeans

HERE = pathlib.Path(__file__).resolve().parent
ROWS, WIDTH, CODES = 400, 10, 24


def main():
    rng = np.random.default_rng(3)
    blobs = rng.normal(size=(30, WIDTH)) * 3
    x = (blobs[rng.integers(30, size=ROWS)] + rng.normal(size=(ROWS, WIDTH))).astype(np.float32)
    first = x[:CODES].copy()
    fit = KMeans(n_clusters=CODES, init=first, n_init=1, max_iter=300, tol=0,
                 algorithm="lloyd").fit(x.astype(np.float64))
    tensors = {"x": torch.tensor(x), "first": torch.tensor(first),
               "centres": torch.tensor(fit.cluster_centers_, dtype=torch.float32),
               "inertia": torch.tensor([fit.inertia_], dtype=torch.float64)}
    codes = tensors["centres"].double()
    y = torch.tensor(rng.normal(size=(50, WIDTH)) * 2)
    y[7] = 0
    y = y.float()
    tensors["y"] = y
    logits = y.double() @ codes.T / codes.norm(dim=-1)
    cosine = logits / y.double().norm(dim=-1, keepdim=True).clamp(min=1e-300)
    for k in (1, 3):
        order = torch.sort(cosine, dim=-1, descending=True, stable=True)
        ids = order.indices[:, :k].sort(-1).values
        tensors[f"ids{k}"] = ids.float()
        tensors[f"cosine{k}"] = cosine.gather(1, ids).float()
        tensors[f"output{k}"] = codes[ids].mean(1).float()
    save_file({n: t.contiguous() for n, t in tensors.items()}, HERE / "codebook.safetensors")
    print("iterations", fit.n_iter_, "inertia", fit.inertia_)


if __name__ == "__main__":
    main()
