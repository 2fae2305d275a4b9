"""Measures the goldens and writes the table of docs/fidelity.md.

    python report.py TEST_GOLDENS_PROGRAM [FIDELITY.md]

Runs the golden tests with LAMINA_GOLDEN_REPORT set and puts the largest relative errors between the
markers in the file; without a file the table goes to standard output.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

GROUPS = {
    "residual": ("hook_embed", "hook_pos_embed", "hook_resid", "hook_attn_out", "hook_mlp_out"),
    "norms": ("hook_scale", "hook_normalized"),
    "q, k, v": ("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_rot"),
    "scores, pattern": ("hook_attn_scores", "hook_pattern"),
    "z, result": ("hook_z", "hook_result"),
    "mlp": ("mlp.hook",),
    "logits": ("logits",),
}
BEGIN, END = "<!-- goldens: begin -->", "<!-- goldens: end -->"


def table(lines):
    worst = {}
    for line in lines:
        folder, site, error = line.rstrip("\n").split("\t")
        groups = [name for name, parts in GROUPS.items() if any(part in site for part in parts)]
        if len(groups) != 1:
            sys.exit(f"site {site} belongs to {len(groups)} groups of the table")
        row = worst.setdefault(folder, {})
        row[groups[0]] = max(row.get(groups[0], 0.0), float(error))
    out = ["| model | " + " | ".join(GROUPS) + " |", "|---" * (len(GROUPS) + 1) + "|"]
    for folder in sorted(worst):
        cells = [f"{worst[folder][group]:.1e}" if group in worst[folder] else "–" for group in GROUPS]
        out.append(f"| {folder} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.tsv"
        done = subprocess.run([sys.argv[1], "--gtest_brief=1"],
                              env={**os.environ, "LAMINA_GOLDEN_REPORT": str(report)})
        if done.returncode != 0:
            sys.exit("the golden tests fail: no table is written")
        text = table(report.read_text().splitlines())
    if len(sys.argv) == 2:
        print(text)
        return
    page = pathlib.Path(sys.argv[2])
    before, rest = page.read_text().split(BEGIN)
    page.write_text(before + BEGIN + "\n" + text + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
