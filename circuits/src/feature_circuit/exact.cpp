// Effects of features and errors, measured: a patched run for every node and pair.

#include <algorithm>
#include <cmath>

#include "feature_circuit/gradients.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

using namespace feature_circuit;
using patching::Chunk;
using patching::GradientPass;

// What patching a node adds to its site in one pair: rows first … of the prompt.
struct Patch {
  std::size_t node, pair;  // pair: within the chunk
  std::int64_t first;
  std::vector<float> added;  // [tokens − first, D]
};

class Exact {
 public:
  Exact(const FeatureStudy& study, std::span<const FeatureNode> nodes,
        const FeatureRunOptions& options)
      : study_(study),
        nodes_(nodes),
        options_(options),
        pass_(study.forward, study.metric, nullptr),
        baselines_(study, options.baseline, options.count_from, options.batch_tokens),
        sums_(nodes.size()),
        pairs_(nodes.size()) {
    order_.resize(nodes.size());
    for (std::size_t i = 0; i < order_.size(); ++i) order_[i] = i;
    std::stable_sort(order_.begin(), order_.end(), [&](std::size_t a, std::size_t b) {
      return nodes_[a].dictionary < nodes_[b].dictionary;
    });
  }

  void run(const Chunk& chunk) {
    const PlainRuns runs = run_plain(study_, pass_, baselines_, chunk, true);
    std::vector<Patch> batch;
    std::int64_t rows = 0;
    const auto flush = [&] {
      if (!batch.empty()) measure(chunk, runs.state, runs.clean_metric, batch);
      batch.clear();
      rows = 0;
    };
    for (std::size_t i = 0; i < order_.size(); ++i) {
      const std::size_t node = order_[i];
      const auto d = size(nodes_[node].dictionary);
      if (i > 0 && nodes_[order_[i - 1]].dictionary != nodes_[node].dictionary) flush();
      for (std::size_t p = 0; p < chunk.pairs.size(); ++p) {
        Patch patch{.node = node, .pair = p, .first = -1, .added = {}};
        if (!make_patch(chunk, runs.clean[d], runs.baseline[d], patch)) continue;
        ++pairs_[node];
        if (patch.first < 0) continue;  // as it is already
        const std::int64_t count = chunk.pairs[p].tokens() - patch.first;
        if (rows + count > options_.batch_tokens) flush();
        rows += count;
        batch.push_back(std::move(patch));
      }
    }
    flush();
  }

  std::vector<double> take() const {
    std::vector<double> out;
    for (std::size_t i = 0; i < sums_.size(); ++i) {
      out.push_back(pairs_[i] == 0 ? std::nan("") : sums_[i] / static_cast<double>(pairs_[i]));
    }
    return out;
  }

 private:
  // False if the prompt has no such position.
  bool make_patch(const Chunk& chunk, const State& clean, const State& baseline, Patch& patch) {
    const FeatureNode& node = nodes_[patch.node];
    const Transcoder& t = study_.dictionaries[size(node.dictionary)];
    const std::size_t width = size(t.config.d_out);
    const std::int64_t tokens = chunk.pairs[patch.pair].tokens();
    bool here = false;
    for (std::int64_t i = 0; i < tokens; ++i) {
      if (node.position != kAllPositions &&
          node.position != position_of(i, tokens, options_.count_from)) {
        continue;
      }
      here = true;
      const std::int64_t row = chunk.offsets[patch.pair] + i;
      std::vector<float> added(width);
      if (node.feature == kErrorNode) {
        for (std::size_t j = 0; j < width; ++j) {
          added[j] = baseline.error[size(row) * width + j] - clean.error[size(row) * width + j];
        }
      } else {
        const float change = baseline.value(row, node.feature) - clean.value(row, node.feature);
        const auto w = decoder_row(t, node.feature);
        for (std::size_t j = 0; j < width; ++j) added[j] = change * w[j];
      }
      if (std::all_of(added.begin(), added.end(), [](float x) { return x == 0; })) continue;
      if (patch.first < 0) {
        patch.first = i;
        patch.added.resize(size(tokens - i) * width);
      }
      std::copy(added.begin(), added.end(),
                patch.added.begin() + static_cast<std::ptrdiff_t>(size(i - patch.first) * width));
    }
    return here;
  }

  void measure(const Chunk& chunk, const RunState& state, std::span<const double> clean,
               std::span<const Patch> batch) {
    const Site site =
        study_.dictionaries[size(nodes_[batch[0].node].dictionary)].config.output.site;
    std::vector<Continuation> which;
    std::vector<std::int64_t> last;
    std::int64_t rows = 0;
    for (const Patch& patch : batch) {
      which.push_back({.prompt = static_cast<std::int64_t>(patch.pair), .first = patch.first});
      rows += chunk.pairs[patch.pair].tokens() - patch.first;
      last.push_back(rows - 1);
    }
    Hooks hooks;
    hooks.write(site, [&](SiteView& view) {
      float* x = view.values.data();
      for (const Patch& patch : batch) {
        for (const float added : patch.added) *x++ += added;
      }
    });
    study_.forward.resume(state, site.layer, which, hooks);
    const std::size_t vocabulary = size(study_.forward.model().config().d_vocab);
    std::vector<float> logits(batch.size() * vocabulary);
    study_.forward.run_logits(last, logits);
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const double metric =
          study_.metric.value(static_cast<std::int64_t>(chunk.first + batch[i].pair),
                              std::span(logits).subspan(i * vocabulary, vocabulary));
      sums_[batch[i].node] += clean[batch[i].pair] - metric;
    }
  }

  const FeatureStudy& study_;
  std::span<const FeatureNode> nodes_;
  const FeatureRunOptions& options_;
  GradientPass pass_;
  Baselines baselines_;
  std::vector<std::size_t> order_;  // nodes by dictionary
  std::vector<double> sums_;
  std::vector<std::int64_t> pairs_;
};

}  // namespace

std::vector<double> exact_feature_effects(const FeatureStudy& study,
                                          std::span<const FeatureNode> nodes,
                                          const FeatureRunOptions& options) {
  check_feature_study(study);
  if (options.batch_tokens < 1) fail_usage("batches of {} tokens", options.batch_tokens);
  check_feature_nodes(study, nodes);
  Exact exact(study, nodes, options);
  for (const Chunk& chunk : clean_chunks(study, options.batch_tokens)) {
    exact.run(chunk);
    if (options.progress) {
      options.progress(static_cast<std::int64_t>(chunk.first + chunk.pairs.size()),
                       static_cast<std::int64_t>(study.pairs.size()));
    }
  }
  return exact.take();
}

}  // namespace lamina
