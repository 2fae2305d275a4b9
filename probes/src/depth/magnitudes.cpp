#include "lamina/probes/magnitudes.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

#include "depth/depth_write.h"
#include "depth/token_fold.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}
using R = MagnitudeResults;

// The octave is the exponent of the number: no logarithm is needed.
std::size_t octave_bin(float u) {
  const auto exponent = static_cast<std::int64_t>(std::bit_cast<std::uint32_t>(u) >> 23) - 127;
  return size(std::clamp<std::int64_t>(exponent - R::kFirstOctave + 1, 0, R::kBins - 1));
}

double l1_norm(const float* x, std::int64_t n) {
  constexpr std::int64_t kLanes = 8;
  std::array<double, kLanes> lane{};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::int64_t j = 0; j < kLanes; ++j) lane[size(j)] += std::abs(x[i + j]);
  }
  for (; i < n; ++i) lane[size(i % kLanes)] += std::abs(x[i]);
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

}  // namespace

MagnitudeProbe::MagnitudeProbe(const ModelConfig& config, TokenChoice choice)
    : config_(config), choice_(choice), histogram_(size(outputs() * config.n_layers * R::kBins)) {
  check_choice(choice_);
  for (std::int64_t o = 0; o < outputs(); ++o) {
    for (std::int64_t l = 0; l < config_.n_layers; ++l) sum_.emplace_back(size(width(o)));
  }
}

std::vector<Site> MagnitudeProbe::sites(const ModelConfig&) const {
  constexpr SiteKind kKinds[] = {SiteKind::attn_out, SiteKind::mlp_out, SiteKind::mlp_post};
  std::vector<Site> sites;  // [output, layer]
  for (std::int64_t o = 0; o < outputs(); ++o) {
    for (std::int32_t l = 0; l < config_.n_layers; ++l) sites.push_back({kKinds[o], l});
  }
  return sites;
}

std::unique_ptr<Probe> MagnitudeProbe::fresh() const {
  return std::make_unique<MagnitudeProbe>(config_, choice_);
}

void MagnitudeProbe::observe(const ActivationBlock& block) {
  const std::vector<std::int64_t> rows = chosen_rows(block, choice_);
  const std::vector<Site> wanted = sites(config_);
  const auto count = static_cast<std::int64_t>(wanted.size());
  std::vector<const float*> values;
  for (std::int64_t s = 0; s < count; ++s) {
    values.push_back(site_rows(block, wanted[size(s)], width(s / config_.n_layers), name()).data());
  }
  std::vector<std::int64_t> bad(size(count), -1);
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t s = 0; s < count; ++s) {
    const std::int64_t n = width(s / config_.n_layers);
    double* sum = sum_[size(s)].data();
    std::int64_t* histogram = histogram_.data() + s * R::kBins;
    for (std::int64_t row : rows) {
      const float* x = values[size(s)] + row * n;
      const double norm = l1_norm(x, n);
      if (!std::isfinite(norm)) {
        bad[size(s)] = row;
        break;
      }
      // An output of zeros is even, and says nothing about units: all go to the lowest bin.
      const double scale = norm > 0 ? static_cast<double>(n) / norm : 0.0;
      for (std::int64_t i = 0; i < n; ++i) sum[i] += std::abs(x[i]) * scale;
      for (std::int64_t i = 0; i < n; ++i) {
        ++histogram[octave_bin(static_cast<float>(std::abs(x[i]) * scale))];
      }
    }
  }
  for (std::int64_t s = 0; s < count; ++s) {
    if (bad[size(s)] < 0) continue;
    fail("{}: {}: {} is not finite", name(), token_place(block, bad[size(s)]),
         site_name(wanted[size(s)]));
  }
  tokens_ += static_cast<std::int64_t>(rows.size());
}

void MagnitudeProbe::merge(Probe& other) {
  auto* from = dynamic_cast<MagnitudeProbe*>(&other);
  bool same = from != nullptr && from->choice_ == choice_ && from->sum_.size() == sum_.size();
  for (std::size_t s = 0; same && s < sum_.size(); ++s) {
    same = from->sum_[s].size() == sum_[s].size();
  }
  if (!same) fail("{}: cannot be merged with a {} of other settings", name(), other.name());
  for (std::size_t i = 0; i < histogram_.size(); ++i) histogram_[i] += from->histogram_[i];
  for (std::size_t s = 0; s < sum_.size(); ++s) {
    for (std::size_t i = 0; i < sum_[s].size(); ++i) sum_[s][i] += from->sum_[s][i];
    std::fill(from->sum_[s].begin(), from->sum_[s].end(), 0.0);
  }
  tokens_ += from->tokens_;
  std::fill(from->histogram_.begin(), from->histogram_.end(), 0);
  from->tokens_ = 0;
}

MagnitudeResults MagnitudeProbe::results() const {
  MagnitudeResults r;
  r.tokens = tokens_;
  r.layers = config_.n_layers;
  r.outputs = outputs();
  r.histogram = histogram_;
  for (std::int64_t o = 0; o < r.outputs; ++o) {
    const std::int64_t n = r.width[size(o)] = width(o);
    for (std::int64_t l = 0; l < r.layers; ++l) {
      std::vector<double> mean = sum_[size(o * r.layers + l)];
      for (double& value : mean) value /= static_cast<double>(tokens_);
      r.mean[size(o)].insert(r.mean[size(o)].end(), mean.begin(), mean.end());
      std::sort(mean.begin(), mean.end(), std::greater<>());
      double all = 0, top = 0, half = 0;
      for (double value : mean) all += value;
      const std::int64_t tenth = std::max<std::int64_t>(1, n / 10);
      for (std::int64_t i = 0; i < tenth; ++i) top += mean[size(i)];
      std::int64_t units = 0;
      while (units < n && half < all / 2) half += mean[size(units++)];
      r.top_share.push_back(top / all);  // NaN without tokens, or if all is 0
      r.half_share.push_back(all > 0 ? static_cast<double>(units) / static_cast<double>(n)
                                     : std::numeric_limits<double>::quiet_NaN());
    }
  }
  return r;
}

void MagnitudeProbe::write(ResultFile& file) const {
  using Names = std::vector<std::string>;
  const MagnitudeResults r = results();
  write_choice(file, choice_, r.tokens);
  Names names(kMagnitudeOutputs.begin(), kMagnitudeOutputs.begin() + r.outputs);
  file.axis("output", names);
  write_layers(file, config_);
  std::vector<double> edges = {0.0};
  for (std::int64_t i = 0; i <= R::kOctaves; ++i) {
    edges.push_back(std::exp2(static_cast<double>(R::kFirstOctave + i)));
  }
  file.axis("bin", edges);
  std::vector<double> shares;
  for (std::size_t i = 0; i < r.histogram.size(); ++i) {
    const std::int64_t output = static_cast<std::int64_t>(i) / (r.layers * R::kBins);
    shares.push_back(static_cast<double>(r.histogram[i]) /
                     static_cast<double>(r.tokens * r.width[size(output)]));
  }
  file.dataset("histogram", Names{"output", "layer", "bin"}, shares,
               "share of (token, unit) pairs whose |x| / sum of |x| of the token, times the width, "
               "is at least the bin's value and below that of the next",
               "1");
  file.dataset("top_tenth", Names{"output", "layer"}, r.top_share,
               "share of the summed mean magnitudes that the largest tenth of the units has", "1");
  file.dataset("half_units", Names{"output", "layer"}, r.half_share,
               "smallest share of the units that has half of the summed mean magnitudes", "1");
  file.axis("d_model", counting(config_.d_model));
  if (r.outputs > 1) file.axis("d_mlp", counting(config_.d_mlp));
  for (std::int64_t o = 0; o < r.outputs; ++o) {
    file.dataset(std::string("mean_") + kMagnitudeOutputs[size(o)],
                 Names{"layer", o == 2 ? "d_mlp" : "d_model"}, r.mean[size(o)],
                 "|x| / sum of |x| of the token, times the width, mean over tokens", "1");
  }
}

}  // namespace lamina
