// All that a reader of the residual stream finds there, part by part.

#include <algorithm>

#include "lamina/core/error.h"
#include "paths/prompt_values.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

double dot(std::span<const float> a, const float* b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

}  // namespace

std::vector<float> PathFinder::Impl::at_attention(const PathCursor& cursor, std::int32_t layer,
                                                  double& bias) const {
  std::vector<float> r = cursor.reader.vector;
  if (!sandwich()) return r;
  std::vector<float> post(r.size());
  model.norm_bias(SiteKind::ln1_post_normalized, layer, post);
  bias += dot(r, post.data());
  fold_norm(model, SiteKind::ln1_post_normalized, layer, r);
  const double s = denominator(SiteKind::ln1_post_normalized, layer, cursor.position);
  for (float& v : r) v = static_cast<float>(v / s);
  return r;
}

void PathFinder::Impl::add_attention(std::int32_t layer, std::span<const PathCursor> cursors,
                                     std::vector<std::vector<PathContribution>>& out) const {
  const std::int64_t d = config.d_model, width = config.d_attn(), dh = config.d_head;
  const std::int64_t group = config.n_heads / config.n_kv_heads;
  std::vector<float> rows;
  for (std::size_t c = 0; c < cursors.size(); ++c) {
    const PathCursor& cursor = cursors[c];
    if (head_writing_point(layer, config) > cursor.reader.point) continue;
    if (rows.empty()) {
      rows.resize(size(d * width));
      model.matrix_rows(fmt::format("{}.o", layer), 0, d, rows);
    }
    double bias = 0;
    const std::vector<float> r = at_attention(cursor, layer, bias);
    bias += dot(r, output_bias[size(layer)].data());
    std::vector<double> z(size(width));  // W_Oᵀ r
    for (std::int64_t i = 0; i < d; ++i)
      for (std::int64_t j = 0; j < width; ++j)
        z[size(j)] += double{r[size(i)]} * rows[size(i * width + j)];
    for (std::int64_t h = 0; h < config.n_heads; ++h) {
      const double* head = z.data() + h * dh;
      const float* fixed = value_bias[size(layer)].data() + h / group * dh;
      double of_bias = 0;
      for (std::int64_t j = 0; j < dh; ++j) of_bias += head[j] * fixed[j];
      for (std::int64_t s = 0; s < tokens; ++s) {
        const double pattern =
            patterns[size(layer)][size((h * tokens + cursor.position) * tokens + s)];
        if (pattern == 0) continue;
        const float* value = values[size(layer)].data() + (s * config.n_kv_heads + h / group) * dh;
        double sum = 0;
        for (std::int64_t j = 0; j < dh; ++j) sum += head[j] * (double{value[j]} - fixed[j]);
        bias += pattern * of_bias;
        out[c].push_back({{.kind = PathNodeKind::head,
                           .layer = layer,
                           .position = static_cast<std::int32_t>(s),
                           .index = h},
                          pattern * sum});
      }
    }
    out[c].push_back(
        {{.kind = PathNodeKind::bias, .layer = layer, .position = cursor.position, .index = 0},
         bias});
  }
}

void PathFinder::Impl::add_features(const PathCursor& cursor,
                                    std::vector<PathContribution>& out) const {
  const std::int64_t d = config.d_model;
  std::vector<float> rows;
  for (std::int32_t l = 0; l < config.n_layers && 2 * l + 2 <= cursor.reader.point; ++l) {
    const auto first = std::lower_bound(features.begin(), features.end(),
                                        ActiveFeature{l, cursor.position, -1, 0.0F});
    const auto last =
        std::lower_bound(first, features.end(), ActiveFeature{l, cursor.position + 1, -1, 0.0F});
    std::vector<std::int32_t> ids;
    for (auto f = first; f != last; ++f) ids.push_back(f->feature);
    if (ids.empty()) continue;
    std::vector<double> gain(ids.size());
    rows.resize(ids.size() * size(d));
    for (std::int32_t m = l; m < config.n_layers && 2 * m + 2 <= cursor.reader.point &&
                             replacement.first_writer(m) <= l;
         ++m) {
      replacement.write_rows(l, m, ids, rows);
      for (std::size_t i = 0; i < ids.size(); ++i)
        gain[i] += dot(cursor.reader.vector, rows.data() + i * size(d));
    }
    for (std::size_t i = 0; i < ids.size(); ++i) {
      out.push_back({{.kind = PathNodeKind::feature,
                      .layer = l,
                      .position = cursor.position,
                      .index = ids[i]},
                     gain[i] * first[static_cast<std::ptrdiff_t>(i)].activation});
    }
  }
}

void PathFinder::Impl::add_mlp_rest(const PathCursor& cursor,
                                    std::vector<PathContribution>& out) const {
  const std::int64_t d = config.d_model, at = cursor.position * d;
  const std::span<const float> r = cursor.reader.vector;
  for (std::int32_t l = 0; l < config.n_layers && 2 * l + 2 <= cursor.reader.point; ++l) {
    const auto add = [&](PathNodeKind kind, double value) {
      out.push_back({{.kind = kind, .layer = l, .position = cursor.position, .index = 0}, value});
    };
    const std::span<const float> error = replacement.error(l);
    if (!error.empty()) add(PathNodeKind::error, dot(r, error.data() + at));
    const Transcoder* t = replacement.transcoder(l);
    if (t == nullptr) continue;
    // The attention's biases of the layer stand here too: one node a layer.
    const double bias = dot(r, t->decoder_bias.data());
    const auto own = std::find_if(out.begin(), out.end(), [&](const PathContribution& c) {
      return c.node.kind == PathNodeKind::bias && c.node.layer == l;
    });
    if (own != out.end()) {
      own->value += bias;
    } else {
      add(PathNodeKind::bias, bias);
    }
    if (!t->config.skip) continue;
    double sum = 0;
    for (std::int64_t i = 0; i < d; ++i)
      sum += r[size(i)] *
             dot(std::span(t->skip).subspan(size(i * d), size(d)), inputs[size(l)].data() + at);
    add(PathNodeKind::skip, sum);
  }
}

void PathFinder::Impl::add_embeddings(const PathCursor& cursor,
                                      std::vector<PathContribution>& out) const {
  const std::int64_t at = cursor.position * config.d_model;
  std::vector<float> r = cursor.reader.vector;
  double bias = 0;
  const bool norm = config.norm != NormKind::none && config.embed_norm;
  if (norm) {
    std::vector<float> of_norm(r.size());
    model.norm_bias(SiteKind::embed_ln_normalized, -1, of_norm);
    bias = dot(r, of_norm.data());
    fold_norm(model, SiteKind::embed_ln_normalized, -1, r);
    const double s = denominator(SiteKind::embed_ln_normalized, -1, cursor.position);
    for (float& v : r) v = static_cast<float>(v / s);
  }
  PathNode node{.kind = PathNodeKind::token, .layer = -1, .position = cursor.position, .index = -1};
  node.index = replacement.ids()[size(cursor.position)];
  out.push_back({node, dot(r, replacement.embedding().data() + at)});
  node.index = 0;
  if (!positions.empty()) {
    node.kind = PathNodeKind::position;
    out.push_back({node, dot(r, positions.data() + at)});
  }
  node.kind = PathNodeKind::bias;
  node.layer = -2;
  if (norm) out.push_back({node, bias});
}

std::vector<std::vector<PathContribution>> PathFinder::contributions(
    std::span<const PathCursor> cursors) const {
  const Impl& s = *impl_;
  std::vector<std::vector<PathContribution>> out(cursors.size());
  for (std::size_t c = 0; c < cursors.size(); ++c) {
    s.add_embeddings(cursors[c], out[c]);
    out[c].push_back(
        {{.kind = PathNodeKind::bias, .layer = -1, .position = cursors[c].position, .index = 0},
         cursors[c].constant});
  }
  for (std::int32_t l = 0; l < s.config.n_layers; ++l) s.add_attention(l, cursors, out);
  for (std::size_t c = 0; c < cursors.size(); ++c) {
    s.add_features(cursors[c], out[c]);
    s.add_mlp_rest(cursors[c], out[c]);
  }
  return out;
}

}  // namespace lamina
