// Runs with every node outside a circuit at its baseline.

#include <algorithm>
#include <exception>
#include <map>

#include "feature_circuit/states.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

using namespace feature_circuit;
using patching::Chunk;
using patching::GradientPass;

// What a circuit says of one dictionary.
class Mask {
 public:
  Mask() = default;

  void list(const FeatureNode& node, const Transcoder& t) {
    const bool summed = node.position == kAllPositions;
    if (!rows_.empty() && summed != rows_.contains(kAllPositions)) {
      fail_usage("{}: some nodes have a position and some have none", t.config.name);
    }
    Row& row = rows_[node.position];
    if (node.feature == kErrorNode) {
      row.error = true;
    } else {
      row.features.resize(size(t.config.features));
      row.features[size(node.feature)] = 1;
      listed_.push_back(node.feature);
    }
  }
  void finish() {
    std::sort(listed_.begin(), listed_.end());
    listed_.erase(std::unique(listed_.begin(), listed_.end()), listed_.end());
  }

  /// Features listed at some position, ascending.
  std::span<const std::int32_t> listed() const { return listed_; }

  struct Row {
    std::vector<std::uint8_t> features;  // [F]; empty: none is listed
    bool error = false;
  };
  const Row& row(std::int32_t position) const {
    static const Row none;
    auto found = rows_.find(kAllPositions);
    if (found == rows_.end()) found = rows_.find(position);
    return found == rows_.end() ? none : found->second;
  }

 private:
  std::map<std::int32_t, Row> rows_;
  std::vector<std::int32_t> listed_;
};

// The features `ids` alone, in this order.
Transcoder part_of(const Transcoder& t, std::span<const std::int32_t> ids) {
  Transcoder out;
  out.config = t.config;
  out.config.features = std::ssize(ids);
  const std::size_t d = size(t.config.d_in);
  for (const std::int32_t id : ids) {
    const auto row = std::span(t.encoder).subspan(size(id) * d, d);
    out.encoder.insert(out.encoder.end(), row.begin(), row.end());
    out.encoder_bias.push_back(t.encoder_bias[size(id)]);
    if (!t.threshold.empty()) out.threshold.push_back(t.threshold[size(id)]);
  }
  if (t.config.subtract_decoder_bias) out.decoder_bias = t.decoder_bias;
  return out;
}

// Features of some rows; `ids`: only these are needed.
SparseRows encode_part(const Transcoder& t, std::span<const std::int32_t> ids,
                       std::span<const float> x) {
  if (t.config.activation == FeatureActivation::topk || 2 * std::ssize(ids) > t.config.features) {
    return t.encode(x);
  }
  SparseRows z = part_of(t, ids).encode(x);
  for (std::int32_t& feature : z.feature) feature = ids[size(feature)];
  return z;
}

// Puts a circuit's values in the place of one dictionary's site.
class Splice {
 public:
  Splice(const Model& model, const Transcoder& t, const Mask& mask, const FeatureCircuit& circuit,
         const State& baseline, std::span<const std::int32_t> positions)
      : model_(model),
        t_(t),
        mask_(mask),
        circuit_(circuit),
        baseline_(baseline),
        positions_(positions) {}

  void add(Hooks& hooks) {
    hooks.write(t_.config.output.site, [this](SiteView& view) { write(view.values); });
  }
  void add_input(Hooks& hooks) {
    if (t_.config.input == t_.config.output) return;
    hooks.read(t_.config.input.site,
               [this](SiteView& view) { input_.assign(view.values.begin(), view.values.end()); });
  }

 private:
  bool keeps_error(const Mask::Row& row) const {
    if (circuit_.errors != ErrorNodes::ranked) return circuit_.errors == ErrorNodes::keep;
    return row.error != circuit_.complement;
  }

  void write(std::span<float> values) {
    if (t_.config.input == t_.config.output) input_.assign(values.begin(), values.end());
    const std::size_t d_in = size(t_.config.d_in);
    std::vector<std::int64_t> encoded(positions_.size(), -1);  // its row among those encoded
    std::vector<float> x;
    std::int64_t rows = 0;
    bool all = false;
    for (std::size_t r = 0; r < positions_.size(); ++r) {
      const Mask::Row& row = mask_.row(positions_[r]);
      const bool error = keeps_error(row);
      // Nothing changes, or nothing stays.
      if (row.features.empty() && error == circuit_.complement) continue;
      all = all || error != circuit_.complement;
      encoded[r] = rows++;
      x.insert(x.end(), input_.begin() + static_cast<std::ptrdiff_t>(r * d_in),
               input_.begin() + static_cast<std::ptrdiff_t>((r + 1) * d_in));
    }
    State now;
    if (rows > 0) {
      apply_place(model_, t_.config.input, x);
      now.z = all ? t_.encode(x) : encode_part(t_, mask_.listed(), x);
    }
    std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic, 8)
    for (std::int64_t r = 0; r < std::ssize(positions_); ++r) {
      try {
        write_row(r, encoded[size(r)], now, values);
      } catch (...) {
#pragma omp critical(lamina_feature_splice)
        failure = std::current_exception();
      }
    }
    if (failure) std::rethrow_exception(failure);
  }

  // With the error kept: the row as it is, ablated features moved to their baseline. Without: the
  // baseline's row, kept features moved away from theirs.
  void write_row(std::int64_t r, std::int64_t encoded, const State& now, std::span<float> values) {
    const Mask::Row& row = mask_.row(positions_[size(r)]);
    const bool error = keeps_error(row);
    const std::size_t width = size(t_.config.d_out);
    const std::span<float> out = values.subspan(size(r) * width, width);
    const auto base = std::span(baseline_.site).subspan(size(r) * width, width);
    if (!error) std::copy(base.begin(), base.end(), out.begin());
    if (encoded < 0) return;
    std::vector<double> change(width);
    for_each_feature(now, encoded, baseline_, r, [&](std::int32_t feature, float a, float b) {
      const bool listed = !row.features.empty() && row.features[size(feature)] != 0;
      const bool kept = listed != circuit_.complement;
      if (a == b || kept == error) return;
      const double by = error ? double{b} - double{a} : double{a} - double{b};
      const auto w = decoder_row(t_, feature);
      for (std::size_t i = 0; i < width; ++i) change[i] += by * double{w[i]};
    });
    for (std::size_t i = 0; i < width; ++i) {
      if (change[i] != 0) out[i] = static_cast<float>(double{out[i]} + change[i]);
    }
  }

  const Model& model_;
  const Transcoder& t_;
  const Mask& mask_;
  const FeatureCircuit& circuit_;
  const State& baseline_;
  std::span<const std::int32_t> positions_;
  std::vector<float> input_;
};

std::vector<Mask> masks_of(const FeatureStudy& study, const FeatureCircuit& circuit) {
  check_feature_nodes(study, circuit.nodes);
  std::vector<Mask> masks(study.dictionaries.size());
  for (const FeatureNode& node : circuit.nodes) {
    masks[size(node.dictionary)].list(node, study.dictionaries[size(node.dictionary)]);
  }
  for (Mask& mask : masks) mask.finish();
  return masks;
}

}  // namespace

std::vector<double> run_feature_circuits(const FeatureStudy& study,
                                         std::span<const FeatureCircuit> circuits,
                                         const FeatureRunOptions& options) {
  check_feature_study(study);
  if (options.batch_tokens < 1) fail_usage("batches of {} tokens", options.batch_tokens);
  for (const FeatureCircuit& circuit : circuits) masks_of(study, circuit);  // errors come first
  const Model& model = study.forward.model();
  GradientPass pass(study.forward, study.metric, nullptr);
  const Baselines baselines(study, options.baseline, options.count_from, options.batch_tokens);
  const std::size_t pairs = study.pairs.size();
  std::vector<double> metric(circuits.size() * pairs);
  const std::vector<Chunk> chunks = clean_chunks(study, options.batch_tokens);
  std::int64_t done = 0;
  for (const Chunk& chunk : chunks) {
    std::vector<State> corrupted;
    if (baselines.needs_corrupted()) {
      SiteCopies copies(model, study.dictionaries);
      Hooks hooks;
      copies.watch(hooks);
      study.forward.run(chunk.other, hooks);
      corrupted = copies.states();
    }
    const std::vector<State> baseline = baselines.of(chunk, corrupted);
    corrupted.clear();
    std::vector<std::int32_t> positions;
    for (const Pair& pair : chunk.pairs) {
      for (std::int64_t t = 0; t < pair.tokens(); ++t) {
        positions.push_back(position_of(t, pair.tokens(), options.count_from));
      }
    }
    for (std::size_t c = 0; c < circuits.size(); ++c) {
      const std::vector<Mask> masks = masks_of(study, circuits[c]);
      std::vector<Splice> splices;
      splices.reserve(masks.size());
      Hooks hooks;
      for (std::size_t d = 0; d < masks.size(); ++d) {
        splices
            .emplace_back(model, study.dictionaries[d], masks[d], circuits[c], baseline[d],
                          positions)
            .add(hooks);
      }
      // What transcoders read is what the splices left.
      for (Splice& splice : splices) splice.add_input(hooks);
      const std::vector<double> values = pass.metric_of(chunk, chunk.base, hooks);
      std::copy(values.begin(), values.end(),
                metric.begin() + static_cast<std::ptrdiff_t>(c * pairs + chunk.first));
      ++done;
      if (options.progress) {
        options.progress(done, static_cast<std::int64_t>(chunks.size() * circuits.size()));
      }
    }
  }
  return metric;
}

}  // namespace lamina
