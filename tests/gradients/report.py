"""Measures the gradient goldens and writes the table of docs/fidelity.md.

    python report.py TEST_GRADIENTS_PROGRAM [FIDELITY.md]

Runs the golden tests with LAMINA_GRADIENT_REPORT set and puts the largest relative errors between the
markers in the file; without a file the table goes to standard output.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

RULES = ("norm", "pattern", "activation", "gate", "relp")
COLUMNS = ("gradient", *RULES, "parameter norms")
BEGIN, END = "<!-- gradients: begin -->", "<!-- gradients: end -->"


def table(lines):
    worst = {}
    for line in lines:
        name, what, error = line.rstrip("\n").split("\t")
        folder, _, rule = name.partition(".")
        column = "parameter norms" if what.startswith("norm of ") else rule or "gradient"
        row = worst.setdefault(folder, {})
        row[column] = max(row.get(column, 0.0), float(error))
    out = ["| model | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for folder in sorted(worst):
        cells = [f"{worst[folder][c]:.1e}" if c in worst[folder] else "–" for c in COLUMNS]
        out.append(f"| {folder} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.tsv"
        done = subprocess.run([sys.argv[1], "--gtest_brief=1", "--gtest_filter=*Golden*"],
                              env={**os.environ, "LAMINA_GRADIENT_REPORT": str(report)})
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
