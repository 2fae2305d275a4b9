// The whole graph without one edge: only what one read point gets differs from the clean run.

#include <algorithm>

#include "edges/circuit_pass.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

struct Removed {
  std::int64_t source, pair;  // pair within the chunk
};

// Rows of the clean stream with the source's difference added: what the read point gets now.
void fill_input(const CircuitChunk& chunk, const std::vector<float>& stream, const Removed& removed,
                std::int64_t first, std::int64_t d, float* out) {
  const std::int64_t p = removed.pair;
  const std::int64_t rows = chunk.clean.batch.length(p) - first;
  const float* own = stream.data() + (chunk.clean.batch.offsets[size(p)] + first) * d;
  const float* change = chunk.delta.at(p, removed.source) + (first - chunk.first[size(p)]) * d;
  for (std::int64_t i = 0; i < rows * d; ++i) out[i] = own[i] + change[i];
}

bool changes_something(const CircuitChunk& chunk, const Removed& removed, std::int64_t first,
                       std::int64_t d) {
  const std::int64_t skipped = (first - chunk.first[size(removed.pair)]) * d;
  const float* change = chunk.delta.at(removed.pair, removed.source);
  return std::any_of(change + skipped, change + chunk.delta.rows(removed.pair) * d,
                     [](float x) { return x != 0.0F; });
}

}  // namespace

std::int64_t CircuitPass::without_each_source(const CircuitChunk& chunk, std::int64_t read,
                                              std::span<const double> clean,
                                              std::vector<double>& sums) {
  const ModelConfig& config = forward.model().config();
  const std::int64_t d = config.d_model, dh = config.d_head, heads = config.n_heads;
  const ReadPoint point = graph.read_point(read);
  const bool logits = point.kind == ReadPoint::Kind::logits;
  const bool last_layer = point.layer + 1 == config.n_layers;
  // Of the last layer's queries and MLP inputs, as of the logits', only the last row is read.
  const bool last_row =
      logits ||
      (last_layer && (point.kind == ReadPoint::Kind::q || point.kind == ReadPoint::Kind::mlp) &&
       config.causal);
  const auto first_row = [&](std::int64_t p) {
    return last_row ? chunk.clean.batch.length(p) - 1 : chunk.first[size(p)];
  };

  std::vector<Removed> all;
  for (std::int64_t u = 0; u < graph.sources_of(read); ++u) {
    for (std::int64_t p = 0; p < chunk.pairs; ++p) {
      const Removed removed{u, p};
      if (chunk.delta.rows(p) > 0 && changes_something(chunk, removed, first_row(p), d)) {
        all.push_back(removed);
      } else {
        sums[size(graph.edge_id(u, read))] += clean[size(chunk.first_pair + p)];
      }
    }
  }

  std::vector<float> input, written, saved, beside, mlp_out;
  for (std::size_t begin = 0; begin < all.size();) {
    std::vector<Continuation> which;
    std::vector<std::int64_t> pairs, last, at;
    std::int64_t total = 0;
    do {
      const Removed& removed = all[begin + which.size()];
      const std::int64_t first = first_row(removed.pair);
      which.push_back({removed.pair, first});
      pairs.push_back(chunk.first_pair + removed.pair);
      at.push_back(total);
      total += chunk.clean.batch.length(removed.pair) - first;
      last.push_back(total - 1);
    } while (begin + which.size() < all.size() &&
             total + chunk.clean.batch.length(all[begin + which.size()].pair) <= rows);
    const auto count = static_cast<std::int64_t>(which.size());

    Hooks hooks;
    input.resize(size(total * d));
    const auto fill = [&](const std::vector<float>& stream) {
#pragma omp parallel for
      for (std::int64_t i = 0; i < count; ++i) {
        fill_input(chunk, stream, all[begin + size(i)], which[size(i)].first, d,
                   input.data() + at[size(i)] * d);
      }
    };
    std::int32_t layer = point.layer;
    if (logits) {
      // The last block's output is replaced as a whole: no layer needs to run.
      layer = static_cast<std::int32_t>(config.n_layers);
      fill(chunk.clean.resid.back());
    } else if (point.kind == ReadPoint::Kind::mlp) {
      // The MLP reads its own copy of the stream: the true one comes back at resid_post.
      const auto own_copy = [&](SiteView& v) {
        saved.assign(v.values.begin(), v.values.end());
        for (std::int64_t i = 0; i < count; ++i) {
          const Removed& removed = all[begin + size(i)];
          const std::int64_t p = removed.pair, first = which[size(i)].first;
          const float* change =
              chunk.delta.at(p, removed.source) + (first - chunk.first[size(p)]) * d;
          float* x = v.values.data() + at[size(i)] * d;
          for (std::int64_t j = 0; j < v.batch.length(i) * d; ++j) x[j] += change[j];
        }
      };
      if (config.parallel) {
        // Attention of this layer must not see it: it reads the clean stream.
        hooks.write({SiteKind::resid_pre, layer}, own_copy);
        for (const auto kind : {SiteKind::q, SiteKind::k, SiteKind::v}) {
          hooks.write({kind, layer}, [&, kind](SiteView& v) {
            written.resize(size(total * dh));
            for (std::int64_t h = 0; h < heads; ++h) {
              forward.read_head(kind, layer, h, saved, written);
              for (std::int64_t t = 0; t < total; ++t)
                std::copy_n(written.data() + t * dh, dh, v.values.data() + (t * heads + h) * dh);
            }
          });
        }
        hooks.read({SiteKind::attn_out, layer},
                   [&](SiteView& v) { beside.assign(v.values.begin(), v.values.end()); });
      } else {
        hooks.write({SiteKind::resid_mid, layer}, own_copy);
      }
      hooks.read({SiteKind::mlp_out, layer},
                 [&](SiteView& v) { mlp_out.assign(v.values.begin(), v.values.end()); });
      hooks.write({SiteKind::resid_post, layer}, [&](SiteView& v) {
        for (std::size_t i = 0; i < saved.size(); ++i) {
          float sum = saved[i];
          if (config.parallel) sum += beside[i];
          v.values[i] = sum + mlp_out[i];
        }
      });
    } else {
      fill(chunk.clean.resid[size(layer)]);
      written.resize(size(total * dh));
      const SiteKind kind = point.kind == ReadPoint::Kind::q   ? SiteKind::q
                            : point.kind == ReadPoint::Kind::k ? SiteKind::k
                                                               : SiteKind::v;
      forward.read_head(kind, layer, point.head, input, written);
      hooks.write({kind, layer}, [&](SiteView& v) {
        for (std::int64_t t = 0; t < total; ++t)
          std::copy_n(written.data() + t * dh, dh, v.values.data() + (t * heads + point.head) * dh);
      });
    }

    std::vector<double> values;
    if (logits) {
      values = metric_of_streams(forward, metric, pairs, input);
    } else {
      forward.resume(chunk.clean, layer, which, hooks);
      values = metric_of_rows(forward, metric, pairs, last);
    }
    for (std::size_t i = 0; i < values.size(); ++i)
      sums[size(graph.edge_id(all[begin + i].source, read))] += values[i];
    begin += which.size();
  }
  return static_cast<std::int64_t>(all.size());
}

}  // namespace lamina
