#include "verbs/survey_page.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ui/glyphs.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"

namespace lamina::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kAlpha = 4;  // of the void probe's thresholds: 0.8, the paper's

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

std::string number(double value) {
  return std::isnan(value) ? "–" : short_number(value);
}
std::string share(double value) {
  return std::isnan(value) ? "–" : fmt::format("{:.0f}%", 100 * value);
}
std::string decimals(double value, int digits = 2) {
  return std::isnan(value) ? "–" : fmt::format("{:.{}f}", value, digits);
}

// What one layer does; NaN where nothing was measured.
struct LayerLine {
  double norm, attn, mlp, turn, used, entropy, sink, neurons, agrees, rate, gradient;
};

double mean_over_heads(const AttentionResults& r, std::int64_t layer, Moments HeadStats::*what) {
  double sum = 0;
  for (std::int64_t h = 0; h < r.heads; ++h) sum += (r.at(layer, h).*what).mean();
  return sum / static_cast<double>(r.heads);
}

std::vector<LayerLine> layer_lines(const SurveyFindings& f) {
  const Survey& s = f.survey;
  const std::int64_t layers = f.model.config().n_layers;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const GrowthResults growth = s.growth ? s.growth->results() : GrowthResults();
  const ContributionResults parts =
      s.contributions ? s.contributions->results() : ContributionResults();
  const AngularResults angles = s.angular ? s.angular->results() : AngularResults();
  const SparsityResults sparsity = s.sparsity ? s.sparsity->results() : SparsityResults();
  const CodingRateResults coding = s.coding_rate ? s.coding_rate->results() : CodingRateResults();
  const std::vector<double> agreement =
      s.exits ? s.exits->results().agreement() : std::vector<double>();
  const auto at = [&](const std::vector<double>& values, std::int64_t i) {
    return values.empty() ? nan : values[size(i)];
  };
  std::vector<LayerLine> lines;
  for (std::int64_t l = 0; l < layers; ++l) {
    LayerLine line{};
    line.norm = at(growth.norm, l + 1);
    line.attn = at(parts.attn_ratio, l);
    line.mlp = at(parts.mlp_ratio, l);
    line.turn = angles.distance.empty() ? nan : angles.distance[size(l * layers)];
    line.used = s.voids ? s.voids->results().counts.usage(kAlpha, 0, l) : nan;
    line.entropy =
        s.attention ? mean_over_heads(s.attention->results(), l, &HeadStats::normalized) : nan;
    line.sink = s.attention ? mean_over_heads(s.attention->results(), l, &HeadStats::sink) : nan;
    line.neurons = at(sparsity.active, l);
    line.agrees = at(agreement, l + 1);
    line.rate = at(coding.rate, l + 1);
    line.gradient = f.gradients ? at(f.gradients->runs[0].token_gradient, l + 1) : nan;
    lines.push_back(line);
  }
  return lines;
}

// The model in one line.
std::string model_text(const SurveyFindings& f) {
  const ModelConfig& c = f.model.config();
  std::string out = fmt::format("{}, {} layers of width {}, {} heads", c.family, c.n_layers,
                                c.d_model, c.n_heads);
  if (c.n_kv_heads != c.n_heads) out += fmt::format(" over {} key heads", c.n_kv_heads);
  out += c.d_mlp > 0 ? fmt::format(", {}MLP of {}", c.gated ? "gated " : "", c.d_mlp) : ", no MLP";
  return out + fmt::format(", vocabulary {}, {} parameters", grouped(c.d_vocab),
                           short_number(static_cast<double>(f.model.parameters())));
}

std::string layer_table(const SurveyFindings& f, const std::vector<LayerLine>& lines) {
  const Survey& s = f.survey;
  const std::int64_t layers = f.model.config().n_layers;
  std::vector<std::string> headings = {"layer", ">norm", ">attn", ">mlp", ">turn"};
  if (s.voids) headings.emplace_back(">used");
  if (s.attention) headings.insert(headings.end(), {">entropy", ">sink"});
  if (s.sparsity) headings.emplace_back(">neurons");
  if (s.exits) headings.emplace_back(">agrees");
  if (s.coding_rate) headings.emplace_back(">coding");
  if (f.gradients) headings.emplace_back(">gradient");
  if (s.cka) headings.emplace_back("CKA with every layer");
  Table table(headings);
  for (std::int64_t l = 0; l < layers; ++l) {
    const LayerLine& line = lines[size(l)];
    std::vector<std::string> row = {std::to_string(l), number(line.norm), decimals(line.attn),
                                    decimals(line.mlp), decimals(line.turn, 3)};
    if (s.voids) row.push_back(share(line.used));
    if (s.attention) row.insert(row.end(), {decimals(line.entropy), share(line.sink)});
    if (s.sparsity) row.push_back(share(line.neurons));
    if (s.exits) row.push_back(share(line.agrees));
    if (s.coding_rate) row.push_back(number(line.rate));
    if (f.gradients) row.push_back(number(line.gradient));
    if (s.cka) {
      const std::vector<double>& cka = s.cka->results().debiased;
      std::string strip;
      for (std::int64_t o = 1; o <= layers; ++o)
        strip += shade(cka[size((l + 1) * (layers + 1) + o)]);
      row.push_back(strip);
    }
    table.row(row);
  }
  std::string out = table.text(2);
  out +=
      "  norm: of the stream that leaves the layer; attn, mlp: what is added over what it is added "
      "to; turn: angle/π across the layer";
  if (s.voids) out += ";\n  used: share of tokens for which the layer is no void (α 0.8)";
  if (s.attention) {
    out += ";\n  entropy: of attention over its maximum; sink: attention on position 0";
  }
  if (s.sparsity) {
    const SparsityOptions& o = s.sparsity->options();
    out += fmt::format("; neurons: share with |a| > {:g}{}", o.threshold, o.relative ? " RMS" : "");
  }
  if (s.exits)
    out += ";\n  agrees: share of tokens whose best next token is already the last layer's";
  if (s.coding_rate) out += "; coding: coding rate, nats";
  if (f.gradients) out += ";\n  gradient: of the loss, per token";
  if (s.cka) out += fmt::format(";\n  CKA debiased: {}", kShadeLegend);
  return out + "\n";
}

std::string head_list(const std::vector<std::string>& heads, std::int64_t all) {
  constexpr std::size_t kShown = 8;
  std::string out = fmt::format("{} of {}", heads.size(), all);
  for (std::size_t i = 0; i < std::min(heads.size(), kShown); ++i) {
    out += (i == 0 ? ": " : ", ") + heads[i];
  }
  return out + (heads.size() > kShown ? ", …" : "");
}

// Heads with a property, those that have most of it first.
template <class Has, class How>
std::vector<std::string> heads_with(const AttentionResults& r, Has has, How much) {
  std::vector<std::pair<double, std::string>> found;
  for (std::int64_t l = 0; l < r.layers; ++l) {
    for (std::int64_t h = 0; h < r.heads; ++h) {
      if (has(r.at(l, h))) found.emplace_back(-much(r.at(l, h)), fmt::format("{}.{}", l, h));
    }
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> out;
  for (auto& [much_of_it, name] : found) out.push_back(name);
  return out;
}

void add_heads(Facts& facts, const AttentionProbe& probe) {
  const AttentionResults& r = probe.results();
  const AttentionOptions& o = probe.options();
  const std::int64_t all = r.layers * r.heads;
  const std::pair<const char*, Moments HeadStats::*> patterns[] = {
      {"sink", &HeadStats::sink},
      {"previous", &HeadStats::previous},
      {"self", &HeadStats::self},
      {"duplicate", &HeadStats::duplicate},
      {"induction", &HeadStats::induction}};
  for (const auto& [name, what] : patterns) {
    const auto heads = heads_with(
        r, [&](const HeadStats& h) { return head_pattern(h, o) == name; },
        [&](const HeadStats& h) { return (h.*what).mean(); });
    if (!heads.empty()) facts.add(fmt::format("{} heads", name), head_list(heads, all));
  }
  const auto collapsed = heads_with(
      r, [&](const HeadStats& h) { return head_state(h, o) == "collapsed"; },
      [](const HeadStats& h) { return h.collapsed_share(); });
  const auto overloaded = heads_with(
      r, [&](const HeadStats& h) { return head_state(h, o) == "overloaded"; },
      [](const HeadStats& h) { return h.overloaded_share(); });
  facts.add("collapsed heads", head_list(collapsed, all));
  facts.add("overloaded heads", head_list(overloaded, all));
  std::int64_t layer = 0, head = 0;
  for (std::int64_t l = 0; l < r.layers; ++l) {
    for (std::int64_t h = 0; h < r.heads; ++h) {
      if (r.at(l, h).logit_max > r.at(layer, head).logit_max) layer = l, head = h;
    }
  }
  facts.add("largest score",
            fmt::format("{} in head {}.{}", number(r.at(layer, head).logit_max), layer, head));
}

void add_massive(Facts& facts, const MassiveProbe& probe) {
  const MassiveResults& r = probe.results();
  std::int64_t count = 0, first = 0;
  std::vector<std::string> dimensions;
  std::int32_t low = -1, high = -1;
  std::vector<std::pair<double, std::int64_t>> largest;
  for (std::int64_t d = 0; d < r.width; ++d) {
    double most = 0;
    for (std::int64_t l = 0; l < r.layers; ++l) {
      const MassiveDimension& here = r.dimension[size(l * r.width + d)];
      if (here.value.count == 0) continue;
      count += here.value.count;
      first += here.first;
      if (low < 0 || l < low) low = static_cast<std::int32_t>(l);
      high = std::max(high, static_cast<std::int32_t>(l));
      most = std::max({most, std::abs(here.value.min), std::abs(here.value.max)});
    }
    if (most > 0) largest.emplace_back(-most, d);
  }
  if (count == 0) {
    facts.add("massive activations", "none");
    return;
  }
  std::sort(largest.begin(), largest.end());
  std::string text;
  for (std::size_t i = 0; i < std::min<std::size_t>(largest.size(), 4); ++i) {
    text += fmt::format("{}{} (up to {})", i == 0 ? "dimension " : ", ", largest[i].second,
                        number(-largest[i].first));
  }
  if (largest.size() > 4) text += fmt::format(", … {} in all", largest.size());
  facts.add("massive activations",
            fmt::format("{}; layers {} to {}; {} at position 0", text, low, high,
                        share(static_cast<double>(first) / static_cast<double>(count))));
}

// The layers with the least of something, least first.
std::string least_layers(const std::vector<LayerLine>& lines, double LayerLine::*what,
                         std::size_t count) {
  std::vector<std::size_t> order(lines.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return lines[a].*what < lines[b].*what; });
  std::string out;
  for (std::size_t i = 0; i < std::min(count, order.size()); ++i) {
    out += fmt::format("{}{} ({})", i == 0 ? "" : ", ", order[i], share(lines[order[i]].*what));
  }
  return out;
}

std::string prune_text(const AngularResults& r) {
  std::string out;
  for (std::int64_t n : {1, 2, 4, 8, 16}) {
    if (n >= r.layers) break;
    const std::int32_t first = r.first[size(n - 1)];
    if (first < 0) return "–";
    out += fmt::format("{}{}", out.empty() ? "" : ", ",
                       n == 1 ? std::to_string(first) : fmt::format("{}–{}", first, first + n - 1));
    out += fmt::format(" ({:.3f})", r.least[size(n - 1)]);
  }
  return out;
}

std::string findings_text(const SurveyFindings& f, const std::vector<LayerLine>& lines) {
  const Survey& s = f.survey;
  Facts facts;
  if (s.voids) {
    const VoidCounts& counts = s.voids->results().counts;
    facts.add("voids", fmt::format("{} of (token, layer) pairs used at α 0.8; least used layers {}",
                                   share(counts.model_usage(kAlpha, 0)),
                                   least_layers(lines, &LayerLine::used, 4)));
  }
  if (s.angular) {
    facts.add("least turning",
              fmt::format("layers {} (angle/π across them)", prune_text(s.angular->results())));
  }
  if (s.cka) {
    const CkaResults& r = s.cka->results();
    constexpr double kAlike = 0.9;
    std::string text;
    for (const auto& [first, last] : cka_blocks(r.debiased, r.a(), kAlike)) {
      if (last == first) continue;
      text += fmt::format("{}{}–{}", text.empty() ? "" : ", ", r.layers[size(first)],
                          r.layers[size(last)]);
    }
    double error = 0;
    for (double e : r.debiased_error) error = std::isnan(e) ? error : std::max(error, e);
    // One minibatch has no spread to tell the error from.
    std::string reach = fmt::format("standard error at most {:.3f} ({} minibatches)", error,
                                    grouped(r.minibatches));
    if (r.minibatches < 2) {
      reach = fmt::format("standard error unknown: {} rows make {} of the 2 minibatches it needs",
                          grouped(r.rows), r.minibatches);
    }
    if (r.minibatches == 0)
      text = "not measured";
    else if (text.empty())
      text = "no neighbours";
    else
      text = "layers " + text;
    facts.add("alike (CKA ≥ 0.9)", text + "; " + reach);
  }
  if (s.exits) {
    const ExitResults& r = s.exits->results();
    std::int64_t settled = 0, half = 0;
    for (std::size_t i = 0; i < r.exits.size(); ++i) {
      settled += r.exits[i];
      if (2 * settled >= r.tokens) {
        half = static_cast<std::int64_t>(i);
        break;
      }
    }
    facts.add("exits", fmt::format("half of the tokens have settled {} ({} tokens decoded)",
                                   half == 0 ? "before layer 0"
                                             : fmt::format("when they leave layer {}", half - 1),
                                   grouped(r.tokens)));
  }
  if (s.sparsity) {
    const SparsityResults r = s.sparsity->results();
    const std::int64_t never = std::accumulate(r.never.begin(), r.never.end(), std::int64_t{0});
    facts.add("silent neurons", fmt::format("{} of {} never active on this text", grouped(never),
                                            grouped(r.layers * r.neurons)));
  }
  if (s.massive) add_massive(facts, *s.massive);
  if (s.attention) add_heads(facts, *s.attention);
  if (f.gradients && !f.gradients->runs[0].score.empty()) {
    const InflectionRun& run = f.gradients->runs[0];
    facts.add("inflection", fmt::format("low entropy with low gradient in layers {} to {} "
                                        "(gradients of {} tokens)",
                                        run.band_first, run.band_last, grouped(run.tokens)));
  }
  return facts.text(2);
}

}  // namespace

std::string survey_page(const SurveyFindings& f) {
  const Survey& s = f.survey;
  std::string out = styled(Style::bold, f.model.id()) + "\n  " + model_text(f) + "\n";
  out += fmt::format("  {} tokens of {} prompts, the longest {}", grouped(f.tokens),
                     grouped(f.prompts), grouped(f.longest));
  if (s.text) {
    const NextTokenResults r = s.text->results();
    out +=
        fmt::format("\n  loss {} nats (perplexity {}), accuracy {}, entropy {} nats, log Z {} ± {}",
                    decimals(r.loss, 3), number(std::exp(r.loss)), share(r.accuracy),
                    decimals(r.entropy), decimals(r.log_z, 1), decimals(r.log_z_deviation, 1));
  }
  const std::vector<LayerLine> lines = layer_lines(f);
  out += "\n\n" + styled(Style::bold, "layer by layer") + "\n" + layer_table(f, lines);
  out += "\n" + styled(Style::bold, "what stands out") + "\n" + findings_text(f, lines);
  for (const std::string& why : s.left_out()) out += "  left out: " + why + "\n";
  out +=
      "\n  closer: lamina entropy, depth, cka, void, inflection, lens; docs/survey.md says what "
      "each "
      "number is\n";
  return out;
}

Json survey_json(const SurveyFindings& f) {
  const Survey& s = f.survey;
  const auto value = [](double v) { return std::isfinite(v) ? Json(v) : Json(); };
  Json json;
  json["model_id"] = f.model.id();
  json["family"] = f.model.config().family;
  json["parameters"] = f.model.parameters();
  json["prompts"] = f.prompts;
  json["tokens"] = f.tokens;
  if (s.text) {
    const NextTokenResults r = s.text->results();
    json["text"] = {{"predicted", r.predicted},      {"loss", value(r.loss)},
                    {"accuracy", value(r.accuracy)}, {"entropy", value(r.entropy)},
                    {"log_z", value(r.log_z)},       {"log_z_deviation", value(r.log_z_deviation)}};
  }
  json["layers"] = Json::array();
  for (const LayerLine& line : layer_lines(f)) {
    json["layers"].push_back({{"norm", value(line.norm)},
                              {"attn_ratio", value(line.attn)},
                              {"mlp_ratio", value(line.mlp)},
                              {"angle", value(line.turn)},
                              {"used", value(line.used)},
                              {"entropy", value(line.entropy)},
                              {"sink", value(line.sink)},
                              {"active_neurons", value(line.neurons)},
                              {"agreement", value(line.agrees)},
                              {"coding_rate", value(line.rate)},
                              {"gradient", value(line.gradient)}});
  }
  if (s.cka) {
    const CkaResults& r = s.cka->results();
    for (std::int64_t i = 0; i < r.a(); ++i) {
      Json row = Json::array();
      for (std::int64_t j = 0; j < r.b(); ++j)
        row.push_back(value(r.debiased[size(i * r.b() + j)]));
      json["cka"].push_back(row);
    }
  }
  if (s.attention) {
    const AttentionResults& r = s.attention->results();
    for (std::int64_t l = 0; l < r.layers; ++l) {
      for (std::int64_t h = 0; h < r.heads; ++h) {
        const HeadStats& head = r.at(l, h);
        json["heads"].push_back({{"layer", l},
                                 {"head", h},
                                 {"entropy", value(head.normalized.mean())},
                                 {"sink", value(head.sink.mean())},
                                 {"state", head_state(head, s.attention->options())},
                                 {"pattern", head_pattern(head, s.attention->options())}});
      }
    }
  }
  if (s.massive) {
    for (const MassiveActivation& a : s.massive->results().listed) {
      json["massive"].push_back({{"layer", a.layer},
                                 {"dimension", a.dimension},
                                 {"prompt", a.prompt_id},
                                 {"position", a.position},
                                 {"value", a.value}});
    }
  }
  json["left_out"] = s.left_out();
  return json;
}

}  // namespace lamina::cli
