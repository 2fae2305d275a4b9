// lamina paths weights: what features are connected to whatever the prompt.

#include <memory>
#include <nlohmann/json.hpp>

#include "lamina/circuits/weight_report.h"
#include "lamina/core/error.h"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/info.h"
#include "verbs/paths_inputs.h"

namespace lamina::cli {
namespace {

struct Args {
  PathsInputs inputs;
  std::vector<std::string> features, pull_back;
  bool deembed = false, connections = false, heads = false, logits = false;
  WeightReportOptions options;
  OutputOptions output;
  bool json = false;
};

std::string gain(float value) {
  return fmt::format("{:+.3f}", value);
}

// Largest beside smallest, names by `name`.
template <class Item, class Name, class Value>
std::string two_sided(const std::vector<Item>& top, const std::vector<Item>& bottom,
                      const char* heading, const Name& name, const Value& value) {
  Table table({heading, ">adds", "   ", heading, ">adds"});
  for (std::size_t i = 0; i < top.size(); ++i)
    table.row({clip(name(top[i]), 24), gain(value(top[i])), "", clip(name(bottom[i]), 24),
               gain(value(bottom[i]))});
  return table.text(4);
}

std::string tokens_text(const Extremes& tokens, const Tokenizer* tokenizer) {
  return two_sided(
      tokens.top, tokens.bottom, "token",
      [&](const Ranked& r) { return token_text(tokenizer, r.index); },
      [](const Ranked& r) { return r.value; });
}

using Source = ReaderConnections::Feature;

std::string sources_text(const ReaderConnections& c, std::int64_t top) {
  return two_sided(
      c.top(top), c.bottom(top), "feature",
      [](const Source& f) { return fmt::format("{}.{}", f.layer, f.feature); },
      [](const Source& f) { return f.gain; });
}

std::string connections_text(const ReaderConnections& c, const WeightReportOptions& o,
                             const Tokenizer* tokenizer, const std::string& how) {
  std::string out;
  if (o.tokens) {
    out += fmt::format("  {}  tokens by what their embeddings add{}\n",
                       styled(Style::bold, "de-embedding"), how);
    out += tokens_text(c.tokens, tokenizer);
  }
  if (o.connections && !c.layers.empty()) {
    out += fmt::format("  {}  by what a unit of them adds{}\n",
                       styled(Style::bold, "earlier features"), how);
    out += sources_text(c, o.top);
  }
  return out;
}

std::string feature_text(const FeatureConnections& f, const WeightReportOptions& o,
                         const Tokenizer* tokenizer) {
  std::string title = hop_name(f.feature);
  for (const Hop& hop : o.pull_back) title += " ← " + hop_name(hop);
  std::string out = fmt::format("{}  {}, reads {}\n", styled(Style::bold, "feature " + title),
                                f.dictionary, f.reads);
  out += connections_text(f.direct, o, tokenizer, "");
  for (const FeatureConnections::Head& h : f.heads) {
    const Hop hop{.is_head = true, .layer = h.layer, .index = h.head};
    out += fmt::format("  {}  norm {}\n", styled(Style::bold, "through head " + hop_name(hop)),
                       short_number(h.norm));
    out += connections_text(h.connections, o, tokenizer, " per unit of attention");
  }
  if (!f.logits.top.empty()) {
    out += fmt::format("  {}  tokens by what a unit of it adds to them, over the mean\n",
                       styled(Style::bold, "logits"));
    out += tokens_text(f.logits, tokenizer);
  }
  return out;
}

nlohmann::ordered_json tokens_json(const std::vector<Ranked>& list, const Tokenizer* tokenizer) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const Ranked& r : list) {
    nlohmann::ordered_json one = {{"token", r.index}};
    if (tokenizer != nullptr && r.index < tokenizer->vocab_size())
      one["text"] = tokenizer->piece(r.index);
    one["adds"] = r.value;
    json.push_back(std::move(one));
  }
  return json;
}

nlohmann::ordered_json sources_json(const std::vector<Source>& list) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const Source& f : list)
    json.push_back({{"layer", f.layer}, {"feature", f.feature}, {"adds", f.gain}});
  return json;
}

void add_connections(nlohmann::ordered_json& json, const ReaderConnections& c,
                     const WeightReportOptions& o, const Tokenizer* tokenizer) {
  if (o.tokens) {
    json["deembedding"] = {{"top", tokens_json(c.tokens.top, tokenizer)},
                           {"bottom", tokens_json(c.tokens.bottom, tokenizer)}};
  }
  if (o.connections)
    json["features"] = {{"top", sources_json(c.top(o.top))},
                        {"bottom", sources_json(c.bottom(o.top))}};
}

nlohmann::ordered_json report_json(const WeightReport& report, const Tokenizer* tokenizer) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const FeatureConnections& f : report.features) {
    nlohmann::ordered_json one = {{"layer", f.feature.layer},
                                  {"feature", f.feature.index},
                                  {"dictionary", f.dictionary},
                                  {"reads", f.reads}};
    for (const Hop& hop : report.options.pull_back) one["pull_back"].push_back(hop_name(hop));
    add_connections(one, f.direct, report.options, tokenizer);
    for (const FeatureConnections::Head& h : f.heads) {
      nlohmann::ordered_json head = {{"layer", h.layer}, {"head", h.head}, {"norm", h.norm}};
      add_connections(head, h.connections, report.options, tokenizer);
      one["heads"].push_back(std::move(head));
    }
    if (!f.logits.top.empty())
      one["logits"] = {{"top", tokens_json(f.logits.top, tokenizer)},
                       {"bottom", tokens_json(f.logits.bottom, tokenizer)}};
    all.push_back(std::move(one));
  }
  return all;
}

int run_weights(const Args& args, const Globals& globals) {
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  std::vector<Hop> features;
  for (const std::string& text : args.features) features.push_back(parse_hop(text));
  WeightReportOptions options = args.options;
  for (const std::string& text : args.pull_back) options.pull_back.push_back(parse_hop(text));
  if (args.deembed || args.connections || args.heads || args.logits) {
    options.through_heads = args.heads;
    options.logits = args.logits;
    const bool only_heads = !args.deembed && !args.connections && args.heads;
    options.tokens = args.deembed || only_heads;
    options.connections = args.connections || only_heads;
  }
  const Model model = load_model(args.inputs.model);
  const TranscoderSet set = open_dictionaries(args.inputs, model);
  const WeightReport report = analyse_weights(model, set, features, options);
  if (!args.output.path.empty()) {
    auto attributes = provenance(globals);
    attributes["model_id"] = model.id();
    attributes["model_sha256"] = model.sha256();
    ResultFile file(args.output.path, attributes);
    report.write(file, model.tokenizer());
    file.close();
    info("wrote {}", args.output.path);
  }
  Output out;
  if (args.json) {
    print_json(report_json(report, model.tokenizer()), out);
  } else {
    for (const FeatureConnections& f : report.features)
      out.write(feature_text(f, options, model.tokenizer()));
    out.write("  norms: weights and centring folded, denominators left out\n");
  }
  out.close();
  return 0;
}

}  // namespace

void register_paths_weights(CLI::App& paths, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = paths.add_subcommand(
      "weights", "what features are connected to whatever the prompt: tokens, features, heads");
  add_paths_inputs(*verb, args->inputs);
  verb->add_option("--feature", args->features, "features, LAYER.FEATURE (2.57)")
      ->required()
      ->option_text("L.F...");
  verb->add_flag(
      "--deembed", args->deembed,
      "tokens by what their embeddings add to the feature (with none of these four flags: "
      "all)");
  verb->add_flag("--connections", args->connections, "earlier features by what they add to it");
  verb->add_flag("--through-heads", args->heads,
                 "both of them through the heads of the largest norm");
  verb->add_flag("--logits", args->logits, "tokens by what the feature adds to their logits");
  verb->add_option("--pull-back", args->pull_back,
                   "read what the feature reads through these, from it downwards: heads (a1.h2) or "
                   "features (0.33)")
      ->option_text("HOP...");
  verb->add_option("--top", args->options.top, "largest and smallest to list (default 10)")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{10000}))
      ->option_text("K");
  verb->add_option("--heads", args->options.heads, "heads to look through (default [ours] 3)")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1000}))
      ->option_text("N");
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] { return run_weights(*args, globals); };
  });
}

}  // namespace lamina::cli
