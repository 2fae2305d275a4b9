#include "lamina/core/verify.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "lamina/core/error.h"
#include "record/verify_output.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// Relative rounding of a sum of three fp32 terms, and of storing a value.
constexpr double kArithmetic = 0x1.00001p-23;  // two roundings, second order included
double store_rounding(StoreType type) {
  return type == StoreType::f16 ? 0x1p-11 : type == StoreType::bf16 ? 0x1p-8 : 0.0;
}
// Values below the type's normal range are rounded to a fixed step.
double store_floor(StoreType type) {
  return type == StoreType::f16 ? 0x1p-25 : type == StoreType::bf16 ? 0x1p-134 : 0.0;
}

// Collects one check's values; keeps the worst.
class Tally {
 public:
  explicit Tally(std::string name) { check_.name = std::move(name); }

  template <class Place>
  void value(double error, double allowed, const Place& place) {
    ++check_.compared;
    // Written so that a NaN fails.
    const bool fine = error <= allowed;
    if (!fine) ++check_.failures;
    double ratio = fine ? (allowed > 0 ? error / allowed : 0.0) : error / allowed;
    if (!fine && !(ratio > 1)) ratio = std::numeric_limits<double>::infinity();
    if (ratio > worst_) {
      worst_ = ratio;
      check_.error = error;
      check_.allowed = allowed;
      check_.place = place();
    }
  }
  const VerifyCheck& check() const { return check_; }

 private:
  VerifyCheck check_;
  double worst_ = 0;
};

class Verifier {
 public:
  Verifier(const Recording& recording, Forward* forward)
      : recording_(recording),
        header_(recording.header()),
        // A recording stores sizes only; the model also knows where its norms stand.
        config_(forward != nullptr ? forward->model().config() : header_.config),
        forward_(forward),
        rounding_(store_rounding(header_.store)),
        floor_(store_floor(header_.store)) {}

  VerifyReport run(const Progress& progress);

 private:
  using Values = ActivationBlock::Values;

  const Values* find(const ActivationBlock& block, SiteKind kind, std::int32_t layer) const {
    const auto found = block.sites.find(ActivationBlock::site_key({kind, layer}));
    return found == block.sites.end() ? nullptr : &found->second;
  }
  void block(const ActivationBlock& stored);
  void finite(const ActivationBlock& stored);
  void patterns(const ActivationBlock& stored);
  void stream(const ActivationBlock& stored);
  void sum(Tally& tally, const ActivationBlock& block, Site total,
           std::initializer_list<const Values*> terms);
  void logits(const LogitSummary& summary, const ActivationBlock& block);
  void outputs(const ActivationBlock& stored);
  void recomputed(const ActivationBlock& stored, const ActivationBlock& fresh);
  void recomputed_logits(const LogitSummary& stored, const ActivationBlock& fresh);

  std::string place(const ActivationBlock& block, std::int64_t token, std::int64_t column) const {
    std::int64_t p = 0;
    while (p + 1 < block.batch.prompts() && block.batch.offsets[size(p + 1)] <= token) ++p;
    return fmt::format("prompt {} '{}', token {}{}", block.first_prompt + p,
                       block.prompts[size(p)].id, token - block.batch.offsets[size(p)],
                       column < 0 ? std::string() : fmt::format(", column {}", column));
  }
  std::string attention_place(const ActivationBlock& block, const Values& values,
                              std::int64_t at) const {
    std::int64_t p = 0;
    while (p + 1 < block.batch.prompts() && values.offsets[size(p + 1)] <= at) ++p;
    const std::int64_t length = block.batch.length(p), inside = at - values.offsets[size(p)];
    return fmt::format("prompt {} '{}', head {}, query {}, key {}", block.first_prompt + p,
                       block.prompts[size(p)].id, inside / (length * length),
                       inside / length % length, inside % length);
  }
  std::string value_place(const ActivationBlock& block, Site site, const Values& values,
                          std::int64_t at) const {
    const std::int64_t row = values.shape.row();
    return site_name(site) + ", " +
           (values.shape.attention ? attention_place(block, values, at)
                                   : place(block, at / row, at % row));
  }

  const Recording& recording_;
  const RecordingHeader& header_;
  const ModelConfig& config_;
  Forward* forward_;
  double rounding_, floor_;

  Tally finite_{"every value is finite"};
  Tally pattern_{"attention patterns sum to 1 over the visible keys"};
  Tally embed_{"resid_pre of block 0 = embed + pos_embed"};
  Tally next_{"each block begins where the last ended"};
  Tally mid_{"resid_mid = resid_pre + attn_out"};
  Tally post_{"resid_post = resid_pre + attn_out + mlp_out"};
  Tally post_norm_{"resid_post = normalized_resid_mid + mlp_out"};
  Tally order_{"top logits are ordered log-probabilities of the vocabulary"};
  Tally output_{"attn_out = output projection of z"};
  Tally heads_{"attn_out = sum of head results + bias"};
  Tally again_{"stored values = the model run again"};
  Tally again_logits_{"stored log-probabilities = the model run again"};
};

void Verifier::finite(const ActivationBlock& stored) {
  for (Site site : header_.sites) {
    const Values& values = stored.at(site);
    const bool scores = site.kind == SiteKind::attn_scores;  // −∞ where masked
    const auto n = static_cast<std::int64_t>(values.values.size());
    for (std::int64_t i = 0; i < n; ++i) {
      const float v = values.values[size(i)];
      const bool fine = std::isfinite(v) || (scores && v < 0 && std::isinf(v));
      finite_.value(fine ? 0.0 : std::numeric_limits<double>::infinity(), 0.0,
                    [&] { return value_place(stored, site, values, i); });
    }
  }
}

void Verifier::patterns(const ActivationBlock& stored) {
  for (Site site : header_.sites) {
    if (site.kind != SiteKind::pattern) continue;
    const Values& values = stored.at(site);
    for (std::int64_t p = 0; p < stored.batch.prompts(); ++p) {
      const std::int64_t length = stored.batch.length(p);
      const std::int64_t begin = values.offsets[size(p)], rows = config_.n_heads * length;
      for (std::int64_t r = 0; r < rows; ++r) {
        double total = 0;
        for (std::int64_t k = 0; k < length; ++k) {
          const double a = values.values[size(begin + r * length + k)];
          const bool hidden = config_.causal && k > r % length;
          total += hidden && a != 0 ? std::numeric_limits<double>::quiet_NaN() : a;
        }
        const double keys = static_cast<double>(length);
        pattern_.value(std::abs(total - 1), kArithmetic * keys + rounding_ + floor_ * keys, [&] {
          return site_name(site) + ", " + attention_place(stored, values, begin + r * length);
        });
      }
    }
  }
}

// total = Σ terms, each term and the total rounded when they were stored, and each addition once.
void Verifier::sum(Tally& tally, const ActivationBlock& block, Site total,
                   std::initializer_list<const Values*> terms) {
  const Values* found = find(block, total.kind, total.layer);
  if (found == nullptr) return;
  for (const Values* term : terms) {
    if (term == nullptr) return;
  }
  const double operations = terms.size() > 1 ? kArithmetic : 0.0;
  for (std::size_t i = 0; i < found->values.size(); ++i) {
    double expected = 0, magnitude = 0;
    for (const Values* term : terms) {
      expected += term->values[i];
      magnitude += std::abs(term->values[i]);
    }
    const double have = found->values[i];
    const double allowed = magnitude * operations + (magnitude + std::abs(have)) * rounding_ +
                           floor_ * static_cast<double>(terms.size() + 1);
    tally.value(std::abs(have - expected), allowed,
                [&] { return value_place(block, total, *found, static_cast<std::int64_t>(i)); });
  }
}

void Verifier::stream(const ActivationBlock& stored) {
  const bool post_norm = config_.norm_place == NormPlace::post;
  const bool mlp = config_.d_mlp > 0;
  const auto at = [&](SiteKind kind, std::int32_t layer) { return find(stored, kind, layer); };
  const Values* embed = at(SiteKind::embed, -1);
  const Values* position = at(SiteKind::pos_embed, -1);
  // Without pos_embed in the file the sum is only known for models that have none: a recording
  // does not say which it is, its model does.
  if (config_.embed_norm || config_.n_types > 0) {
    // More is added than the file holds, and a norm stands behind the sum.
  } else if (position != nullptr) {
    sum(embed_, stored, {SiteKind::resid_pre, 0}, {embed, position});
  } else if (forward_ != nullptr && config_.positions != Positions::learned) {
    sum(embed_, stored, {SiteKind::resid_pre, 0}, {embed});
  }
  for (std::int32_t layer = 0; layer < config_.n_layers; ++layer) {
    const Values* pre = at(SiteKind::resid_pre, layer);
    if (pre == nullptr && !post_norm && layer > 0) pre = at(SiteKind::resid_post, layer - 1);
    const Values* attn = at(SiteKind::attn_out, layer);
    const Values* mid = at(SiteKind::resid_mid, layer);
    const Values* out = at(SiteKind::mlp_out, layer);
    sum(mid_, stored, {SiteKind::resid_mid, layer}, {pre, attn});
    if (post_norm) {
      sum(post_norm_, stored, {SiteKind::resid_post, layer},
          {at(SiteKind::normalized_resid_mid, layer), out});
      if (layer + 1 < config_.n_layers) {
        sum(next_, stored, {SiteKind::resid_pre, layer + 1},
            {at(SiteKind::normalized_resid_post, layer)});
      }
      continue;
    }
    if (layer + 1 < config_.n_layers) {
      sum(next_, stored, {SiteKind::resid_pre, layer + 1}, {at(SiteKind::resid_post, layer)});
    }
    const Site post{SiteKind::resid_post, layer};
    if (!mlp) {
      sum(post_, stored, post, {pre, attn});
    } else if (pre != nullptr && attn != nullptr) {
      sum(post_, stored, post, {pre, attn, out});
    } else {
      sum(post_, stored, post, {mid, out});
    }
  }
}

void Verifier::logits(const LogitSummary& summary, const ActivationBlock& block) {
  constexpr double kBad = std::numeric_limits<double>::infinity();
  for (std::int64_t t = 0; t < block.batch.tokens(); ++t) {
    double total = 0, last = kBad;
    bool fine = true;
    for (std::int64_t i = 0; i < summary.k; ++i) {
      const std::int32_t id = summary.topk_ids[size(t * summary.k + i)];
      const double p = summary.topk_logprobs[size(t * summary.k + i)];
      fine = fine && id >= 0 && id < config_.d_vocab && p <= last && p <= kArithmetic;
      last = p;
      total += std::exp(p);
    }
    order_.value(fine ? std::max(0.0, total - 1) : kBad, 1e-4, [&] { return place(block, t, -1); });
  }
}

void Verifier::outputs(const ActivationBlock& stored) {
  const record::OutputCheck check{forward_->model().weights(), config_, rounding_, floor_};
  for (std::int32_t layer = 0; layer < config_.n_layers; ++layer) {
    const Values* out = find(stored, SiteKind::attn_out, layer);
    if (out == nullptr) continue;
    const auto compare = [&](Tally& tally, const record::Expected& expected) {
      for (std::size_t i = 0; i < out->values.size(); ++i) {
        const double allowed = expected.allowed[i] + std::abs(out->values[i]) * rounding_ + floor_;
        tally.value(std::abs(out->values[i] - expected.value[i]), allowed, [&] {
          return value_place(stored, {SiteKind::attn_out, layer}, *out,
                             static_cast<std::int64_t>(i));
        });
      }
    };
    const Values* z = find(stored, SiteKind::z, layer);
    if (z == nullptr) continue;
    compare(output_, check.from_z(layer, z->values));
    if (const Values* result = find(stored, SiteKind::result, layer)) {
      compare(heads_, check.from_results(layer, result->values, z->values));
    }
  }
}

void Verifier::recomputed(const ActivationBlock& stored, const ActivationBlock& fresh) {
  for (Site site : header_.sites) {
    const Values& a = stored.at(site);
    const Values& b = fresh.at(site);
    for (std::size_t i = 0; i < a.values.size(); ++i) {
      // fp32 values must be the same bits: the forward pass promises it.
      const double found = a.values[i], expected = b.values[i];
      const bool same = found == expected;
      again_.value(same ? 0.0 : std::abs(found - expected),
                   same ? 0.0 : std::abs(expected) * rounding_ + floor_,
                   [&] { return value_place(stored, site, a, static_cast<std::int64_t>(i)); });
    }
  }
}

void Verifier::recomputed_logits(const LogitSummary& stored, const ActivationBlock& fresh) {
  const LogitSummary& again = fresh.logits;
  for (std::int64_t t = 0; t < fresh.batch.tokens(); ++t) {
    for (std::int64_t i = 0; i < stored.k; ++i) {
      const std::size_t at = size(t * stored.k + i);
      const bool same_id = stored.topk_ids[at] == again.topk_ids[at];
      again_logits_.value(same_id ? std::abs(static_cast<double>(stored.topk_logprobs[at]) -
                                             again.topk_logprobs[at])
                                  : std::numeric_limits<double>::infinity(),
                          0.0, [&] { return place(fresh, t, i); });
    }
    const double a = stored.target_logprob[size(t)], b = again.target_logprob[size(t)];
    const bool same = a == b || (std::isnan(a) && std::isnan(b));
    again_logits_.value(same ? 0.0 : std::abs(a - b), 0.0,
                        [&] { return place(fresh, t, -1) + ", target"; });
  }
}

void Verifier::block(const ActivationBlock& stored) {
  finite(stored);
  patterns(stored);
  stream(stored);
  if (header_.topk > 0) {
    const std::int64_t first = recording_.offsets()[size(stored.first_prompt)];
    logits(recording_.read_logits(first, stored.batch.tokens()), stored);
  }
  if (forward_ != nullptr) outputs(stored);
}

VerifyReport Verifier::run(const Progress& progress) {
  constexpr std::uint64_t kBlockBytes = std::uint64_t{128} << 20;
  if (forward_ == nullptr) {
    run_recorded(
        recording_, header_.sites, kBlockBytes,
        [&](const ActivationBlock& stored) { block(stored); }, progress);
  } else {
    LiveOptions options;
    options.block_bytes = kBlockBytes;
    options.topk = header_.topk;
    options.progress = progress;
    const auto compare = [&](const ActivationBlock& fresh) {
      const ActivationBlock stored =
          recording_.read_block(header_.sites, fresh.first_prompt, fresh.batch.prompts());
      block(stored);
      recomputed(stored, fresh);
      if (header_.topk > 0) {
        const std::int64_t first = recording_.offsets()[size(fresh.first_prompt)];
        recomputed_logits(recording_.read_logits(first, fresh.batch.tokens()), fresh);
      }
    };
    run_live(*forward_, recording_.prompts(), header_.sites, options, compare);
  }
  VerifyReport report;
  for (const Tally* tally : {&finite_, &embed_, &next_, &mid_, &post_, &pattern_, &order_}) {
    report.checks.push_back(tally->check());
  }
  if (config_.norm_place == NormPlace::post) report.checks.push_back(post_norm_.check());
  if (forward_ != nullptr) {
    for (const Tally* tally : {&output_, &heads_, &again_, &again_logits_}) {
      report.checks.push_back(tally->check());
    }
  }
  return report;
}

}  // namespace

bool VerifyReport::passed() const {
  return std::all_of(checks.begin(), checks.end(),
                     [](const VerifyCheck& check) { return check.passed(); });
}

VerifyReport verify_recording(const Recording& recording, Forward* forward,
                              const Progress& progress) {
  if (forward != nullptr) {
    const std::string& expected = recording.header().model_sha256;
    if (const std::string& found = forward->model().sha256(); found != expected) {
      fail("{}: it was recorded from a model with SHA-256 {}, '{}' has {}",
           recording.path().string(), expected, forward->model().id(), found);
    }
  }
  return Verifier(recording, forward).run(progress);
}

}  // namespace lamina
