"""SAELens loads what lamina writes, and computes the same with it.

    python tests/transcoder/check_ours.py build/tests/transcoder/test_transcoder

Needs sae-lens 6 (checked with 6.54.12).
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file


def main():
    from sae_lens import SAE

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([os.path.abspath(sys.argv[1]),
                        "--gtest_filter=SaeLensFiles.OfOursComeBackTheSame"], check=True,
                       stdout=subprocess.DEVNULL, env={**os.environ,
                                                       "LAMINA_WRITE_DICTIONARIES": folder})
        loaded = 0
        for path in sorted(pathlib.Path(folder).iterdir()):
            values = load_file(path / "values.safetensors")
            try:
                sae = SAE.load_from_disk(path)
            except (ValueError, KeyError) as error:
                # The one architecture that SAELens does not have.
                assert "topk_" in (path / "cfg.json").read_text(), (path.name, error)
                print(path.name, "refused, as it should be")
                continue
            with torch.no_grad():
                features, y = sae.encode(values["x"]), sae(values["x"])
            assert torch.allclose(features, values["features"], atol=2e-5), path.name
            assert torch.allclose(y, values["y"], atol=2e-5), path.name
            loaded += 1
        print(loaded, "dictionaries loaded and computed alike")
        assert loaded == 14


if __name__ == "__main__":
    main()
