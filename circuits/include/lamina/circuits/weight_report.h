#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lamina/circuits/feature_weights.h"
#include "lamina/circuits/transcoder_file.h"
#include "lamina/core/result_file.h"

// All connections of some features by weights alone, collected: feature_weights.h for each of them.

namespace lamina {

struct WeightReportOptions {
  std::int64_t top = 10;       // largest and smallest that are kept of each list
  std::int64_t heads = 3;      // [ours] heads of the largest norm that are looked through
  bool tokens = true;          // de-embeddings
  bool connections = true;     // earlier features
  bool through_heads = true;   // both of them through heads
  bool logits = true;          // what the decoder row adds to the logits
  std::vector<Hop> pull_back;  // what the features read is read through these first, in order
};

/// What a reader is connected to.
struct ReaderConnections {
  Extremes tokens;
  std::vector<std::int32_t> layers;  // of earlier features, ascending
  std::vector<Extremes> features;    // [layers]
  struct Feature {
    std::int32_t layer = 0, feature = 0;
    float gain = 0;
  };
  /// The k largest (or smallest) of all layers.
  std::vector<Feature> top(std::int64_t k) const;
  std::vector<Feature> bottom(std::int64_t k) const;
};

struct FeatureConnections {
  Hop feature;
  std::string dictionary;  // its name
  std::string reads;       // its place
  ReaderConnections direct;
  std::vector<float> head_norms;  // [layer, head], NaN behind the feature; empty without heads
  struct Head {
    std::int32_t layer = 0, head = 0;
    float norm = 0;
    ReaderConnections connections;
  };
  std::vector<Head> heads;  // of the largest norms
  Extremes logits;          // empty if it was pulled back
};

struct WeightReport {
  WeightReportOptions options;
  std::int64_t n_layers = 0, n_heads = 0;
  std::vector<FeatureConnections> features;

  /// Groups paths_weights and, with heads, paths_weights_heads. `tokenizer` may be nullptr.
  void write(ResultFile& file, const Tokenizer* tokenizer) const;
};

/// Each dictionary of the set is read once, its weights are in memory one after another. UsageError
/// for features, heads and layers that are not there, and for a set with two dictionaries of a
/// layer whose features are asked for.
WeightReport analyse_weights(const Model& model, const TranscoderSet& set,
                             std::span<const Hop> features, const WeightReportOptions& options);

}  // namespace lamina
