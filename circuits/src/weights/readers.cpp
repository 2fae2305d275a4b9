// Encoder rows, logits and heads as readers of the residual stream.

#include <cmath>
#include <limits>

#include "lamina/circuits/feature_weights.h"
#include "lamina/core/error.h"
#include "weights/unembedding.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

bool has_block_norms(const ModelConfig& c) {
  return c.norm != NormKind::none && c.norm_place != NormPlace::none;
}

void check_model(const ModelConfig& c) {
  if (has_block_norms(c) && c.norm_place == NormPlace::post) {
    fail_usage("a {} model has norms behind the residual addition: nothing reads its sum as it is",
               c.family);
  }
}

void check_head(const Model& model, std::int32_t layer, std::int64_t head) {
  const ModelConfig& c = model.config();
  if (layer < 0 || layer >= c.n_layers || head < 0 || head >= c.n_heads) {
    fail_usage("head {} of layer {}: the model has {} layers of {} heads", head, layer, c.n_layers,
               c.n_heads);
  }
}

// The attention output's reader in front of a norm that stands on it.
std::vector<float> behind_post_norm(const Model& model, const StreamReader& reader,
                                    std::int32_t layer) {
  std::vector<float> r = reader.vector;
  if (model.config().norm_place == NormPlace::sandwich)
    fold_norm(model, SiteKind::ln1_post_normalized, layer, r);
  return r;
}

// W_Oᵀ r → [H · d_head].
std::vector<double> read_off_heads(const Model& model, std::int32_t layer,
                                   std::span<const float> r) {
  const ModelConfig& c = model.config();
  const std::int64_t d = c.d_model, width = c.d_attn();
  std::vector<float> rows(size(d * width));
  model.matrix_rows(fmt::format("{}.o", layer), 0, d, rows);
  std::vector<double> z(size(width));
  for (std::int64_t i = 0; i < d; ++i)
    for (std::int64_t j = 0; j < width; ++j)
      z[size(j)] += double{r[size(i)]} * rows[size(i * width + j)];
  return z;
}

// W_Vᵀ of a head's [d_head] vector, norm folded. `values`: rows of W_V of the head's values.
std::vector<float> read_off_stream(const Model& model, std::int32_t layer,
                                   std::span<const double> z, std::span<const float> values) {
  const std::int64_t d = model.config().d_model;
  std::vector<double> sum(size(d));
  for (std::size_t j = 0; j < z.size(); ++j)
    for (std::int64_t i = 0; i < d; ++i) sum[size(i)] += z[j] * values[j * size(d) + size(i)];
  std::vector<float> out(sum.begin(), sum.end());
  fold_norm(model, SiteKind::ln1_normalized, layer, out);
  return out;
}

}  // namespace

std::int64_t reading_point(const TranscoderConfig& dictionary, const ModelConfig& model) {
  check_model(model);
  const std::int64_t l = dictionary.input.site.layer;
  switch (dictionary.input.site.kind) {
    case SiteKind::resid_pre:
    case SiteKind::ln1_normalized:
      return 2 * l;
    case SiteKind::resid_mid:
      return 2 * l + 1;
    case SiteKind::ln2_normalized:
      return model.parallel ? 2 * l : 2 * l + 1;
    case SiteKind::resid_post:
      return 2 * l + 2;
    default:
      fail_usage("{} reads {}: connections need one that reads the residual stream or a norm of it",
                 dictionary.name, dictionary_place_name(dictionary.input));
  }
}

std::int64_t writing_point(const TranscoderConfig& dictionary, const ModelConfig& model) {
  const std::int64_t l = dictionary.output.site.layer;
  switch (dictionary.output.site.kind) {
    case SiteKind::resid_pre:
      return 2 * l;
    case SiteKind::attn_out:
      return model.parallel ? 2 * l + 2 : 2 * l + 1;
    case SiteKind::resid_mid:
      return 2 * l + 1;
    case SiteKind::mlp_out:
    case SiteKind::resid_post:
      return 2 * l + 2;
    default:
      fail_usage("{} rebuilds {}, which is not added to the residual stream", dictionary.name,
                 dictionary_place_name(dictionary.output));
  }
}

std::int64_t head_reading_point(std::int32_t layer) {
  return 2 * std::int64_t{layer};
}

std::int64_t head_writing_point(std::int32_t layer, const ModelConfig& model) {
  return 2 * std::int64_t{layer} + (model.parallel ? 2 : 1);
}

void centre_for_norm(const ModelConfig& model, std::span<float> vector) {
  if (model.norm != NormKind::layer) return;
  double mean = 0;
  for (const float v : vector) mean += v;
  mean /= static_cast<double>(vector.size());
  for (float& v : vector) v = static_cast<float>(v - mean);
}

void fold_norm(const Model& model, SiteKind kind, std::int32_t layer, std::span<float> vector) {
  const ModelConfig& c = model.config();
  const bool there =
      kind == SiteKind::ln_final_normalized   ? c.norm != NormKind::none && c.final_norm
      : kind == SiteKind::embed_ln_normalized ? c.norm != NormKind::none && c.embed_norm
                                              : has_block_norms(c);
  if (!there) return;
  std::vector<float> weight(vector.size());
  model.norm_weight(kind, layer, weight);
  for (std::size_t i = 0; i < vector.size(); ++i) vector[i] *= weight[i];
  centre_for_norm(c, vector);
}

StreamReader feature_reader(const Model& model, const Transcoder& dictionary,
                            std::int64_t feature) {
  const TranscoderConfig& c = dictionary.config;
  const std::int64_t d = model.config().d_model;
  if (feature < 0 || feature >= c.features)
    fail_usage("feature {}: {} has {}", feature, c.name, c.features);
  StreamReader reader{.vector = {}, .point = reading_point(c, model.config())};
  if (c.d_in != d) fail("{}: reads {} values, the model's width is {}", c.name, c.d_in, d);
  const float* row = dictionary.encoder.data() + feature * d;
  reader.vector.assign(row, row + d);
  const SiteKind kind = c.input.site.kind;
  if (kind != SiteKind::ln1_normalized && kind != SiteKind::ln2_normalized) return reader;
  if (c.input.norm_weights) {
    fold_norm(model, kind, c.input.site.layer, reader.vector);
  } else {
    centre_for_norm(model.config(), reader.vector);
  }
  return reader;
}

StreamReader final_reader(const Model& model, std::span<const float> direction) {
  const ModelConfig& c = model.config();
  check_model(c);
  if (std::ssize(direction) != c.d_model)
    fail("a direction of {} values, the model's width is {}", direction.size(), c.d_model);
  StreamReader reader{.vector = {direction.begin(), direction.end()}, .point = 2 * c.n_layers};
  fold_norm(model, SiteKind::ln_final_normalized, -1, reader.vector);
  return reader;
}

StreamReader logit_reader(const Model& model, std::int32_t token) {
  const ModelConfig& c = model.config();
  circuits::require_language_head(c);
  if (token < 0 || token >= c.d_out()) fail("token {}: the vocabulary has {}", token, c.d_out());
  std::vector<float> row(size(c.d_model));
  model.unembedding_rows(token, 1, row);
  const std::vector<double> mean = circuits::mean_unembedding(model);
  for (std::size_t i = 0; i < row.size(); ++i) row[i] = static_cast<float>(row[i] - mean[i]);
  return final_reader(model, row);
}

StreamReader through_head(const Model& model, const StreamReader& reader, std::int32_t layer,
                          std::int64_t head) {
  const ModelConfig& c = model.config();
  check_head(model, layer, head);
  if (head_writing_point(layer, c) > reader.point) {
    fail_usage("head {} of layer {} writes behind what was to be read", head, layer);
  }
  const std::vector<double> z =
      read_off_heads(model, layer, behind_post_norm(model, reader, layer));
  const std::int64_t kv = head / (c.n_heads / c.n_kv_heads);
  std::vector<float> values(size(c.d_head * c.d_model));
  model.matrix_rows(fmt::format("{}.v", layer), kv * c.d_head, c.d_head, values);
  return {.vector = read_off_stream(
              model, layer, std::span(z).subspan(size(head * c.d_head), size(c.d_head)), values),
          .point = head_reading_point(layer)};
}

std::vector<float> head_norms(const Model& model, const StreamReader& reader) {
  const ModelConfig& c = model.config();
  std::vector<float> norms(size(c.n_layers * c.n_heads), std::numeric_limits<float>::quiet_NaN());
  std::vector<float> values(size(c.d_kv() * c.d_model));
  for (std::int32_t l = 0; l < c.n_layers && head_writing_point(l, c) <= reader.point; ++l) {
    const std::vector<double> z = read_off_heads(model, l, behind_post_norm(model, reader, l));
    model.matrix_rows(fmt::format("{}.v", l), 0, c.d_kv(), values);
    for (std::int64_t h = 0; h < c.n_heads; ++h) {
      const std::int64_t kv = h / (c.n_heads / c.n_kv_heads);
      const std::vector<float> u = read_off_stream(
          model, l, std::span(z).subspan(size(h * c.d_head), size(c.d_head)),
          std::span(values).subspan(size(kv * c.d_head * c.d_model), size(c.d_head * c.d_model)));
      double sum = 0;
      for (const float x : u) sum += double{x} * x;
      norms[size(l * c.n_heads + h)] = static_cast<float>(std::sqrt(sum));
    }
  }
  return norms;
}

}  // namespace lamina
