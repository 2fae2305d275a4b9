#include <gtest/gtest.h>

#include <cmath>

#include "lamina/core/error.h"
#include "lamina/core/gguf.h"
#include "lamina/core/tokenizer.h"

// Definitions broken by hand: each must be refused with a message that says what is wrong.
namespace lamina {
namespace {

std::string json_message(const std::string& text) {
  try {
    (void)Tokenizer::from_json(text, "t.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

/// A tokenizer.json with this model and these further members.
std::string with(const std::string& model, const std::string& rest = "") {
  return R"({"model": )" + model + rest + "}";
}

const std::string kModel =
    R"({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]})";

std::string long_name(std::size_t size) {
  return std::string(size, 'x');
}

struct Broken {
  const char* name;
  std::string json;
  std::string message;
};

class BrokenJson : public testing::TestWithParam<Broken> {};

TEST_P(BrokenJson, IsRefused) {
  EXPECT_EQ(json_message(GetParam().json), GetParam().message);
}

TEST(BrokenJsonBase, UnbrokenIsAccepted) {
  EXPECT_EQ(json_message(with(kModel)), "accepted");
}

INSTANTIATE_TEST_SUITE_P(
    Files, BrokenJson,
    testing::Values(
        Broken{"Empty", "", "t.json: no valid JSON at byte 1"},
        Broken{"List", "[]", "t.json: a tokenizer.json must be an object"},
        Broken{"NoModel", "{}", "t.json: \"model\" must be an object, found null"},
        Broken{"DuplicateKey", R"({"model": {"vocab": {"a": 0, "a": 1}}})",
               "t.json: key \"a\" appears twice in one object"},
        Broken{"Deep", R"({"normalizer": )" + std::string(50, '[') + std::string(50, ']') + "}",
               "t.json: JSON nested deeper than 32 levels"},
        Broken{
            "Unigram", with(R"({"type": "Unigram", "vocab": [["a", -1.0]]})"),
            "t.json: model type \"Unigram\" is not supported (BPE, WordLevel and WordPiece are)"},
        Broken{
            "UnnamedUnigram", with(R"({"vocab": [["a", -1.0]]})"),
            "t.json: model type \"Unigram\" is not supported (BPE, WordLevel and WordPiece are)"},
        Broken{"WordPieceWithoutUnknown", with(R"({"type": "WordPiece", "vocab": {"a": 0}})"),
               "t.json: a WordPiece model needs an unk_token"},
        Broken{"WordPieceUnknownNotThere",
               with(R"({"type": "WordPiece", "unk_token": "u", "vocab": {"a": 0}})"),
               "t.json: unk_token \"u\" is not in the vocabulary"},
        Broken{"WordPieceLongWords",
               with(R"({"type": "WordPiece", "unk_token": "a", "vocab": {"a": 0},
                        "max_input_chars_per_word": 1001})"),
               "t.json: max_input_chars_per_word is 1001, at most 1000 are accepted"},
        Broken{"EmptyVocab", with(R"({"type": "WordLevel", "vocab": {}})"),
               "t.json: the vocabulary is empty"},
        Broken{"Hole", with(R"({"type": "WordLevel", "vocab": {"a": 0, "b": 2}})"),
               "t.json: token \"b\" has id 2, but there are only 2 tokens (ids must be dense)"},
        Broken{"SameId", with(R"({"type": "WordLevel", "vocab": {"a": 0, "b": 0}})"),
               "t.json: tokens \"a\" and \"b\" have the same id 0"},
        Broken{"NegativeId", with(R"({"type": "WordLevel", "vocab": {"a": -1}})"),
               "t.json: the id of \"a\" must be a whole number below 2097152, found \"-1\""},
        Broken{
            "HugeId", with(R"({"type": "WordLevel", "vocab": {"a": 4294967296}})"),
            "t.json: the id of \"a\" must be a whole number below 2097152, found \"4294967296\""},
        Broken{"FractionId", with(R"({"type": "WordLevel", "vocab": {"a": 0.5}})"),
               "t.json: the id of \"a\" must be a whole number below 2097152, found \"0.5\""},
        Broken{"LongName",
               with(R"({"type": "WordLevel", "vocab": {")" + long_name(20000) + R"(": 0}})"),
               "t.json: token 0 has 20000 bytes, at most 16384 are accepted"},
        Broken{"MergeSide",
               with(R"({"type": "BPE", "vocab": {"a": 0, "ab": 1}, "merges": ["a b"]})"),
               "t.json: merge 0 (\"a\" + \"b\") needs \"b\", which is not in the vocabulary"},
        Broken{"MergeResult",
               with(R"({"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]})"),
               "t.json: merge 0 (\"a\" + \"b\") needs \"ab\", which is not in the vocabulary"},
        Broken{"MergeShape", with(R"({"type": "BPE", "vocab": {"a": 0}, "merges": ["aa"]})"),
               "t.json: merge 0 must be \"left right\" or [\"left\", \"right\"]"},
        Broken{"UnknownToken",
               with(R"({"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "?"})"),
               "t.json: unk_token \"?\" is not in the vocabulary"},
        Broken{"Dropout",
               with(R"({"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.1})"),
               "t.json: model option \"dropout\" is not supported"},
        Broken{"Subword", with(R"({"type": "BPE", "vocab": {"a": 0}, "merges": [],
                                   "continuing_subword_prefix": "##"})"),
               "t.json: model option \"continuing_subword_prefix\" is not supported"},
        Broken{"AddedTwice", with(kModel, R"(, "added_tokens": [{"id": 3, "content": "x"},
                                              {"id": 4, "content": "x"}])"),
               "t.json: added token \"x\" appears twice"},
        Broken{"AddedId", with(kModel, R"(, "added_tokens": [{"id": 3, "content": "a"}])"),
               "t.json: added token \"a\" has id 3, but the vocabulary says 0"},
        Broken{"AddedTaken", with(kModel, R"(, "added_tokens": [{"id": 1, "content": "x"}])"),
               "t.json: tokens \"b\" and \"x\" have the same id 1"},
        Broken{"AddedEmpty", with(kModel, R"(, "added_tokens": [{"id": 3, "content": ""}])"),
               "t.json: added token 3 is empty"},
        Broken{
            "AddedLong",
            with(kModel, R"(, "added_tokens": [{"id": 3, "content": ")" + long_name(2000) + "\"}]"),
            "t.json: added token 3 has 2000 bytes, at most 1024 are accepted"},
        Broken{"AddedFlag",
               with(kModel, R"(, "added_tokens": [{"id": 3, "content": "x", "lstrip": 1}])"),
               "t.json: \"lstrip\" must be true or false, found number"},
        Broken{"Normalizer", with(kModel, R"(, "normalizer": {"type": "Precompiled"})"),
               "t.json: normalizer \"Precompiled\" is not supported"},
        Broken{"PreTokenizer", with(kModel, R"(, "pre_tokenizer": {"type": "UnicodeScripts"})"),
               "t.json: pre-tokenizer \"UnicodeScripts\" is not supported"},
        Broken{"AfterByteLevel", with(kModel, R"(, "pre_tokenizer": {"type": "Sequence",
                 "pretokenizers": [{"type": "ByteLevel"}, {"type": "Digits"}]})"),
               "t.json: pre-tokenizer \"Digits\" after ByteLevel is not supported"},
        Broken{"Pattern", with(kModel, R"(, "pre_tokenizer": {"type": "Split",
                 "pattern": {"Regex": "(a"}, "behavior": "Isolated"})"),
               "t.json: pattern \"(a\" does not compile: missing closing parenthesis at byte 2 of "
               "\"(a\""},
        Broken{"Behavior", with(kModel, R"(, "pre_tokenizer": {"type": "Split",
                 "pattern": {"String": " "}, "behavior": "Sideways"})"),
               "t.json: unknown split behavior \"Sideways\""},
        Broken{"Metaspace", with(kModel, R"(, "pre_tokenizer": {"type": "Metaspace",
                 "replacement": "ab"})"),
               "t.json: the replacement of Metaspace must be one character, found \"ab\""},
        Broken{"LongPrefix",
               with(kModel,
                    R"(, "normalizer": {"type": "Prepend", "prepend": ")" + long_name(300) + "\"}"),
               "t.json: \"prepend\" of Prepend has 300 bytes, at most 256 are accepted"},
        Broken{"Decoder", with(kModel, R"(, "decoder": {"type": "CTC"})"),
               "t.json: decoder \"CTC\" is not supported"},
        Broken{"PostProcessor", with(kModel, R"(, "post_processor": {"type": "Magic"})"),
               "t.json: post-processor \"Magic\" is not supported"},
        Broken{"TemplateId", with(kModel, R"(, "post_processor": {"type": "TemplateProcessing",
                 "single": [{"SpecialToken": {"id": "a"}}, {"Sequence": {"id": "A"}}],
                 "special_tokens": {"a": {"ids": [7]}}})"),
               "t.json: a token of the template has id 7, but there are only 3 tokens"},
        Broken{"TemplateText", with(kModel, R"(, "post_processor": {"type": "TemplateProcessing",
                 "single": [], "special_tokens": {}})"),
               "t.json: the template of the post-processor lacks the sequence"}),
    [](const auto& one) { return std::string(one.param.name); });

using Values = std::map<std::string, GgufValue, std::less<>>;

Values bpe() {
  return {{"tokenizer.ggml.model", std::string("gpt2")},
          {"tokenizer.ggml.pre", std::string("gpt-2")},
          {"tokenizer.ggml.tokens", std::vector<std::string>{"a", "b", "ab"}},
          {"tokenizer.ggml.token_type", std::vector<std::int64_t>{1, 1, 1}},
          {"tokenizer.ggml.merges", std::vector<std::string>{"a b"}}};
}

Values spm() {
  return {{"tokenizer.ggml.model", std::string("llama")},
          {"tokenizer.ggml.tokens", std::vector<std::string>{"<unk>", "a", "aa"}},
          {"tokenizer.ggml.token_type", std::vector<std::int64_t>{2, 1, 1}},
          {"tokenizer.ggml.scores", std::vector<double>{0, -1, -2}},
          {"tokenizer.ggml.unknown_token_id", std::uint64_t{0}}};
}

std::string gguf_message(Values values, const char* key, GgufValue value) {
  values.insert_or_assign(key, std::move(value));
  try {
    (void)Tokenizer::from_gguf(GgufMetadata("t.gguf", std::move(values)));
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

TEST(BrokenGguf, UnbrokenIsAccepted) {
  EXPECT_EQ(gguf_message(bpe(), "other", true), "accepted");
  EXPECT_EQ(gguf_message(spm(), "other", true), "accepted");
}

TEST(BrokenGguf, IsRefused) {
  EXPECT_EQ(gguf_message(bpe(), "tokenizer.ggml.model", std::string("bert")),
            "t.gguf: tokenizer.ggml.model = \"bert\" is not supported (gpt2 and llama are)");
  const std::string unknown = gguf_message(bpe(), "tokenizer.ggml.pre", std::string("klingon"));
  EXPECT_TRUE(
      unknown.starts_with("t.gguf: unknown pre-tokenizer tokenizer.ggml.pre = \"klingon\"; "
                          "known are default, gpt-2, "))
      << unknown;
  EXPECT_EQ(gguf_message(bpe(), "tokenizer.ggml.tokens", std::vector<std::string>{}),
            "t.gguf: tokenizer.ggml.tokens is empty");
  EXPECT_EQ(gguf_message(bpe(), "tokenizer.ggml.tokens", std::vector<std::string>{"a", "b", "a"}),
            "t.gguf: tokens 0 and 2 have the same name \"a\"");
  EXPECT_EQ(
      gguf_message(bpe(), "tokenizer.ggml.tokens", std::vector<std::string>{"a", "b", "\xFF"}),
      "t.gguf: the name of token 2 is not UTF-8 at byte 0");
  EXPECT_EQ(gguf_message(bpe(), "tokenizer.ggml.token_type", std::vector<std::int64_t>{1, 1}),
            "t.gguf: tokenizer.ggml.token_type has 2 entries for 3 tokens");
  EXPECT_EQ(gguf_message(bpe(), "tokenizer.ggml.token_type", std::vector<std::int64_t>{1, 1, 9}),
            "t.gguf: token 2 has type 9, expected 1 to 6");
  EXPECT_EQ(gguf_message(bpe(), "tokenizer.ggml.token_type", std::vector<std::int64_t>{1, 1, 6}),
            "t.gguf: token 2 has the type of a byte, but its name is \"ab\" instead of <0xNN>");
  EXPECT_EQ(gguf_message(bpe(), "tokenizer.ggml.merges", std::vector<std::string>{"ab"}),
            "t.gguf: merge 0 is \"ab\", expected two tokens and a space between");
  EXPECT_EQ(gguf_message(bpe(), "tokenizer.ggml.merges", std::vector<std::string>{""}),
            "t.gguf: merge 0 is \"\", expected two tokens and a space between");
  EXPECT_EQ(gguf_message(bpe(), "tokenizer.ggml.merges", std::vector<std::string>{"a b", "b a"}),
            "t.gguf: merge 1 (\"b a\") needs \"ba\", which is not in the vocabulary");
  EXPECT_EQ(gguf_message(bpe(), "tokenizer.ggml.bos_token_id", std::uint64_t{3}),
            "t.gguf: tokenizer.ggml.bos_token_id is 3, but there are 3 tokens");
  EXPECT_EQ(gguf_message(bpe(), "tokenizer.ggml.add_bos_token", true),
            "t.gguf: tokenizer.ggml.add_bos_token is true, but the file names no such token");
  EXPECT_EQ(gguf_message(spm(), "tokenizer.ggml.scores", std::vector<double>{0, 1}),
            "t.gguf: tokenizer.ggml.scores has 2 entries for 3 tokens");
  EXPECT_EQ(gguf_message(spm(), "tokenizer.ggml.scores", std::vector<double>{0, NAN, 1}),
            "t.gguf: the score of token 1 is nan, expected a finite number");
  EXPECT_EQ(gguf_message(spm(), "tokenizer.ggml.remove_extra_whitespaces", true),
            "t.gguf: tokenizer.ggml.remove_extra_whitespaces = true is not supported");
}

TEST(Encode, StopsStepsThatMakeTextExplode) {
  std::string steps;
  for (int i = 0; i < 60; ++i) {
    steps += R"({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"},)";
  }
  steps.pop_back();
  const std::string text = with(kModel, R"(, "normalizer": {"type": "Sequence", "normalizers": [)" +
                                            steps + R"(]}, "decoder": {"type": "Sequence",
                                            "decoders": [)" +
                                            steps + "]}");
  const Tokenizer tokenizer = Tokenizer::from_json(text, "t.json");
  try {
    (void)tokenizer.encode("a");
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "the normaliser makes 131072 bytes of 1, at most 64 times as many are accepted");
  }
  EXPECT_THROW((void)tokenizer.decode(std::vector<std::int32_t>{0}), Error);
}

TEST(Encode, SaysWhichCharacterHasNoToken) {
  const auto message = [](const std::string& model, const char* text) -> std::string {
    try {
      (void)Tokenizer::from_json(with(model), "t.json").encode(text);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message(kModel, "ab\u00e9"),
            "the text holds U+00E9, for which the tokenizer has no token and no unknown token");
  EXPECT_EQ(
      message(R"({"type": "WordLevel", "vocab": {"a": 0}})", "b"),
      "the text holds the word \"b\", which the vocabulary lacks, and there is no unknown token");
}

}  // namespace
}  // namespace lamina
