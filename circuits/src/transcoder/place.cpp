// Where a dictionary reads and writes: names of places, and whether a model has them.

#include <algorithm>
#include <cctype>
#include <charconv>

#include "lamina/circuits/transcoder.h"
#include "lamina/core/error.h"
#include "lamina/internal/file_text.h"

namespace lamina {
namespace {

constexpr std::string_view kWeighted = "·w";

// Other programs' names for places, behind "blocks.N.".
struct Alias {
  std::string_view name, site;
  bool norm_weights;
};
constexpr Alias kAliases[] = {
    {"mlp.hook_in", "ln2.hook_normalized", true},  {"mlp.hook_out", "hook_mlp_out", false},
    {"attn.hook_in", "ln1.hook_normalized", true}, {"attn.hook_out", "hook_attn_out", false},
    {"hook_in", "hook_resid_pre", false},          {"hook_out", "hook_resid_post", false},
};

// "gpt2" of "openai-community/gpt2", lower case.
std::string model_stem(std::string_view id) {
  const std::size_t slash = id.rfind('/');
  if (slash != id.npos) id.remove_prefix(slash + 1);
  std::string stem(id);
  std::transform(stem.begin(), stem.end(), stem.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return stem == "gpt2-small" ? "gpt2" : stem;
}

// The file of a model may carry more than its name: "smollm2-135m.q4_1.gguf".
bool same_model(std::string_view trained_on, std::string_view model) {
  const std::string a = model_stem(trained_on), b = model_stem(model);
  return a == b || (b.starts_with(a) && b[a.size()] == '.');
}

void bind_place(DictionaryPlace& place, std::int64_t width, std::string_view verb,
                const TranscoderConfig& config, const Model& model) {
  const ModelConfig& m = model.config();
  if (m.shared_parallel_norm && place.site.kind == SiteKind::ln2_normalized) {
    place.site.kind = SiteKind::ln1_normalized;
  }
  const std::string name = dictionary_place_name(place);
  if (place.site.layer >= m.n_layers) {
    fail("{}: it {} {}, but model '{}' has {} layers", config.name, verb, name, model.id(),
         m.n_layers);
  }
  const std::vector<Site> sites = all_sites(m);
  if (std::find(sites.begin(), sites.end(), place.site) == sites.end()) {
    fail("{}: it {} {}, which model '{}' of family {} does not have", config.name, verb, name,
         model.id(), m.family);
  }
  const SiteShape shape = site_shape(place.site, m);
  if (shape.attention || shape.row() != width) {
    fail("{}: it {} {} values at {}, model '{}' has {} there", config.name, verb, width, name,
         model.id(), shape.attention ? 0 : shape.row());
  }
  if (place.norm_weights) {
    std::vector<float> weight(static_cast<std::size_t>(m.d_model));
    model.norm_weight(place.site.kind, place.site.layer, weight);
  }
}

}  // namespace

std::string dictionary_place_name(const DictionaryPlace& place) {
  return site_name(place.site) + (place.norm_weights ? std::string(kWeighted) : "");
}

DictionaryPlace parse_dictionary_place(std::string_view name, std::int32_t layer) {
  DictionaryPlace place;
  std::string_view rest = name;
  if (rest.ends_with(kWeighted)) {
    place.norm_weights = true;
    rest.remove_suffix(kWeighted.size());
  }
  if (rest.starts_with("blocks.")) {
    rest.remove_prefix(7);
    std::int32_t number = -1;
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), number);
    const auto digits = static_cast<std::size_t>(end - rest.data());
    if (error == std::errc() && number >= 0 && number < 1 << 20 && digits < rest.size() &&
        rest[digits] == '.') {
      layer = number;
      rest.remove_prefix(digits + 1);
    }
  }
  for (const Alias& alias : kAliases) {
    if (layer < 0 || rest != alias.name) continue;
    rest = alias.site;
    place.norm_weights = place.norm_weights || alias.norm_weights;
  }
  const std::string block = layer < 0 ? "" : fmt::format("blocks.{}.", layer);
  for (int kind = 0; kind <= static_cast<int>(SiteKind::ln_final_normalized); ++kind) {
    const Site in_block{static_cast<SiteKind>(kind), layer};
    const Site outside{in_block.kind, -1};
    if (layer >= 0 && site_name(in_block) == fmt::format("{}{}", block, rest)) {
      place.site = in_block;
      return place;
    }
    // The name of a place in a block does not depend on its layer alone.
    if (site_name(in_block) == site_name(outside) && site_name(outside) == rest) {
      if (layer >= 0 && name.starts_with("blocks.")) break;
      place.site = outside;
      return place;
    }
  }
  fail_usage("{}: no place that a dictionary could read or rebuild", files::quote(name));
}

void apply_place(const Model& model, const DictionaryPlace& place, std::span<float> rows) {
  if (!place.norm_weights) return;
  const auto d = static_cast<std::size_t>(model.config().d_model);
  std::vector<float> weight(d), bias(d);
  model.norm_weight(place.site.kind, place.site.layer, weight);
  model.norm_bias(place.site.kind, place.site.layer, bias);
  for (std::size_t r = 0; r + d <= rows.size(); r += d) {
    for (std::size_t i = 0; i < d; ++i) rows[r + i] = rows[r + i] * weight[i] + bias[i];
  }
}

void require_same_model(const TranscoderConfig& config, std::string_view model_id) {
  if (config.model_id.empty() || same_model(config.model_id, model_id)) return;
  fail("{}: it was trained on model '{}', this one is '{}'", config.name, config.model_id,
       model_id);
}

void bind_dictionary(TranscoderConfig& config, const Model& model, bool other_model) {
  if (!other_model) require_same_model(config, model.id());
  const bool autoencoder = config.input == config.output;
  bind_place(config.input, config.d_in, "reads", config, model);
  if (!autoencoder && config.output.norm_weights) {
    fail("{}: it rebuilds {}, and what follows a norm's weights cannot be replaced at a site",
         config.name, dictionary_place_name(config.output));
  }
  bind_place(config.output, config.d_out, "rebuilds", config, model);
}

}  // namespace lamina
