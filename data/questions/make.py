#!/usr/bin/env python3
"""Writes questions.jsonl: the 90 questions of questions.tsv and 30 small sums, every one with four options.

    python make.py            writes the file
    python make.py --check    exit 1 if the file is not what this script writes

questions.tsv: topic, question, right option, three wrong ones, tabs between. The order of the options is
drawn from a fixed seed so that within every topic the right one stands at A, B, C and D about equally
often, over all of them exactly equally often.
"""
import json
import pathlib
import random
import sys

HERE = pathlib.Path(__file__).resolve().parent


def sums(rng):
    """30 questions: ten each of +, -, x. Wrong options are near misses, all different."""
    out = []
    for name, sign in (("plus", "+"), ("minus", "-"), ("times", "x")):
        seen = set()
        while len(seen) < 10:
            a, b = (rng.randint(2, 9), rng.randint(2, 9)) if sign == "x" else (rng.randint(5, 40), rng.randint(2, 20))
            if sign == "-" and b >= a or (a, b) in seen:
                continue
            seen.add((a, b))
            right = {"+": a + b, "-": a - b, "x": a * b}[sign]
            wrong = rng.sample([n for n in {right - 10, right - 2, right - 1, right + 1, right + 2, right + 10}
                                if n >= 0], 3)
            out.append(["arithmetic", f"What is {a} {name} {b}?", str(right), *map(str, wrong)])
    return out


def build():
    rng = random.Random(20250514)
    rows = [line.split("\t") for line in (HERE / "questions.tsv").read_text(encoding="utf-8").splitlines()]
    rows += sums(rng)
    lines, count = [], {}
    places = {}
    for topic in dict.fromkeys(row[0] for row in rows):
        n = sum(row[0] == topic for row in rows)
        # 30 a topic: 7 or 8 at each letter, and 30 at each over the four topics.
        extra = {"facts": (0, 1), "sense": (2, 3), "words": (0, 1), "arithmetic": (2, 3)}[topic]
        places[topic] = [i % 4 for i in range(n - 2)] + list(extra)
        rng.shuffle(places[topic])
    for topic, question, right, *wrong in rows:
        if len(wrong) != 3 or len({right, *wrong}) != 4:
            sys.exit(f"{question}: expected four different options")
        rng.shuffle(wrong)
        place = places[topic].pop()
        wrong.insert(place, right)
        count[topic] = count.get(topic, 0) + 1
        lines.append(json.dumps({"id": f"{topic}-{count[topic]}", "topic": topic, "question": question,
                                 "options": wrong, "answer": "ABCD"[place]}, ensure_ascii=False))
    assert len(lines) == 120
    return "\n".join(lines) + "\n"


text = build()
path = HERE / "questions.jsonl"
if "--check" in sys.argv:
    sys.exit(path.read_text(encoding="utf-8") != text)
path.write_text(text, encoding="utf-8")
