#!/usr/bin/env python3
"""Compares lamina's tokenizer with reference implementations on mixed-script text.

Usage: compare_tokenizers.py TOKENIZE_LINES MODEL [--text FILE ...] [--random N] [--reference NAME]

MODEL is a tokenizer.json, a folder that holds one, or a GGUF file. The reference is
  tokenizers     the `tokenizers` package: the file itself, or for GGUF a Tokenizer put together from
                 the metadata out of that package's parts (default)
  sentencepiece  the `sentencepiece` package, for GGUF files of model kind "llama": a SentencePiece
                 model with the same pieces, scores and types
  transformers   AutoTokenizer.from_pretrained(folder, gguf_file=...) as it comes

Every line of the text files (a .json file is a list of texts) and N generated lines are encoded
without special tokens and decoded again. Exit status 1 if any line differs.
"""
import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
import unicodedata

GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def gguf_metadata(path):
    import gguf

    fields = gguf.GGUFReader(path).fields
    return {k[len("tokenizer.ggml."):]: f.contents() for k, f in fields.items()
            if k.startswith("tokenizer.ggml.")}


def added_tokens(tokenizer, meta, spaces=False):
    """Adds control, unknown and user-defined entries; ids stay those of the file."""
    from tokenizers import AddedToken

    for name, kind in zip(meta["tokens"], meta["token_type"]):
        if kind in (2, 3):
            tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True)])
        elif kind == 4:
            content = name.replace("\u2581", " ") if spaces else name
            # SentencePiece finds them in the text whose spaces are visible already.
            normalized = spaces and not meta.get("add_space_prefix", True)
            tokenizer.add_tokens([AddedToken(content, normalized=normalized)])


def reference_gpt2(meta):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocab = {name: i for i, name in enumerate(meta["tokens"])}
    merges = [tuple(m.split(" ")) for m in meta["merges"]]
    pre = meta.get("pre", "default")
    split = lambda r: pre_tokenizers.Split(Regex(r), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    kinds = {
        "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "smollm": [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "llama-bpe": [split(LLAMA3), byte_level],
    }
    if pre not in kinds:
        sys.exit(f"no reference for tokenizer.ggml.pre = {pre}")
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(kinds[pre])
    tokenizer.decoder = decoders.ByteLevel()
    added_tokens(tokenizer, meta)
    return tokenizer


def merges_from_scores(meta):
    """All ways to make a piece of two pieces, best score first: the usual conversion."""
    vocab = {name: i for i, name in enumerate(meta["tokens"]) if meta["token_type"][i] in (1, 4)}
    merges = []
    for name, i in vocab.items():
        local = [(name[:k], name[k:]) for k in range(1, len(name))
                 if name[:k] in vocab and name[k:] in vocab]
        local.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        merges += [(left, right, meta["scores"][i]) for left, right in local]
    merges.sort(key=lambda m: m[2], reverse=True)
    return [(left, right) for left, right, _ in merges]


def reference_llama(meta):
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocab = {name: i for i, name in enumerate(meta["tokens"])}
    unknown = meta["tokens"][meta["unknown_token_id"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges_from_scores(meta), byte_fallback=True,
                                     fuse_unk=True, unk_token=unknown))
    prefix = meta.get("add_space_prefix", True)
    steps = [normalizers.Prepend("\u2581")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence(steps + [normalizers.Replace(" ", "\u2581")])
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts + ([decoders.Strip(" ", 1, 0)] if prefix else []))
    added_tokens(tokenizer, meta, spaces=True)
    return tokenizer


def reference_sentencepiece(meta):
    """A SentencePiece BPE model of the same pieces."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as pb

    model = pb.ModelProto()
    for name, score, kind in zip(meta["tokens"], meta["scores"], meta["token_type"]):
        piece = model.pieces.add()
        # User-defined pieces of a GGUF file have plain spaces.
        piece.piece = name.replace(" ", "\u2581") if kind == 4 else name
        piece.score = score
        piece.type = kind
    if not any(p.type == 2 for p in model.pieces):
        model.pieces[meta["unknown_token_id"]].type = 2
    model.trainer_spec.model_type = pb.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_piece = meta["tokens"][meta["unknown_token_id"]]
    for kind in ("bos", "eos"):
        setattr(model.trainer_spec, kind + "_piece", meta["tokens"][meta[kind + "_token_id"]])
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = meta.get("add_space_prefix", True)
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model.SerializeToString())
    return processor


def make_reference(args):
    """(encode_batch, decode_batch, name of the version) of the reference."""
    path = args.model
    if os.path.isdir(path):
        path = os.path.join(path, "tokenizer.json")
    is_gguf = open(path, "rb").read(4) == b"GGUF"
    if args.reference == "sentencepiece":
        import sentencepiece

        processor = reference_sentencepiece(gguf_metadata(path))
        return (lambda lines: [processor.EncodeAsIds(l) for l in lines],
                lambda ids: [processor.DecodeIds(i) for i in ids],
                "sentencepiece " + sentencepiece.__version__)
    if args.reference == "transformers":
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(
            os.path.dirname(path) or ".", gguf_file=os.path.basename(path))
        return (lambda lines: tokenizer(lines, add_special_tokens=False)["input_ids"],
                lambda ids: [tokenizer.decode(i, clean_up_tokenization_spaces=False) for i in ids],
                "transformers " + transformers.__version__)
    import tokenizers

    if is_gguf:
        meta = gguf_metadata(path)
        tokenizer = reference_llama(meta) if meta["model"] == "llama" else reference_gpt2(meta)
    else:
        tokenizer = tokenizers.Tokenizer.from_file(path)
    return (lambda lines: [e.ids for e in tokenizer.encode_batch(lines, add_special_tokens=False)],
            lambda ids: tokenizer.decode_batch(ids, skip_special_tokens=False),
            "tokenizers " + tokenizers.__version__)


def assigned(first, last):
    """Characters of a block that Python's Unicode database (13 or later) knows."""
    return [chr(c) for c in range(first, last + 1) if unicodedata.category(chr(c)) != "Cn"]


def generate(count, seed, specials, longest=12):
    """Lines of at most `longest` parts that mix scripts, marks, emoji, digits, white space, contractions and code."""
    rng = random.Random(seed)
    blocks = [assigned(*b) for b in [
        (0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x370, 0x3FF), (0x400, 0x52F), (0x531, 0x556),
        (0x5D0, 0x5EA), (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x10A0, 0x10FF),
        (0x1100, 0x11FF), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3),
        (0x1E00, 0x1FFF), (0xFF01, 0xFF5E), (0x10400, 0x1044F), (0x20000, 0x200FF)]]
    marks = assigned(0x300, 0x36F) + assigned(0x591, 0x5C7) + assigned(0x64B, 0x65F) + ["\u093C", "\u0BBE"]
    symbols = assigned(0x2000, 0x206F) + assigned(0x20A0, 0x20BF) + assigned(0x2100, 0x23FF) + \
        assigned(0x2500, 0x27BF) + assigned(0xFB00, 0xFB06) + ["\u2581", "\u0085", "\u00AD", "\uFEFF", "\uFFFD"]
    emoji = ["\U0001F600", "\U0001F468\u200D\U0001F469\u200D\U0001F467", "\U0001F44D\U0001F3FD",
             "\U0001F1E9\U0001F1EA", "\u2764\uFE0F", "\U0001F636\u200D\U0001F32B\uFE0F", "1\uFE0F\u20E3"]
    digits = ["0123456789", "".join(map(chr, range(0x660, 0x66A))), "".join(map(chr, range(0x966, 0x970))),
              "\u00B2\u00BD\u2167\u2460\u3007"]
    spaces = [" ", " ", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\u00A0", "\u3000", "\u2003", "\v",
              "\u2028", "\u180E", " \n ", "\n \n"]
    contractions = ["I'm", "don't", "we'LL", "HE'S", "they've", "you'd", "it's", "\u2019s", "'\u017F", "'re'"]
    code = ["for (int i = 0; i < n; ++i) {\n    x[i] += 1;\n}", "def f(x):\n\treturn x**2", "</div>", "a->b::c",
            "https://example.org/a?b=c&d=%20e", "{\"k\": [1, 2.5e-3]}", "#include <x>", "x_1 = y.z();  // hm"]
    words = "the of and to in is was for that with as on by it from Haus \u00fcber na\u00efve \u0441\u043b\u043e\u0432\u043e \u4f60\u597d \u0645\u0631\u062d\u0628\u0627".split()
    plain = [c for b in blocks for c in b]

    def piece():
        kind = rng.randrange(14)
        if kind < 4:
            block = rng.choice(blocks)
            return "".join(rng.choice(block) for _ in range(rng.randint(1, 9)))
        if kind == 4:
            return "".join(rng.choice(digits[0]) for _ in range(rng.randint(1, 12)))
        if kind == 5:
            return "".join(rng.choice(rng.choice(digits)) for _ in range(rng.randint(1, 4)))
        if kind == 6:
            return rng.choice(emoji) * rng.randint(1, 2)
        if kind == 7:
            return "".join(rng.choice(plain) + "".join(rng.choice(marks) for _ in range(rng.randint(0, 4)))
                           for _ in range(rng.randint(1, 4)))
        if kind == 8:
            return "".join(rng.choice(symbols) for _ in range(rng.randint(1, 4)))
        if kind == 9:
            return rng.choice(contractions)
        if kind == 10:
            return rng.choice(code)
        if kind == 11:
            return rng.choice("!?.,;:-_()[]{}<>/\\|@#$%^&*~`\"'+=") * rng.randint(1, 5)
        if kind == 12 and specials:
            return rng.choice(specials)
        return " ".join(rng.choice(words) for _ in range(rng.randint(1, 5)))

    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, longest)):
            parts.append(piece())
            if rng.random() < 0.7:
                parts.append(rng.choice(spaces) * (rng.randint(1, 20) if rng.random() < 0.1 else 1))
        yield "".join(parts)


def read_lines(path):
    with open(path, encoding="utf-8", newline="") as f:
        if path.endswith(".json"):
            return json.load(f)
        return f.read().split("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("helper")
    parser.add_argument("model")
    parser.add_argument("--text", nargs="*", default=[])
    parser.add_argument("--random", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--special", nargs="*", default=[], help="special tokens to put into generated lines")
    parser.add_argument("--reference", default="tokenizers",
                        choices=["tokenizers", "sentencepiece", "transformers"])
    args = parser.parse_args()

    encode, decode, version = make_reference(args)
    lines = [line for path in args.text for line in read_lines(path)]
    lines += list(generate(args.random, args.seed, args.special))
    start = time.time()
    expected = encode(lines)
    took = time.time() - start
    texts = decode(expected)
    feed = "".join(json.dumps(line) + "\n" for line in lines)
    # SentencePiece never recognises control tokens in text.
    plain = ["--plain-special"] if args.reference == "sentencepiece" else []
    out = subprocess.run([args.helper, args.model, "--no-bos"] + plain, input=feed, capture_output=True,
                         text=True, encoding="utf-8")
    if out.returncode:
        sys.exit(out.stderr)
    got = [json.loads(line) for line in out.stdout.split("\n") if line]
    assert len(got) == len(lines), (len(got), len(lines))
    wrong = [i for i in range(len(lines)) if got[i]["ids"] != list(expected[i])]
    wrong_text = [i for i in range(len(lines)) if got[i]["text"] != texts[i]]
    trips = sum(got[i]["text"] != lines[i] for i in range(len(lines)))
    size = sum(len(line.encode()) for line in lines)
    print(f"{args.model}: {len(lines)} lines, {size} bytes, {sum(map(len, expected))} ids, against {version}: "
          f"{len(wrong)} lines differ in ids, {len(wrong_text)} in decoded text; "
          f"{trips} lines do not round-trip; reference {size / 1e6 / took:.2f} MB/s in a batch")
    for i in wrong[:5]:
        a, b = list(expected[i]), got[i]["ids"]
        k = next((k for k in range(min(len(a), len(b))) if a[k] != b[k]), min(len(a), len(b)))
        print("  line", i, "longest run of spaces", max(map(len, re.findall(" +", lines[i])), default=0), ascii(lines[i])[:300])
        print("    first difference at", k, "expected", a[max(0, k - 2):k + 6], "got", b[max(0, k - 2):k + 6])
        print("    expected text", [ascii(t) for t in decode([[x] for x in a[max(0, k - 2):k + 4]])])
    for i in wrong_text[:3]:
        print("  decoded line", i, ascii(lines[i])[:200], "\n    expected", ascii(texts[i])[:200],
              "\n    got     ", ascii(got[i]["text"])[:200])
    sys.exit(bool(wrong or wrong_text))


if __name__ == "__main__":
    main()
