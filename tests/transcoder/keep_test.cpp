// Features and neurons kept by variance, against sums of their own in double precision: y is built
// here from the weights and put in the place of mlp_out.

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "lamina/circuits/keep.h"
#include "lamina/circuits/transcoder_file.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

constexpr std::int32_t kLayer = 5;
constexpr std::size_t kPairs = 12;

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

class Keep : public ::testing::Test {
 protected:
  Keep() : set_(TranscoderSet::open(LAMINA_SOURCE_DIR "/data/organism/transcoders")) {
    pairs_.resize(kPairs);
    set_.bind(model_);
    transcoder_ = set_.load(kLayer);
  }

  // One prompt after the other: y [D] at the last token in the place of mlp_out.
  double metric_with(const Metric& metric, const std::vector<std::vector<double>>& y) {
    double sum = 0;
    std::vector<float> logits(size(model_.config().d_out()));
    for (std::size_t p = 0; p < pairs_.size(); ++p) {
      Hooks hooks;
      if (!y.empty()) {
        hooks.write({SiteKind::mlp_out, kLayer}, [&](SiteView& view) {
          std::copy(y[p].begin(), y[p].end(), view.values.end() - std::ssize(y[p]));
        });
      }
      Batch batch;
      batch.add(pairs_[p].clean);
      forward_.run(batch, hooks);
      const std::vector<std::int64_t> row = {batch.tokens() - 1};
      forward_.run_logits(row, logits);
      sum += metric.value(static_cast<std::int64_t>(p), logits);
    }
    return sum / static_cast<double>(pairs_.size());
  }
  // The values of a site at the last token of every prompt.
  std::vector<std::vector<double>> last(Site site) {
    std::vector<std::vector<double>> out;
    for (const Pair& pair : pairs_) {
      Hooks hooks;
      hooks.read(site, [&](SiteView& view) {
        out.emplace_back(view.values.end() - view.shape.row(), view.values.end());
      });
      Batch batch;
      batch.add(pair.clean);
      forward_.run(batch, hooks);
    }
    return out;
  }
  // [prompt][D]: Σ over units of (kept ? value : mean) · row, + bias; order as ranked here.
  static std::vector<std::vector<double>> rebuilt(const std::vector<std::vector<double>>& values,
                                                  const std::vector<std::vector<double>>& rows,
                                                  std::span<const float> bias, std::size_t kept,
                                                  std::vector<std::int32_t>& order) {
    const std::size_t n = values.size(), units = rows.size(), d = rows.front().size();
    std::vector<double> mean(units), weighted(units);
    for (std::size_t u = 0; u < units; ++u) {
      for (const auto& v : values) mean[u] += v[u] / static_cast<double>(n);
      double variance = 0, norm = 0;
      for (const auto& v : values) variance += (v[u] - mean[u]) * (v[u] - mean[u]);
      for (double w : rows[u]) norm += w * w;
      weighted[u] = variance * norm;
    }
    order.resize(units);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](auto a, auto b) { return weighted[size(a)] > weighted[size(b)]; });
    std::vector<std::vector<double>> y(n, std::vector<double>(bias.begin(), bias.end()));
    for (std::size_t p = 0; p < n; ++p)
      for (std::size_t r = 0; r < units; ++r) {
        const std::size_t u = size(order[r]);
        for (std::size_t i = 0; i < d; ++i)
          y[p][i] += (r < kept ? values[p][u] : mean[u]) * rows[u][i];
      }
    return y;
  }

  Model model_ = Model::load(LAMINA_SOURCE_DIR "/data/organism");
  Forward forward_{model_};
  std::vector<Pair> pairs_ = read_pairs(LAMINA_SOURCE_DIR "/data/organism/pairs/greater_than.jsonl",
                                        model_.tokenizer(), model_.config().d_vocab);
  TranscoderSet set_;
  Transcoder transcoder_;
};

TEST_F(Keep, IsWhatTheSumsOfItsUnitsGive) {
  const Metric metric(MetricKind::prob_diff, pairs_, model_.config().d_vocab);
  const std::vector<std::int64_t> counts = {0, 1, 7, 60, 100000};
  // Small batches: prompts must not be mixed up.
  const KeepCurve curve = keep_by_variance(forward_, pairs_, metric, transcoder_, counts, 30);
  EXPECT_NEAR(curve.original, metric_with(metric, {}), 1e-12);

  const std::int64_t d = model_.config().d_model, neurons = model_.config().d_mlp;
  std::vector<std::vector<double>> down(size(neurons), std::vector<double>(size(d)));
  std::vector<float> row(size(neurons));
  for (std::int64_t i = 0; i < d; ++i) {
    model_.matrix_rows("5.out", i, 1, row);
    for (std::size_t u = 0; u < row.size(); ++u) down[u][size(i)] = row[u];
  }
  std::vector<std::vector<double>> features;  // [prompt][F]
  std::vector<float> weight(size(d));
  model_.norm_weight(SiteKind::ln2_normalized, kLayer, weight);
  for (std::vector<double>& x : last({SiteKind::ln2_normalized, kLayer})) {
    std::vector<double> z(size(transcoder_.config.features));
    for (std::size_t f = 0; f < z.size(); ++f) {
      double u = transcoder_.encoder_bias[f];
      for (std::size_t i = 0; i < size(d); ++i)
        u += x[i] * weight[i] * transcoder_.encoder[f * size(d) + i];
      z[f] = u > transcoder_.threshold[f] ? u : 0.0;
    }
    features.push_back(std::move(z));
  }
  std::vector<std::vector<double>> decoder;
  for (std::size_t f = 0; f < size(transcoder_.config.features); ++f) {
    const auto* from = transcoder_.decoder.data() + f * size(d);
    decoder.emplace_back(from, from + d);
  }
  const std::vector<float> no_bias(size(d));
  const auto posts = last({SiteKind::mlp_post, kLayer});
  for (std::size_t k = 0; k < counts.size(); ++k) {
    SCOPED_TRACE(counts[k]);
    std::vector<std::int32_t> order;
    const double by_features = metric_with(
        metric, rebuilt(features, decoder, transcoder_.decoder_bias, size(counts[k]), order));
    EXPECT_NEAR(curve.features.metric[k], by_features, 2e-6);
    EXPECT_TRUE(std::equal(order.begin(), order.begin() + 20, curve.features.unit.begin()));
    const double by_neurons =
        metric_with(metric, rebuilt(posts, down, no_bias, size(counts[k]), order));
    EXPECT_NEAR(curve.neurons.metric[k], by_neurons, 2e-6);
    EXPECT_TRUE(std::equal(order.begin(), order.begin() + 20, curve.neurons.unit.begin()));
  }
  EXPECT_EQ(curve.features_kept.back(), transcoder_.config.features);
  EXPECT_EQ(curve.neurons_kept.back(), neurons);
  EXPECT_DOUBLE_EQ(curve.features.metric.back(), curve.spliced);
  EXPECT_DOUBLE_EQ(curve.neurons.metric.back(), curve.original);
  EXPECT_TRUE(std::is_sorted(curve.neurons.variance.rbegin(), curve.neurons.variance.rend()));
  // Something happens at all.
  EXPECT_GT(std::abs(curve.features.metric[0] - curve.spliced), 0.02);
}

TEST_F(Keep, RefusesWhatItCannotDo) {
  const Metric metric(MetricKind::prob_diff, pairs_, model_.config().d_vocab);
  const std::vector<std::int64_t> negative = {-1}, one = {1};
  EXPECT_THROW(keep_by_variance(forward_, pairs_, metric, transcoder_, negative), UsageError);
  EXPECT_THROW(keep_by_variance(forward_, std::span(pairs_).first(1), metric, transcoder_, one),
               UsageError);
  Transcoder other = transcoder_;
  other.config.output.site.kind = SiteKind::resid_post;
  EXPECT_THROW(keep_by_variance(forward_, pairs_, metric, other, one), UsageError);
}

}  // namespace
}  // namespace lamina
