// Reading the prompt, roots, following a contribution.

#include <algorithm>
#include <cmath>

#include "lamina/core/error.h"
#include "paths/prompt_values.h"
#include "weights/unembedding.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

double dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

void scale(std::span<float> x, double factor) {
  for (float& v : x) v = static_cast<float>(v * factor);
}

SiteKind scale_site(SiteKind normalized) {
  switch (normalized) {
    case SiteKind::embed_ln_normalized:
      return SiteKind::embed_ln_scale;
    case SiteKind::ln1_normalized:
      return SiteKind::ln1_scale;
    case SiteKind::ln1_post_normalized:
      return SiteKind::ln1_post_scale;
    case SiteKind::ln2_normalized:
      return SiteKind::ln2_scale;
    default:
      return SiteKind::ln_final_scale;
  }
}

bool is_normalized(const TranscoderConfig& c) {
  return c.input.site.kind == SiteKind::ln1_normalized ||
         c.input.site.kind == SiteKind::ln2_normalized;
}

}  // namespace

std::string_view path_node_kind_name(PathNodeKind kind) {
  constexpr std::string_view kNames[] = {"logit", "feature",  "head",  "skip",
                                         "token", "position", "error", "bias"};
  return kNames[static_cast<std::size_t>(kind)];
}

std::string path_node_name(const PathNode& n) {
  switch (n.kind) {
    case PathNodeKind::logit:
      return n.other < 0 ? fmt::format("logit{}@{}", n.index, n.position)
                         : fmt::format("logit{}-{}@{}", n.index, n.other, n.position);
    case PathNodeKind::feature:
      return fmt::format("{}.{}@{}", n.layer, n.index, n.position);
    case PathNodeKind::head:
      return fmt::format("a{}.h{}@{}", n.layer, n.index, n.position);
    case PathNodeKind::skip:
    case PathNodeKind::error:
    case PathNodeKind::bias:
      return fmt::format("{}{}@{}", path_node_kind_name(n.kind), n.layer, n.position);
    case PathNodeKind::token:
    case PathNodeKind::position:
      break;
  }
  return fmt::format("{}@{}", path_node_kind_name(n.kind), n.position);
}

PathFinder::Impl::Impl(const Replacement& r)
    : replacement(r), model(r.model()), config(r.model().config()), tokens(r.tokens()) {
  if (r.constant_first())
    fail_usage("paths need a replacement model without a constant first token");
  features.assign(r.features().begin(), r.features().end());
  const std::int64_t layers = config.n_layers;
  for (auto* all : {&patterns, &values, &value_bias, &output_bias, &inputs})
    all->resize(size(layers));
  Batch batch;
  batch.add(r.ids());
  Hooks hooks;
  const auto keep = [&hooks](Site site, std::vector<float>& into) {
    hooks.read(site, [&into](SiteView& v) { into.assign(v.values.begin(), v.values.end()); });
  };
  if (config.positions == Positions::learned) keep({SiteKind::pos_embed, -1}, positions);
  for (std::int32_t l = 0; l < layers; ++l) {
    keep({SiteKind::pattern, l}, patterns[size(l)]);
    keep({SiteKind::v, l}, values[size(l)]);
    if (const Transcoder* t = r.transcoder(l)) keep(t->config.input.site, inputs[size(l)]);
  }
  const Site last = config.norm != NormKind::none && config.final_norm
                        ? Site{SiteKind::ln_final_normalized, -1}
                        : Site{SiteKind::resid_post, static_cast<std::int32_t>(layers - 1)};
  keep(last, final_input);
  r.forward().run(batch, hooks);
  const std::int64_t d = config.d_model;
  std::vector<float> bias(size(d)), row(size(d));
  for (std::int32_t l = 0; l < layers; ++l) {
    if (const Transcoder* t = r.transcoder(l)) apply_place(model, t->config.input, inputs[size(l)]);
    value_bias[size(l)].resize(size(config.d_kv()));
    output_bias[size(l)].resize(size(d));
    model.matrix_bias(fmt::format("{}.v", l), value_bias[size(l)]);
    model.matrix_bias(fmt::format("{}.o", l), output_bias[size(l)]);
    if (!has_norms()) continue;
    model.norm_bias(SiteKind::ln1_normalized, l, bias);
    for (std::int64_t j = 0; j < config.d_kv(); ++j) {
      model.matrix_rows(fmt::format("{}.v", l), j, 1, row);
      float& b = value_bias[size(l)][size(j)];
      b = static_cast<float>(b + dot(row, bias));
    }
  }
}

bool PathFinder::Impl::has_norms() const {
  return config.norm != NormKind::none && config.norm_place != NormPlace::none;
}

double PathFinder::Impl::denominator(SiteKind normalized, std::int32_t layer,
                                     std::int32_t position) const {
  return replacement.scale(scale_site(normalized), layer)[size(position)];
}

PathCursor PathFinder::Impl::behind_place(const Transcoder& dictionary,
                                          std::span<const float> vector,
                                          std::int32_t position) const {
  const TranscoderConfig& c = dictionary.config;
  PathCursor cursor{.reader = {{vector.begin(), vector.end()}, reading_point(c, config)},
                    .position = position};
  if (!is_normalized(c)) return cursor;
  const Site site = c.input.site;
  if (c.input.norm_weights) {
    std::vector<float> bias(vector.size());
    model.norm_bias(site.kind, site.layer, bias);
    cursor.constant = dot(vector, bias);
    fold_norm(model, site.kind, site.layer, cursor.reader.vector);
  } else {
    centre_for_norm(config, cursor.reader.vector);
  }
  scale(cursor.reader.vector, 1.0 / denominator(site.kind, site.layer, position));
  return cursor;
}

PathCursor PathFinder::Impl::behind_feature(const Transcoder& dictionary, std::int64_t feature,
                                            std::int32_t position, double gain) const {
  const std::int64_t d = config.d_model;
  const std::span<const float> row =
      std::span(dictionary.encoder).subspan(size(feature * d), size(d));
  PathCursor cursor = behind_place(dictionary, row, position);
  cursor.constant += dictionary.encoder_bias[size(feature)];
  if (dictionary.config.subtract_decoder_bias) cursor.constant -= dot(row, dictionary.decoder_bias);
  cursor.constant *= gain;
  scale(cursor.reader.vector, gain);
  return cursor;
}

PathFinder::PathFinder(const Replacement& replacement)
    : impl_(std::make_unique<Impl>(replacement)) {}
PathFinder::~PathFinder() = default;
PathFinder::PathFinder(PathFinder&&) noexcept = default;

const Replacement& PathFinder::replacement() const {
  return impl_->replacement;
}

PathCursor PathFinder::feature(std::int32_t layer, std::int32_t position,
                               std::int64_t feature) const {
  const Impl& s = *impl_;
  if (layer < 0 || layer >= s.config.n_layers || s.replacement.transcoder(layer) == nullptr)
    fail_usage("feature {}.{}: there is no dictionary of layer {}", layer, feature, layer);
  if (position < 0 || position >= s.tokens)
    fail_usage("position {}: the prompt has {} tokens", position, s.tokens);
  const Transcoder& t = *s.replacement.transcoder(layer);
  if (feature < 0 || feature >= t.config.features)
    fail_usage("feature {}.{}: layer {} has {} features", layer, feature, layer, t.config.features);
  PathCursor cursor = s.behind_feature(t, feature, position, 1.0);
  const std::int64_t d = s.config.d_model;
  std::vector<float> x(s.inputs[size(layer)].begin() + position * d,
                       s.inputs[size(layer)].begin() + (position + 1) * d);
  const std::span<const float> row = std::span(t.encoder).subspan(size(feature * d), size(d));
  cursor.value = dot(row, x) + t.encoder_bias[size(feature)];
  if (t.config.subtract_decoder_bias) cursor.value -= dot(row, t.decoder_bias);
  return cursor;
}

PathCursor PathFinder::logit(std::int32_t token, std::int32_t minus, std::int32_t position) const {
  const Impl& s = *impl_;
  const ModelConfig& c = s.config;
  circuits::require_language_head(c);
  if (position == -1) position = static_cast<std::int32_t>(s.tokens - 1);
  if (position < 0 || position >= s.tokens)
    fail_usage("position {}: the prompt has {} tokens", position, s.tokens);
  for (const std::int32_t id : {token, minus}) {
    if (id >= c.d_out() || (id < 0 && !(id == -1 && id == minus)))
      fail_usage("token {}: the vocabulary has {}", id, c.d_out());
  }
  std::vector<float> direction(size(c.d_model)), from(direction.size());
  s.model.unembedding_rows(token, 1, direction);
  if (minus >= 0) {
    s.model.unembedding_rows(minus, 1, from);
  } else {
    const std::vector<double> mean = circuits::mean_unembedding(s.model);
    from.assign(mean.begin(), mean.end());
  }
  for (std::size_t i = 0; i < from.size(); ++i) direction[i] -= from[i];
  // The head's own bias: the logits of nothing, a soft-cap undone.
  double head_bias = 0;
  if (c.head_bias) {
    std::vector<float> none(size(c.d_out()));
    s.replacement.forward().unembed(std::vector<float>(size(c.d_model)), none);
    const auto plain = [&](float x) {
      return c.final_softcap > 0 ? c.final_softcap * std::atanh(double{x} / c.final_softcap)
                                 : double{x};
    };
    double mean = 0;
    for (const float b : none) mean += plain(b) / static_cast<double>(none.size());
    head_bias = plain(none[size(token)]) - (minus >= 0 ? plain(none[size(minus)]) : mean);
  }
  PathCursor cursor{.reader = final_reader(s.model, direction), .position = position};
  cursor.constant = head_bias;
  std::vector<float> weighted = direction;
  if (c.norm != NormKind::none && c.final_norm) {
    std::vector<float> weight(direction.size()), bias(direction.size());
    s.model.final_norm_weight(weight);
    s.model.norm_bias(SiteKind::ln_final_normalized, -1, bias);
    cursor.constant += dot(direction, bias);
    for (std::size_t i = 0; i < weight.size(); ++i) weighted[i] *= weight[i];
    scale(cursor.reader.vector, 1.0 / s.denominator(SiteKind::ln_final_normalized, -1, position));
  }
  cursor.value =
      cursor.constant +
      dot(weighted, std::span(s.final_input).subspan(size(position * c.d_model), size(c.d_model)));
  return cursor;
}

PathCursor PathFinder::follow(const PathCursor& cursor, const PathContribution& part) const {
  const Impl& s = *impl_;
  const PathNode& node = part.node;
  PathCursor next;
  if (node.kind == PathNodeKind::feature) {
    const auto found = std::lower_bound(
        s.features.begin(), s.features.end(),
        ActiveFeature{node.layer, node.position, static_cast<std::int32_t>(node.index), 0.0F});
    if (found == s.features.end() || found->feature != node.index)
      fail_usage("{} is not active", path_node_name(node));
    next = s.behind_feature(*s.replacement.transcoder(node.layer), node.index, node.position,
                            part.value / found->activation);
  } else if (node.kind == PathNodeKind::head) {
    next.reader = through_head(s.model, cursor.reader, node.layer, node.index);
    double factor =
        s.patterns[size(node.layer)]
                  [size((node.index * s.tokens + cursor.position) * s.tokens + node.position)];
    if (s.has_norms()) factor /= s.denominator(SiteKind::ln1_normalized, node.layer, node.position);
    if (s.sandwich())
      factor /= s.denominator(SiteKind::ln1_post_normalized, node.layer, cursor.position);
    next.position = node.position;
    scale(next.reader.vector, factor);
  } else if (node.kind == PathNodeKind::skip) {
    const Transcoder& t = *s.replacement.transcoder(node.layer);
    const std::int64_t d = s.config.d_model;
    std::vector<double> sum(size(d));
    for (std::int64_t i = 0; i < d; ++i)
      for (std::int64_t j = 0; j < d; ++j)
        sum[size(j)] += double{cursor.reader.vector[size(i)]} * t.skip[size(i * d + j)];
    const std::vector<float> back(sum.begin(), sum.end());
    next = s.behind_place(t, back, node.position);
  } else {
    fail_usage("nothing contributes to {}", path_node_name(node));
  }
  next.value = part.value;
  return next;
}

}  // namespace lamina
