#include <algorithm>
#include <limits>
#include <numeric>

#include "lamina/circuits/feature_contexts.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

}  // namespace

FeatureContexts::FeatureContexts(std::vector<const Transcoder*> dictionaries,
                                 std::vector<Feature> features, const Model* model,
                                 std::int64_t skip)
    : dictionaries_(std::move(dictionaries)),
      features_(std::move(features)),
      model_(model),
      skip_(skip),
      places_(features_.size()) {
  for (const Transcoder* t : dictionaries_) {
    if (model_ == nullptr && t->config.input.norm_weights) {
      fail_usage("{}: it reads {}, for which the model is needed", t->config.name,
                 dictionary_place_name(t->config.input));
    }
  }
  for (const Feature& f : features_) {
    const TranscoderConfig& c = dictionaries_.at(f.dictionary)->config;
    if (f.name.index < 0 || f.name.index >= c.features)
      fail_usage("feature {}: {} has {} features", hop_name(f.name), c.name, c.features);
  }
}

std::vector<Site> FeatureContexts::sites(const ModelConfig&) const {
  std::vector<Site> sites;
  for (const Transcoder* t : dictionaries_) {
    const Site site = t->config.input.site;
    if (std::find(sites.begin(), sites.end(), site) == sites.end()) sites.push_back(site);
  }
  return sites;
}

std::unique_ptr<Probe> FeatureContexts::fresh() const {
  return std::make_unique<FeatureContexts>(dictionaries_, features_, model_, skip_);
}

void FeatureContexts::observe(const ActivationBlock& block) {
  const std::int64_t first = seen_.add(block);
  std::vector<std::int64_t> rows;  // of the batch
  for (std::int64_t p = 0; p < block.batch.prompts(); ++p)
    for (std::int64_t r = block.batch.offsets[size(p)] + skip_;
         r < block.batch.offsets[size(p + 1)]; ++r)
      rows.push_back(r);
  counted_ += std::ssize(rows);
  for (std::size_t d = 0; d < dictionaries_.size(); ++d) {
    const TranscoderConfig& c = dictionaries_[d]->config;
    const ActivationBlock::Values& site = block.at(c.input.site);
    if (site.shape.row() != c.d_in) {
      fail("{}: reads {} values of {}, there are {}", c.name, c.d_in,
           dictionary_place_name(c.input), site.shape.row());
    }
    std::vector<float> x(rows.size() * size(c.d_in));
    for (std::size_t i = 0; i < rows.size(); ++i)
      std::copy_n(site.values.begin() + rows[i] * c.d_in, c.d_in,
                  x.begin() + static_cast<std::ptrdiff_t>(i) * c.d_in);
    if (c.input.norm_weights) apply_place(*model_, c.input, x);
    const SparseRows z = dictionaries_[d]->encode(x);
    for (std::size_t f = 0; f < features_.size(); ++f) {
      if (features_[f].dictionary != d) continue;
      for (std::size_t i = 0; i < rows.size(); ++i) {
        const auto from = z.feature.begin() + z.offsets[i],
                   to = z.feature.begin() + z.offsets[i + 1];
        const auto at = std::lower_bound(from, to, features_[f].name.index);
        if (at == to || *at != features_[f].name.index) continue;
        places_[f].push_back({first + rows[i], z.value[size(at - z.feature.begin())]});
      }
    }
  }
}

void FeatureContexts::merge(Probe& other) {
  auto& from = dynamic_cast<FeatureContexts&>(other);
  const std::int64_t first = seen_.tokens();
  seen_.merge(from.seen_);
  counted_ += from.counted_;
  for (std::size_t f = 0; f < places_.size(); ++f)
    for (const Place& p : from.places_[f]) places_[f].push_back({first + p.token, p.value});
}

std::vector<FeatureContexts::Place> FeatureContexts::top(std::size_t feature, std::int64_t count,
                                                         bool every_place) const {
  std::vector<Place> sorted = places_.at(feature);
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const Place& a, const Place& b) { return a.value > b.value; });
  std::vector<Place> out;
  std::vector<std::int64_t> prompts;
  for (const Place& p : sorted) {
    if (std::ssize(out) >= count) break;
    const std::int64_t prompt = seen_.prompt(p.token);
    if (!every_place && std::find(prompts.begin(), prompts.end(), prompt) != prompts.end())
      continue;
    prompts.push_back(prompt);
    out.push_back(p);
  }
  return out;
}

float FeatureContexts::at(std::size_t feature, std::int64_t token) const {
  const std::vector<Place>& all = places_.at(feature);
  const auto found = std::lower_bound(all.begin(), all.end(), token,
                                      [](const Place& p, std::int64_t t) { return p.token < t; });
  return found == all.end() || found->token != token ? 0.0F : found->value;
}

void FeatureContexts::write(ResultFile& file) const {
  const std::int64_t n = output.examples;
  file.setting("tokens", counted_);
  file.setting("skip", skip_);
  file.setting("examples", n);
  file.setting("context", output.context);
  file.setting("every_place", std::string(output.every_place ? "yes" : "no"));
  file.setting("defaults", std::string("[ours] examples 10, context 10, one place a prompt"));
  std::vector<std::string> names, text, context;
  std::vector<std::int64_t> rank(size(n)), fires, prompt, position;
  std::iota(rank.begin(), rank.end(), 0);
  std::vector<float> value;
  for (std::size_t f = 0; f < features_.size(); ++f) {
    names.push_back(hop_name(features_[f].name));
    fires.push_back(count(f));
    const std::vector<Place> places = top(f, n, output.every_place);
    for (std::int64_t i = 0; i < n; ++i) {
      const bool there = i < std::ssize(places);
      const Place p = there ? places[size(i)] : Place{-1, std::numeric_limits<float>::quiet_NaN()};
      value.push_back(p.value);
      prompt.push_back(there ? seen_.prompt(p.token) : -1);
      position.push_back(there ? seen_.position(p.token) : -1);
      text.push_back(there ? seen_.text(p.token, output.tokenizer) : "");
      context.push_back(there ? seen_.context(p.token, output.context, output.tokenizer) : "");
    }
  }
  const std::vector<std::string> one = {"feature"}, both = {"feature", "example"};
  file.axis("feature", std::span<const std::string>(names));
  file.axis("example", std::span<const std::int64_t>(rank));
  file.dataset("count", one, std::span<const std::int64_t>(fires), "tokens at which it fires", "");
  file.dataset("activation", both, std::span<const float>(value),
               "at its strongest places; NaN: none", "");
  file.dataset("prompt", both, std::span<const std::int64_t>(prompt),
               "number of the prompt; -1: none", "");
  file.dataset("position", both, std::span<const std::int64_t>(position), "token of the prompt",
               "");
  file.dataset("text", both, std::span<const std::string>(text), "the token", "");
  file.dataset("context_text", both, std::span<const std::string>(context), "what stands around it",
               "");
}

}  // namespace lamina
