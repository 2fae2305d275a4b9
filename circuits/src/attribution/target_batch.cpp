#include "attribution/target_batch.h"

#include <Eigen/Core>
#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <tuple>

#include "lamina/core/backward.h"
#include "lamina/core/error.h"

namespace lamina::circuits {
namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Lengths to which a prompt is cut, and the tokens that a pass should have at least.
constexpr std::int64_t kLengths = 8, kGoodTokens = 512;

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// Where a dictionary's input stands on the residual stream.
Site stream_of(const DictionaryPlace& place, const ModelConfig& config) {
  const std::int32_t layer = place.site.layer;
  const bool before = config.parallel || place.site.kind == SiteKind::resid_pre ||
                      place.site.kind == SiteKind::ln1_normalized;
  return {before ? SiteKind::resid_pre : SiteKind::resid_mid, layer};
}

}  // namespace

struct TargetBatch::Impl {
  Impl(Replacement& r, std::int64_t batch_tokens, std::uint64_t memory, std::int64_t targets)
      : replacement(r), model(r.model()), config(model.config()), backward(model) {
    d = config.d_model;
    tokens = r.tokens();
    sources = r.sources();
    n_features = static_cast<std::int64_t>(r.features().size());
    // A tape for every length is kept if that leaves each of them large enough.
    const std::uint64_t bytes = Tape::bytes_per_token(config);
    const auto hold = static_cast<std::int64_t>(memory / bytes);
    most_tokens = std::min(batch_tokens, std::max(hold / kLengths, std::min(hold, kGoodTokens)));
    most_tapes = std::max<std::int64_t>(1, hold / std::max(most_tokens, tokens));
    most_copies = std::max<std::int64_t>(1, targets);
    collect();
  }

  // A target reads the prompt up to itself: so much of it is copied, in kLengths steps.
  std::int64_t reach(const Target& target) const {
    const std::int64_t step = (tokens + kLengths - 1) / kLengths;
    return std::min(tokens, (target.position / step + 1) * step);
  }
  std::int64_t copies_of(std::int64_t reached) const {
    return std::clamp<std::int64_t>(most_tokens / reached, 1, most_copies);
  }
  // The tape of copies of the prompt's first `reached` tokens.
  const Tape& prepare(std::int64_t reached) {
    length = reached;
    copies = copies_of(reached);
    const auto found = tapes.find(reached);
    if (found != tapes.end()) return found->second;
    if (std::ssize(tapes) >= most_tapes) tapes.clear();
    Batch batch;
    for (std::int64_t c = 0; c < copies; ++c) batch.add(replacement.ids().first(size(reached)));
    Tape& tape = tapes[reached];
    replacement.forward().run(batch, {}, RunOptions{.tape = &tape});
    return tape;
  }

  Replacement& replacement;
  const Model& model;
  const ModelConfig& config;
  Backward backward;
  std::map<std::int64_t, Tape> tapes;  // by length
  std::int64_t d = 0, tokens = 0, sources = 0, n_features = 0;
  std::int64_t most_tokens = 0, most_copies = 1, most_tapes = 1;
  std::int64_t length = 0, copies = 0;  // of the tape in use: tokens of a copy
  // Features of a layer and position are sources first[…] … first[… + 1] − 1, [L·T + 1].
  std::vector<std::int64_t> first;
  std::vector<std::vector<float>>
      vectors;              // [target layer][F, D], what the features in front of it add
  std::vector<float> rows;  // [copies, sources]
  std::vector<std::vector<float>> pending;  // [layer]: through a skip, for the layer's input

  void collect();
  void pull_back(const DictionaryPlace& place, std::int64_t position, std::span<float> v) const;
  void through_norm(SiteKind scale_kind, std::int32_t layer, std::int64_t position,
                    std::span<float> v) const;
  void contract(std::int32_t layer, std::span<const float> gradient, std::int64_t count,
                std::int64_t last);
  void skip(std::int32_t layer, std::span<const float> gradient, std::int64_t count,
            std::int64_t last);
};

void TargetBatch::Impl::collect() {
  const std::span<const ActiveFeature> features = replacement.features();
  first.assign(size(config.n_layers * tokens + 1), n_features);
  for (std::int64_t i = n_features; i-- > 0;)
    first[size(features[size(i)].layer * tokens + features[size(i)].position)] = i;
  // Places without features begin where the next ones do.
  for (std::size_t i = first.size() - 1; i-- > 0;) first[i] = std::min(first[i], first[i + 1]);
  vectors.resize(size(config.n_layers));
  std::vector<std::int32_t> numbers;
  for (std::int32_t target = 0; target < config.n_layers; ++target) {
    const std::int32_t writer = replacement.first_writer(target);
    const std::int64_t begin = first[size(writer * tokens)];
    std::vector<float>& all = vectors[size(target)];
    all.resize(size((first[size((target + 1) * tokens)] - begin) * d));
    for (std::int32_t l = writer; l <= target; ++l) {
      const std::int64_t from = first[size(l * tokens)], to = first[size((l + 1) * tokens)];
      numbers.clear();
      for (std::int64_t i = from; i < to; ++i) numbers.push_back(features[size(i)].feature);
      const std::span<float> rows_of =
          std::span(all).subspan(size((from - begin) * d), size((to - from) * d));
      if (!numbers.empty()) replacement.write_rows(l, target, numbers, rows_of);
      for (std::int64_t i = from; i < to; ++i)
        for (std::int64_t j = 0; j < d; ++j)
          rows_of[size((i - from) * d + j)] *= features[size(i)].activation;
    }
  }
}

void TargetBatch::Impl::through_norm(SiteKind scale_kind, std::int32_t layer, std::int64_t position,
                                     std::span<float> v) const {
  if (config.norm == NormKind::layer) {
    double mean = 0;
    for (float x : v) mean += x;
    mean /= static_cast<double>(d);
    for (float& x : v) x = static_cast<float>(x - mean);
  }
  const float scale = replacement.scale(scale_kind, layer)[size(position)];
  for (float& x : v) x /= scale;
}

void TargetBatch::Impl::pull_back(const DictionaryPlace& place, std::int64_t position,
                                  std::span<float> v) const {
  const Site site = place.site;
  if (place.norm_weights) {
    std::vector<float> weight(size(d));
    model.norm_weight(site.kind, site.layer, weight);
    for (std::size_t i = 0; i < v.size(); ++i) v[i] *= weight[i];
  }
  if (site.kind == SiteKind::ln1_normalized)
    through_norm(SiteKind::ln1_scale, site.layer, position, v);
  if (site.kind == SiteKind::ln2_normalized)
    through_norm(SiteKind::ln2_scale, site.layer, position, v);
}

// gradient [copies · length, D] at what a layer's MLP adds (config.n_layers: at the embedding).
void TargetBatch::Impl::contract(std::int32_t layer, std::span<const float> gradient,
                                 std::int64_t count, std::int64_t last) {
  const bool embedding = layer == config.n_layers;
  const std::span<const float> errors =
      embedding ? replacement.embedding() : replacement.error(layer);
  const Eigen::OuterStride<> to(sources), from(length * d);
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t p = 0; p <= last; ++p) {
    const Eigen::Map<const Matrix, 0, Eigen::OuterStride<>> g(gradient.data() + p * d, count, d,
                                                              from);
    const std::int64_t one = n_features + layer * tokens + p;
    Eigen::Map<Matrix, 0, Eigen::OuterStride<>>(rows.data() + one, count, 1, to).noalias() =
        g * Eigen::Map<const Eigen::VectorXf>(errors.data() + p * d, d);
    if (embedding) continue;
    const std::int32_t writer = replacement.first_writer(layer);
    const std::int64_t offset = first[size(writer * tokens)];
    for (std::int32_t l = writer; l <= layer; ++l) {
      const std::int64_t begin = first[size(l * tokens + p)];
      const std::int64_t n = first[size(l * tokens + p + 1)] - begin;
      if (n == 0) continue;
      const Eigen::Map<const Matrix> v(vectors[size(layer)].data() + (begin - offset) * d, n, d);
      Eigen::Map<Matrix, 0, Eigen::OuterStride<>>(rows.data() + begin, count, n, to).noalias() +=
          g * v.transpose();
    }
  }
}

void TargetBatch::Impl::skip(std::int32_t layer, std::span<const float> gradient,
                             std::int64_t count, std::int64_t last) {
  const Transcoder& t = *replacement.transcoder(layer);
  std::vector<float>& at = pending[size(layer)];
  at.assign(size(copies * length * d), 0.0F);
  const Eigen::Map<const Matrix> w(t.skip.data(), d, d);
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t c = 0; c < count; ++c) {
    Eigen::Map<Matrix> to(at.data() + c * length * d, last + 1, d);
    to.noalias() = Eigen::Map<const Matrix>(gradient.data() + c * length * d, last + 1, d) * w;
    for (std::int64_t p = 0; p <= last; ++p)
      pull_back(t.config.input, p, std::span(at).subspan(size((c * length + p) * d), size(d)));
  }
}

TargetBatch::TargetBatch(Replacement& replacement, std::int64_t tokens, std::uint64_t memory,
                         std::int64_t targets)
    : impl_(std::make_unique<Impl>(replacement, tokens, memory, targets)) {}
TargetBatch::~TargetBatch() = default;

std::vector<std::size_t> TargetBatch::order(std::span<const Target> targets) const {
  std::vector<std::size_t> out(targets.size());
  std::iota(out.begin(), out.end(), std::size_t{0});
  const auto key = [&](std::size_t i) {
    return std::tuple(-impl_->reach(targets[i]), -targets[i].stream.layer, -targets[i].position);
  };
  std::stable_sort(out.begin(), out.end(), [&](auto a, auto b) { return key(a) < key(b); });
  return out;
}

std::int64_t TargetBatch::fits(std::span<const Target> targets) const {
  if (targets.empty()) return 0;
  const std::int64_t reached = impl_->reach(targets.front());
  const std::int64_t most = std::min<std::int64_t>(impl_->copies_of(reached), std::ssize(targets));
  std::int64_t count = 1;
  while (count < most && impl_->reach(targets[size(count)]) == reached) ++count;
  return count;
}

Target TargetBatch::target(const ActiveFeature& feature) const {
  const Impl& s = *impl_;
  const Transcoder& t = *s.replacement.transcoder(feature.layer);
  Target out{stream_of(t.config.input, s.config), feature.position, {}};
  const float* row = t.encoder.data() + feature.feature * s.d;
  out.direction.assign(row, row + s.d);
  s.pull_back(t.config.input, feature.position, out.direction);
  return out;
}

Target TargetBatch::target(const LogitReadout& logit) const {
  const Impl& s = *impl_;
  Target out{{SiteKind::resid_post, static_cast<std::int32_t>(s.config.n_layers - 1)},
             s.tokens - 1,
             logit.direction};
  if (s.config.norm != NormKind::none && s.config.final_norm)
    s.through_norm(SiteKind::ln_final_scale, -1, out.position, out.direction);
  return out;
}

std::span<const float> TargetBatch::run(std::span<const Target> targets) {
  Impl& s = *impl_;
  const auto count = static_cast<std::int64_t>(targets.size());
  if (count == 0 || count > fits(targets))
    fail_usage("{} targets in a batch of {}", count, fits(targets));
  const Tape& tape = s.prepare(s.reach(targets.front()));
  s.rows.assign(size(count * s.sources), 0.0F);
  s.pending.assign(size(s.config.n_layers), {});
  std::int64_t last = 0;
  std::int32_t highest = 0;
  std::set<Site> streams;
  bool logits = false;
  for (const Target& t : targets) {
    last = std::max(last, t.position);
    highest = std::max(highest, t.stream.layer);
    if (t.stream.kind == SiteKind::resid_post)
      logits = true;
    else
      streams.insert(t.stream);
  }

  Hooks hooks;
  for (std::int32_t l = 0; s.config.d_mlp > 0 && l < s.config.n_layers; ++l) {
    if (l > highest || (l == highest && !logits)) continue;
    const Transcoder* t = s.replacement.transcoder(l);
    const bool skips = t != nullptr && t->config.skip;
    hooks.read({SiteKind::mlp_out, l}, [&s, l, count, last, skips](SiteView& view) {
      s.contract(l, view.values, count, last);
      if (skips) s.skip(l, view.values, count, last);
    });
    if (skips) streams.insert(stream_of(t->config.input, s.config));
  }
  for (const Site stream : streams) {
    hooks.write(stream, [&s, stream, targets](SiteView& view) {
      for (std::size_t c = 0; c < targets.size(); ++c) {
        if (targets[c].stream != stream) continue;
        const auto at = (static_cast<std::int64_t>(c) * s.length + targets[c].position) * s.d;
        for (std::int64_t i = 0; i < s.d; ++i)
          view.values[size(at + i)] += targets[c].direction[size(i)];
      }
      const std::vector<float>& skipped = s.pending[size(stream.layer)];
      for (std::size_t i = 0; i < skipped.size(); ++i) view.values[i] += skipped[i];
    });
  }
  hooks.read({SiteKind::embed, -1}, [&s, count, last](SiteView& view) {
    s.contract(static_cast<std::int32_t>(s.config.n_layers), view.values, count, last);
  });
  if (logits) {
    std::vector<float> seed(size(s.copies * s.length * s.d));
    for (std::size_t c = 0; c < targets.size(); ++c) {
      if (targets[c].stream.kind != SiteKind::resid_post) continue;
      const auto at = (static_cast<std::int64_t>(c) * s.length + targets[c].position) * s.d;
      std::copy(targets[c].direction.begin(), targets[c].direction.end(), seed.begin() + at);
    }
    s.backward.seed_residual(tape, seed);
  }
  s.backward.run(tape, {.frozen_norm = true, .frozen_pattern = true, .frozen_mlp = true}, hooks);
  return s.rows;
}

}  // namespace lamina::circuits
