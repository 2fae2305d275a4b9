#include "verbs/entropy_tables.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "ui/glyphs.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/void_tables.h"

namespace lamina::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string piece_text(const Tokenizer* tokenizer, std::int32_t id) {
  if (tokenizer == nullptr || id < 0 || id >= tokenizer->vocab_size()) return std::to_string(id);
  return quoted_piece(tokenizer->piece(id));
}

std::string percent(double share) {
  return std::isnan(share) ? "" : fmt::format("{:.1f}%", 100 * share);
}

std::string fixed(double value, int digits) {
  return std::isfinite(value) ? fmt::format("{:.{}f}", value, digits) : "";
}

// JSON has neither NaN nor infinity.
Json number(double value) {
  return std::isfinite(value) ? Json(value) : Json();
}

double mean_of(std::span<const double> values) {
  double sum = 0;
  std::int64_t count = 0;
  for (const double v : values) {
    if (std::isnan(v)) continue;
    sum += v;
    ++count;
  }
  return sum / static_cast<double>(count);
}

// One value per head of a layer.
template <class Value>
std::vector<double> of_heads(const AttentionResults& r, std::int64_t layer, Value value) {
  std::vector<double> all;
  for (std::int64_t h = 0; h < r.heads; ++h) all.push_back(value(r.at(layer, h)));
  return all;
}

double normalized(const HeadStats& h) {
  return h.normalized.mean();
}
double sink(const HeadStats& h) {
  return h.sink.mean();
}

struct Listed {
  std::int64_t layer, head;
  double share;
};

// Heads of one kind, the strongest first.
template <class Kind, class Share>
std::vector<Listed> heads_of(const AttentionResults& r, std::string_view name, Kind kind,
                             Share share) {
  std::vector<Listed> all;
  for (std::int64_t l = 0; l < r.layers; ++l) {
    for (std::int64_t h = 0; h < r.heads; ++h) {
      if (kind(r.at(l, h)) == name) all.push_back({l, h, share(r.at(l, h))});
    }
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const Listed& a, const Listed& b) { return a.share > b.share; });
  return all;
}

std::string listed_text(const std::vector<Listed>& heads, std::int64_t show) {
  std::string out;
  for (std::size_t i = 0; i < heads.size() && i < static_cast<std::size_t>(show); ++i) {
    out += fmt::format("{}{}.{} {}", i == 0 ? "" : "  ", heads[i].layer, heads[i].head,
                       percent(heads[i].share));
  }
  return out;
}

struct Kind {
  const char* name;
  const char* meaning;
  bool state;
  double (*share)(const HeadStats&);
};
constexpr Kind kKinds[] = {
    {"collapsed", "share of queries with H near 0", true,
     [](const HeadStats& h) { return h.collapsed_share(); }},
    {"overloaded", "share of queries with H near log n", true,
     [](const HeadStats& h) { return h.overloaded_share(); }},
    {"sink", "attention on position 0", false, sink},
    {"previous", "on the token before", false,
     [](const HeadStats& h) { return h.previous.mean(); }},
    {"self", "on the token itself", false, [](const HeadStats& h) { return h.self.mean(); }},
    {"duplicate", "on earlier copies of the token", false,
     [](const HeadStats& h) { return h.duplicate.mean(); }},
    {"induction", "on what followed earlier copies", false,
     [](const HeadStats& h) { return h.induction.mean(); }},
};

std::vector<Listed> heads_of(const AttentionProbe& probe, const Kind& kind) {
  const AttentionOptions& o = probe.options();
  return heads_of(
      probe.results(), kind.name,
      [&](const HeadStats& h) { return kind.state ? head_state(h, o) : head_pattern(h, o); },
      kind.share);
}

std::string attention_text(const AttentionProbe& probe, const Tokenizer* tokenizer,
                           std::int64_t show) {
  const AttentionResults& r = probe.results();
  const AttentionOptions& o = probe.options();
  std::string out = styled(
      Style::bold,
      fmt::format("attention: {} layers × {} heads, {} prompts, {} tokens, from the {}", r.layers,
                  r.heads, grouped(r.prompts), grouped(r.tokens), attention_source_name(o.source)));
  out += "\n  H/log n and share on position 0, head by head from · (0) to █ (1)\n";
  Table table(
      {"layer", ">H", ">H/log n", "heads", ">sink", "heads", ">largest logit", ">mean logit"});
  for (std::int64_t l = 0; l < r.layers; ++l) {
    const std::vector<double> entropy = of_heads(r, l, normalized), sinks = of_heads(r, l, sink);
    const auto raw = of_heads(r, l, [](const HeadStats& h) { return h.entropy.mean(); });
    const auto top = of_heads(r, l, [](const HeadStats& h) { return h.logit_max; });
    const auto mean = of_heads(r, l, [](const HeadStats& h) { return h.logit_mean(); });
    table.row({std::to_string(l), fixed(mean_of(raw), 2), fixed(mean_of(entropy), 2),
               heights(entropy), percent(mean_of(sinks)), heights(sinks),
               fixed(*std::max_element(top.begin(), top.end()), 1), fixed(mean_of(mean), 1)});
  }
  out += table.text(2);

  out += "\n" + styled(Style::bold, "heads") + " (layer.head)\n";
  Table kinds({"kind", ">heads", "share", ""});
  for (const Kind& kind : kKinds) {
    const std::vector<Listed> heads = heads_of(probe, kind);
    kinds.row({kind.name, std::to_string(heads.size()), kind.meaning, listed_text(heads, show)});
  }
  out += kinds.text(2);
  if (r.strong_keys.empty() || show == 0) return out;
  out += "\n" + styled(Style::bold, "keys that get the most, position 0 left out") +
         " (all heads, queries that see them)\n";
  Table keys({">share", "prompt", ">position", "token"});
  for (const StrongKey& key : r.strong_keys) {
    if (show-- <= 0) break;
    keys.row({percent(key.share), escape_controls(key.prompt_id), std::to_string(key.position),
              piece_text(tokenizer, key.token_id)});
  }
  return out + keys.text(2);
}

// Dimensions of a layer with massive activations, in the order of their number.
struct LayerDimension {
  std::int64_t layer, dimension;
  const MassiveDimension* stats;
};
std::vector<LayerDimension> massive_dimensions(const MassiveResults& r) {
  std::vector<LayerDimension> all;
  for (std::int64_t l = 0; l < r.layers; ++l) {
    for (std::int64_t d = 0; d < r.width; ++d) {
      const MassiveDimension& stats = r.dimension[static_cast<std::size_t>(l * r.width + d)];
      if (stats.value.count > 0) all.push_back({l, d, &stats});
    }
  }
  return all;
}

std::string massive_text(const MassiveProbe& probe, const Tokenizer* tokenizer, std::int64_t show) {
  const MassiveResults& r = probe.results();
  const MassiveOptions& o = probe.options();
  std::int64_t found = 0;
  for (const MassiveLayer& layer : r.layer) found += layer.count;
  std::string out =
      styled(Style::bold,
             fmt::format("massive activations: {} of |a| > {} and > {} × median in the stream",
                         grouped(found), o.least, o.ratio)) +
      "\n";
  Table table({"layer", ">median", ">largest", ">over median", ">massive", ">tokens",
               "dimensions: number, mean, at position 0"});
  const std::vector<LayerDimension> dimensions = massive_dimensions(r);
  for (std::int64_t l = 0; l < r.layers; ++l) {
    const MassiveLayer& layer = r.layer[static_cast<std::size_t>(l)];
    std::string list;
    std::int64_t left = std::min<std::int64_t>(show, 4);
    for (const LayerDimension& d : dimensions) {
      if (d.layer != l) continue;
      if (left-- == 0) {
        list += "  …";
        break;
      }
      list += fmt::format("{}[{}] {}× {} ({})", list.empty() ? "" : "  ", d.dimension,
                          grouped(d.stats->value.count), short_number(d.stats->value.mean()),
                          grouped(d.stats->first));
    }
    table.row({std::to_string(l), short_number(layer.median.mean()), short_number(layer.largest),
               short_number(layer.largest_ratio), grouped(layer.count), grouped(layer.tokens),
               list});
  }
  out += table.text(2);
  if (r.listed.empty() || show == 0) return out;
  out += "  largest:\n";
  Table listed({">value", ">layer", ">dimension", "prompt", ">position", "token"});
  for (const MassiveActivation& a : r.listed) {
    if (show-- <= 0) break;
    listed.row({short_number(double{a.value}), std::to_string(a.layer), std::to_string(a.dimension),
                escape_controls(a.prompt_id), std::to_string(a.position),
                piece_text(tokenizer, a.token_id)});
  }
  return out + listed.text(4);
}

std::string output_text(const OutputProbe& probe) {
  const OutputResults& r = probe.results();
  std::string out =
      styled(Style::bold, fmt::format("output of {} tokens", grouped(r.tokens))) + "\n";
  Table table({"", ">mean", ">sd", ">min", ">max"});
  const auto row = [&](const char* name, const Moments& m) {
    table.row({name, fixed(m.mean(), 3), fixed(std::sqrt(m.variance()), 3), fixed(m.lowest(), 3),
               fixed(m.highest(), 3)});
  };
  row("log Z", r.log_z);
  row("entropy (nats)", r.entropy);
  row("largest p", r.top);
  row("logits", r.logit);
  return out + table.text(2);
}

Json moments_json(const Moments& m) {
  Json json;
  json["count"] = m.count;
  json["mean"] = number(m.mean());
  json["sd"] = number(std::sqrt(m.variance()));
  json["min"] = number(m.lowest());
  json["max"] = number(m.highest());
  return json;
}

Json attention_json(const AttentionProbe& probe, const Tokenizer* tokenizer) {
  const AttentionResults& r = probe.results();
  const AttentionOptions& o = probe.options();
  Json json;
  json["prompts"] = r.prompts;
  json["tokens"] = r.tokens;
  json["source"] = attention_source_name(o.source);
  json["collapse"] = o.collapse;
  json["overload"] = o.overload;
  json["state_share"] = o.state_share;
  json["sink_threshold"] = o.sink;
  const auto table = [&](const char* name, auto value) {
    Json& layers = json[name];
    for (std::int64_t l = 0; l < r.layers; ++l) {
      Json row = Json::array();
      for (std::int64_t h = 0; h < r.heads; ++h) row.push_back(value(r.at(l, h)));
      layers.push_back(row);
    }
  };
  table("entropy", [](const HeadStats& h) { return number(h.entropy.mean()); });
  table("entropy_normalized", [](const HeadStats& h) { return number(normalized(h)); });
  table("entropy_normalized_sd",
        [](const HeadStats& h) { return number(std::sqrt(h.normalized.variance())); });
  table("sink_top", [](const HeadStats& h) {
    return number(static_cast<double>(h.sink_top) / static_cast<double>(h.sink.count));
  });
  for (const Kind& kind : kKinds) {
    table(kind.name, [&](const HeadStats& h) { return number(kind.share(h)); });
  }
  table("logit_mean", [](const HeadStats& h) { return number(h.logit_mean()); });
  table("logit_max", [](const HeadStats& h) { return number(h.logit_max); });
  table("query_norm", [](const HeadStats& h) { return number(h.query_norm.mean()); });
  table("key_norm", [](const HeadStats& h) { return number(h.key_norm.mean()); });
  table("state", [&](const HeadStats& h) { return Json(head_state(h, o)); });
  table("pattern", [&](const HeadStats& h) { return Json(head_pattern(h, o)); });
  json["strong_keys"] = Json::array();
  for (const StrongKey& key : r.strong_keys) {
    json["strong_keys"].push_back({{"share", key.share},
                                   {"prompt", key.prompt_id},
                                   {"position", key.position},
                                   {"token_id", key.token_id},
                                   {"token", piece_text(tokenizer, key.token_id)}});
  }
  return json;
}

Json massive_json(const MassiveProbe& probe, const Tokenizer* tokenizer) {
  const MassiveResults& r = probe.results();
  Json json;
  json["least"] = probe.options().least;
  json["ratio"] = probe.options().ratio;
  for (const MassiveLayer& layer : r.layer) {
    json["layers"].push_back({{"median", number(layer.median.mean())},
                              {"largest", layer.largest},
                              {"largest_ratio", number(layer.largest_ratio)},
                              {"count", layer.count},
                              {"tokens", layer.tokens}});
  }
  json["dimensions"] = Json::array();
  for (const LayerDimension& d : massive_dimensions(r)) {
    json["dimensions"].push_back({{"layer", d.layer},
                                  {"dimension", d.dimension},
                                  {"count", d.stats->value.count},
                                  {"mean", d.stats->value.mean()},
                                  {"first", d.stats->first}});
  }
  json["listed"] = Json::array();
  for (const MassiveActivation& a : r.listed) {
    json["listed"].push_back({{"value", a.value},
                              {"ratio", number(a.ratio)},
                              {"layer", a.layer},
                              {"dimension", a.dimension},
                              {"prompt", a.prompt_id},
                              {"position", a.position},
                              {"token_id", a.token_id},
                              {"token", piece_text(tokenizer, a.token_id)}});
  }
  return json;
}

}  // namespace

std::string entropy_text(const EntropyParts& parts, const Tokenizer* tokenizer, std::int64_t show) {
  std::string out;
  const auto add = [&](const std::string& text) { out += (out.empty() ? "" : "\n") + text; };
  if (parts.attention != nullptr) add(attention_text(*parts.attention, tokenizer, show));
  if (parts.massive != nullptr) add(massive_text(*parts.massive, tokenizer, show));
  if (parts.output != nullptr) add(output_text(*parts.output));
  return out;
}

Json entropy_json(const EntropyParts& parts, const Tokenizer* tokenizer) {
  Json json = Json::object();
  if (parts.attention != nullptr) json["attention"] = attention_json(*parts.attention, tokenizer);
  if (parts.massive != nullptr) json["massive"] = massive_json(*parts.massive, tokenizer);
  if (parts.output != nullptr) {
    const OutputResults& r = parts.output->results();
    json["output"]["tokens"] = r.tokens;
    json["output"]["log_z"] = moments_json(r.log_z);
    json["output"]["entropy"] = moments_json(r.entropy);
    json["output"]["top_probability"] = moments_json(r.top);
    json["output"]["logit"] = moments_json(r.logit);
  }
  return json;
}

}  // namespace lamina::cli
