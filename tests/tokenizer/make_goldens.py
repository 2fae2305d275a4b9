#!/usr/bin/env python3
"""Makes the golden files of the tokenizer tests, in golden/ next to this script.

Trains tiny tokenizers of each supported kind on the few lines below with the `tokenizers` package
(and one with `sentencepiece`), encodes about 200 mixed-script lines with them, and writes the
tokenizer and what the reference makes of the lines. Needs: tokenizers, sentencepiece.
"""
import io
import json
import os

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors, trainers)

from compare_tokenizers import LLAMA3, generate

QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

CORPUS = """
The lamp on the table was on, and the cat that sat under the table watched the light.
She said that she'd go, but they've said we'll stay; it's not what I'm told, don't you think?
In 1984 there were 365 days, 12 months and 52 weeks; 2024 had 366 days and 1,000,000 reasons.
Der Mann über dem großen Haus sieht die schöne Straße, und die Frau hört die Vögel.
Le garçon a mangé une pêche là où l'été était déjà passé, près de la forêt.
Мама мыла раму, а папа читал слово за словом в старой книге о море.
Η θάλασσα είναι μεγάλη και ο ουρανός είναι γαλάζιος.
你好，世界。今天的天气很好，我们去看山和水。
こんにちは、世界。今日はとてもいい天気です。
안녕하세요 세계, 오늘은 날씨가 좋습니다.
مرحبا بالعالم، هذا يوم جميل في المدينة.
नमस्ते दुनिया, आज का दिन अच्छा है।
for (int i = 0; i < n; ++i) { x[i] += y[i]; }  // the loop
def f(x):
    return x ** 2 + 1.5e-3
the the the table table lamp lamp light light that that she she said said
""".strip().split("\n") * 4

WORDS = "Mary John gave the book to lamp table . , and then went home the cat sat".split()

BYTES = [f"<0x{b:02X}>" for b in range(256)]
SPECIALS = ["<|endoftext|>", " <mask>  x", "foo", "xfoo foo.", "<r>  y", "<s>", "\u0130STANBUL", "STRA\u00dfE"]


def byte_level(split=None, normalizer=None, ignore_merges=False, prefix_space=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tokenizer.normalizer = normalizer
    if split:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=480, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=["<|endoftext|>"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def gpt2():
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.add_tokens([AddedToken("foo", single_word=True, normalized=False),
                          AddedToken("<r>", rstrip=True)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def llama3():
    tokenizer = byte_level(LLAMA3, ignore_merges=True)
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])])
    return tokenizer


def digits():
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=True)])
    return tokenizer


def metaspace():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    trainer = trainers.BpeTrainer(vocab_size=256 + 400, show_progress=False, limit_alphabet=120,
                                  special_tokens=["<unk>", "<s>", "</s>"] + BYTES)
    tokenizer.train_from_iterator(CORPUS, trainer)
    special = ["<unk>", "<s>", "</s>"]
    # The byte tokens are ordinary entries, not added tokens.
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    return tokenizer


def llama2():
    """The older spelling of the same: the normaliser makes the spaces visible."""
    data = json.loads(metaspace().to_str())
    tokenizer = Tokenizer.from_str(json.dumps(dict(data, pre_tokenizer=None)))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(),
                                           decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def unknown_only():
    """Character BPE without byte fallback: every character it lacks is an unknown token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(),
                                                 normalizers.Strip(True, True)])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("contiguous")])
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=300, show_progress=False, limit_alphabet=60, special_tokens=["<unk>"]))
    tokenizer.add_tokens([AddedToken("stra\u00dfe", normalized=True)])
    return tokenizer


def word_level():
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator([" ".join(WORDS)], trainers.WordLevelTrainer(
        show_progress=False, special_tokens=["<unk>", "<s>"]))
    return tokenizer


def word_piece(lowercase=True, **normalizer):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=12))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, **normalizer)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=lowercase)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(
        vocab_size=320, show_progress=False, limit_alphabet=90, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")])
    return tokenizer


def sentence_piece():
    """Pieces, scores and types as a GGUF file would hold them, and SentencePiece's ids."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="bpe", vocab_size=700,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=False, user_defined_symbols=["\u2581\u2581", "\u2581\u2581\u2581", "<r>", "\n", "\n\n"],
        hard_vocab_limit=False, character_coverage=0.9995, minloglevel=2)
    proto = pb.ModelProto.FromString(model.getvalue())
    return proto, sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def write(name, value):
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", name)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")


def main():
    lines = ["", " ", "  ", "\n", "Hello", " the lamp", "the  lamp\n\n\nthat", "1234567", "don't"]
    lines += list(generate(190, 7, SPECIALS, longest=3))
    lines += [" ".join(WORDS[i:i + 5]) for i in range(0, 10, 3)]
    write("lines.json", lines)
    kinds = {"gpt2": gpt2(), "llama3": llama3(),
             "qwen2": byte_level(QWEN2, normalizers.NFC()), "digits": digits(),
             "metaspace": metaspace(), "llama2": llama2(), "unknown": unknown_only(),
             "word_level": word_level(), "bert": word_piece(),
             "bert_cased": word_piece(False, strip_accents=None, handle_chinese_chars=False)}
    for name, tokenizer in kinds.items():
        ids = [e.ids for e in tokenizer.encode_batch(lines)]
        text = tokenizer.decode_batch(ids, skip_special_tokens=False)
        write(name + ".tokenizer.json", json.loads(tokenizer.to_str()))
        # Decoded text only where it is not the line itself.
        write(name + ".ids.json", {"reference": "tokenizers " + tokenizers.__version__, "ids": ids,
                                   "text": {str(i): t for i, t in enumerate(text) if t != lines[i]}})
    proto, processor = sentence_piece()
    ids = [processor.EncodeAsIds(line) for line in lines]
    text = [processor.DecodeIds(i) for i in ids]
    write("sentencepiece.pieces.json", {
        "tokens": [p.piece for p in proto.pieces], "scores": [p.score for p in proto.pieces],
        "types": [p.type for p in proto.pieces]})
    write("sentencepiece.ids.json", {"reference": "sentencepiece " + sentencepiece.__version__, "ids": ids,
                                     "text": {str(i): t for i, t in enumerate(text) if t != lines[i]}})


main()
