// What features, tokens and logits have to do with a vector in the residual stream.

#include <algorithm>
#include <functional>

#include "lamina/circuits/feature_weights.h"
#include "lamina/core/error.h"
#include "lamina/core/math.h"
#include "weights/unembedding.h"

namespace lamina {
namespace {

constexpr std::int64_t kBlockRows = 4096;

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

double dot(const float* a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t i = 0; i < b.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

// rows(first, count, out) · vector for all of `n` rows.
std::vector<float> multiply_rows(
    std::int64_t n, std::span<const float> vector,
    const std::function<void(std::int64_t, std::int64_t, std::span<float>)>& rows) {
  std::vector<float> out(size(n)), block;
  for (std::int64_t first = 0; first < n; first += kBlockRows) {
    const std::int64_t count = std::min(kBlockRows, n - first);
    block.resize(size(count) * vector.size());
    rows(first, count, block);
#pragma omp parallel for schedule(static)
    for (std::int64_t i = 0; i < count; ++i)
      out[size(first + i)] =
          static_cast<float>(dot(block.data() + size(i) * vector.size(), vector));
  }
  return out;
}

}  // namespace

namespace circuits {

void require_language_head(const ModelConfig& config) {
  if (config.head != Head::language || config.head_dense)
    fail_usage("a {} model has no logits of tokens over its residual stream", config.family);
}

std::vector<double> mean_unembedding(const Model& model) {
  const ModelConfig& c = model.config();
  std::vector<double> mean(size(c.d_model));
  std::vector<float> rows;
  for (std::int64_t first = 0; first < c.d_out(); first += kBlockRows) {
    const std::int64_t count = std::min(kBlockRows, c.d_out() - first);
    rows.resize(size(count * c.d_model));
    model.unembedding_rows(first, count, rows);
    for (std::size_t i = 0; i < rows.size(); ++i) mean[i % mean.size()] += rows[i];
  }
  for (double& m : mean) m /= static_cast<double>(c.d_out());
  return mean;
}

}  // namespace circuits

std::vector<float> feature_gains(const Model& model, const Transcoder& dictionary,
                                 const StreamReader& reader) {
  const TranscoderConfig& c = dictionary.config;
  if (writing_point(c, model.config()) > reader.point)
    fail_usage("{} writes behind what was to be read", c.name);
  const std::int64_t d = model.config().d_model;
  if (c.d_out != d) fail("{}: rebuilds {} values, the model's width is {}", c.name, c.d_out, d);
  std::vector<float> out(size(c.features));
#pragma omp parallel for schedule(static)
  for (std::int64_t f = 0; f < c.features; ++f)
    out[size(f)] = static_cast<float>(dot(dictionary.decoder.data() + f * d, reader.vector));
  return out;
}

std::vector<float> feature_gains(const CrossLayerTranscoder& dictionary, std::int32_t layer,
                                 const StreamReader& reader) {
  if (2 * std::int64_t{layer} + 2 > reader.point)
    fail_usage("features of layer {} write behind what was to be read", layer);
  const std::int64_t f = dictionary.features();
  std::vector<std::int32_t> ids(size(f));
  for (std::int64_t i = 0; i < f; ++i) ids[size(i)] = static_cast<std::int32_t>(i);
  std::vector<double> sums(size(f));
  for (std::int64_t target = layer; target < dictionary.layers() && 2 * target + 2 <= reader.point;
       ++target) {
    const std::vector<float> part = multiply_rows(
        f, reader.vector, [&](std::int64_t first, std::int64_t count, std::span<float> out) {
          dictionary.decoder_rows(layer, target, std::span(ids).subspan(size(first), size(count)),
                                  out);
        });
    for (std::size_t i = 0; i < part.size(); ++i) sums[i] += part[i];
  }
  return {sums.begin(), sums.end()};
}

std::vector<float> token_gains(const Model& model, const StreamReader& reader) {
  std::vector<float> vector = reader.vector;
  fold_norm(model, SiteKind::embed_ln_normalized, -1, vector);
  return multiply_rows(model.config().d_vocab, vector,
                       [&](std::int64_t first, std::int64_t count, std::span<float> out) {
                         model.embedding_rows(first, count, out);
                       });
}

std::vector<float> logit_gains(const Model& model, std::span<const float> written) {
  const ModelConfig& c = model.config();
  circuits::require_language_head(c);
  std::vector<float> vector(written.begin(), written.end());
  if (c.norm != NormKind::none && c.final_norm) {
    // Of what is written, not of what reads: centred first, then times the weights.
    centre_for_norm(c, vector);
    std::vector<float> weight(vector.size());
    model.final_norm_weight(weight);
    for (std::size_t i = 0; i < vector.size(); ++i) vector[i] *= weight[i];
  }
  std::vector<float> out = multiply_rows(
      c.d_out(), vector, [&](std::int64_t first, std::int64_t count, std::span<float> rows) {
        model.unembedding_rows(first, count, rows);
      });
  double mean = 0;
  for (const float v : out) mean += v;
  mean /= static_cast<double>(out.size());
  for (float& v : out) v = static_cast<float>(v - mean);
  return out;
}

Extremes extremes(std::span<const float> values, std::int64_t k) {
  const std::size_t n = std::min(values.size(), size(std::max<std::int64_t>(k, 0)));
  std::vector<std::int32_t> ids(n);
  std::vector<float> found(n), negated(values.size());
  Extremes out;
  math::top_k(values, ids, found);
  for (std::size_t i = 0; i < n; ++i) out.top.push_back({ids[i], found[i]});
  for (std::size_t i = 0; i < values.size(); ++i) negated[i] = -values[i];
  math::top_k(negated, ids, found);
  for (std::size_t i = 0; i < n; ++i) out.bottom.push_back({ids[i], -found[i]});
  return out;
}

}  // namespace lamina
