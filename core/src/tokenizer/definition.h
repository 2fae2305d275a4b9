#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/decoder.h"
#include "tokenizer/model.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/vocabulary.h"

namespace lamina {
class GgufMetadata;
}

namespace lamina::tokenizer {

enum class ModelKind : std::uint8_t { ranked_bpe, scored_bpe, word_level, word_piece };

/// A tokenizer as plain data, whatever file it came from. The readers check it: ids dense and
/// unique, every id in range.
struct Definition {
  std::string name;  // of the file, for messages
  Vocabulary vocabulary;
  std::vector<AddedToken> added;
  std::vector<NormalizerStep> normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  std::vector<DecoderStep> decoder;

  ModelKind kind = ModelKind::ranked_bpe;
  ModelOptions options;
  std::vector<Merge> merges;  // ranked_bpe, by rank
  std::vector<float> scores;  // scored_bpe, by id

  std::vector<std::int32_t> prefix, suffix;  // put around the text by Bos::model
  std::optional<std::int32_t> bos, eos;
  std::string sha256;
};

/// Reads the text of a tokenizer.json.
Definition read_json_definition(std::string_view text, std::string_view name);
/// Applies the BOS/EOS entries of a tokenizer_config.json to `definition`.
void apply_tokenizer_config(Definition& definition, std::string_view text, std::string_view name);
/// Reads the tokenizer.ggml.* keys.
Definition read_gguf_definition(const GgufMetadata& metadata);

/// The split patterns that a value of tokenizer.ggml.pre stands for, and what else it implies.
struct GgufPreset {
  std::vector<std::string_view> patterns;
  bool nfc = false;          ///< the model's own tokenizer normalises to NFC
  bool whole_words = false;  ///< ModelOptions::whole_words
  bool add_bos = false;      ///< default when tokenizer.ggml.add_bos_token is absent
};
/// Throws Error naming `where` and listing the known names if `pre` is not one of them.
GgufPreset gguf_preset(std::string_view pre, std::string_view where);

/// Limits for files from others.
constexpr std::size_t kMaxVocabulary = std::size_t{1} << 21;
constexpr std::size_t kMaxMerges = std::size_t{1} << 22;
constexpr std::size_t kMaxName = std::size_t{1} << 14;        // bytes of one entry
constexpr std::size_t kMaxAddedName = 1024;                   // bytes of one added token
constexpr std::size_t kMaxAddedTotal = std::size_t{1} << 22;  // bytes of all added tokens
constexpr std::size_t kMaxJson = std::size_t{1} << 26;        // bytes of a JSON file
constexpr std::size_t kMaxInsertion = 256;                    // bytes that a step puts in at once
constexpr std::size_t kMaxSteps = 64;  // of a normaliser, splitter or decoder

}  // namespace lamina::tokenizer
