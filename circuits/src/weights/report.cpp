#include <algorithm>
#include <cmath>
#include <optional>

#include "lamina/circuits/weight_report.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// The dictionaries of a set, by layer.
class Stack {
 public:
  Stack(const Model& model, const TranscoderSet& set) : model_(model), set_(set) {}

  std::int64_t size() const {
    return across() ? set_.cross_layer()->layers() : static_cast<std::int64_t>(set_.size());
  }
  bool across() const { return set_.cross_layer() != nullptr; }
  const TranscoderConfig& config(std::int64_t i) const {
    return across() ? set_.cross_layer()->encoder(i).config
                    : set_.config(static_cast<std::size_t>(i));
  }
  std::int32_t layer(std::int64_t i) const { return config(i).output.site.layer; }

  // The number of the dictionary with the features of a layer.
  std::int64_t find(std::int32_t layer) const {
    std::int64_t found = -1;
    for (std::int64_t i = 0; i < size(); ++i) {
      if (this->layer(i) != layer) continue;
      if (found >= 0) {
        fail_usage("{} and {} are both of layer {}: give the folder of one", config(found).name,
                   config(i).name, layer);
      }
      found = i;
    }
    if (found < 0) fail_usage("there is no dictionary of layer {}", layer);
    return found;
  }
  // The dictionary itself; of a cross-layer transcoder its encoder. Valid until the next call.
  const Transcoder& load(std::int64_t i) {
    if (across()) return set_.cross_layer()->encoder(i);
    if (loaded_ != i) held_ = set_.load(static_cast<std::size_t>(i));
    loaded_ = i;
    return held_;
  }
  std::int64_t writes_at(std::int64_t i) const { return writing_point(config(i), model_.config()); }
  std::vector<float> gains(std::int64_t i, const StreamReader& reader) {
    return across() ? feature_gains(*set_.cross_layer(), layer(i), reader)
                    : feature_gains(model_, load(i), reader);
  }
  // All that a feature writes to the residual stream, [D].
  std::vector<float> written(std::int64_t i, std::int64_t feature) {
    const std::int64_t d = model_.config().d_model;
    if (!across()) {
      const float* row = load(i).decoder.data() + feature * d;
      return {row, row + d};
    }
    std::vector<float> sum(lamina::size(d)), row(sum.size());
    const auto id = static_cast<std::int32_t>(feature);
    for (std::int64_t target = i; target < size(); ++target) {
      set_.cross_layer()->decoder_rows(i, target, std::span(&id, 1), row);
      for (std::size_t j = 0; j < row.size(); ++j) sum[j] += row[j];
    }
    return sum;
  }

 private:
  const Model& model_;
  const TranscoderSet& set_;
  std::int64_t loaded_ = -1;
  Transcoder held_;
};

StreamReader pulled_back(const Model& model, Stack& stack, StreamReader reader,
                         std::span<const Hop> hops) {
  for (const Hop& hop : hops) {
    if (hop.is_head) {
      reader = through_head(model, reader, hop.layer, hop.index);
      continue;
    }
    const std::int64_t i = stack.find(hop.layer);
    StreamReader below = feature_reader(model, stack.load(i), hop.index);
    const float gain = stack.gains(i, reader)[size(hop.index)];
    for (float& v : below.vector) v *= gain;
    reader = std::move(below);
  }
  return reader;
}

std::vector<ReaderConnections::Feature> merged(const ReaderConnections& c, std::int64_t k,
                                               bool largest) {
  std::vector<ReaderConnections::Feature> all;
  for (std::size_t i = 0; i < c.layers.size(); ++i)
    for (const Ranked& r : largest ? c.features[i].top : c.features[i].bottom)
      all.push_back({c.layers[i], r.index, r.value});
  std::stable_sort(all.begin(), all.end(), [&](const auto& a, const auto& b) {
    return largest ? a.gain > b.gain : a.gain < b.gain;
  });
  all.resize(std::min(all.size(), size(k)));
  return all;
}

}  // namespace

std::vector<ReaderConnections::Feature> ReaderConnections::top(std::int64_t k) const {
  return merged(*this, k, true);
}

std::vector<ReaderConnections::Feature> ReaderConnections::bottom(std::int64_t k) const {
  return merged(*this, k, false);
}

WeightReport analyse_weights(const Model& model, const TranscoderSet& set,
                             std::span<const Hop> features, const WeightReportOptions& options) {
  const ModelConfig& c = model.config();
  Stack stack(model, set);
  WeightReport report{
      .options = options, .n_layers = c.n_layers, .n_heads = c.n_heads, .features = {}};
  std::vector<StreamReader> readers;
  for (const Hop& feature : features) {
    if (feature.is_head)
      fail_usage("{}: expected a feature, LAYER.FEATURE (3.57)", hop_name(feature));
    const std::int64_t i = stack.find(feature.layer);
    readers.push_back(pulled_back(model, stack, feature_reader(model, stack.load(i), feature.index),
                                  options.pull_back));
    FeatureConnections& one = report.features.emplace_back();
    one.feature = feature;
    one.dictionary = stack.config(i).name;
    one.reads = dictionary_place_name(stack.config(i).input);
    if (options.logits && options.pull_back.empty())
      one.logits = extremes(logit_gains(model, stack.written(i, feature.index)), options.top);
    if (!options.through_heads) continue;
    one.head_norms = head_norms(model, readers.back());
    std::vector<float> known = one.head_norms;
    for (float& n : known)
      if (std::isnan(n)) n = -1;
    for (const Ranked& r : extremes(known, options.heads).top) {
      if (r.value < 0) continue;
      one.heads.push_back({.layer = static_cast<std::int32_t>(r.index / c.n_heads),
                           .head = static_cast<std::int32_t>(r.index % c.n_heads),
                           .norm = r.value,
                           .connections = {}});
    }
  }

  // Every reader with the place of what it is connected to.
  std::vector<std::pair<StreamReader, ReaderConnections*>> all;
  for (std::size_t f = 0; f < readers.size(); ++f) {
    for (FeatureConnections::Head& h : report.features[f].heads)
      all.emplace_back(through_head(model, readers[f], h.layer, h.head), &h.connections);
    all.emplace_back(std::move(readers[f]), &report.features[f].direct);
  }
  if (options.tokens)
    for (const auto& [reader, found] : all)
      found->tokens = extremes(token_gains(model, reader), options.top);
  if (!options.connections) return report;
  std::vector<std::int64_t> order(size(stack.size()));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
  std::stable_sort(order.begin(), order.end(),
                   [&](auto a, auto b) { return stack.layer(a) < stack.layer(b); });
  for (const std::int64_t i : order) {
    for (const auto& [reader, found] : all) {
      if (stack.writes_at(i) > reader.point) continue;
      found->layers.push_back(stack.layer(i));
      found->features.push_back(extremes(stack.gains(i, reader), options.top));
    }
  }
  return report;
}

}  // namespace lamina
