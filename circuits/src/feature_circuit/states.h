#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <vector>

#include "lamina/circuits/feature_circuit.h"
#include "lamina/patching/gradient_pass.h"

// What dictionaries see in a run, and what stands in for it.

namespace lamina::feature_circuit {

inline std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

/// Position of token p of a clean prompt of `tokens` tokens, as nodes count it.
inline std::int32_t position_of(std::int64_t p, std::int64_t tokens, CountFrom from) {
  return static_cast<std::int32_t>(from == CountFrom::end ? p - tokens : p);
}

/// Nodes of one dictionary over some rows: features and errors, and what they add up to.
struct State {
  SparseRows z;
  std::vector<float> error;  // [rows, D]
  std::vector<float> site;   // [rows, D] of the site: decoded features + error

  std::span<const std::int32_t> features(std::int64_t row) const;
  std::span<const float> values(std::int64_t row) const;
  /// 0 if it is not active.
  float value(std::int64_t row, std::int32_t feature) const;
};

/// Calls use(feature, a, b) for every feature of either row, ascending; 0 where a row lacks it.
template <class Use>
void for_each_feature(const State& a, std::int64_t row_a, const State& b, std::int64_t row_b,
                      const Use& use) {
  const auto fa = a.features(row_a), fb = b.features(row_b);
  const auto va = a.values(row_a), vb = b.values(row_b);
  std::size_t i = 0, j = 0;
  while (i < fa.size() || j < fb.size()) {
    if (j == fb.size() || (i < fa.size() && fa[i] < fb[j])) {
      use(fa[i], va[i], 0.0F);
      ++i;
    } else if (i == fa.size() || fb[j] < fa[i]) {
      use(fb[j], 0.0F, vb[j]);
      ++j;
    } else {
      use(fa[i], va[i], vb[j]);
      ++i;
      ++j;
    }
  }
}

/// Values of the sites of a run that dictionaries read and rebuild.
class SiteCopies {
 public:
  SiteCopies(const Model& model, std::span<const Transcoder> dictionaries);
  /// Adds hooks that copy them.
  void watch(Hooks& hooks);
  /// What dictionary i reads (norm weights applied) and rebuilds: [tokens, D_in], [tokens, D].
  std::vector<float> input(std::size_t i) const;
  std::span<const float> output(std::size_t i) const;
  /// The nodes of all dictionaries in the run.
  std::vector<State> states() const;

 private:
  const Model& model_;
  std::span<const Transcoder> dictionaries_;
  std::map<Site, std::vector<float>> values_;
};

/// Baselines of the nodes, for the clean rows of a chunk.
class Baselines {
 public:
  /// `mean`: runs the corrupted prompts of all pairs.
  Baselines(const FeatureStudy& study, FeatureBaseline kind, CountFrom from,
            std::int64_t batch_tokens);
  /// [dictionary], rows as the chunk's clean tokens. `corrupted`: states of the chunk's corrupted
  /// prompts, read for FeatureBaseline::pair alone.
  std::vector<State> of(const patching::Chunk& chunk, std::span<const State> corrupted) const;
  bool needs_corrupted() const { return kind_ == FeatureBaseline::pair; }

 private:
  const FeatureStudy& study_;
  FeatureBaseline kind_;
  CountFrom from_;
  /// [dictionary] position → a row; the mean.
  std::vector<std::map<std::int32_t, State>> means_;
};

/// UsageError for dictionaries and features that there are not.
void check_feature_nodes(const FeatureStudy& study, std::span<const FeatureNode> nodes);

/// The rows of `state` in this order.
State select_rows(const State& state, std::span<const std::int64_t> rows, std::int64_t width);

/// Pairs as chunks whose base is the clean prompt.
std::vector<patching::Chunk> clean_chunks(const FeatureStudy& study, std::int64_t batch_tokens);

/// Decoder row of a feature, [D].
inline std::span<const float> decoder_row(const Transcoder& t, std::int32_t feature) {
  return std::span(t.decoder).subspan(size(feature * t.config.d_out), size(t.config.d_out));
}

}  // namespace lamina::feature_circuit
