#include "edges/source_activations.h"

#include <memory>
#include <utility>

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// Heads of one layer wait here for the denominator of the norm behind them.
struct Waiting {
  std::vector<float> result;  // [tokens, heads, d_model]
  std::vector<float> weight;  // [d_model]
};

void hand_over_rows(const SiteView& view, std::int64_t source, std::int64_t d,
                    const SourceSink& sink) {
  const Batch& batch = view.batch;
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t p = 0; p < batch.prompts(); ++p)
    sink(p, source, view.values.data() + batch.offsets[size(p)] * d, d);
}

void hand_over_heads(const Batch& batch, const float* result, std::int64_t first_source,
                     std::int64_t heads, std::int64_t d, const SourceSink& sink) {
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t p = 0; p < batch.prompts(); ++p) {
    for (std::int64_t h = 0; h < heads; ++h) {
      sink(p, first_source + h, result + (batch.offsets[size(p)] * heads + h) * d, heads * d);
    }
  }
}

// result → (result, centred if the norm does) / scale · weight.
void through_norm(Waiting& waiting, const SiteView& scale, bool centred, std::int64_t heads) {
  const auto d = static_cast<std::int64_t>(waiting.weight.size());
#pragma omp parallel for
  for (std::int64_t t = 0; t < scale.batch.tokens(); ++t) {
    for (std::int64_t h = 0; h < heads; ++h) {
      float* row = waiting.result.data() + (t * heads + h) * d;
      float mean = 0.0F;
      if (centred) {
        double sum = 0.0;
        for (std::int64_t i = 0; i < d; ++i) sum += row[i];
        mean = static_cast<float>(sum / static_cast<double>(d));
      }
      for (std::int64_t i = 0; i < d; ++i)
        row[i] = (row[i] - mean) / scale.values[size(t)] * waiting.weight[size(i)];
    }
  }
}

}  // namespace

void read_sources(Hooks& hooks, const Model& model, const EdgeGraph& graph, std::int32_t from_layer,
                  SourceSink given) {
  const ModelConfig& config = model.config();
  const std::int64_t d = config.d_model, heads = config.n_heads;
  const auto sink = std::make_shared<const SourceSink>(std::move(given));
  if (from_layer == 0) {
    hooks.read({SiteKind::resid_pre, 0}, [=](SiteView& v) { hand_over_rows(v, 0, d, *sink); });
  }
  const bool norm_behind =
      config.norm_place == NormPlace::sandwich && config.norm != NormKind::none;
  for (std::int32_t l = from_layer; l < config.n_layers; ++l) {
    const std::int64_t first = graph.head_source(l, 0);
    if (norm_behind) {
      const auto waiting = std::make_shared<Waiting>();
      waiting->weight.resize(size(d));
      model.norm_weight(SiteKind::ln1_post_normalized, l, waiting->weight);
      hooks.read({SiteKind::result, l}, [waiting](SiteView& v) {
        waiting->result.assign(v.values.begin(), v.values.end());
      });
      const bool centred = config.norm == NormKind::layer;
      hooks.read({SiteKind::ln1_post_scale, l}, [=](SiteView& v) {
        through_norm(*waiting, v, centred, heads);
        hand_over_heads(v.batch, waiting->result.data(), first, heads, d, *sink);
        waiting->result.clear();
      });
    } else {
      hooks.read({SiteKind::result, l}, [=](SiteView& v) {
        hand_over_heads(v.batch, v.values.data(), first, heads, d, *sink);
      });
    }
    if (graph.shape().mlps) {
      const std::int64_t source = graph.mlp_source(l);
      hooks.read({SiteKind::mlp_out, l}, [=](SiteView& v) { hand_over_rows(v, source, d, *sink); });
    }
  }
}

SourceRows::SourceRows(std::int64_t sources, std::int64_t d_model,
                       std::span<const std::int64_t> rows)
    : sources_(sources), d_(d_model) {
  for (const std::int64_t n : rows) first_row_.push_back(first_row_.back() + n);
  values_.resize(size(first_row_.back() * sources * d_model));
}

}  // namespace lamina
