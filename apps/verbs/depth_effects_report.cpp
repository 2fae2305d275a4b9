// Text and JSON of depth_effects.h.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "lamina/core/tokenizer.h"
#include "ui/glyphs.h"
#include "ui/table.h"
#include "ui/text.h"
#include "verbs/depth_effects.h"

namespace lamina::cli {
namespace {

std::string number(double value) {
  return std::isnan(value) ? std::string("–") : fmt::format("{:.3f}", value);
}

// Columns 0 … n − 1 of a heat line, each `width` wide, with a tick at every tenth (or fifth).
std::string ruler(std::int64_t n, std::int64_t width) {
  std::string out;
  for (std::int64_t i = 0; i < n;) {
    const std::string mark = std::to_string(i);
    out += mark;
    const std::int64_t step = n <= 12 && width > 1 ? 1 : n <= 24 ? 5 : 10;
    const std::int64_t next = std::min(i + step, n);
    out.append(static_cast<std::size_t>(std::max<std::int64_t>(
                   (next - i) * width - static_cast<std::int64_t>(mark.size()), 0)),
               ' ');
    i = next;
  }
  return out;
}

std::string cells(std::span<const double> values, std::int64_t width) {
  std::string out;
  for (const double v : values) {
    for (std::int64_t i = 0; i < width; ++i) out += shade(v);
  }
  return out;
}

std::string token_text(std::int32_t id, const Tokenizer* tokenizer) {
  return tokenizer != nullptr ? clip(quoted_piece(tokenizer->piece(id)), 20) : std::to_string(id);
}

std::size_t statistic_of(const DepthEffectsOptions& options) {
  return options.statistic == "max" ? 0 : options.statistic == "prompt-mean" ? 1 : 2;
}

std::string skip_text(const EffectTable& table, std::int64_t layers, EffectPart part,
                      std::size_t which) {
  const std::int64_t width = layers <= 24 ? 2 : 1;
  const bool output = !table.out[which].empty();
  std::string out =
      fmt::format("{} skipped, {}: {} of {} tokens, {} prompts, {} splits\n",
                  part == EffectPart::layer       ? "layer"
                  : part == EffectPart::attention ? "attention"
                                                  : "MLP",
                  effect_variant_name(table.variant),
                  which == 0   ? "largest"
                  : which == 1 ? "mean over prompts of the largest"
                               : "mean",
                  grouped(table.tokens), grouped(table.prompts), grouped(table.splits));
  std::vector<std::string> headings = {">skipped", ruler(layers, width), ">behind"};
  if (output) headings.insert(headings.end(), {">output", ""});
  Table rows(headings);
  for (std::int64_t s = 0; s < layers; ++s) {
    const auto at = static_cast<std::size_t>(s), n = static_cast<std::size_t>(layers);
    std::vector<std::string> row = {std::to_string(s),
                                    cells(std::span(table.effect[which]).subspan(at * n, n), width),
                                    number(table.layer_effect[which][at])};
    if (output) {
      row.push_back(number(table.out[which][at]));
      row.push_back(bar(table.out[which][at], 1.5));
    }
    rows.row(row);
  }
  out += rows.text(2);
  out += fmt::format("  depth score {}", number(table.depth_score[which]));
  if (output) out += fmt::format(", of the output {}", number(table.out_depth_score[which]));
  return out + fmt::format(" (layers 0 to {})\n", layers - 1);
}

std::string erasure_text(const Erasure& erasure, std::span<const Prompt> prompts,
                         ErasureScope scope, const Tokenizer* tokenizer) {
  const std::int64_t streams = erasure.n_layers + 1, width = streams <= 25 ? 2 : 1;
  std::string out;
  for (const ErasureMap& map : erasure.maps) {
    const Prompt& prompt = prompts[static_cast<std::size_t>(map.prompt)];
    const std::size_t n = prompt.ids.size();
    out += fmt::format("{}token erased in prompt '{}', read at {}; mean of {} tokens\n",
                       out.empty() ? "" : "\n", prompt.id,
                       scope == ErasureScope::answer ? "the answer (>)" : "all later tokens",
                       grouped(erasure.mean_tokens));
    Table rows({">position", "", "token", ruler(streams, width)});
    std::vector<double> line(static_cast<std::size_t>(streams));
    for (std::size_t t = 0; t < n; ++t) {
      for (std::size_t l = 0; l < line.size(); ++l) line[l] = map.effect[l * n + t];
      const bool read =
          std::ranges::find(map.reads, static_cast<std::int64_t>(t)) != map.reads.end();
      rows.row({std::to_string(t), read ? ">" : "", token_text(prompt.ids[t], tokenizer),
                cells(line, width)});
    }
    out += rows.text(2);
  }
  return out;
}

// As the authors plot it: scaled by the largest behind position 0, here without the sign.
std::string gradients_text(const DepthGradients& gradients, std::span<const Prompt> prompts,
                           EffectPart part, const Tokenizer* tokenizer) {
  const std::int64_t layers = gradients.n_layers, width = layers <= 24 ? 2 : 1;
  std::string out;
  for (const DepthGradientMap& map : gradients.maps) {
    const Prompt& prompt = prompts[static_cast<std::size_t>(map.prompt)];
    const std::size_t n = prompt.ids.size();
    std::vector<double> line(static_cast<std::size_t>(layers));
    double most = 0;
    for (std::size_t l = 0; l < line.size(); ++l) {
      for (std::size_t t = 1; t < n; ++t) {
        most = std::max(most, std::abs(map.attribution[l * n + t]));
      }
    }
    out += fmt::format(
        "{}integrated gradients of the answer to '{}' (probability {:.4g}) over {} "
        "outputs; █ is {:.3g}\n",
        out.empty() ? "" : "\n", prompt.id, map.probability,
        part == EffectPart::layer       ? "block"
        : part == EffectPart::attention ? "attention"
                                        : "MLP",
        most);
    Table rows({">position", "token", ruler(layers, width), ">sum"});
    for (std::size_t t = 0; t < n; ++t) {
      double sum = 0;
      for (std::size_t l = 0; l < line.size(); ++l) {
        sum += map.attribution[l * n + t];
        line[l] = std::abs(map.attribution[l * n + t]) / most;
      }
      rows.row({std::to_string(t), token_text(prompt.ids[t], tokenizer), cells(line, width),
                fmt::format("{:.4f}", sum)});
    }
    out += rows.text(2);
  }
  return out;
}

std::string jacobian_text(const BlockJacobian& j, std::int64_t pairs) {
  std::string out = fmt::format("block Jacobian − identity: {} tokens, {} pairs of vectors\n",
                                grouped(j.tokens), pairs);
  Table rows({">layer", ">own token", ">±", ">all tokens", ">±", ""});
  for (std::size_t l = 0; l < j.own.size(); ++l) {
    rows.row({std::to_string(l), number(j.own[l]), number(j.own_error[l]), number(j.all[l]),
              number(j.all_error[l]), bar(j.own[l], 1.5)});
  }
  return out + rows.text(2);
}

}  // namespace

std::string depth_effects_text(const DepthEffects& effects, std::span<const Prompt> prompts,
                               const DepthEffectsOptions& options, const Tokenizer* tokenizer) {
  std::string out;
  const auto add = [&](const std::string& part) { out += (out.empty() ? "" : "\n") + part; };
  if (effects.skip) {
    for (const EffectTable& table : effects.skip->tables) {
      add(skip_text(table, effects.skip->n_layers, effects.skip_options.part,
                    statistic_of(options)));
    }
  }
  if (effects.erasure) {
    add(erasure_text(*effects.erasure, prompts, effects.erasure_options.scope, tokenizer));
  }
  if (effects.gradients) {
    add(gradients_text(*effects.gradients, prompts, effects.gradient_options.part, tokenizer));
  }
  if (effects.skip || effects.erasure || effects.gradients)
    out += std::string("  ") + kShadeLegend + "\n";
  if (effects.jacobian) add(jacobian_text(*effects.jacobian, effects.jacobian_options.probes));
  return out;
}

nlohmann::ordered_json depth_effects_json(const DepthEffects& effects,
                                          std::span<const Prompt> prompts) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  const auto rows = [](const std::vector<double>& values, std::size_t columns) {
    nlohmann::ordered_json out = nlohmann::ordered_json::array();
    for (std::size_t at = 0; at < values.size(); at += columns) {
      const auto from = values.begin() + static_cast<std::ptrdiff_t>(at);
      out.push_back(std::vector<double>(from, from + static_cast<std::ptrdiff_t>(columns)));
    }
    return out;
  };
  if (effects.skip) {
    for (const EffectTable& t : effects.skip->tables) {
      nlohmann::ordered_json table = {{"variant", effect_variant_name(t.variant)},
                                      {"part", effect_part_name(effects.skip_options.part)},
                                      {"prompts", t.prompts},
                                      {"splits", t.splits},
                                      {"tokens", t.tokens}};
      for (std::size_t i = 0; i < 3; ++i) {
        nlohmann::ordered_json& s = table[kEffectStatistics[i]];
        s["effect"] = rows(t.effect[i], static_cast<std::size_t>(effects.skip->n_layers));
        s["layer_effect"] = t.layer_effect[i];
        s["depth_score"] = t.depth_score[i];
        if (t.out[i].empty()) continue;
        s["out_effect"] = t.out[i];
        s["out_depth_score"] = t.out_depth_score[i];
      }
      json["layer_effects"].push_back(std::move(table));
    }
  }
  if (effects.erasure) {
    json["residual_erasure"] = {{"read_at", erasure_scope_name(effects.erasure_options.scope)},
                                {"mean_tokens", effects.erasure->mean_tokens}};
    for (const ErasureMap& map : effects.erasure->maps) {
      const Prompt& prompt = prompts[static_cast<std::size_t>(map.prompt)];
      json["residual_erasure"]["prompts"].push_back(
          {{"id", prompt.id},
           {"read", map.reads},
           {"effect", rows(map.effect, prompt.ids.size())}});
    }
  }
  if (effects.jacobian) {
    const BlockJacobian& j = *effects.jacobian;
    json["block_jacobian"] = {{"tokens", j.tokens}, {"pairs", effects.jacobian_options.probes},
                              {"own", j.own},       {"own_error", j.own_error},
                              {"all", j.all},       {"all_error", j.all_error}};
  }
  if (effects.gradients) {
    json["depth_gradients"] = {{"part", effect_part_name(effects.gradient_options.part)},
                               {"steps", effects.gradient_options.steps}};
    for (const DepthGradientMap& map : effects.gradients->maps) {
      const Prompt& prompt = prompts[static_cast<std::size_t>(map.prompt)];
      json["depth_gradients"]["prompts"].push_back(
          {{"id", prompt.id},
           {"probability", map.probability},
           {"baseline_probability", map.baseline},
           {"attribution", rows(map.attribution, prompt.ids.size())}});
    }
  }
  return json;
}

}  // namespace lamina::cli
