#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/vocabulary.h"

namespace lamina::tokenizer {

/// One merge of ranked BPE: the tokens `left` and `right` become `result`.
struct Merge {
  std::int32_t left = 0, right = 0, result = 0;
};

/// What the three models share. `unknown` is -1 if there is no unknown token.
struct ModelOptions {
  std::int32_t unknown = -1;
  bool byte_level = false;       ///< words are raw bytes, names are spelled in the byte alphabet
  bool byte_fallback = false;    ///< a character without an entry becomes its <0xNN> tokens
  bool fuse_unknown = false;     ///< neighbouring unknown characters become one unknown token
  bool whole_words = false;      ///< a word that is an entry is taken whole, without merging
  std::string continuation;      ///< WordPiece: stands in front of pieces that do not begin a word
  std::size_t longest_word = 0;  ///< WordPiece: longer words (in characters) are unknown
};

/// Memory that successive words of one encode() share.
struct Scratch;
struct ScratchDeleter {
  void operator()(Scratch* scratch) const;
};
using ScratchPointer = std::unique_ptr<Scratch, ScratchDeleter>;
ScratchPointer make_scratch();

/// Turns one word (the pre-tokenizer's output) into ids. Immutable; safe to share between threads.
class Model {
 public:
  virtual ~Model() = default;
  /// Appends the ids of well-formed UTF-8 `word`. Throws Error for a character without any token.
  virtual void encode(std::string_view word, Scratch& scratch,
                      std::vector<std::int32_t>& out) const = 0;
};

/// BPE whose merges have ranks, lowest first. Both models keep a reference to `vocabulary`.
std::unique_ptr<const Model> make_ranked_bpe(const Vocabulary& vocabulary,
                                             const std::vector<Merge>& merges,
                                             const ModelOptions& options);
/// SentencePiece's BPE: of all neighbours whose concatenation is an entry, the one with the highest
/// score merges first, the leftmost of equals. Byte fallback if `options` says so.
std::unique_ptr<const Model> make_scored_bpe(const Vocabulary& vocabulary,
                                             std::vector<float> scores,
                                             const ModelOptions& options);
/// WordPiece: from the left the longest entry, each but the first with `continuation` in front; a
/// word that cannot be covered so is one unknown token.
std::unique_ptr<const Model> make_word_piece(const Vocabulary& vocabulary,
                                             const ModelOptions& options);
/// Whole words, or the unknown token.
std::unique_ptr<const Model> make_word_level(const Vocabulary& vocabulary,
                                             const ModelOptions& options);

}  // namespace lamina::tokenizer
