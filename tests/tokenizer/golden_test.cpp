#include <gtest/gtest.h>

#include "golden_files.h"
#include "lamina/core/gguf.h"
#include "lamina/core/tokenizer.h"

namespace lamina {
namespace {

using Json = nlohmann::json;
using test::golden_json;
using test::golden_text;

/// Compares ids and decoded text of every golden line.
void check(const Tokenizer& tokenizer, const std::string& kind, Bos bos = Bos::model,
           bool parse_special = true) {
  const auto lines = golden_json("lines.json").get<std::vector<std::string>>();
  const Json golden = golden_json(kind + ".ids.json");
  const auto ids = golden["ids"].get<std::vector<std::vector<std::int32_t>>>();
  ASSERT_EQ(lines.size(), ids.size());
  ASSERT_GE(lines.size(), 200u);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(tokenizer.encode(lines[i], bos, parse_special), ids[i])
        << "line " << i << ": " << lines[i];
    const std::string text = golden["text"].value(std::to_string(i), lines[i]);
    EXPECT_EQ(tokenizer.decode(ids[i]), text) << "line " << i;
  }
}

class JsonGolden : public testing::TestWithParam<const char*> {};

TEST_P(JsonGolden, IdsAndTextEqualTheReference) {
  const std::string kind = GetParam();
  check(Tokenizer::from_json(golden_text(kind + ".tokenizer.json"), kind), kind);
}

INSTANTIATE_TEST_SUITE_P(Kinds, JsonGolden,
                         testing::Values("gpt2", "llama3", "qwen2", "digits", "metaspace", "llama2",
                                         "unknown", "word_level", "bert", "bert_cased"),
                         [](const auto& one) { return std::string(one.param); });

/// The GGUF form of a byte-level tokenizer.json.
GgufMetadata byte_level_gguf(const std::string& kind, const std::string& pre) {
  const Json definition = golden_json(kind + ".tokenizer.json");
  const Json& vocab = definition["model"]["vocab"];
  std::vector<std::string> tokens(vocab.size());
  for (const auto& [name, id] : vocab.items()) tokens.at(id.get<std::size_t>()) = name;
  std::vector<std::int64_t> types(tokens.size(), 1);
  for (const Json& token : definition["added_tokens"]) types.at(token["id"].get<std::size_t>()) = 3;
  std::vector<std::string> merges;
  for (const Json& merge : definition["model"]["merges"]) {
    merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  return GgufMetadata(kind + ".gguf", {{"tokenizer.ggml.model", std::string("gpt2")},
                                       {"tokenizer.ggml.pre", pre},
                                       {"tokenizer.ggml.tokens", tokens},
                                       {"tokenizer.ggml.token_type", types},
                                       {"tokenizer.ggml.merges", merges},
                                       {"tokenizer.ggml.bos_token_id", std::uint64_t{0}},
                                       {"tokenizer.ggml.eos_token_id", std::uint64_t{0}}});
}

TEST(GgufGolden, Llama3) {
  // add_bos_token is absent: this kind adds BOS all the same.
  check(Tokenizer::from_gguf(byte_level_gguf("llama3", "llama-bpe")), "llama3");
}

TEST(GgufGolden, Qwen2) {
  check(Tokenizer::from_gguf(byte_level_gguf("qwen2", "qwen2")), "qwen2");
}

TEST(GgufGolden, SentencePiece) {
  const Json pieces = golden_json("sentencepiece.pieces.json");
  const GgufMetadata metadata(
      "pieces.gguf",
      {{"tokenizer.ggml.model", std::string("llama")},
       {"tokenizer.ggml.tokens", pieces["tokens"].get<std::vector<std::string>>()},
       {"tokenizer.ggml.scores", pieces["scores"].get<std::vector<double>>()},
       {"tokenizer.ggml.token_type", pieces["types"].get<std::vector<std::int64_t>>()},
       {"tokenizer.ggml.add_space_prefix", false},
       {"tokenizer.ggml.bos_token_id", std::uint64_t{1}},
       {"tokenizer.ggml.eos_token_id", std::uint64_t{2}}});
  const Tokenizer tokenizer = Tokenizer::from_gguf(metadata);
  // SentencePiece does not recognise control pieces in text, and leaves BOS to its caller.
  check(tokenizer, "sentencepiece", Bos::never, false);
  EXPECT_TRUE(tokenizer.adds_bos());
  EXPECT_EQ(tokenizer.encode("a").front(), 1);
}

}  // namespace
}  // namespace lamina
