#include "verbs/lens_tables.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"

namespace lamina::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string piece_text(const Tokenizer* tokenizer, std::int32_t id) {
  if (tokenizer == nullptr || id < 0 || id >= tokenizer->vocab_size()) return std::to_string(id);
  return quoted_piece(tokenizer->piece(id));
}

std::string percent(double share) {
  if (std::isnan(share)) return "";
  return share > 0 && share < 0.001 ? "<0.1%" : fmt::format("{:.1f}%", 100 * share);
}

std::string fixed(double value, int digits) {
  return std::isnan(value) ? "" : fmt::format("{:.{}f}", value, digits);
}

void append_token(std::string& out, const LensResults& r, const Tokenizer* tokenizer,
                  std::int64_t t) {
  const auto at = static_cast<std::size_t>(t);
  const std::int32_t target = r.target[at];
  out += styled(Style::bold,
                fmt::format("prompt '{}', token {} {}{}",
                            escape_controls(r.prompt_ids[static_cast<std::size_t>(r.prompt[at])]),
                            r.position[at], piece_text(tokenizer, r.token_id[at]),
                            target >= 0 ? ", target " + piece_text(tokenizer, target) : "")) +
         "\n";
  std::vector<std::string> headings = {"layer", "most likely next tokens", ">entropy",
                                       ">KL to final"};
  if (target >= 0) headings.insert(headings.end(), {">p(target)", ">rank"});
  Table table(headings);
  for (std::int64_t s = 0; s < r.site_count(); ++s) {
    const auto cell = static_cast<std::size_t>(t * r.site_count() + s);
    std::string top;
    for (std::int64_t i = 0; i < std::min<std::int64_t>(r.k, 3); ++i) {
      const auto entry = cell * static_cast<std::size_t>(r.k) + static_cast<std::size_t>(i);
      top += fmt::format("{}{} {}", i == 0 ? "" : "  ", piece_text(tokenizer, r.topk_ids[entry]),
                         percent(std::exp(r.topk_logprobs[entry])));
    }
    std::vector<std::string> row = {lens_label(r.sites[static_cast<std::size_t>(s)]), top,
                                    fixed(r.entropy[cell], 2), fixed(r.kl_to_final[cell], 3)};
    if (target >= 0) {
      row.push_back(percent(std::exp(r.target_logprob[cell])));
      row.push_back(grouped(r.target_rank[cell]));
    }
    table.row(row);
  }
  out += table.text(2);
  const std::int32_t exit = r.exit_layer[at];
  out += exit < 0 ? "  the answer stands from the embedding on\n\n"
                  : fmt::format("  the answer stands from layer {} on\n\n", exit);
}

}  // namespace

std::string lens_text(const LensResults& r, const Tokenizer* tokenizer, std::int64_t show) {
  std::string out;
  for (std::int64_t t = 0; t < std::min(show, r.tokens()); ++t) append_token(out, r, tokenizer, t);

  const LensAverages a = average(r);
  out += styled(Style::bold, fmt::format("mean of {} tokens, {} with a target", grouped(a.tokens),
                                         grouped(a.targets))) +
         "\n";
  std::vector<std::string> headings = {"layer",    ">agrees with final", ">overlap",
                                       ">entropy", ">KL to final",       ">KL from final"};
  if (a.targets > 0) headings.insert(headings.end(), {">target first", ">log p(target)"});
  Table table(headings);
  for (std::size_t s = 0; s < r.sites.size(); ++s) {
    std::vector<std::string> row = {lens_label(r.sites[s]),     percent(a.agreement[s]),
                                    percent(a.overlap[s]),      fixed(a.entropy[s], 2),
                                    fixed(a.kl_to_final[s], 3), fixed(a.kl_from_final[s], 3)};
    if (a.targets > 0) {
      row.push_back(percent(a.accuracy[s]));
      row.push_back(fixed(a.target_logprob[s], 3));
    }
    table.row(row);
  }
  out += table.text(2);
  out += "  entropy in bits, KL and log-probabilities in nats\n";
  return out;
}

Json lens_json(const LensResults& r, const Tokenizer* tokenizer) {
  Json json;
  const LensAverages a = average(r);
  json["tokens"] = a.tokens;
  json["targets"] = a.targets;
  for (std::size_t s = 0; s < r.sites.size(); ++s) {
    json["layers"].push_back({{"label", lens_label(r.sites[s])},
                              {"site", site_name(r.sites[s])},
                              {"agreement", a.agreement[s]},
                              {"accuracy", a.accuracy[s]},
                              {"target_logprob", a.target_logprob[s]},
                              {"entropy_bits", a.entropy[s]},
                              {"kl_to_final", a.kl_to_final[s]},
                              {"kl_from_final", a.kl_from_final[s]},
                              {"overlap", a.overlap[s]}});
  }
  json["reads"] = Json::array();
  for (std::int64_t t = 0; t < r.tokens(); ++t) {
    const auto at = static_cast<std::size_t>(t);
    Json read;
    read["prompt"] = r.prompt_ids[static_cast<std::size_t>(r.prompt[at])];
    read["position"] = r.position[at];
    read["token_id"] = r.token_id[at];
    read["target"] = r.target[at] >= 0 ? Json(r.target[at]) : Json();
    read["exit_layer"] = r.exit_layer[at];
    for (std::int64_t s = 0; s < r.site_count(); ++s) {
      const auto cell = static_cast<std::size_t>(t * r.site_count() + s);
      const auto first = r.topk_ids.begin() + static_cast<std::ptrdiff_t>(cell) * r.k;
      const auto logprobs = r.topk_logprobs.begin() + static_cast<std::ptrdiff_t>(cell) * r.k;
      Json layer;
      layer["top_ids"] = std::vector<std::int32_t>(first, first + r.k);
      if (tokenizer != nullptr) layer["top_token"] = printable_piece(*tokenizer, *first);
      layer["top_logprobs"] = std::vector<float>(logprobs, logprobs + r.k);
      layer["entropy_bits"] = r.entropy[cell];
      layer["kl_to_final"] = r.kl_to_final[cell];
      layer["kl_from_final"] = r.kl_from_final[cell];
      layer["overlap"] = r.overlap[cell];
      if (r.target[at] >= 0) {
        layer["target_rank"] = r.target_rank[cell];
        layer["target_logprob"] = r.target_logprob[cell];
      }
      read["layers"].push_back(layer);
    }
    json["reads"].push_back(read);
  }
  return json;
}

std::string latent_text(const LatentTask& task, const LatentResults& r) {
  const auto languages = static_cast<std::int64_t>(task.languages.size());
  const auto sites = static_cast<std::int64_t>(r.sites.size());
  std::string out =
      styled(Style::bold, fmt::format("{} items of {}", r.items(), task.items.size())) + "\n";
  for (const auto& [reason, count] : task.dropped)
    out += fmt::format("  {} words left out: {}\n", count, reason);
  if (r.unknown_prompts > 0) {
    out += fmt::format("  {} prompts of the recording belong to no item\n", r.unknown_prompts);
  }
  const Curve p = curve(r.probability, sites * languages);
  const Curve entropy = curve(r.entropy, sites);
  const Curve energy = curve(r.energy, sites);
  const bool has_energy = !energy.mean.empty() && !std::isnan(energy.mean.front());

  std::vector<std::string> headings = {"layer"};
  for (const std::string& code : task.languages) headings.push_back(">p(" + code + ")");
  headings.insert(headings.end(), {"leads", ">in items", ">entropy"});
  if (has_energy) headings.push_back(">energy");
  Table table(headings);
  for (std::int64_t s = 0; s < sites; ++s) {
    std::vector<std::string> row = {lens_label(r.sites[static_cast<std::size_t>(s)])};
    std::int64_t best = 0;
    for (std::int64_t g = 0; g < languages; ++g) {
      const auto at = static_cast<std::size_t>(s * languages + g);
      if (p.mean[at] > p.mean[static_cast<std::size_t>(s * languages + best)]) best = g;
      row.push_back(std::isnan(p.half_width[at])
                        ? fixed(p.mean[at], 3)
                        : fmt::format("{:.3f} ± {:.3f}", p.mean[at], p.half_width[at]));
    }
    std::int64_t wins = 0;
    for (std::int64_t i = 0; i < r.items(); ++i) {
      wins += r.winner[static_cast<std::size_t>(i * sites + s)] == best;
    }
    row.push_back(task.languages[static_cast<std::size_t>(best)]);
    row.push_back(percent(static_cast<double>(wins) / static_cast<double>(r.items())));
    row.push_back(fixed(entropy.mean[static_cast<std::size_t>(s)], 2));
    if (has_energy) row.push_back(fixed(energy.mean[static_cast<std::size_t>(s)], 3));
    table.row(row);
  }
  out += table.text(2);
  out += "  mean over items ± 1.96 standard errors; entropy in bits\n";
  return out;
}

Json latent_json(const LatentTask& task, const LatentResults& r) {
  const std::size_t languages = task.languages.size(), sites = r.sites.size();
  const Curve p = curve(r.probability, static_cast<std::int64_t>(sites * languages));
  const Curve entropy = curve(r.entropy, static_cast<std::int64_t>(sites));
  const Curve energy = curve(r.energy, static_cast<std::int64_t>(sites));
  Json json;
  json["items"] = r.items();
  json["dropped"] = task.dropped;
  json["languages"] = task.languages;
  for (std::size_t s = 0; s < sites; ++s) {
    Json layer = {{"label", lens_label(r.sites[s])}, {"site", site_name(r.sites[s])}};
    for (std::size_t g = 0; g < languages; ++g) {
      layer["probability"][task.languages[g]] = p.mean[s * languages + g];
      layer["half_width"][task.languages[g]] = p.half_width[s * languages + g];
    }
    layer["entropy_bits"] = entropy.mean[s];
    if (s < energy.mean.size()) layer["energy"] = energy.mean[s];
    json["layers"].push_back(layer);
  }
  return json;
}

}  // namespace lamina::cli
