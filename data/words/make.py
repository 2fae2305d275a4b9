#!/usr/bin/env python3
"""Turns the two tables (concepts.tsv, cloze.tsv) into the JSON files that lamina reads, and checks them.

concepts.json  {"languages": {code: name}, "words": [{"id", "kind", code: [forms…]}]}; the first form of a word is the
               one to prompt with, the others count as the same answer.
cloze.json     {"languages": {…}, "cloze": [{"id", code: sentence}]}; a sentence ends with the answer in quotes.
"""
import argparse
import collections
import csv
import json
import pathlib
import sys

LANGUAGES = {"en": "English", "fr": "Français", "de": "Deutsch", "es": "Español", "it": "Italiano", "ru": "Русский",
             "zh": "中文", "ja": "日本語"}
# Languages whose first forms must all be different strings, so that a token names one concept in one language.
DISTINCT = ["en", "fr", "de", "es", "zh", "ja"]
ANSWER = {"en": 'Answer: "{}".', "fr": 'Réponse : "{}".', "de": 'Antwort: "{}".', "es": 'Respuesta: "{}".',
          "zh": '答案："{}"。'}


def rows(path):
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))


def main():
    here = pathlib.Path(__file__).resolve().parent
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=pathlib.Path, default=here, help="folder for the JSON files (default: beside this script)")
    args = ap.parse_args()

    problems = []
    words, owner = [], collections.defaultdict(list)
    for r in rows(here / "concepts.tsv"):
        word = {"id": r["id"], "kind": r["kind"]}
        for code in LANGUAGES:
            forms = (r[code] or "").split(",")
            if not all(forms) or any(f != f.strip() or " " in f for f in forms):
                problems.append(f"concepts.tsv: {r['id']}: bad entry for {code}: {r[code]!r}")
            word[code] = forms
            if code in DISTINCT:
                owner[forms[0]].append((r["id"], code))
            # Latent-language scoring drops such items; the languages in DISTINCT must have none.
            if code in DISTINCT[1:] and r["en"].lower() in forms[0].lower():
                problems.append(f"concepts.tsv: {r['id']}: {code} word {forms[0]!r} contains the English word")
        words.append(word)
    problems += [f"concepts.tsv: {form!r} stands for {who}" for form, who in owner.items() if len(who) > 1]
    if len({w["id"] for w in words}) != len(words):
        problems.append("concepts.tsv: an id occurs twice")

    by_id = {w["id"]: w for w in words}
    cloze = []
    for r in rows(here / "cloze.tsv"):
        item = {"id": r["id"]}
        for code, tail in ANSWER.items():
            if r["id"] not in by_id or r[code].count("___") != 1:
                problems.append(f"cloze.tsv: {r['id']}: unknown id or not exactly one blank in {code}")
                continue
            # The table separates Chinese words by spaces for word-level tokenizers; running text has none.
            sentence = r[code].replace(" ", "") if code == "zh" else r[code] + " "
            item[code] = sentence + tail.format(by_id[r["id"]][code][0])
        cloze.append(item)

    for p in problems:
        print(p, file=sys.stderr)
    if problems:
        return 1
    for name, body in (("concepts.json", {"languages": LANGUAGES, "words": words}),
                       ("cloze.json", {"languages": {c: LANGUAGES[c] for c in ANSWER}, "cloze": cloze})):
        key = "words" if "words" in body else "cloze"
        lines = ",\n".join("  " + json.dumps(x, ensure_ascii=False) for x in body[key])
        head = json.dumps(body["languages"], ensure_ascii=False)
        (args.out / name).write_text(f'{{"languages": {head},\n "{key}": [\n{lines}\n]}}\n', encoding="utf-8")
        print(f"{name}: {len(body[key])} entries, {len(body['languages'])} languages", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
