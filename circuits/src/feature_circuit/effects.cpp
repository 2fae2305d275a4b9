// Effects of features and errors, estimated from gradients at the sites.

#include <algorithm>
#include <exception>
#include <unordered_map>

#include "feature_circuit/gradients.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

using namespace feature_circuit;
using patching::Chunk;
using patching::GradientPass;

// An effect of a row's feature: one number for every method.
struct Entry {
  std::int32_t feature;
  std::size_t first;  // in RowEntries::values
};
struct RowEntries {
  std::vector<Entry> entries;
  std::vector<double> values;
};

double dot(std::span<const float> a, const double* b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

// Sums over pairs and, unless nodes have positions, over positions, in the order of the pairs.
class Sums {
 public:
  Sums(std::size_t dictionaries, std::size_t methods) : maps_(dictionaries), methods_(methods) {}

  void add(std::size_t dictionary, std::int32_t position, const RowEntries& row) {
    for (const Entry& entry : row.entries) {
      const std::uint64_t key = std::uint64_t{static_cast<std::uint32_t>(position)} << 32 |
                                static_cast<std::uint32_t>(entry.feature);
      const auto [found, fresh] = maps_[dictionary].try_emplace(key, values_.size());
      if (fresh) values_.resize(values_.size() + methods_);
      for (std::size_t m = 0; m < methods_; ++m) {
        values_[found->second + m] += row.values[entry.first + m];
      }
    }
  }

  // `pairs_at`: by how many pairs a node of this position is divided.
  void take(FeatureEffects& out, const std::function<double(std::int32_t)>& pairs_at) const {
    std::vector<std::pair<FeatureNode, std::size_t>> nodes;
    for (std::size_t d = 0; d < maps_.size(); ++d) {
      for (const auto& [key, first] : maps_[d]) {
        nodes.push_back({{.dictionary = static_cast<std::int32_t>(d),
                          .position = static_cast<std::int32_t>(key >> 32),
                          .feature = static_cast<std::int32_t>(key & 0xffffffffU)},
                         first});
      }
    }
    std::sort(nodes.begin(), nodes.end());
    out.effects.resize(methods_ * nodes.size());
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      out.nodes.push_back(nodes[i].first);
      const double pairs = pairs_at(nodes[i].first.position);
      for (std::size_t m = 0; m < methods_; ++m) {
        out.effects[m * nodes.size() + i] = values_[nodes[i].second + m] / pairs;
      }
    }
  }

 private:
  std::vector<std::unordered_map<std::uint64_t, std::size_t>> maps_;
  std::size_t methods_;
  std::vector<double> values_;
};

// One call of feature_effects().
class Estimate {
 public:
  Estimate(const FeatureStudy& study, const FeatureEffectOptions& options, FeatureEffects& out)
      : study_(study),
        options_(options),
        out_(out),
        pass_(study.forward, study.metric, nullptr),
        baselines_(study, options.baseline, options.count_from, options.batch_tokens),
        sums_(study.dictionaries.size(), options.methods.size()) {}

  void run(const Chunk& chunk) {
    const bool walks = std::find(options_.methods.begin(), options_.methods.end(),
                                 FeatureMethod::ig) != options_.methods.end();
    const PlainRuns runs = run_plain(study_, pass_, baselines_, chunk, walks);
    out_.corrupted.insert(out_.corrupted.end(), runs.corrupted_metric.begin(),
                          runs.corrupted_metric.end());
    out_.clean.insert(out_.clean.end(), runs.clean_metric.begin(), runs.clean_metric.end());
    std::vector<SiteGradients::Values> gradients;  // [method]
    SiteGradients of_site(study_, options_, pass_);
    for (const FeatureMethod method : options_.methods)
      gradients.push_back(of_site.of(method, chunk, runs.state, runs.clean, runs.baseline));
    for (std::size_t d = 0; d < runs.clean.size(); ++d) {
      add(chunk, d, runs.clean[d], runs.baseline[d], gradients);
      for (auto& of_method : gradients) of_method[d] = {};
    }
  }

  void finish() {
    std::map<std::int32_t, double> pairs;
    for (const Pair& pair : study_.pairs) {
      for (std::int64_t t = 0; t < pair.tokens(); ++t) {
        ++pairs[position_of(t, pair.tokens(), options_.count_from)];
      }
    }
    const auto all = static_cast<double>(study_.pairs.size());
    sums_.take(out_, [&](std::int32_t position) {
      return position == kAllPositions ? all : pairs.at(position);
    });
  }

 private:
  void add(const Chunk& chunk, std::size_t d, const State& clean, const State& baseline,
           const std::vector<SiteGradients::Values>& gradients) {
    const Transcoder& t = study_.dictionaries[d];
    const std::int64_t rows = chunk.offsets.back();
    const std::size_t width = size(t.config.d_out);
    std::vector<RowEntries> all(size(rows));
    std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic, 8)
    for (std::int64_t r = 0; r < rows; ++r) {
      try {
        RowEntries& row = all[size(r)];
        const auto entry = [&](std::int32_t feature, double change, std::span<const float> w) {
          row.entries.push_back({feature, row.values.size()});
          for (const auto& of_method : gradients) {
            row.values.push_back(change * dot(w, of_method[d].data() + size(r) * width));
          }
        };
        std::vector<float> error(width);
        bool differs = false;
        for (std::size_t i = 0; i < width; ++i) {
          error[i] = clean.error[size(r) * width + i] - baseline.error[size(r) * width + i];
          differs = differs || error[i] != 0;
        }
        if (differs) entry(kErrorNode, 1.0, error);
        for_each_feature(clean, r, baseline, r, [&](std::int32_t feature, float a, float b) {
          if (a != b) entry(feature, double{a} - double{b}, decoder_row(t, feature));
        });
      } catch (...) {
#pragma omp critical(lamina_feature_effects)
        failure = std::current_exception();
      }
    }
    if (failure) std::rethrow_exception(failure);
    for (std::size_t p = 0; p < chunk.pairs.size(); ++p) {
      const std::int64_t tokens = chunk.pairs[p].tokens();
      for (std::int64_t i = 0; i < tokens; ++i) {
        sums_.add(
            d, options_.by_position ? position_of(i, tokens, options_.count_from) : kAllPositions,
            all[size(chunk.offsets[p] + i)]);
      }
    }
  }

  const FeatureStudy& study_;
  const FeatureEffectOptions& options_;
  FeatureEffects& out_;
  GradientPass pass_;
  Baselines baselines_;
  Sums sums_;
};

}  // namespace

FeatureEffects feature_effects(const FeatureStudy& study, const FeatureEffectOptions& options) {
  check_feature_study(study);
  if (options.methods.empty()) fail_usage("effects by no method");
  if (options.ig_steps < 1) fail_usage("integrated gradients with {} steps", options.ig_steps);
  if (options.batch_tokens < 1) fail_usage("batches of {} tokens", options.batch_tokens);
  FeatureEffects out;
  out.options = options;
  Estimate estimate(study, options, out);
  for (const Chunk& chunk : clean_chunks(study, options.batch_tokens)) {
    estimate.run(chunk);
    if (options.progress) {
      options.progress(static_cast<std::int64_t>(chunk.first + chunk.pairs.size()),
                       static_cast<std::int64_t>(study.pairs.size()));
    }
  }
  estimate.finish();
  return out;
}

}  // namespace lamina
