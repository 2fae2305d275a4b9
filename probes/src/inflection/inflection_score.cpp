// The score's parts: scaling, local maxima, band.

#include <algorithm>
#include <charconv>

#include "lamina/core/error.h"
#include "lamina/probes/inflection.h"

namespace lamina {

InflectionLoss parse_inflection_loss(std::string_view name) {
  for (const auto loss : {InflectionLoss::automatic, InflectionLoss::next_token,
                          InflectionLoss::label, InflectionLoss::none}) {
    if (name == inflection_loss_name(loss)) return loss;
  }
  fail_usage("loss '{}' is not one of automatic, next-token, label, none", name);
}

std::string_view inflection_loss_name(InflectionLoss loss) {
  switch (loss) {
    case InflectionLoss::automatic:
      return "automatic";
    case InflectionLoss::next_token:
      return "next-token";
    case InflectionLoss::label:
      return "label";
    case InflectionLoss::none:
      return "none";
  }
  return "?";
}

std::int32_t label_of(const Prompt& prompt, std::string_view name, const ModelConfig& config) {
  const auto found = prompt.labels.find(std::string(name));
  if (found == prompt.labels.end()) fail("prompt '{}' has no label '{}'", prompt.id, name);
  const std::string& value = found->second;
  const auto named = std::find(config.labels.begin(), config.labels.end(), value);
  if (named != config.labels.end()) {
    return static_cast<std::int32_t>(named - config.labels.begin());
  }
  std::int32_t number = -1;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error == std::errc{} && end == value.data() + value.size() && number >= 0 &&
      number < config.d_out()) {
    return number;
  }
  std::string known;
  for (std::size_t i = 0; i < config.labels.size() && i < 8; ++i) {
    known += (i > 0 ? ", " : "") + config.labels[i];
  }
  fail("prompt '{}': label '{}' is '{}'; the model has {} labels: {} (or 0 to {})", prompt.id, name,
       value, config.labels.size(), known, config.labels.size() - 1);
}

std::vector<double> min_max(std::span<const double> x) {
  std::vector<double> out(x.begin(), x.end());
  if (out.empty()) return out;
  const auto [low, high] = std::minmax_element(x.begin(), x.end());
  for (double& v : out) v = *high > *low ? (v - *low) / (*high - *low) : 0.0;
  return out;
}

std::vector<std::int32_t> local_maxima(std::span<const double> x) {
  std::vector<std::int32_t> out;
  for (std::size_t i = 0; i < x.size(); ++i) {
    // Equal neighbours count as one place, at the first of them.
    if (i > 0 && !(x[i] > x[i - 1])) continue;
    std::size_t after = i + 1;
    while (after < x.size() && x[after] == x[i]) ++after;
    if (after < x.size() && !(x[i] > x[after])) continue;
    if (i == 0 && after == x.size() && x.size() > 1) continue;  // all alike
    out.push_back(static_cast<std::int32_t>(i));
  }
  std::stable_sort(out.begin(), out.end(), [&](std::int32_t a, std::int32_t b) {
    return x[static_cast<std::size_t>(a)] > x[static_cast<std::size_t>(b)];
  });
  return out;
}

std::pair<std::int32_t, std::int32_t> peak_band(std::span<const double> x, double share) {
  if (x.empty()) return {-1, -1};
  const auto peak = std::max_element(x.begin(), x.end());
  auto first = peak, last = peak;
  const double least = share * *peak;
  while (first != x.begin() && *(first - 1) >= least) --first;
  while (last + 1 != x.end() && *(last + 1) >= least) ++last;
  return {static_cast<std::int32_t>(first - x.begin()),
          static_cast<std::int32_t>(last - x.begin())};
}

}  // namespace lamina
