"""Runs docs/greater_than.ipynb anew, its assertions included, and leaves the file as it is.

    python tests/notebook/execute.py build/lamina

Needs nbconvert, ipykernel, numpy, xarray, h5netcdf, h5py, matplotlib; exits with 77 (skipped) where they are missing.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile

NEEDED = ("nbconvert", "ipykernel", "numpy", "xarray", "h5netcdf", "h5py", "matplotlib")
NOTEBOOK = pathlib.Path(__file__).resolve().parents[2] / "docs/greater_than.ipynb"


def code(notebook):
    return [c for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


def main():
    # What is committed has run from top to bottom, without error, and is small.
    cells = code(NOTEBOOK)
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1)), "cells that have not been run in order"
    assert NOTEBOOK.stat().st_size < 300_000, NOTEBOOK.stat().st_size
    missing = [m for m in NEEDED if importlib.util.find_spec(m) is None]
    if missing:
        print("skipped, missing:", *missing)
        return 77
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OMP_WAIT_POLICY": "passive", "LAMINA": os.path.abspath(sys.argv[1]),
                                    "IPYTHONDIR": folder, "JUPYTER_RUNTIME_DIR": folder}
        subprocess.run([sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", NOTEBOOK, "--output-dir", folder,
                        "--ExecutePreprocessor.timeout=600"], check=True, env=environment, cwd=NOTEBOOK.parent)
        again = code(pathlib.Path(folder) / NOTEBOOK.name)
    pictures = [sum("image/png" in o.get("data", {}) for c in run for o in c["outputs"]) for run in (cells, again)]
    assert pictures[0] == pictures[1] == 5, pictures
    print("runs; last table:", *[o["text"] if isinstance(o["text"], str) else "".join(o["text"])
                                 for o in again[-1]["outputs"] if "text" in o], sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
