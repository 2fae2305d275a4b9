#include "edges/circuit_chunk.h"

#include <algorithm>

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// Row of the corrupted prompt that stands for row t of the clean one.
std::int64_t corrupted_row(const Pair& pair, std::int64_t t) {
  return pair.token_map.empty() ? t : pair.token_map[size(t)];
}

// Copies rows of the corrupted prompt's values to the rows of the clean one.
void take_rows(const Pair& pair, std::int64_t first, std::int64_t d, const float* from,
               std::int64_t stride, float* to) {
  for (std::int64_t t = first; t < pair.tokens(); ++t)
    std::copy_n(from + corrupted_row(pair, t) * stride, d, to + (t - first) * d);
}

void run_corrupted(Forward& forward, const EdgeGraph& graph, std::span<const Pair> pairs,
                   CircuitChunk& chunk) {
  const ModelConfig& config = forward.model().config();
  const std::int64_t d = config.d_model;
  Batch batch;
  for (const Pair& pair : pairs) batch.add(pair.corrupted);
  Hooks hooks;
  const auto keep_rows = [&](std::vector<float>& to) {
    to.resize(size(chunk.ablated.all_rows() * d));
    return [&](SiteView& v) {
      for (std::int64_t p = 0; p < chunk.pairs; ++p) {
        take_rows(pairs[size(p)], chunk.first[size(p)], d,
                  v.values.data() + batch.offsets[size(p)] * d, d,
                  to.data() + chunk.ablated.row_at(p) * d);
      }
    };
  };
  for (std::int32_t l = 0; l < config.n_layers; ++l) {
    hooks.read({SiteKind::resid_pre, l}, keep_rows(chunk.pre[size(l)]));
    if (!chunk.mid.empty()) hooks.read({SiteKind::resid_mid, l}, keep_rows(chunk.mid[size(l)]));
  }
  hooks.read({SiteKind::resid_post, static_cast<std::int32_t>(config.n_layers - 1)},
             keep_rows(chunk.final));
  read_sources(hooks, forward.model(), graph, 0,
               [&](std::int64_t p, std::int64_t source, const float* rows, std::int64_t stride) {
                 take_rows(pairs[size(p)], chunk.first[size(p)], d, rows, stride,
                           chunk.ablated.at(p, source));
               });
  forward.run(batch, hooks);
}

// The same sums that the corrupted run would have made, from the ablated values.
void add_up_ablated(const EdgeGraph& graph, std::int64_t d, CircuitChunk& chunk,
                    const std::vector<std::vector<float>>& biases) {
  const GraphShape& shape = graph.shape();
  std::vector<float> x(size(chunk.ablated.all_rows() * d), 0.0F);
  const auto add_source = [&](std::int64_t source) {
    for (std::int64_t p = 0; p < chunk.pairs; ++p) {
      const float* from = chunk.ablated.at(p, source);
      float* to = x.data() + chunk.ablated.row_at(p) * d;
      for (std::int64_t i = 0; i < chunk.ablated.rows(p) * d; ++i) to[i] += from[i];
    }
  };
  add_source(0);
  for (std::int32_t l = 0; l < shape.n_layers; ++l) {
    chunk.pre[size(l)] = x;
    for (std::int64_t h = 0; h < shape.n_heads; ++h) add_source(graph.head_source(l, h));
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += biases[size(l)][i % size(d)];
    if (!chunk.mid.empty()) chunk.mid[size(l)] = x;
    if (shape.mlps) add_source(graph.mlp_source(l));
  }
  chunk.final = std::move(x);
}

}  // namespace

std::uint64_t CircuitChunk::bytes() const {
  std::uint64_t floats = final.size();
  for (const auto* all : {&pre, &mid}) {
    for (const std::vector<float>& layer : *all) floats += layer.size();
  }
  return clean.bytes() + ablated.bytes() + delta.bytes() + floats * sizeof(float);
}

SourceMeans mean_sources(Forward& forward, const EdgeGraph& graph, std::span<const Pair> pairs,
                         std::int64_t batch_tokens) {
  const std::int64_t d = forward.model().config().d_model, sources = graph.sources();
  SourceMeans means;
  for (const Pair& pair : pairs) means.positions = std::max(means.positions, pair.tokens());
  std::vector<double> sums(size(sources * means.positions * d), 0.0);
  std::vector<double> seen(size(means.positions), 0.0);
  for (std::size_t next = 0; next < pairs.size();) {
    Batch batch;
    do {
      batch.add(pairs[next].clean);
      for (std::int64_t t = 0; t < pairs[next].tokens(); ++t) seen[size(t)] += 1;
      ++next;
    } while (next < pairs.size() && batch.tokens() + pairs[next].tokens() <= batch_tokens);
    std::vector<std::int64_t> rows;
    for (std::int64_t p = 0; p < batch.prompts(); ++p) rows.push_back(batch.length(p));
    SourceRows values(sources, d, rows);
    Hooks hooks;
    read_sources(hooks, forward.model(), graph, 0,
                 [&](std::int64_t p, std::int64_t source, const float* from, std::int64_t stride) {
                   for (std::int64_t t = 0; t < values.rows(p); ++t)
                     std::copy_n(from + t * stride, d, values.at(p, source) + t * d);
                 });
    forward.run(batch, hooks);
#pragma omp parallel for
    for (std::int64_t u = 0; u < sources; ++u) {
      for (std::int64_t p = 0; p < batch.prompts(); ++p) {
        const float* from = values.at(p, u);
        double* to = sums.data() + u * means.positions * d;
        for (std::int64_t i = 0; i < values.rows(p) * d; ++i) to[i] += from[i];
      }
    }
  }
  means.values.resize(sums.size());
  for (std::size_t i = 0; i < sums.size(); ++i) {
    const std::size_t position = i / size(d) % size(means.positions);
    means.values[i] = static_cast<float>(sums[i] / seen[position]);
  }
  return means;
}

std::vector<std::vector<float>> attention_biases(Forward& forward) {
  const ModelConfig& config = forward.model().config();
  std::vector<std::vector<float>> biases(size(config.n_layers),
                                         std::vector<float>(size(config.d_model), 0.0F));
  if (!config.out_bias) return biases;
  Batch batch;
  batch.add(std::vector<std::int32_t>{0});
  Hooks hooks;
  for (std::int32_t l = 0; l < config.n_layers; ++l) {
    hooks.write({SiteKind::z, l}, [](SiteView& v) { std::ranges::fill(v.values, 0.0F); });
    hooks.read({SiteKind::attn_out, l},
               [&biases, l](SiteView& v) { std::ranges::copy(v.values, biases[size(l)].begin()); });
  }
  forward.run(batch, hooks);
  return biases;
}

CircuitChunk make_chunk(Forward& forward, const EdgeGraph& graph, std::span<const Pair> all,
                        std::int64_t first_pair, std::int64_t count, Ablation ablation,
                        const SourceMeans& means, const std::vector<std::vector<float>>& biases) {
  const ModelConfig& config = forward.model().config();
  const std::int64_t d = config.d_model, sources = graph.sources();
  const std::span<const Pair> pairs = all.subspan(size(first_pair), size(count));
  CircuitChunk chunk;
  chunk.first_pair = first_pair;
  chunk.pairs = count;
  std::vector<std::int64_t> rows;
  for (const Pair& pair : pairs) {
    // Nothing differs before the prompts do, as long as no later token is seen.
    const bool shares = ablation == Ablation::patching && config.causal && pair.token_map.empty();
    chunk.first.push_back(shares ? pair.first_difference() : 0);
    rows.push_back(pair.tokens() - chunk.first.back());
  }
  chunk.ablated = SourceRows(sources, d, rows);
  chunk.delta = SourceRows(sources, d, rows);
  chunk.pre.resize(size(config.n_layers));
  if (graph.shape().mlps && !config.parallel) chunk.mid.resize(size(config.n_layers));

  if (ablation == Ablation::patching) {
    run_corrupted(forward, graph, pairs, chunk);
  } else {
    if (ablation == Ablation::mean) {
      for (std::int64_t p = 0; p < count; ++p) {
        for (std::int64_t u = 0; u < sources; ++u) {
          std::copy_n(means.values.data() + u * means.positions * d, rows[size(p)] * d,
                      chunk.ablated.at(p, u));
        }
      }
    }
    add_up_ablated(graph, d, chunk, biases);
  }

  Batch batch;
  for (const Pair& pair : pairs) batch.add(pair.clean);
  Hooks hooks;
  read_sources(hooks, forward.model(), graph, 0,
               [&](std::int64_t p, std::int64_t source, const float* from, std::int64_t stride) {
                 const float* ablated = chunk.ablated.at(p, source);
                 float* to = chunk.delta.at(p, source);
                 from += chunk.first[size(p)] * stride;
                 for (std::int64_t t = 0; t < chunk.delta.rows(p); ++t) {
                   for (std::int64_t i = 0; i < d; ++i)
                     to[t * d + i] = ablated[t * d + i] - from[t * stride + i];
                 }
               });
  forward.run(batch, hooks, RunOptions{.keep = &chunk.clean});
  return chunk;
}

}  // namespace lamina
