#include "lamina/probes/void.h"

#include <limits>
#include <numeric>

#include "lamina/core/error.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

template <class T>
void append(std::vector<T>& to, std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
  from.clear();
}

std::vector<std::int64_t> counting(std::int64_t n) {
  std::vector<std::int64_t> values(size(n));
  std::iota(values.begin(), values.end(), 0);
  return values;
}

}  // namespace

VoidCounts::VoidCounts(std::int64_t a, std::int64_t l)
    : alphas(a), layers(l), active(size(a * 2 * l)) {}

void VoidCounts::add(const VoidCounts& other) {
  for (std::size_t i = 0; i < active.size(); ++i) active[i] += other.active[i];
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] += other.tokens[i];
}

double VoidCounts::usage(std::int64_t alpha, std::int64_t phase, std::int64_t layer) const {
  const std::int64_t all = tokens[size(phase)];
  if (all == 0) return std::numeric_limits<double>::quiet_NaN();
  return static_cast<double>(active[size((alpha * 2 + phase) * layers + layer)]) /
         static_cast<double>(all);
}

double VoidCounts::model_usage(std::int64_t alpha, std::int64_t phase) const {
  const std::int64_t all = tokens[size(phase)] * layers;
  if (all == 0) return std::numeric_limits<double>::quiet_NaN();
  const auto first = active.begin() + static_cast<std::ptrdiff_t>((alpha * 2 + phase) * layers);
  return static_cast<double>(std::accumulate(first, first + layers, std::int64_t{0})) /
         static_cast<double>(all);
}

std::vector<double> VoidCounts::usages() const {
  std::vector<double> out;
  for (std::int64_t a = 0; a < alphas; ++a) {
    for (std::int64_t p = 0; p < 2; ++p) {
      for (std::int64_t l = 0; l < layers; ++l) out.push_back(usage(a, p, l));
    }
  }
  return out;
}

std::vector<double> VoidCounts::model_usages() const {
  std::vector<double> out;
  for (std::int64_t a = 0; a < alphas; ++a) {
    for (std::int64_t p = 0; p < 2; ++p) out.push_back(model_usage(a, p));
  }
  return out;
}

VoidProbe::VoidProbe(const ModelConfig& config, VoidOptions options)
    : config_(config), options_(std::move(options)) {
  check_alphas(options_.alphas);
  check_voids_make_sense(config_);
  results_.counts = VoidCounts(static_cast<std::int64_t>(options_.alphas.size()), config_.n_layers);
}

std::vector<Site> VoidProbe::sites(const ModelConfig& config) const {
  std::vector<Site> sites = {{SiteKind::resid_pre, 0}};
  for (std::int32_t l = 0; l < config.n_layers; ++l) sites.push_back({SiteKind::resid_post, l});
  return sites;
}

std::unique_ptr<Probe> VoidProbe::fresh() const {
  return std::make_unique<VoidProbe>(config_, options_);
}

void VoidProbe::observe(const ActivationBlock& block) {
  const std::int64_t tokens = block.batch.tokens(), layers = config_.n_layers;
  const auto alphas = static_cast<std::int64_t>(options_.alphas.size());
  const std::int64_t d = config_.d_model;

  std::vector<double> norms(size(tokens * (layers + 1)));
  const std::vector<Site> wanted = sites(config_);
  for (std::int64_t s = 0; s <= layers; ++s) {
    const std::span<const float> values = block.at(wanted[size(s)]).values;
    if (values.size() != size(tokens * d)) {
      fail("void: {} holds {} values, {} tokens × {} were expected", site_name(wanted[size(s)]),
           values.size(), tokens, d);
    }
#pragma omp parallel for schedule(static)
    for (std::int64_t t = 0; t < tokens; ++t) {
      norms[size(t * (layers + 1) + s)] = row_norm(values.subspan(size(t * d), size(d)));
    }
  }

  std::vector<std::uint8_t> active(size(tokens * alphas * layers));
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < tokens; ++t) {
    const double* norm = norms.data() + t * (layers + 1);
    for (std::int64_t a = 0; a < alphas; ++a) {
      VoidDetector detector(options_.alphas[size(a)], options_.rule);
      std::uint8_t* out = active.data() + (t * alphas + a) * layers;
      for (std::int64_t l = 0; l < layers; ++l) {
        out[l] = detector.active(norm[l + 1] - norm[l]) ? 1 : 0;
      }
    }
  }

  VoidResults& r = results_;
  for (std::int64_t p = 0; p < block.batch.prompts(); ++p) {
    const Prompt& prompt = block.prompts[size(p)];
    if (options_.keep_tokens) r.prompt_ids.push_back(prompt.id);
    for (std::int64_t i = 0; i < block.batch.length(p); ++i) {
      const std::int64_t t = block.batch.offsets[size(p)] + i;
      const std::uint8_t phase = i < prompt.given ? 0 : 1;
      ++r.counts.tokens[phase];
      for (std::int64_t a = 0; a < alphas; ++a) {
        for (std::int64_t l = 0; l < layers; ++l) {
          r.counts.at(a, phase, l) += active[size((t * alphas + a) * layers + l)];
        }
      }
      if (!options_.keep_tokens) continue;
      r.prompt.push_back(static_cast<std::int32_t>(r.prompt_ids.size()) - 1);
      r.position.push_back(static_cast<std::int32_t>(i));
      r.token_id.push_back(block.batch.ids[size(t)]);
      r.phase.push_back(phase);
    }
  }
  if (!options_.keep_tokens) return;
  append(r.norms, norms);
  append(r.active, active);
}

void VoidProbe::merge(Probe& other) {
  auto* from = dynamic_cast<VoidProbe*>(&other);
  if (from == nullptr || from->options_.alphas != options_.alphas ||
      from->options_.rule != options_.rule || from->config_.n_layers != config_.n_layers ||
      from->options_.keep_tokens != options_.keep_tokens) {
    fail("void: cannot be merged with a {} of other settings", other.name());
  }
  VoidResults& a = results_;
  VoidResults& b = from->results_;
  const auto before = static_cast<std::int32_t>(a.prompt_ids.size());
  for (std::int32_t& prompt : b.prompt) prompt += before;
  a.counts.add(b.counts);
  append(a.prompt_ids, b.prompt_ids);
  append(a.prompt, b.prompt);
  append(a.position, b.position);
  append(a.token_id, b.token_id);
  append(a.phase, b.phase);
  append(a.norms, b.norms);
  append(a.active, b.active);
  b.counts = VoidCounts(a.counts.alphas, a.counts.layers);
}

void write_void_usage(ResultFile& file, std::span<const double> alphas, std::int64_t layers,
                      std::span<const double> usage, std::span<const double> model_usage) {
  using Names = std::vector<std::string>;
  file.axis("alpha", alphas);
  file.axis("phase", Names(kVoidPhases.begin(), kVoidPhases.end()));
  file.axis("layer", counting(layers));
  file.dataset("usage", Names{"alpha", "phase", "layer"}, usage,
               "share of the phase's tokens for which the layer is active, that is not void; NaN "
               "without tokens",
               "");
  file.dataset("model_usage", Names{"alpha", "phase"}, model_usage, "mean of usage over the layers",
               "");
}

void VoidProbe::write(ResultFile& file) const {
  using Names = std::vector<std::string>;
  const VoidResults& r = results_;
  const std::int64_t layers = r.counts.layers, alphas = r.counts.alphas, tokens = r.tokens();
  file.setting("rule", std::string(void_rule_name(options_.rule)));
  file.setting("state_reset", std::string("every token"));
  file.setting("tokens_PP", r.counts.tokens[0]);
  file.setting("tokens_RG", r.counts.tokens[1]);
  write_void_usage(file, options_.alphas, layers, r.counts.usages(), r.counts.model_usages());
  if (!options_.keep_tokens) return;

  Names states = {"embed"};
  for (std::int64_t l = 0; l < layers; ++l) states.push_back(std::to_string(l));
  file.axis("prompt", r.prompt_ids);
  file.axis("token", counting(tokens));
  file.axis("state", states);
  const Names per_token{"token"};
  file.dataset("token_prompt", per_token, r.prompt, "index of the token's prompt", "");
  file.dataset("token_position", per_token, r.position, "position within the prompt, from 0", "");
  file.dataset("token_id", per_token, r.token_id, "id of the token", "");
  file.dataset("token_phase", per_token, r.phase, "0: PP, given; 1: RG, generated", "");
  file.dataset("norm", Names{"token", "state"}, r.norms,
               "Euclidean norm of the residual stream: entering block 0 (embed), leaving block l",
               "");

  std::vector<std::uint8_t> by_alpha(r.active.size());
  const auto prompts = static_cast<std::int64_t>(r.prompt_ids.size());
  std::vector<std::int64_t> used(size(alphas * prompts * 2)), counted(size(prompts * 2));
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int64_t cell = std::int64_t{r.prompt[size(t)]} * 2 + r.phase[size(t)];
    ++counted[size(cell)];
    for (std::int64_t a = 0; a < alphas; ++a) {
      const auto from = r.active.begin() + (t * alphas + a) * layers;
      std::copy_n(from, layers, by_alpha.begin() + (a * tokens + t) * layers);
      used[size(a * prompts * 2 + cell)] += std::accumulate(from, from + layers, std::int64_t{0});
    }
  }
  std::vector<double> shares(used.size());
  for (std::size_t i = 0; i < used.size(); ++i) {
    const std::int64_t all = counted[i % counted.size()] * layers;
    shares[i] = all == 0 ? std::numeric_limits<double>::quiet_NaN()
                         : static_cast<double>(used[i]) / static_cast<double>(all);
  }
  file.dataset("active", Names{"alpha", "token", "layer"}, by_alpha,
               "1: the layer is active for the token; 0: void", "");
  file.dataset("prompt_usage", Names{"alpha", "prompt", "phase"}, shares,
               "share of (token, layer) pairs of the prompt that are active; NaN without tokens",
               "");
}

}  // namespace lamina
