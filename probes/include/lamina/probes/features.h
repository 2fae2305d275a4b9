#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/probes/probe.h"

namespace lamina {

/// Which tokens of a prompt give a row of features.
enum class RowChoice : std::uint8_t {
  last,        // the last token
  first,       // the first token
  mean,        // one row: the mean over tokens
  all,         // one row per token
  index,       // the token at `index`; negative counts from the end
  difference,  // one row: the token at `end` minus the token at `start`
};
/// "last", "first", "mean", "all" or a number, which sets `index`. UsageError otherwise.
RowChoice parse_row_choice(std::string_view text, std::int64_t& index);
std::string row_choice_text(RowChoice choice, std::int64_t index);

/// A token of a trace (a prompt and its generated answer).
struct TokenMarker {
  enum class Kind : std::uint8_t {
    first_generated,  // by the recording's phases
    last_generated,
    index,   // negative counts from the end
    tokens,  // the last token of the first place where `ids` stand (as the end marker: the first
             // place after the start)
  };
  Kind kind = Kind::first_generated;
  std::int64_t index = 0;
  std::vector<std::int32_t> ids;
};
/// "first-generated", "last-generated", a number, or "id:27" / "id:27,13". UsageError otherwise.
TokenMarker parse_token_marker(std::string_view text);

struct FeatureOptions {
  std::vector<Site> sites;  // token sites, in the order of the results
  RowChoice choice = RowChoice::last;
  std::int64_t index = 0;        // RowChoice::index
  TokenMarker start, end;        // RowChoice::difference
  std::int64_t skip = 0;         // first tokens of a prompt that mean and all leave out
  std::string label;             // the prompts' label that says what to tell apart; "" = none
  bool skip_unlabelled = false;  // leave prompts without the label out; otherwise an Error
  std::string group;  // prompts that share this label's value are never parted; "" = none
};

/// Where a row comes from.
struct FeatureRow {
  std::int64_t prompt = 0;  // number in the run
  std::int64_t token = 0;   // the (last) token it was read at, within the prompt
  std::int32_t id = 0;      // that token's id
  std::string prompt_id;
  std::string label;  // "" without FeatureOptions::label
  std::string group;  // the prompt's group, or its id
};

/// The rows that a prompt gives. A label that is a JSON array holds one label per token (null: the
/// token is left out); it has one entry per given token or one per token. Error if the prompt has
/// no such token or label.
std::vector<FeatureRow> feature_rows(const Prompt& prompt, std::int64_t number,
                                     const FeatureOptions& options);

/// Gathers rows of activations with their labels, to be fitted afterwards. Memory: rows · Σ width
/// of the sites · 4 bytes.
class Features : public Probe {
 public:
  Features(const ModelConfig& config, FeatureOptions options);

  std::string name() const override { return "features"; }
  std::vector<Site> sites(const ModelConfig&) const override { return options_.sites; }
  std::unique_ptr<Probe> fresh() const override;
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  /// The rows themselves, one dataset [row, component] per site.
  void write(ResultFile& file) const override;

  const FeatureOptions& options() const { return options_; }
  const std::vector<FeatureRow>& rows() const { return rows_; }
  std::int64_t width(std::size_t site) const { return widths_[site]; }
  /// [row, width]
  std::span<const float> values(std::size_t site) const { return values_[site]; }

 private:
  void read(const ActivationBlock& block, std::size_t prompt, const FeatureRow& row);

  FeatureOptions options_;
  std::vector<std::int64_t> widths_;
  std::int64_t prompts_ = 0;
  std::vector<FeatureRow> rows_;
  std::vector<std::vector<float>> values_;
};

}  // namespace lamina
