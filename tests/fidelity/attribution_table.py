"""The table of docs/patching-methods.md: how well attribution patching, integrated gradients and
relevance patching agree with exact patching.

    python attribution_table.py LAMINA MODEL PAIRS.jsonl [--methods atp relp ...] [--json OUT]

LAMINA: the program. PAIRS: a pair file, such as `lamina pairs ioi --model MODEL -n 60 --solved`
writes. Every method is one call of

    lamina patch MODEL --pairs PAIRS --site resid_pre,attn_out,mlp_out --by position --method METHOD --check all

and so every estimate is compared with its own run of exact patching.
"""

import argparse
import json
import subprocess

METHODS = {
    "atp": ["--method", "atp"],
    "atp, at clean": ["--method", "atp", "--at", "clean"],
    "ig, node": ["--method", "ig"],
    "ig, inputs": ["--method", "ig", "--ig-path", "inputs"],
    "relp": ["--method", "relp"],
    "relp + pattern": ["--method", "relp", "--rules", "norm,activation,gate,pattern"],
}
SITES = ("resid_pre", "attn_out", "mlp_out")


def cell(value):
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("lamina")
    parser.add_argument("model")
    parser.add_argument("pairs")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--json", help="keep everything that was measured")
    args = parser.parse_args()
    kept = {}
    print("| method | over | " + " | ".join(SITES) + " | sign | top 10 | Spearman |")
    print("|---|---|" + "---|" * 6)
    for name in args.methods:
        command = [args.lamina, "--quiet", "patch", args.model, "--pairs", args.pairs, "--site", ",".join(SITES),
                   "--by", "position", *METHODS[name], "--check", "all", "--show", "0", "--json"]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for site in result["sites"]:
            del site["score"], site["effect"]
        kept[name] = result
        parts = {part["site"]: part for part in result["check"]["sites"]}
        for over, label in (("by_node", "means"), ("by_pair", "pairs")):
            whole = parts["all"][over]
            cells = [cell(parts[site][over]["pearson"]) for site in SITES]
            rest = [f"{whole[s]['value']:.3f}" for s in ("sign", "top_k", "spearman")]
            print(f"| {name} | {label} | " + " | ".join(cells + rest) + " |", flush=True)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(kept, file, indent=1)


if __name__ == "__main__":
    main()
