#include <cmath>

#include "lamina/core/error.h"
#include "lamina/core/gguf.h"
#include "lamina/core/sha256.h"
#include "lamina/internal/file_text.h"
#include "tokenizer/definition.h"
#include "tokenizer/utf8.h"

namespace lamina::tokenizer {
namespace {

using files::quote;

constexpr std::string_view kSpaceMark = "\u2581";

/// Values of tokenizer.ggml.token_type.
enum TokenType : std::int64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

struct Keys {
  const GgufMetadata& metadata;
  const std::string& file = metadata.file();

  /// The id under `key`, checked against the vocabulary; nullopt if absent.
  std::optional<std::int32_t> id(std::string_view key, std::size_t count) const {
    const auto value = metadata.find_integer(key);
    if (!value) return std::nullopt;
    if (*value < 0 || static_cast<std::uint64_t>(*value) >= count) {
      fail("{}: {} is {}, but there are {} tokens", file, key, *value, count);
    }
    return static_cast<std::int32_t>(*value);
  }
};

std::vector<std::int64_t> read_types(const Keys& keys, std::size_t count) {
  constexpr std::string_view kKey = "tokenizer.ggml.token_type";
  if (!keys.metadata.has(kKey)) return std::vector<std::int64_t>(count, kNormal);
  std::vector<std::int64_t> types = keys.metadata.integers(kKey);
  if (types.size() != count) {
    fail("{}: {} has {} entries for {} tokens", keys.file, kKey, types.size(), count);
  }
  for (std::size_t id = 0; id < count; ++id) {
    if (types[id] < kNormal || types[id] > kByte) {
      fail("{}: token {} has type {}, expected {} to {}", keys.file, id, types[id],
           static_cast<std::int64_t>(kNormal), static_cast<std::int64_t>(kByte));
    }
  }
  return types;
}

void read_vocabulary(const Keys& keys, const std::vector<std::string>& tokens,
                     const std::vector<std::int64_t>& types, bool sentence_piece, Definition& out) {
  std::vector<bool> in_model(tokens.size());
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    const std::string& name = tokens[id];
    if (name.size() > kMaxName) {
      fail("{}: token {} has {} bytes, at most {} are accepted", keys.file, id, name.size(),
           kMaxName);
    }
    const std::int64_t type = types[id];
    // Unused entries pad the vocabulary; encoding never produces them.
    in_model[id] = type == kNormal;
    if (type == kByte && !byte_fallback_value(name)) {
      fail("{}: token {} has the type of a byte, but its name is {} instead of <0xNN>", keys.file,
           id, quote(name));
    }
    if (type != kControl && type != kUserDefined && type != kUnknown) continue;
    AddedToken token;
    token.id = static_cast<std::int32_t>(id);
    token.content = sentence_piece ? replace_all(name, kSpaceMark, " ") : name;
    token.special = type != kUserDefined;
    if (name.empty()) fail("{}: special token {} has an empty name", keys.file, id);
    if (name.size() > kMaxAddedName) {
      fail("{}: special token {} has {} bytes, at most {} are accepted", keys.file, id, name.size(),
           kMaxAddedName);
    }
    out.added.push_back(std::move(token));
  }
  out.vocabulary = Vocabulary(tokens, std::move(in_model), keys.file);
}

void read_merges(const Keys& keys, Definition& out) {
  const std::vector<std::string>& list = keys.metadata.texts("tokenizer.ggml.merges");
  if (list.size() > kMaxMerges) {
    fail("{}: {} merges, at most {} are accepted", keys.file, list.size(), kMaxMerges);
  }
  out.merges.reserve(list.size());
  for (const std::string& merge : list) {
    const std::size_t rank = out.merges.size();
    const std::size_t space = merge.find(' ', 1);
    if (space == merge.npos || space + 1 == merge.size()) {
      fail("{}: merge {} is {}, expected two tokens and a space between", keys.file, rank,
           quote(merge));
    }
    const std::string left = merge.substr(0, space), right = merge.substr(space + 1);
    const auto id = [&](const std::string& name) {
      const std::int32_t found = out.vocabulary.find(name);
      if (found < 0) {
        fail("{}: merge {} ({}) needs {}, which is not in the vocabulary", keys.file, rank,
             quote(merge), quote(name));
      }
      return found;
    };
    out.merges.push_back({id(left), id(right), id(left + right)});
  }
}

/// Byte-level BPE with the pre-tokenizer that tokenizer.ggml.pre names.
GgufPreset read_byte_level(const Keys& keys, Definition& out) {
  const GgufPreset preset =
      gguf_preset(keys.metadata.find_text("tokenizer.ggml.pre").value_or("default"), keys.file);
  out.kind = ModelKind::ranked_bpe;
  out.options.byte_level = true;
  out.options.whole_words = preset.whole_words;
  if (preset.nfc) out.normalizer.emplace_back(ToForm{UnicodeForm::nfc});
  if (keys.metadata.find_boolean("tokenizer.ggml.add_space_prefix").value_or(false)) {
    out.pre_tokenizer.emplace_back(PrefixSpace{});
  }
  for (std::string_view pattern : preset.patterns) {
    out.pre_tokenizer.emplace_back(Split{Regex(pattern, keys.file), {}, SplitBehavior::isolated});
  }
  out.decoder.emplace_back(ByteLevelDecode{});
  read_merges(keys, out);
  return preset;
}

/// SentencePiece's BPE, driven by scores. User-defined pieces are atoms of the text with its spaces
/// made visible: the longest match wins, and nothing merges across it.
void read_sentence_piece(const Keys& keys, std::size_t count, Definition& out) {
  constexpr std::string_view kScores = "tokenizer.ggml.scores";
  const std::vector<double> scores = keys.metadata.numbers(kScores);
  if (scores.size() != count) {
    fail("{}: {} has {} entries for {} tokens", keys.file, kScores, scores.size(), count);
  }
  for (std::size_t id = 0; id < count; ++id) {
    if (!std::isfinite(scores[id])) {
      fail("{}: the score of token {} is {}, expected a finite number", keys.file, id, scores[id]);
    }
    out.scores.push_back(static_cast<float>(scores[id]));
  }
  for (std::string_view key :
       {"tokenizer.ggml.remove_extra_whitespaces", "tokenizer.ggml.treat_whitespace_as_suffix"}) {
    if (keys.metadata.find_boolean(key).value_or(false)) {
      fail("{}: {} = true is not supported", keys.file, key);
    }
  }
  if (keys.metadata.has("tokenizer.ggml.precompiled_charsmap")) {
    fail("{}: tokenizer.ggml.precompiled_charsmap is not supported", keys.file);
  }
  out.kind = ModelKind::scored_bpe;
  out.options.byte_fallback = true;
  out.options.fuse_unknown = true;
  out.options.unknown = keys.id("tokenizer.ggml.unknown_token_id", count).value_or(-1);
  const bool prefix = keys.metadata.find_boolean("tokenizer.ggml.add_space_prefix").value_or(true);
  // A prefix goes in front of every section, so then they must be found before it is there.
  if (!prefix) {
    for (AddedToken& token : out.added) token.normalized = !token.special;
  }
  if (prefix) out.normalizer.emplace_back(Prepend{std::string(kSpaceMark)});
  out.normalizer.emplace_back(Replace{" ", std::string(kSpaceMark), std::nullopt});
  out.decoder.emplace_back(Replace{std::string(kSpaceMark), " ", std::nullopt});
  out.decoder.emplace_back(ByteFallbackDecode{});
  out.decoder.emplace_back(Fuse{});
  if (prefix) out.decoder.emplace_back(StripCharacter{" ", 1, 0});
}

void read_ends(const Keys& keys, std::size_t count, bool bos_default, Definition& out) {
  out.bos = keys.id("tokenizer.ggml.bos_token_id", count);
  out.eos = keys.id("tokenizer.ggml.eos_token_id", count);
  const auto add = [&](std::string_view key, bool fallback, std::optional<std::int32_t> id,
                       std::vector<std::int32_t>& ids) {
    const auto stated = keys.metadata.find_boolean(key);
    if (!stated.value_or(fallback)) return;
    if (id) {
      ids = {*id};
    } else if (stated) {
      fail("{}: {} is true, but the file names no such token", keys.file, key);
    }
  };
  add("tokenizer.ggml.add_bos_token", bos_default, out.bos, out.prefix);
  add("tokenizer.ggml.add_eos_token", false, out.eos, out.suffix);
}

std::string fingerprint(const Keys& keys, const std::string& model,
                        const std::vector<std::string>& tokens,
                        const std::vector<std::int64_t>& types, const Definition& definition) {
  Sha256 hash;
  // Every string goes in with its length, so that no two definitions run together.
  const auto add = [&](std::string_view text) {
    hash.update(fmt::format("{}:", text.size()));
    hash.update(text);
  };
  add(model);
  add(keys.metadata.find_text("tokenizer.ggml.pre").value_or(""));
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    add(tokens[id]);
    hash.update(fmt::format("{};", types[id]));
  }
  for (float score : definition.scores) hash.update(fmt::format("{};", score));
  for (const Merge& merge : definition.merges) {
    hash.update(fmt::format("{},{};", merge.left, merge.right));
  }
  return hash.hex();
}

}  // namespace

Definition read_gguf_definition(const GgufMetadata& metadata) {
  const Keys keys{metadata};
  Definition out;
  out.name = metadata.file();
  const std::string& model = metadata.text("tokenizer.ggml.model");
  if (model != "gpt2" && model != "llama") {
    fail("{}: tokenizer.ggml.model = {} is not supported (gpt2 and llama are)", keys.file,
         quote(model));
  }
  const bool sentence_piece = model == "llama";
  const std::vector<std::string>& tokens = metadata.texts("tokenizer.ggml.tokens");
  if (tokens.empty()) fail("{}: tokenizer.ggml.tokens is empty", keys.file);
  if (tokens.size() > kMaxVocabulary) {
    fail("{}: {} tokens, at most {} are accepted", keys.file, tokens.size(), kMaxVocabulary);
  }
  const std::vector<std::int64_t> types = read_types(keys, tokens.size());
  read_vocabulary(keys, tokens, types, sentence_piece, out);
  bool bos_default = sentence_piece;
  if (sentence_piece) {
    read_sentence_piece(keys, tokens.size(), out);
  } else {
    bos_default = read_byte_level(keys, out).add_bos;
  }
  read_ends(keys, tokens.size(), bos_default, out);
  out.sha256 = fingerprint(keys, model, tokens, types, out);
  return out;
}

}  // namespace lamina::tokenizer
