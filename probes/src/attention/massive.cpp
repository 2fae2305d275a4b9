#include "lamina/probes/massive.h"

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <exception>
#include <numeric>

#include "lamina/core/error.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// Bits of |x|: they order like the numbers.
std::uint32_t magnitude_bits(float x) {
  return std::bit_cast<std::uint32_t>(x) & 0x7fffffffU;
}

using Values = Eigen::Map<const Eigen::ArrayXf>;
Values view(std::span<const float> x) {
  return {x.data(), static_cast<Eigen::Index>(x.size())};
}

void keep_largest(std::vector<MassiveActivation>& all, std::int64_t most) {
  std::stable_sort(all.begin(), all.end(),
                   [](const MassiveActivation& a, const MassiveActivation& b) {
                     return std::abs(a.value) > std::abs(b.value);
                   });
  if (all.size() > size(most)) all.resize(size(most));
}

}  // namespace

float median_magnitude(std::span<const float> x) {
  if (x.empty()) return 0;
  // 4096 buckets of equal exponent and leading mantissa bits, then the values of one of them.
  constexpr int kShift = 19;
  std::array<std::array<std::uint32_t, 4096>, 2> counts{};
  // Two tables in turn: equal neighbours do not wait for one another.
  for (std::size_t i = 0; i < x.size(); ++i) ++counts[i % 2][magnitude_bits(x[i]) >> kShift];
  std::uint64_t rank = (x.size() - 1) / 2;
  std::uint32_t bucket = 0;
  for (;; ++bucket) {
    const std::uint64_t here = std::uint64_t{counts[0][bucket]} + counts[1][bucket];
    if (rank < here) break;
    rank -= here;
  }
  std::vector<std::uint32_t> inside;
  inside.reserve(std::size_t{counts[0][bucket]} + counts[1][bucket]);
  for (const float v : x) {
    if (magnitude_bits(v) >> kShift == bucket) inside.push_back(magnitude_bits(v));
  }
  const auto middle = inside.begin() + static_cast<std::ptrdiff_t>(rank);
  std::nth_element(inside.begin(), middle, inside.end());
  return std::bit_cast<float>(*middle);
}

SiteKind stream_kind(const ModelConfig& config) {
  const Site normalized{SiteKind::normalized_resid_post, 0};
  const std::vector<Site> all = all_sites(config);
  return std::find(all.begin(), all.end(), normalized) != all.end() ? normalized.kind
                                                                    : SiteKind::resid_post;
}

MassiveProbe::MassiveProbe(const ModelConfig& config, MassiveOptions options)
    : config_(config), options_(options) {
  for (const double threshold : {options_.least, options_.ratio}) {
    if (!std::isfinite(threshold) || threshold < 0) {
      fail_usage("massive: a threshold is {}, a number of 0 or more expected", threshold);
    }
  }
  if (options_.strongest < 0 || options_.strongest > 1000000) {
    fail_usage("massive: {} activations are to be listed, 0 to 1000000 expected",
               options_.strongest);
  }
  if (!options_.site) options_.site = stream_kind(config_);
  const std::vector<Site> all = all_sites(config_);
  const SiteShape shape = site_shape({*options_.site, 0}, config_);
  if (std::find(all.begin(), all.end(), Site{*options_.site, 0}) == all.end() || shape.attention ||
      shape.heads > 0) {
    fail_usage("massive: {} does not hold one vector a token of every layer of this model",
               site_name({*options_.site, 0}));
  }
  results_.layers = config_.n_layers;
  results_.width = shape.width;
  results_.layer.resize(size(results_.layers));
  results_.dimension.resize(size(results_.layers * results_.width));
}

std::vector<Site> MassiveProbe::sites(const ModelConfig& config) const {
  std::vector<Site> sites;
  for (std::int32_t l = 0; l < config.n_layers; ++l) sites.push_back({*options_.site, l});
  return sites;
}

std::unique_ptr<Probe> MassiveProbe::fresh() const {
  return std::make_unique<MassiveProbe>(config_, options_);
}

// Of one prompt in one layer.
struct MassiveProbe::Found {
  struct Entry {
    std::int32_t position, dimension;
    float value;
  };
  double median = 0, largest = 0;
  std::int64_t tokens = 0;
  std::vector<Entry> all;
  std::exception_ptr error;
};

void MassiveProbe::observe_prompt(const ActivationBlock& block, std::int64_t prompt,
                                  std::int64_t layer, Found& found) const {
  const Site site{*options_.site, static_cast<std::int32_t>(layer)};
  const std::int64_t start = block.batch.offsets[size(prompt)], d = results_.width;
  const std::int64_t tokens = block.batch.length(prompt);
  const std::span<const float> values =
      std::span(block.at(site).values).subspan(size(start * d), size(tokens * d));
  found.median = median_magnitude(values);
  const double bar = std::max(options_.least, options_.ratio * found.median);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::span<const float> row = values.subspan(size(t * d), size(d));
    // A NaN anywhere makes the sum NaN, an infinity makes it no less than infinite.
    const float sum = view(row).abs().sum();
    if (!std::isfinite(sum)) {
      for (const float v : row) {
        if (std::isfinite(v)) continue;
        fail("massive: prompt '{}', {}, position {}: {} is no finite activation",
             block.prompts[size(prompt)].id, site_name(site), t, v);
      }
    }
    const double largest = view(row).abs().maxCoeff();
    found.largest = std::max(found.largest, largest);
    if (!(largest > bar)) continue;
    ++found.tokens;
    for (std::int64_t i = 0; i < d; ++i) {
      const double magnitude = std::abs(row[size(i)]);
      if (!(magnitude > bar)) continue;
      found.all.push_back(
          {static_cast<std::int32_t>(t), static_cast<std::int32_t>(i), row[size(i)]});
    }
  }
}

void MassiveProbe::add(const ActivationBlock& block, std::int64_t prompt, std::int64_t l,
                       Found& part) {
  if (part.error) std::rethrow_exception(part.error);
  MassiveLayer& layer = results_.layer[size(l)];
  layer.median.add(part.median);
  layer.largest = std::max(layer.largest, part.largest);
  layer.largest_ratio = std::max(layer.largest_ratio, part.largest / part.median);
  layer.count += static_cast<std::int64_t>(part.all.size());
  layer.tokens += part.tokens;
  for (const Found::Entry& a : part.all) {
    MassiveDimension& dimension = results_.dimension[size(l * results_.width + a.dimension)];
    dimension.value.add(double{a.value});
    dimension.first += a.position == 0;
  }
  if (part.all.empty()) return;
  std::stable_sort(part.all.begin(), part.all.end(),
                   [](const Found::Entry& a, const Found::Entry& b) {
                     return std::abs(a.value) > std::abs(b.value);
                   });
  if (part.all.size() > size(options_.strongest)) part.all.resize(size(options_.strongest));
  const std::int64_t start = block.batch.offsets[size(prompt)];
  for (const Found::Entry& a : part.all) {
    results_.listed.push_back({static_cast<std::int32_t>(l), a.dimension,
                               block.prompts[size(prompt)].id, a.position,
                               block.batch.ids[size(start + a.position)], a.value,
                               std::abs(double{a.value}) / part.median});
  }
  keep_largest(results_.listed, options_.strongest);
}

void MassiveProbe::observe(const ActivationBlock& block) {
  const std::int64_t prompts = block.batch.prompts();
  const std::int64_t layers = results_.layers, tasks = prompts * layers;
  for (const Site site : sites(config_)) {
    const std::size_t held = block.at(site).values.size();
    if (held != size(block.batch.tokens() * results_.width)) {
      fail("massive: {} holds {} values, {} tokens × {} were expected", site_name(site), held,
           block.batch.tokens(), results_.width);
    }
  }
  // A few tasks at a time: with thresholds near 0 each finds everything.
  constexpr std::int64_t kTasks = 32;
  for (std::int64_t first = 0; first < tasks; first += kTasks) {
    const std::int64_t count = std::min(kTasks, tasks - first);
    std::vector<Found> found(size(count));
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t i = 0; i < count; ++i) {
      Found& part = found[size(i)];
      try {
        observe_prompt(block, (first + i) / layers, (first + i) % layers, part);
      } catch (...) {
        part.error = std::current_exception();
      }
    }
    for (std::int64_t i = 0; i < count; ++i) {
      add(block, (first + i) / layers, (first + i) % layers, found[size(i)]);
    }
  }
  results_.tokens += block.batch.tokens();
  results_.prompts += prompts;
}

void MassiveProbe::merge(Probe& other) {
  auto* from = dynamic_cast<MassiveProbe*>(&other);
  if (from == nullptr || !(from->options_ == options_) ||
      from->results_.layers != results_.layers || from->results_.width != results_.width) {
    fail("massive: cannot be merged with a {} of other settings", other.name());
  }
  MassiveResults& a = results_;
  MassiveResults& b = from->results_;
  for (std::size_t l = 0; l < a.layer.size(); ++l) {
    a.layer[l].median.add(b.layer[l].median);
    a.layer[l].largest = std::max(a.layer[l].largest, b.layer[l].largest);
    a.layer[l].largest_ratio = std::max(a.layer[l].largest_ratio, b.layer[l].largest_ratio);
    a.layer[l].count += b.layer[l].count;
    a.layer[l].tokens += b.layer[l].tokens;
  }
  for (std::size_t i = 0; i < a.dimension.size(); ++i) {
    a.dimension[i].value.add(b.dimension[i].value);
    a.dimension[i].first += b.dimension[i].first;
  }
  a.listed.insert(a.listed.end(), b.listed.begin(), b.listed.end());
  keep_largest(a.listed, options_.strongest);
  a.tokens += b.tokens;
  a.prompts += b.prompts;
  b = MassiveProbe(config_, options_).results_;
}

void MassiveProbe::write(ResultFile& file) const {
  using Names = std::vector<std::string>;
  const MassiveResults& r = results_;
  file.setting("site", site_name({*options_.site, 0}).substr(std::string("blocks.0.").size()));
  file.setting("least", options_.least);
  file.setting("ratio", options_.ratio);
  file.setting("median_over", std::string("one layer and prompt: all tokens and dimensions"));
  file.setting("listed", options_.strongest);
  file.setting("tokens", r.tokens);
  file.setting("prompts", r.prompts);

  std::vector<std::int64_t> layers(size(r.layers)), dimensions(size(r.width)),
      entries(r.listed.size());
  std::iota(layers.begin(), layers.end(), 0);
  std::iota(dimensions.begin(), dimensions.end(), 0);
  std::iota(entries.begin(), entries.end(), 0);
  file.axis("layer", layers);
  file.axis("dimension", dimensions);
  const auto per_layer = [&](std::string_view name, auto value, std::string_view text) {
    std::vector<double> all;
    for (const MassiveLayer& l : r.layer) all.push_back(static_cast<double>(value(l)));
    file.dataset(name, Names{"layer"}, all, text, "");
  };
  per_layer(
      "median", [](const MassiveLayer& l) { return l.median.mean(); },
      "median of |a| of a prompt, mean over prompts");
  per_layer(
      "largest", [](const MassiveLayer& l) { return l.largest; }, "largest |a|");
  per_layer(
      "largest_ratio", [](const MassiveLayer& l) { return l.largest_ratio; },
      "largest |a| over its prompt's median");
  per_layer(
      "count", [](const MassiveLayer& l) { return l.count; }, "massive activations");
  per_layer(
      "tokens_hit", [](const MassiveLayer& l) { return l.tokens; },
      "tokens that hold a massive activation");
  std::vector<double> counts, means, first;
  for (const MassiveDimension& d : r.dimension) {
    counts.push_back(static_cast<double>(d.value.count));
    means.push_back(d.value.mean());
    first.push_back(static_cast<double>(d.first));
  }
  const Names cell{"layer", "dimension"};
  file.dataset("dimension_count", cell, counts, "massive activations of the dimension", "");
  file.dataset("dimension_mean", cell, means, "their mean value; NaN without", "");
  file.dataset("dimension_first", cell, first, "those of them at position 0", "");
  if (r.listed.empty()) return;

  Names prompts;
  std::vector<std::int32_t> layer, dimension, position, token;
  std::vector<double> value, ratio;
  for (const MassiveActivation& a : r.listed) {
    prompts.push_back(a.prompt_id);
    layer.push_back(a.layer);
    dimension.push_back(a.dimension);
    position.push_back(static_cast<std::int32_t>(a.position));
    token.push_back(a.token_id);
    value.push_back(double{a.value});
    ratio.push_back(a.ratio);
  }
  const Names entry{"activation"};
  file.axis("activation", entries);
  file.dataset("listed_prompt", entry, prompts, "id of the prompt", "");
  file.dataset("listed_layer", entry, layer, "layer of the activation", "");
  file.dataset("listed_dimension", entry, dimension, "dimension of the activation", "");
  file.dataset("listed_position", entry, position, "position within the prompt, from 0", "");
  file.dataset("listed_token", entry, token, "id of the token", "");
  file.dataset("listed_value", entry, value, "the activation, largest |a| first", "");
  file.dataset("listed_ratio", entry, ratio, "|a| over the median of its layer and prompt", "");
}

}  // namespace lamina
