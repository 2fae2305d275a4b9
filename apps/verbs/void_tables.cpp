#include "verbs/void_tables.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "ui/glyphs.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"

namespace lamina::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string percent(double share) {
  return std::isnan(share) ? "" : fmt::format("{:.1f}%", 100 * share);
}

std::vector<double> layer_usage(const VoidCounts& counts, std::int64_t alpha, std::int64_t phase) {
  std::vector<double> shares;
  for (std::int64_t l = 0; l < counts.layers; ++l) {
    shares.push_back(counts.usage(alpha, phase, l));
  }
  return shares;
}

std::vector<std::string> heat_row(std::string label, const VoidCounts& counts, std::int64_t alpha,
                                  std::int64_t phase) {
  return {std::move(label), kVoidPhases[static_cast<std::size_t>(phase)],
          percent(counts.model_usage(alpha, phase)), heights(layer_usage(counts, alpha, phase))};
}

// The α that is shown layer by layer: the paper's, or the largest.
std::int64_t shown_alpha(std::span<const double> alphas) {
  std::size_t shown = 0;
  for (std::size_t a = 0; a < alphas.size(); ++a) {
    if (alphas[a] == 0.8) return static_cast<std::int64_t>(a);
    if (alphas[a] > alphas[shown]) shown = a;
  }
  return static_cast<std::int64_t>(shown);
}

// JSON has no NaN.
Json number(double value) {
  return std::isnan(value) ? Json() : Json(value);
}

Json usage_json(double alpha, const VoidCounts& counts, std::int64_t index) {
  Json entry;
  entry["alpha"] = alpha;
  for (std::int64_t phase = 0; phase < 2; ++phase) {
    if (counts.tokens[static_cast<std::size_t>(phase)] == 0) continue;
    Json& usage = entry["usage"][kVoidPhases[static_cast<std::size_t>(phase)]];
    usage["model"] = number(counts.model_usage(index, phase));
    usage["layers"] = layer_usage(counts, index, phase);
  }
  return entry;
}

}  // namespace

std::string void_text(std::span<const double> alphas, VoidRule rule, const VoidCounts& counts,
                      std::int64_t prompts) {
  std::string out = styled(
      Style::bold, fmt::format("voids by rule {}: {} prompts, {} tokens given (PP), {} generated "
                               "(RG)",
                               void_rule_name(rule), grouped(prompts), grouped(counts.tokens[0]),
                               grouped(counts.tokens[1])));
  out += fmt::format("\n  share of tokens that use each layer, 0 to {} from left to right\n",
                     counts.layers - 1);
  Table sweep({"alpha", "phase", ">mean", "layers"});
  for (std::size_t a = 0; a < alphas.size(); ++a) {
    for (std::int64_t phase = 0; phase < 2; ++phase) {
      if (counts.tokens[static_cast<std::size_t>(phase)] == 0) continue;
      sweep.row(
          heat_row(fmt::format("{}", alphas[a]), counts, static_cast<std::int64_t>(a), phase));
    }
  }
  out += sweep.text(2);

  const std::int64_t shown = shown_alpha(alphas);
  const bool generated = counts.tokens[1] > 0;
  out += "\n" +
         styled(Style::bold, fmt::format("layer by layer at alpha {}",
                                         alphas[static_cast<std::size_t>(shown)])) +
         "\n";
  std::vector<std::string> headings = {">layer", ">PP", ""};
  if (generated) headings.insert(headings.end(), {">RG", ""});
  Table layers(headings);
  for (std::int64_t l = 0; l < counts.layers; ++l) {
    const double given = counts.usage(shown, 0, l), made = counts.usage(shown, 1, l);
    std::vector<std::string> row = {std::to_string(l), percent(given), bar(given)};
    if (generated) row.insert(row.end(), {percent(made), bar(made)});
    layers.row(row);
  }
  return out + layers.text(2);
}

Json void_json(std::span<const double> alphas, VoidRule rule, const VoidCounts& counts,
               std::int64_t prompts) {
  Json json;
  json["rule"] = void_rule_name(rule);
  json["prompts"] = prompts;
  for (std::size_t phase = 0; phase < 2; ++phase) {
    json["tokens"][kVoidPhases[phase]] = counts.tokens[phase];
  }
  for (std::size_t a = 0; a < alphas.size(); ++a) {
    json["alphas"].push_back(usage_json(alphas[a], counts, static_cast<std::int64_t>(a)));
  }
  return json;
}

std::string skip_text(SkipMode mode, std::span<const SkipEffect> effects) {
  std::string out =
      "\n" + styled(Style::bold, fmt::format("with voids skipped ({})", skip_mode_name(mode))) +
      (mode == SkipMode::blocks
           ? "\n  what void blocks add is dropped; their keys and values stay\n"
           : "\n  all blocks run; the last active one's output is decoded\n");
  Table table({"alpha", ">PP used", ">RG used", ">loss", ">without", ">same next", "PP by layer"});
  for (const SkipEffect& e : effects) {
    table.row({fmt::format("{}", e.alpha), percent(e.counts.model_usage(0, 0)),
               percent(e.counts.model_usage(0, 1)), fmt::format("{:.3f}", e.loss),
               fmt::format("{:.3f}", e.plain_loss), percent(e.agreement),
               heights(layer_usage(e.counts, 0, 0))});
  }
  return out + table.text(2) + "  loss in nats a token, same tokens with and without skipping\n";
}

Json skip_json(SkipMode mode, std::span<const SkipEffect> effects) {
  Json json;
  json["mode"] = skip_mode_name(mode);
  for (const SkipEffect& e : effects) {
    Json entry = usage_json(e.alpha, e.counts, 0);
    entry["tokens"] = e.tokens;
    entry["loss"] = number(e.loss);
    entry["plain_loss"] = number(e.plain_loss);
    entry["agreement"] = number(e.agreement);
    json["alphas"].push_back(entry);
  }
  return json;
}

}  // namespace lamina::cli
