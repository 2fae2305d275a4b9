#include "lamina/probes/contributions.h"

#include "depth/depth_write.h"
#include "depth/token_fold.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

constexpr double kSmallestDenominator = 1e-6, kSmallestNorm = 1e-8;

// Columns of one layer.
enum : std::size_t {
  kAttnNorm,
  kMlpNorm,
  kBlockNorm,
  kAttnRatio,
  kMlpRatio,
  kBlockRatio,
  kAttnCos,
  kMlpCos,
  kBlockCos,
  kStreamCos,
  kColumns
};

// Inner products of one token at one layer: h entering, a and m added, b what m is added to, o
// leaving, d = o − h.
struct Products {
  double hh = 0, aa = 0, ha = 0, mm = 0, bb = 0, bm = 0, oo = 0, oh = 0, dd = 0, dh = 0;
};

constexpr std::int64_t kLanes = 4;
using Lanes = std::array<double, kLanes>;
double add_up(const Lanes& x) {
  return (x[0] + x[2]) + (x[1] + x[3]);
}

// base == nullptr: m is added to h + a.
Products products(const float* h, const float* a, const float* m, const float* base, const float* o,
                  std::int64_t d) {
  Lanes hh{}, aa{}, ha{}, mm{}, bb{}, bm{}, oo{}, oh{}, dd{}, dh{};
  const auto add = [&](std::int64_t i, std::int64_t j) {
    const double x = h[i], y = a[i], z = m[i], out = o[i];
    const double b = base != nullptr ? double{base[i]} : x + y;
    const double step = out - x;
    const auto lane = static_cast<std::size_t>(j);
    hh[lane] += x * x;
    aa[lane] += y * y;
    ha[lane] += x * y;
    mm[lane] += z * z;
    bb[lane] += b * b;
    bm[lane] += b * z;
    oo[lane] += out * out;
    oh[lane] += out * x;
    dd[lane] += step * step;
    dh[lane] += step * x;
  };
  std::int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    for (std::int64_t j = 0; j < kLanes; ++j) add(i + j, j);
  }
  for (; i < d; ++i) add(i, i % kLanes);
  return {add_up(hh), add_up(aa), add_up(ha), add_up(mm), add_up(bb),
          add_up(bm), add_up(oo), add_up(oh), add_up(dd), add_up(dh)};
}

double ratio(double part, double whole) {
  return std::sqrt(part) / std::max(std::sqrt(whole), kSmallestDenominator);
}
double cosine(double xy, double xx, double yy) {
  return xy / (std::max(std::sqrt(xx), kSmallestNorm) * std::max(std::sqrt(yy), kSmallestNorm));
}

}  // namespace

struct ContributionProbe::Impl {
  TokenSums sums;
};

ContributionProbe::ContributionProbe(const ModelConfig& config, TokenChoice choice)
    : config_(config), choice_(choice), impl_(std::make_unique<Impl>()) {
  check_choice(choice_);
  impl_->sums = TokenSums(config_.n_layers * static_cast<std::int64_t>(kColumns));
}
ContributionProbe::~ContributionProbe() = default;

std::vector<Site> ContributionProbe::sites(const ModelConfig&) const {
  std::vector<Site> sites = stream_sites(config_);
  for (std::int32_t l = 0; l < config_.n_layers; ++l) {
    sites.push_back({SiteKind::attn_out, l});
    if (config_.d_mlp == 0) continue;
    sites.push_back({SiteKind::mlp_out, l});
    if (config_.norm_place == NormPlace::post) {
      sites.push_back({SiteKind::normalized_resid_mid, l});
    }
  }
  return sites;
}

std::unique_ptr<Probe> ContributionProbe::fresh() const {
  return std::make_unique<ContributionProbe>(config_, choice_);
}

void ContributionProbe::observe(const ActivationBlock& block) {
  const std::int64_t d = config_.d_model;
  const auto layers = static_cast<std::size_t>(config_.n_layers);
  const bool mlp = config_.d_mlp > 0;
  const auto rows_of = [&](SiteKind kind, std::size_t layer) {
    return site_rows(block, {kind, static_cast<std::int32_t>(layer)}, d, name()).data();
  };
  std::vector<const float*> stream, attn, added, base(layers);
  for (Site site : stream_sites(config_))
    stream.push_back(site_rows(block, site, d, name()).data());
  for (std::size_t l = 0; l < layers; ++l) {
    attn.push_back(rows_of(SiteKind::attn_out, l));
    // Without an MLP its numbers are those of a; results() leaves them out.
    added.push_back(mlp ? rows_of(SiteKind::mlp_out, l) : attn[l]);
    if (!mlp) continue;
    if (config_.norm_place == NormPlace::post) {
      base[l] = rows_of(SiteKind::normalized_resid_mid, l);
    } else if (config_.parallel) {
      base[l] = stream[l];
    }
  }
  const std::vector<std::int64_t> rows = chosen_rows(block, choice_);
  impl_->sums.fold(name(), block, rows, [&](std::int64_t row, double* out) {
    const std::int64_t at = row * d;
    for (std::size_t l = 0; l < layers; ++l, out += kColumns) {
      const Products p =
          products(stream[l] + at, attn[l] + at, added[l] + at,
                   base[l] != nullptr ? base[l] + at : nullptr, stream[l + 1] + at, d);
      out[kAttnNorm] = std::sqrt(p.aa);
      out[kMlpNorm] = std::sqrt(p.mm);
      out[kBlockNorm] = std::sqrt(p.dd);
      out[kAttnRatio] = ratio(p.aa, p.hh);
      out[kMlpRatio] = ratio(p.mm, p.bb);
      out[kBlockRatio] = ratio(p.dd, p.hh);
      out[kAttnCos] = cosine(p.ha, p.hh, p.aa);
      out[kMlpCos] = cosine(p.bm, p.bb, p.mm);
      out[kBlockCos] = cosine(p.dh, p.dd, p.hh);
      out[kStreamCos] = cosine(p.oh, p.oo, p.hh);
    }
  });
}

void ContributionProbe::merge(Probe& other) {
  auto* from = dynamic_cast<ContributionProbe*>(&other);
  if (from == nullptr || !(from->choice_ == choice_) ||
      from->impl_->sums.sum.size() != impl_->sums.sum.size()) {
    fail("{}: cannot be merged with a {} of other settings", name(), other.name());
  }
  impl_->sums.add(from->impl_->sums);
  from->impl_->sums = TokenSums(config_.n_layers * static_cast<std::int64_t>(kColumns));
}

ContributionResults ContributionProbe::results() const {
  const TokenSums& sums = impl_->sums;
  const bool mlp = config_.d_mlp > 0;
  ContributionResults r;
  r.tokens = sums.tokens;
  const auto column = [&](std::size_t which, bool largest, bool known) {
    std::vector<double> out;
    for (std::size_t l = 0; l < static_cast<std::size_t>(config_.n_layers); ++l) {
      const std::size_t i = l * kColumns + which;
      out.push_back(!known    ? std::numeric_limits<double>::quiet_NaN()
                    : largest ? sums.maximum(i)
                              : sums.mean(i));
    }
    return out;
  };
  r.attn_norm = column(kAttnNorm, false, true);
  r.mlp_norm = column(kMlpNorm, false, mlp);
  r.block_norm = column(kBlockNorm, false, true);
  r.attn_ratio = column(kAttnRatio, false, true);
  r.mlp_ratio = column(kMlpRatio, false, mlp);
  r.block_ratio = column(kBlockRatio, false, true);
  r.attn_cos = column(kAttnCos, false, true);
  r.mlp_cos = column(kMlpCos, false, mlp);
  r.block_cos = column(kBlockCos, false, true);
  r.stream_cos = column(kStreamCos, false, true);
  r.attn_norm_max = column(kAttnNorm, true, true);
  r.mlp_norm_max = column(kMlpNorm, true, mlp);
  r.block_norm_max = column(kBlockNorm, true, true);
  r.attn_ratio_max = column(kAttnRatio, true, true);
  r.mlp_ratio_max = column(kMlpRatio, true, mlp);
  r.block_ratio_max = column(kBlockRatio, true, true);
  return r;
}

void ContributionProbe::write(ResultFile& file) const {
  const ContributionResults r = results();
  write_choice(file, choice_, r.tokens);
  file.setting("mlp_base", std::string(config_.norm_place == NormPlace::post ? "norm1(h + a)"
                                       : config_.parallel                    ? "h (parallel block)"
                                                                             : "h + a"));
  write_layers(file, config_);
  const auto put = [&](const char* name, const std::vector<double>& values, const char* what,
                       const char* units) {
    file.dataset(name, std::vector<std::string>{"layer"}, values, what, units);
  };
  put("attn_norm", r.attn_norm, "norm of a, what attention adds; mean over tokens", "");
  put("mlp_norm", r.mlp_norm, "norm of m, what the MLP adds; mean over tokens", "");
  put("block_norm", r.block_norm, "norm of the block's step, h leaving minus h entering; mean", "");
  put("attn_ratio", r.attn_ratio, "norm of a over norm of h; mean over tokens", "1");
  put("mlp_ratio", r.mlp_ratio, "norm of m over norm of mlp_base; mean over tokens", "1");
  put("block_ratio", r.block_ratio, "norm of the step over norm of h; mean over tokens", "1");
  put("attn_cos", r.attn_cos, "cosine of a and h; mean over tokens", "1");
  put("mlp_cos", r.mlp_cos, "cosine of m and mlp_base; mean over tokens", "1");
  put("block_cos", r.block_cos, "cosine of the step and h; mean over tokens", "1");
  put("stream_cos", r.stream_cos, "cosine of h leaving and h entering; mean over tokens", "1");
  put("attn_norm_max", r.attn_norm_max, "largest norm of a", "");
  put("mlp_norm_max", r.mlp_norm_max, "largest norm of m", "");
  put("block_norm_max", r.block_norm_max, "largest norm of the step", "");
  put("attn_ratio_max", r.attn_ratio_max, "largest norm of a over norm of h", "1");
  put("mlp_ratio_max", r.mlp_ratio_max, "largest norm of m over norm of mlp_base", "1");
  put("block_ratio_max", r.block_ratio_max, "largest norm of the step over norm of h", "1");
}

}  // namespace lamina
