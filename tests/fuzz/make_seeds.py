"""Writes the hand-made seeds of the fuzz corpora (the other files were found by the fuzzers).

    python3 tests/fuzz/make_seeds.py
"""

import json
import pathlib
import struct

CORPUS = pathlib.Path(__file__).with_name("corpus")


def write_safetensors(name, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    (CORPUS / "safetensors" / name).write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def text(s):
    return struct.pack("<Q", len(s)) + s.encode()


def key(name, kind, payload):
    return text(name) + struct.pack("<I", kind) + payload


def tensor(name, dims, kind, offset):
    extents = b"".join(struct.pack("<Q", d) for d in dims)
    return text(name) + struct.pack("<I", len(dims)) + extents + struct.pack("<IQ", kind, offset)


def write_gguf(name, keys=(), tensors=(), data=b"", version=3, counts=None, alignment=32):
    counts = counts or (len(tensors), len(keys))
    out = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    if data:
        out += b"\0" * (-len(out) % alignment) + data
    (CORPUS / "gguf" / name).write_bytes(out)


def safetensors_seeds():
    mixed = {
        "__metadata__": {"format": "pt"},
        "a": entry("F32", [2], 0, 8),
        "b": entry("F16", [2, 3], 8, 20),
        "z": entry("BF16", [0], 20, 20),
        "i": entry("I64", [1], 20, 28),
        "t": entry("BOOL", [1], 28, 29),
        "d": entry("F64", [], 29, 37),
    }
    write_safetensors("valid_mixed", mixed, b"\x3c" * 37)
    write_safetensors("valid_empty", {})
    write_safetensors("hole", {"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 3, 5)}, b"12345")
    write_safetensors("overlap", {"a": entry("U8", [3], 0, 3), "b": entry("U8", [3], 2, 5)}, b"12345")
    write_safetensors("duplicate", b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', b"1")
    write_safetensors("deep", b'{"a":' + b"[" * 200)
    write_safetensors("overflow", {"a": entry("F32", [2**32, 2**32], 0, 0)})
    write_safetensors("bad_utf8", b'{"\xff":1}')
    (CORPUS / "safetensors" / "long_header").write_bytes(struct.pack("<Q", 2**63) + b"{}")


def gguf_seeds():
    scalars = [
        (0, "B", 1), (1, "b", -1), (2, "H", 1), (3, "h", -1), (4, "I", 1), (5, "i", -1),
        (6, "f", 1.5), (7, "?", True), (10, "Q", 1), (11, "q", -1), (12, "d", 0.5),
    ]  # fmt: skip
    keys = [key(f"k{t}", t, struct.pack("<" + f, v)) for t, f, v in scalars]
    keys += [key(f"a{t}", 9, struct.pack("<IQ", t, 2) + struct.pack("<2" + f, v, v)) for t, f, v in scalars]
    keys += [key("s", 8, text("hi")), key("as", 9, struct.pack("<IQ", 8, 2) + text("a") + text("bc"))]
    write_gguf("valid_values", keys)

    blocks = [
        (0, 1, 4), (1, 1, 2), (2, 32, 18), (3, 32, 20), (6, 32, 22), (7, 32, 24), (8, 32, 34),
        (12, 256, 144), (13, 256, 176), (14, 256, 210), (30, 1, 2), (26, 1, 4),
    ]  # fmt: skip
    tensors, data = [], b""
    for kind, elements, size in blocks:
        tensors.append(tensor(f"t{kind}", [elements], kind, len(data)))
        data += bytes((i * 37 + kind) % 256 for i in range(size)) + b"\0" * (-size % 32)
    write_gguf("valid_types", [key("general.alignment", 4, struct.pack("<I", 32))], tensors, data)
    wide = [key("general.alignment", 4, struct.pack("<I", 64))]
    write_gguf("valid_v2", wide, [tensor("w", [2, 3, 1, 1], 0, 0)], b"x" * 24, version=2, alignment=64)

    write_gguf("v1", version=1)
    write_gguf("big_endian", version=3 << 24)
    write_gguf("counts", counts=(2**60, 2**63))
    write_gguf("array_huge", [key("k", 9, struct.pack("<IQ", 8, 2**61))])
    write_gguf("nested", [key("k", 9, struct.pack("<IQIQ", 9, 1, 0, 1) + b"1")])
    write_gguf("overlap", [], [tensor("a", [9], 0, 0), tensor("b", [1], 0, 32)], b"x" * 64)
    write_gguf("dims_overflow", [], [tensor("a", [2**62, 4], 0, 0)], b"x" * 64)


def pairs_seeds():
    def write(name, value):
        line = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        (CORPUS / "pairs" / name).write_text(line, encoding="utf-8")

    texts = {"clean": "Mary to John , John to", "corrupted": "Mary to John , Mary to"}
    write("texts", {**texts, "correct": ["Mary"], "wrong": [" John"], "subject": "John", "id": "é"})
    write("ids", {"clean": [1, 2], "corrupted": [1, 3, 2], "correct": [4], "wrong": [5, 6], "map": [0, 2]})
    write("span", {"clean": [1, 2], "corrupted": [3, 2], "correct": ["a", 2], "subject": [0, 1], "id": 7})
    write("both_sides", {**texts, "correct": ["Mary"], "wrong": ["Mary"]})
    write("unknown", {**texts, "correct": ["Zorblax"]})
    write("unequal", {"clean": "a b", "corrupted": "a", "correct": ["c"]})
    write("huge_id", {"clean": [2**64 - 1], "corrupted": [-(2**63)], "correct": [1e300]})
    write("cut", '{"clean": [1], "corrupted": [1], "correct": [')
    names = ["a", "b", "c", "Mary", "John", "to"]
    write("ioi", {"task": "ioi", "templates": ["{A} , {B} {x} {S} to"], "lists": {"name": names, "x": ["is"]}})
    write("year", {"task": "greater_than", "templates": ["{start} {century}"], "lists": {"century": ["1"]}})
    write("sva", {"task": "sva", "templates": ["{noun} to {attractor}"],
                  "lists": {"noun": [["a", "b"], ["c", "Mary"]], "answer": [["is", "are"]]}})
    write("translation", {"task": "translation", "templates": ["{word} \"{translation}\"\n"],
                          "lists": {"word": [["a", "b"], ["b", "c"], ["c", "a"]]}})
    write("braces", {"task": "capitals", "templates": ["{country}{"], "lists": {"country": [["a", "b"], ["b", "a"]]}})


def graph_seeds():
    def write(name, value):
        out = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        (CORPUS / "graph_json" / name).write_text(out, encoding="utf-8")

    def node(node_id, kind, layer, position, feature=0, **others):
        return {"node_id": node_id, "feature": feature, "layer": layer, "ctx_idx": position, "feature_type": kind, **others}

    def graph(nodes, links, supernodes=(), **meta):
        about = {"slug": "s", "scan": "m", "prompt": "a b", "prompt_tokens": ["a", "b\n"], **meta}
        edges = [{"source": s, "target": t, "weight": w} for s, t, w in links]
        return {"metadata": about, "qParams": {"supernodes": list(supernodes)}, "nodes": nodes, "links": edges}

    token, feature = node("E_5_0", "embedding", "E", 0), node("0_3_0", "cross layer transcoder", "0", 0, 6, activation=1.5)
    later = node("1_17_1", "cross layer transcoder", "1", 1, 188, activation=2, preactivation=2, bias=0.5, influence=0.25)
    error = node("1_err_1", "mlp reconstruction error", "1", 1)
    logit = node("L_7_1", "logit", "2", 1, 7, token_prob=0.75, is_target_logit=True, clerp='Output "to" (p=0.750)')
    nodes = [feature, later, error, token, logit]
    links = [("E_5_0", "0_3_0", 1.5), ("0_3_0", "1_17_1", -2), ("1_17_1", "L_7_1", 0.5), ("1_err_1", "L_7_1", 1e-3)]
    write("valid", graph(nodes, links, [["early", "0_3_0", "E_5_0"]], node_threshold=0.8, edge_threshold=0.98))
    write("empty", graph([], []))
    write("cycle", graph(nodes, [*links, ("1_17_1", "0_3_0", 1)]))
    write("self", graph([logit], [("L_7_1", "L_7_1", 1)]))
    write("unknown_end", graph([logit], [("x", "L_7_1", 1)]))
    write("twice", graph([logit, logit], []))
    write("two_links", graph([token, logit], [("E_5_0", "L_7_1", 1)] * 2))
    write("zero_link", graph([token, logit], [("E_5_0", "L_7_1", 0)]))
    write("huge_weight", graph([token, logit], [("E_5_0", "L_7_1", 1e300)]))
    write("huge_feature", graph([node("f", "cross layer transcoder", "0", 0, 2**63 - 1), logit], []))
    write("negative_feature", graph([node("f_-1_0", "cross layer transcoder", "99999", 0, -(2**63)), logit], []))
    write("far", graph([node("E_5_0", "embedding", "E", 2**31)], []))
    write("layer", graph([node("x", "logit", "99999999999999999999", 0)], []))
    write("lines", graph([node("a\nb", "logit", "1", 0, token_prob=7)], [], slug="a\nb"))
    write("deep", '{"metadata":' + "[" * 40)
    write("cut", '{"links":[{"source":"a","target":"b","weight":1},{"source"')
    write("groups", {"early": ["0_3_*", "E_5_0"], "errors": ["*_err_*"]})
    write("group_lists", [["late", "1_*_1"], ["early", "0_*_0"]])
    write("group_twice", {"a": ["0_3_0"], "b": ["0_*_*"]})
    write("group_lines", {"a\nb": ["x\ny"]})
    write("group_stars", {"a": ["*" * 60 + "x"]})


safetensors_seeds()
gguf_seeds()
pairs_seeds()
graph_seeds()
