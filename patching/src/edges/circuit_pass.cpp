#include "edges/circuit_pass.h"

#include <algorithm>
#include <memory>
#include <utility>

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

SiteKind site_of(ReadPoint::Kind kind) {
  switch (kind) {
    case ReadPoint::Kind::q:
      return SiteKind::q;
    case ReadPoint::Kind::k:
      return SiteKind::k;
    default:
      return SiteKind::v;
  }
}

// Some prompts of one pass: each a circuit on a pair.
class CircuitBatch {
 public:
  CircuitBatch(Forward& forward, const EdgeGraph& graph, const CircuitChunk& chunk,
               std::span<const CircuitPass::Item> items, std::int32_t from_layer)
      : forward_(forward),
        graph_(graph),
        config_(forward.model().config()),
        chunk_(chunk),
        items_(items),
        from_layer_(from_layer),
        d_(config_.d_model) {
    std::vector<std::int64_t> rows;
    for (const CircuitPass::Item& item : items) rows.push_back(chunk.delta.rows(item.pair));
    shared_ = from_layer == 0 ? 0 : graph.head_source(from_layer, 0);
    delta_ = SourceRows(graph.sources() - shared_, d_, rows);
  }

  void run() {
    Hooks hooks;
    add_hooks(hooks);
    std::vector<Continuation> which;
    for (const CircuitPass::Item& item : items_)
      which.push_back({item.pair, chunk_.first[size(item.pair)]});
    forward_.resume(chunk_.clean, from_layer_, which, hooks);
  }

 private:
  struct HeadInput {
    std::vector<std::int64_t> items;
    std::vector<float> values;  // [rows of these items, d_head]
  };

  // ablated − this run
  const float* delta(std::int64_t item, std::int64_t source) const {
    if (source < shared_) return chunk_.delta.at(items_[size(item)].pair, source);
    return delta_.at(item, source - shared_);
  }

  std::int64_t kept_edges(std::int64_t item, std::int64_t read) const {
    const std::uint8_t* mask = items_[size(item)].circuit->data() + graph_.first_edge(read);
    return std::count(mask, mask + graph_.sources_of(read), 1);
  }

  bool head_is_alive(std::int64_t item, std::int32_t layer, std::int64_t head) const {
    for (const auto kind : {ReadPoint::Kind::q, ReadPoint::Kind::k, ReadPoint::Kind::v}) {
      if (kept_edges(item, graph_.read_index({kind, layer, head})) > 0) return true;
    }
    return false;
  }

  // What a read point gets → out [rows, d_model]: from this run's stream (rows at `own`) or the
  // ablated one (at `ablated`), whichever is fewer edges away.
  void build_input(std::int64_t item, std::int64_t read, const float* own, const float* ablated,
                   float* out) const {
    const std::int64_t n = delta_.rows(item) * d_, sources = graph_.sources_of(read);
    const std::uint8_t* mask = items_[size(item)].circuit->data() + graph_.first_edge(read);
    const bool few = 2 * kept_edges(item, read) <= sources;
    std::copy_n(few ? ablated : own, n, out);
    for (std::int64_t u = 0; u < sources; ++u) {
      if ((mask[u] != 0) != few) continue;
      const float* change = delta(item, u);
      if (few) {
        for (std::int64_t i = 0; i < n; ++i) out[i] -= change[i];
      } else {
        for (std::int64_t i = 0; i < n; ++i) out[i] += change[i];
      }
    }
  }

  const float* ablated_rows(const std::vector<float>& stream, std::int64_t item) const {
    return stream.data() + chunk_.delta.row_at(items_[size(item)].pair) * d_;
  }

  bool whole(std::int64_t item, std::int64_t read) const {
    return kept_edges(item, read) == graph_.sources_of(read);
  }

  bool mlp_is_changed(std::int64_t item, std::int32_t layer) const {
    if (!graph_.shape().mlps) return false;
    const std::int64_t read = graph_.read_index({ReadPoint::Kind::mlp, layer, -1});
    const std::int64_t kept = kept_edges(item, read);
    return kept > 0 && kept < graph_.sources_of(read);
  }

  // q, k and v of the heads whose inputs are not the plain stream.
  void prepare_heads(std::int32_t layer, std::span<const float> x) {
    const std::int64_t heads = config_.n_heads, dh = config_.d_head;
    const auto count = static_cast<std::int64_t>(items_.size());
    inputs_.assign(size(3 * heads), {});
    std::vector<float> streams;
    for (std::int64_t h = 0; h < heads; ++h) {
      for (const auto kind : {ReadPoint::Kind::q, ReadPoint::Kind::k, ReadPoint::Kind::v}) {
        const std::int64_t read = graph_.read_index({kind, layer, h});
        HeadInput& input = inputs_[size(static_cast<std::int64_t>(kind) * heads + h)];
        std::vector<std::int64_t> at;
        std::int64_t rows = 0;
        for (std::int64_t i = 0; i < count; ++i) {
          if (!head_is_alive(i, layer, h)) continue;  // what it adds is never read
          // In a parallel block the stream is about to be overwritten for the MLP.
          const bool overwritten = config_.parallel && mlp_is_changed(i, layer);
          if (whole(i, read) && !overwritten) continue;
          input.items.push_back(i);
          at.push_back(rows);
          rows += delta_.rows(i);
        }
        if (rows == 0) continue;
        streams.resize(size(rows * d_));
        const auto some = static_cast<std::int64_t>(input.items.size());
#pragma omp parallel for schedule(dynamic)
        for (std::int64_t i = 0; i < some; ++i) {
          const std::int64_t item = input.items[size(i)];
          build_input(item, read, x.data() + delta_.row_at(item) * d_,
                      ablated_rows(chunk_.pre[size(layer)], item),
                      streams.data() + at[size(i)] * d_);
        }
        input.values.resize(size(rows * dh));
        forward_.read_head(site_of(kind), layer, h, streams, input.values);
      }
    }
  }

  void write_heads(ReadPoint::Kind kind, std::span<float> values) const {
    const std::int64_t heads = config_.n_heads, dh = config_.d_head;
    for (std::int64_t h = 0; h < heads; ++h) {
      const HeadInput& input = inputs_[size(static_cast<std::int64_t>(kind) * heads + h)];
      const float* from = input.values.data();
      for (const std::int64_t item : input.items) {
        for (std::int64_t t = 0; t < delta_.rows(item); ++t, from += dh) {
          const std::int64_t row = delta_.row_at(item) + t;
          std::copy_n(from, dh, values.data() + (row * heads + h) * dh);
        }
      }
    }
  }

  // The MLP reads its own copy of the stream: the true one comes back at resid_post.
  void write_mlp_input(std::int32_t layer, std::span<float> x, const std::vector<float>& ablated) {
    saved_.assign(x.begin(), x.end());
    const std::int64_t read = graph_.read_index({ReadPoint::Kind::mlp, layer, -1});
    const auto count = static_cast<std::int64_t>(items_.size());
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t i = 0; i < count; ++i) {
      if (!mlp_is_changed(i, layer)) continue;
      const std::int64_t at = delta_.row_at(i) * d_;
      build_input(i, read, saved_.data() + at, ablated_rows(ablated, i), x.data() + at);
    }
  }

  void restore_stream(std::int32_t layer, std::span<float> x) const {
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(items_.size()); ++i) {
      if (!mlp_is_changed(i, layer)) continue;
      const std::int64_t at = delta_.row_at(i) * d_, n = delta_.rows(i) * d_;
      for (std::int64_t j = at; j < at + n; ++j) {
        // The same additions in the same order as the pass itself makes.
        float sum = saved_[size(j)];
        if (config_.parallel) sum += attn_out_[size(j)];
        x[size(j)] = sum + mlp_out_[size(j)];
      }
    }
  }

  void write_logits_input(std::span<float> x) const {
    const std::int64_t read = graph_.reads() - 1;
    const auto count = static_cast<std::int64_t>(items_.size());
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t i = 0; i < count; ++i) {
      if (whole(i, read)) continue;
      const std::int64_t at = delta_.row_at(i) * d_, n = delta_.rows(i) * d_;
      const std::vector<float> own(x.begin() + at, x.begin() + at + n);
      build_input(i, read, own.data(), ablated_rows(chunk_.final, i), x.data() + at);
    }
  }

  void add_hooks(Hooks& hooks) {
    // First of all: a source must be known before anything reads it.
    read_sources(
        hooks, forward_.model(), graph_, from_layer_,
        [this](std::int64_t item, std::int64_t source, const float* rows, std::int64_t stride) {
          float* to = delta_.at(item, source - shared_);
          const float* ablated = chunk_.ablated.at(items_[size(item)].pair, source);
          for (std::int64_t t = 0; t < delta_.rows(item); ++t) {
            for (std::int64_t i = 0; i < d_; ++i)
              to[t * d_ + i] = ablated[t * d_ + i] - rows[t * stride + i];
          }
        });
    const bool mlps = graph_.shape().mlps, parallel = config_.parallel;
    for (std::int32_t l = from_layer_; l < config_.n_layers; ++l) {
      hooks.write({SiteKind::resid_pre, l}, [=, this](SiteView& v) {
        prepare_heads(l, v.values);
        if (mlps && parallel) write_mlp_input(l, v.values, chunk_.pre[size(l)]);
      });
      for (const auto kind : {ReadPoint::Kind::q, ReadPoint::Kind::k, ReadPoint::Kind::v}) {
        hooks.write({site_of(kind), l}, [=, this](SiteView& v) { write_heads(kind, v.values); });
      }
      if (mlps && parallel) {
        hooks.read({SiteKind::attn_out, l},
                   [this](SiteView& v) { attn_out_.assign(v.values.begin(), v.values.end()); });
      }
      if (mlps && !parallel) {
        hooks.write({SiteKind::resid_mid, l},
                    [=, this](SiteView& v) { write_mlp_input(l, v.values, chunk_.mid[size(l)]); });
      }
      if (mlps) {
        hooks.read({SiteKind::mlp_out, l},
                   [this](SiteView& v) { mlp_out_.assign(v.values.begin(), v.values.end()); });
      }
      hooks.write({SiteKind::resid_post, l}, [=, this](SiteView& v) {
        restore_stream(l, v.values);
        if (l + 1 == config_.n_layers) write_logits_input(v.values);
      });
    }
  }

  Forward& forward_;
  const EdgeGraph& graph_;
  const ModelConfig& config_;
  const CircuitChunk& chunk_;
  std::span<const CircuitPass::Item> items_;
  std::int32_t from_layer_;
  std::int64_t d_;
  std::int64_t shared_ = 0;        // sources before from_layer: as in the clean run
  SourceRows delta_;               // of the other sources, per item
  std::vector<HeadInput> inputs_;  // [q heads, k heads, v heads] of the layer in progress
  std::vector<float> saved_, attn_out_, mlp_out_;
};

// Calls `logits_of(first, out)` for a few rows at a time: logits of all are too large to keep.
template <class LogitsOf>
std::vector<double> metric_in_parts(const Forward& forward, const Metric& metric,
                                    std::span<const std::int64_t> which, LogitsOf logits_of) {
  constexpr std::size_t kAtOnce = 32;
  const auto vocab = size(forward.model().config().d_vocab);
  std::vector<double> values;
  std::vector<float> logits;
  for (std::size_t first = 0; first < which.size(); first += kAtOnce) {
    const std::size_t count = std::min(kAtOnce, which.size() - first);
    logits.resize(count * vocab);
    logits_of(first, std::span(logits));
    for (std::size_t i = 0; i < count; ++i) {
      values.push_back(metric.value(which[first + i], std::span(logits).subspan(i * vocab, vocab)));
    }
  }
  return values;
}

}  // namespace

std::vector<double> metric_of_rows(Forward& forward, const Metric& metric,
                                   std::span<const std::int64_t> which,
                                   std::span<const std::int64_t> rows) {
  return metric_in_parts(forward, metric, which, [&](std::size_t first, std::span<float> logits) {
    const std::size_t count = logits.size() / size(forward.model().config().d_vocab);
    forward.run_logits(rows.subspan(first, count), logits);
  });
}

std::vector<double> metric_of_streams(Forward& forward, const Metric& metric,
                                      std::span<const std::int64_t> which,
                                      std::span<const float> streams) {
  const auto d = size(forward.model().config().d_model);
  return metric_in_parts(forward, metric, which, [&](std::size_t first, std::span<float> logits) {
    const std::size_t count = logits.size() / size(forward.model().config().d_vocab);
    forward.logits(streams.subspan(first * d, count * d), logits);
  });
}

void CircuitPass::run(const CircuitChunk& chunk, std::span<const Item> items,
                      std::int32_t from_layer, std::vector<double>& results) {
  for (std::size_t first = 0; first < items.size();) {
    std::size_t count = 0;
    std::int64_t sum = 0;
    std::vector<std::int64_t> which, last;
    do {
      const Item& item = items[first + count];
      sum += chunk.delta.rows(item.pair);
      which.push_back(chunk.first_pair + item.pair);
      last.push_back(sum - 1);
      ++count;
    } while (first + count < items.size() &&
             sum + chunk.delta.rows(items[first + count].pair) <= rows);
    CircuitBatch(forward, graph, chunk, items.subspan(first, count), from_layer).run();
    const std::vector<double> values = metric_of_rows(forward, metric, which, last);
    for (std::size_t i = 0; i < count; ++i) results[items[first + i].result] = values[i];
    first += count;
  }
}

}  // namespace lamina
