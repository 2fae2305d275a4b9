#include "lamina/circuits/keep.h"

#include <algorithm>
#include <numeric>

#include "lamina/core/error.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

struct Chunk {
  Batch batch;
  std::int64_t first = 0;          // number of its first prompt
  std::vector<std::int64_t> last;  // row of each prompt's last token
};

std::vector<Chunk> chunks_of(std::span<const Pair> pairs, std::int64_t batch_tokens) {
  std::vector<Chunk> chunks;
  for (std::size_t p = 0; p < pairs.size(); ++p) {
    if (chunks.empty() || chunks.back().batch.tokens() + pairs[p].tokens() > batch_tokens) {
      chunks.push_back({{}, static_cast<std::int64_t>(p), {}});
    }
    chunks.back().batch.add(pairs[p].clean);
    chunks.back().last.push_back(chunks.back().batch.tokens() - 1);
  }
  return chunks;
}

// Rows of the last tokens, [prompts, width].
void gather(const Chunk& chunk, std::span<const float> values, std::int64_t width,
            std::vector<float>& to) {
  for (std::int64_t row : chunk.last) {
    const auto from = values.subspan(size(row * width), size(width));
    to.insert(to.end(), from.begin(), from.end());
  }
}

void scatter(const Chunk& chunk, std::span<const float> rows, std::int64_t width,
             std::span<float> values) {
  for (std::size_t i = 0; i < chunk.last.size(); ++i) {
    const auto from = rows.subspan((size(chunk.first) + i) * size(width), size(width));
    std::copy(from.begin(), from.end(), values.begin() + chunk.last[i] * width);
  }
}

struct Study {
  Forward& forward;
  const Metric& metric;
  std::vector<Chunk> chunks;
  std::int64_t prompts = 0;

  // Mean metric of one run; `hooks` for every chunk.
  template <class MakeHooks>
  double run(const MakeHooks& make_hooks) {
    const std::int64_t v = forward.model().config().d_out();
    std::vector<float> logits;
    double sum = 0;
    for (const Chunk& chunk : chunks) {
      forward.run(chunk.batch, make_hooks(chunk));
      logits.resize(chunk.last.size() * size(v));
      forward.run_logits(chunk.last, logits);
      for (std::size_t i = 0; i < chunk.last.size(); ++i) {
        sum += metric.value(chunk.first + static_cast<std::int64_t>(i),
                            std::span(logits).subspan(i * size(v), size(v)));
      }
    }
    return sum / static_cast<double>(prompts);
  }
  // With these rows [prompts, width] at the site of the last tokens.
  double replaced(Site site, std::span<const float> rows, std::int64_t width) {
    return run([&](const Chunk& chunk) {
      Hooks hooks;
      hooks.write(site,
                  [&, rows, width](SiteView& view) { scatter(chunk, rows, width, view.values); });
      return hooks;
    });
  }
};

// Activations [prompts, units], their means, and the units by variance · weight.
struct Units {
  std::vector<float> values;
  std::vector<double> mean;
  RankedUnits ranked;

  Units(std::vector<float> activations, std::span<const double> squared_norm)
      : values(std::move(activations)), mean(squared_norm.size()) {
    const std::size_t u = mean.size(), n = values.size() / u;
    for (std::size_t i = 0; i < values.size(); ++i)
      mean[i % u] += static_cast<double>(values[i]) / static_cast<double>(n);
    std::vector<double> variance(u);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double d = values[i] - mean[i % u];
      variance[i % u] += d * d * squared_norm[i % u] / static_cast<double>(n);
    }
    ranked.unit.resize(u);
    std::iota(ranked.unit.begin(), ranked.unit.end(), 0);
    std::stable_sort(ranked.unit.begin(), ranked.unit.end(),
                     [&](auto a, auto b) { return variance[size(a)] > variance[size(b)]; });
    for (std::int32_t unit : ranked.unit) ranked.variance.push_back(variance[size(unit)]);
  }
  // values with all but the first `kept` units at their means.
  std::vector<float> with(std::int64_t kept) const {
    std::vector<float> out = values;
    for (std::size_t r = size(kept); r < mean.size(); ++r) {
      const std::size_t unit = size(ranked.unit[r]);
      for (std::size_t i = unit; i < out.size(); i += mean.size())
        out[i] = static_cast<float>(mean[unit]);
    }
    return out;
  }
};

// Every feature at every row, zeros included: decode() takes what is not 0.
SparseRows as_rows(std::span<const float> dense, std::int64_t features) {
  SparseRows rows;
  for (std::size_t i = 0; i < dense.size(); ++i) {
    if (dense[i] != 0) {
      rows.feature.push_back(static_cast<std::int32_t>(i % size(features)));
      rows.value.push_back(dense[i]);
    }
    if ((i + 1) % size(features) == 0)
      rows.offsets.push_back(static_cast<std::int64_t>(rows.feature.size()));
  }
  return rows;
}

std::vector<double> squared_norms(const Transcoder& t) {
  std::vector<double> out(size(t.config.features));
  for (std::size_t i = 0; i < t.decoder.size(); ++i)
    out[i / size(t.config.d_out)] += static_cast<double>(t.decoder[i]) * t.decoder[i];
  return out;
}

// Of the columns of the down projection.
std::vector<double> squared_norms(const Model& model, std::int32_t layer, std::int64_t neurons) {
  const std::string name = fmt::format("{}.out", layer);
  std::vector<float> row(size(neurons));
  std::vector<double> out(size(neurons));
  for (std::int64_t r = 0; r < model.config().d_model; ++r) {
    model.matrix_rows(name, r, 1, row);
    for (std::size_t i = 0; i < row.size(); ++i) out[i] += static_cast<double>(row[i]) * row[i];
  }
  return out;
}

std::vector<std::int64_t> counts_up_to(std::span<const std::int64_t> counts, std::int64_t most) {
  std::vector<std::int64_t> out;
  for (std::int64_t count : counts) {
    if (count < 0) fail_usage("units to keep: expected 0 or more, got {}", count);
    out.push_back(std::min(count, most));
  }
  return out;
}

}  // namespace

KeepCurve keep_by_variance(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                           const Transcoder& transcoder, std::span<const std::int64_t> counts,
                           std::int64_t batch_tokens) {
  const TranscoderConfig& c = transcoder.config;
  const Model& model = forward.model();
  const std::int32_t layer = c.output.site.layer;
  if (c.output.site.kind != SiteKind::mlp_out || c.input.site.layer != layer ||
      c.input == c.output) {
    fail_usage("{}: it reads {} and rebuilds {}; expected a transcoder of one layer's mlp_out",
               c.name, dictionary_place_name(c.input), dictionary_place_name(c.output));
  }
  if (pairs.size() < 2) fail_usage("a variance needs two pairs or more, got {}", pairs.size());
  Study study{forward, metric, chunks_of(pairs, batch_tokens),
              static_cast<std::int64_t>(pairs.size())};
  const Site neuron_site{SiteKind::mlp_post, layer};
  const std::int64_t neurons = site_shape(neuron_site, model.config()).row();

  KeepCurve curve;
  std::vector<float> x, post;
  curve.original = study.run([&](const Chunk& chunk) {
    Hooks hooks;
    hooks.read(c.input.site, [&](SiteView& view) { gather(chunk, view.values, c.d_in, x); });
    hooks.read(neuron_site, [&](SiteView& view) { gather(chunk, view.values, neurons, post); });
    return hooks;
  });
  apply_place(model, c.input, x);
  const SparseRows z = transcoder.encode(x);
  std::vector<float> dense(pairs.size() * size(c.features));
  for (std::int64_t r = 0; r < z.rows(); ++r)
    for (std::int64_t e = z.offsets[size(r)]; e < z.offsets[size(r + 1)]; ++e)
      dense[size(r * c.features + z.feature[size(e)])] = z.value[size(e)];

  const auto rebuilt = [&](const SparseRows& rows) {
    std::vector<float> y(pairs.size() * size(c.d_out));
    transcoder.decode(rows, x, y);
    return study.replaced(c.output.site, y, c.d_out);
  };
  curve.spliced = rebuilt(z);
  Units features(std::move(dense), squared_norms(transcoder));
  curve.features_kept = counts_up_to(counts, c.features);
  for (std::int64_t kept : curve.features_kept)
    features.ranked.metric.push_back(rebuilt(as_rows(features.with(kept), c.features)));
  Units units(std::move(post), squared_norms(model, layer, neurons));
  curve.neurons_kept = counts_up_to(counts, neurons);
  for (std::int64_t kept : curve.neurons_kept)
    units.ranked.metric.push_back(study.replaced(neuron_site, units.with(kept), neurons));
  curve.features = std::move(features.ranked);
  curve.neurons = std::move(units.ranked);
  return curve;
}

}  // namespace lamina
