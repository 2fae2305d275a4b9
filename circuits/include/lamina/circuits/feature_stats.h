#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lamina/circuits/transcoder.h"
#include "lamina/core/block.h"
#include "lamina/core/result_file.h"
#include "lamina/core/tokenizer.h"

// What features do over many tokens, in bounded memory: how often and how strongly they fire, and
// at which tokens most. Used for dictionaries and for codebooks.

namespace lamina {

/// The tokens that were observed, in order, so that a place can be shown with its context.
class SeenTokens {
 public:
  /// Adds the prompts of a block; returns the number of the block's first token.
  std::int64_t add(const ActivationBlock& block);
  /// Appends what `other` saw.
  void merge(const SeenTokens& other);
  std::int64_t tokens() const { return static_cast<std::int64_t>(ids_.size()); }
  std::int32_t id(std::int64_t token) const { return ids_.at(static_cast<std::size_t>(token)); }
  std::int64_t prompt(std::int64_t token) const;
  std::int64_t position(std::int64_t token) const;
  const std::string& prompt_id(std::int64_t prompt) const;
  /// A token's text and the text of `width` tokens on either side with the token in «»; ids if
  /// `tokenizer` is nullptr.
  std::string text(std::int64_t token, const Tokenizer* tokenizer) const;
  std::string context(std::int64_t token, std::int64_t width, const Tokenizer* tokenizer) const;

 private:
  std::vector<std::int32_t> ids_;
  std::vector<std::int64_t> starts_;  // [prompt]
  std::vector<std::string> prompt_ids_;
};

/// Statistics of F features.
class FeatureStats {
 public:
  FeatureStats(std::int64_t features, std::int64_t examples, bool keep_all);
  /// Rows of a block: row r is token tokens[r] of SeenTokens.
  void add(const SparseRows& rows, std::span<const std::int64_t> tokens);
  /// `first_token`: what the other's token numbers are raised by.
  void merge(const FeatureStats& other, std::int64_t first_token);

  std::int64_t features() const { return static_cast<std::int64_t>(count_.size()); }
  std::int64_t rows() const { return rows_; }
  std::int64_t count(std::int64_t feature) const { return count_.at(index(feature)); }
  /// Share of the rows at which it fires.
  double frequency(std::int64_t feature) const;
  /// Mean where it fires; NaN if nowhere.
  double mean(std::int64_t feature) const;
  /// 0 if it never fires.
  float max(std::int64_t feature) const { return max_.at(index(feature)); }
  struct Example {
    std::int64_t token = -1;
    float value = 0;
  };
  /// The strongest places, strongest first, ties by the earlier token.
  std::span<const Example> top(std::int64_t feature) const;
  /// Features that fire at a share of rows ≤ / > this.
  std::int64_t at_most(double frequency) const;
  std::int64_t above(double frequency) const;

  /// Writes axes feature and example and what stands on them to the file's group; with keep_all
  /// also the activations themselves, sparsely.
  void write(ResultFile& file, const SeenTokens& seen, const Tokenizer* tokenizer,
             std::int64_t context) const;

 private:
  static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }
  void offer(std::int64_t feature, Example example);
  void write_activations(ResultFile& file, const SeenTokens& seen) const;

  std::int64_t examples_;
  bool keep_all_;
  std::int64_t rows_ = 0;
  std::vector<std::int64_t> count_;
  std::vector<double> sum_;
  std::vector<float> max_;
  std::vector<Example> top_;        // [F, examples]
  std::vector<std::int32_t> kept_;  // [F]: how many of those
  SparseRows all_;                  // keep_all
  std::vector<std::int64_t> all_tokens_;
};

}  // namespace lamina
