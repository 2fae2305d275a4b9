#include <array>
#include <memory>
#include <string>
#include <unordered_map>

#include "lamina/core/error.h"
#include "lamina/internal/file_text.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/merge.h"
#include "tokenizer/model.h"
#include "tokenizer/pair_map.h"
#include "tokenizer/utf8.h"

namespace lamina::tokenizer {

struct Scratch {
  std::vector<Symbol> symbols;
  MergeBuffers buffers;
};
void ScratchDeleter::operator()(Scratch* scratch) const {
  delete scratch;
}
ScratchPointer make_scratch() {
  return ScratchPointer(new Scratch);
}

namespace {

using ByteIds = std::array<std::int32_t, 256>;

/// The model's <0xNN> tokens, -1 where there is none.
ByteIds fallback_ids(const Vocabulary& vocabulary) {
  ByteIds ids;
  for (int byte = 0; byte < 256; ++byte) {
    ids[byte] = vocabulary.find(byte_fallback_name(static_cast<std::uint8_t>(byte)));
  }
  return ids;
}

bool all_present(const ByteIds& ids, std::string_view bytes) {
  for (char c : bytes) {
    if (ids[static_cast<std::uint8_t>(c)] < 0) return false;
  }
  return true;
}

[[noreturn]] void fail_character(std::string_view character) {
  fail("the text holds U+{:04X}, for which the tokenizer has no token and no unknown token",
       static_cast<std::uint32_t>(code_point_at(character, 0).value));
}

class RankedBpe final : public Model {
 public:
  RankedBpe(const Vocabulary& vocabulary, const std::vector<Merge>& merges,
            const ModelOptions& options)
      : vocabulary_(vocabulary),
        options_(options),
        merges_(merges.size()),
        fallback_(fallback_ids(vocabulary)) {
    std::int32_t rank = 0;
    for (const Merge& merge : merges) {
      merges_.set(static_cast<std::uint32_t>(merge.left), static_cast<std::uint32_t>(merge.right),
                  {rank++, merge.result});
    }
    for (int byte = 0; byte < 256; ++byte) {
      alphabet_[byte] = vocabulary.find_in_model(byte_character(static_cast<std::uint8_t>(byte)));
    }
    if (options.byte_level && options.whole_words) add_words();
  }

  void encode(std::string_view word, Scratch& scratch,
              std::vector<std::int32_t>& out) const override {
    if (options_.whole_words) {
      if (const std::int32_t id = find_word(word); id >= 0) return out.push_back(id);
    }
    std::vector<Symbol>& symbols = scratch.symbols;
    symbols.clear();
    if (options_.byte_level) {
      split_bytes(word, symbols);
    } else {
      split_characters(word, symbols);
    }
    merge_symbols(symbols, scratch.buffers, [this](const Symbol& left, const Symbol& right) {
      const Rank* rank =
          merges_.find(static_cast<std::uint32_t>(left.id), static_cast<std::uint32_t>(right.id));
      return rank ? Candidate{static_cast<double>(rank->rank), rank->result} : Candidate{};
    });
    for (const Symbol& symbol : symbols) out.push_back(symbol.id);
  }

 private:
  struct Rank {
    std::int32_t rank = 0, result = 0;
  };

  /// The entries of a byte-level vocabulary by the bytes they stand for.
  void add_words() {
    spelled_.reserve(static_cast<std::size_t>(vocabulary_.size()));
    for (std::int32_t id = 0; id < vocabulary_.size(); ++id) {
      if (!vocabulary_.in_model(id)) continue;
      if (auto bytes = from_alphabet(vocabulary_.name(id))) {
        spelled_.push_back(std::move(*bytes));  // reserved: the views below stay valid
        words_.emplace(spelled_.back(), id);
      }
    }
  }

  std::int32_t find_word(std::string_view word) const {
    if (!options_.byte_level) return vocabulary_.find_in_model(word);
    const auto hit = words_.find(word);
    return hit == words_.end() ? -1 : hit->second;
  }

  void add_unknown(std::vector<Symbol>& symbols, std::uint32_t begin, std::uint32_t size,
                   std::string_view word) const {
    if (options_.unknown < 0) fail_character(word.substr(begin));
    if (options_.fuse_unknown && !symbols.empty() && symbols.back().id == options_.unknown) {
      symbols.back().size += size;
    } else {
      symbols.push_back({options_.unknown, begin, size});
    }
  }

  void split_bytes(std::string_view word, std::vector<Symbol>& symbols) const {
    for (std::uint32_t i = 0; i < word.size(); ++i) {
      const std::int32_t id = alphabet_[static_cast<std::uint8_t>(word[i])];
      if (id >= 0) {
        symbols.push_back({id, i, 1});
      } else if (options_.unknown >= 0) {
        add_unknown(symbols, i, 1, word);
      } else {
        fail("the text holds byte 0x{:02X}, for which the tokenizer has no token",
             static_cast<std::uint8_t>(word[i]));
      }
    }
  }

  void split_characters(std::string_view word, std::vector<Symbol>& symbols) const {
    for (std::uint32_t at = 0; at < word.size();) {
      const auto size = static_cast<std::uint32_t>(code_point_at(word, at).size);
      const std::string_view character = word.substr(at, size);
      if (const std::int32_t id = vocabulary_.find_in_model(character); id >= 0) {
        symbols.push_back({id, at, size});
      } else if (options_.byte_fallback && all_present(fallback_, character)) {
        for (std::uint32_t i = 0; i < size; ++i) {
          symbols.push_back({fallback_[static_cast<std::uint8_t>(character[i])], at + i, 1});
        }
      } else {
        add_unknown(symbols, at, size, word);
      }
      at += size;
    }
  }

  const Vocabulary& vocabulary_;
  ModelOptions options_;
  PairMap<Rank> merges_;
  ByteIds fallback_, alphabet_;
  std::vector<std::string> spelled_;
  std::unordered_map<std::string_view, std::int32_t> words_;
};

class ScoredBpe final : public Model {
 public:
  ScoredBpe(const Vocabulary& vocabulary, std::vector<float> scores, const ModelOptions& options)
      : vocabulary_(vocabulary),
        options_(options),
        scores_(std::move(scores)),
        fallback_(fallback_ids(vocabulary)) {}

  void encode(std::string_view word, Scratch& scratch,
              std::vector<std::int32_t>& out) const override {
    std::vector<Symbol>& symbols = scratch.symbols;
    symbols.clear();
    for (std::uint32_t at = 0; at < word.size();) {
      const auto size = static_cast<std::uint32_t>(code_point_at(word, at).size);
      symbols.push_back({vocabulary_.find_in_model(word.substr(at, size)), at, size});
      at += size;
    }
    merge_symbols(symbols, scratch.buffers, [&](const Symbol& left, const Symbol& right) {
      const std::size_t size = left.size + right.size;
      if (size > vocabulary_.longest()) return Candidate{};
      const std::int32_t id = vocabulary_.find_in_model(word.substr(left.begin, size));
      return id < 0 ? Candidate{} : Candidate{-double{scores_[static_cast<std::size_t>(id)]}, id};
    });
    bool after_unknown = false;
    for (const Symbol& symbol : symbols) {
      const std::string_view text = word.substr(symbol.begin, symbol.size);
      const bool unknown =
          symbol.id < 0 && !(options_.byte_fallback && all_present(fallback_, text));
      if (symbol.id >= 0) {
        out.push_back(symbol.id);
      } else if (!unknown) {
        for (char c : text) out.push_back(fallback_[static_cast<std::uint8_t>(c)]);
      } else if (options_.unknown < 0) {
        fail_character(text);
      } else if (!after_unknown || !options_.fuse_unknown) {
        out.push_back(options_.unknown);
      }
      after_unknown = unknown;
    }
  }

 private:
  const Vocabulary& vocabulary_;
  ModelOptions options_;
  std::vector<float> scores_;
  ByteIds fallback_;
};

class WordLevel final : public Model {
 public:
  WordLevel(const Vocabulary& vocabulary, const ModelOptions& options)
      : vocabulary_(vocabulary), options_(options) {}

  void encode(std::string_view word, Scratch&, std::vector<std::int32_t>& out) const override {
    std::int32_t id = vocabulary_.find_in_model(word);
    if (id < 0) id = options_.unknown;
    if (id < 0) {
      fail("the text holds the word {}, which the vocabulary lacks, and there is no unknown token",
           files::quote(word));
    }
    out.push_back(id);
  }

 private:
  const Vocabulary& vocabulary_;
  ModelOptions options_;
};

}  // namespace

std::unique_ptr<const Model> make_ranked_bpe(const Vocabulary& vocabulary,
                                             const std::vector<Merge>& merges,
                                             const ModelOptions& options) {
  return std::make_unique<RankedBpe>(vocabulary, merges, options);
}
std::unique_ptr<const Model> make_scored_bpe(const Vocabulary& vocabulary,
                                             std::vector<float> scores,
                                             const ModelOptions& options) {
  return std::make_unique<ScoredBpe>(vocabulary, std::move(scores), options);
}
std::unique_ptr<const Model> make_word_level(const Vocabulary& vocabulary,
                                             const ModelOptions& options) {
  return std::make_unique<WordLevel>(vocabulary, options);
}

}  // namespace lamina::tokenizer
