// lamina circuit: the attribution graph of one prompt, MLPs replaced by transcoders.

#include <chrono>
#include <memory>

#include "inputs.h"
#include "lamina/circuits/attribution_graph.h"
#include "lamina/circuits/graph_io.h"
#include "lamina/circuits/transcoder_file.h"
#include "lamina/core/error.h"
#include "paths.h"
#include "ui/output.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/circuit_report.h"
#include "verbs/info.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

struct Args {
  std::string model, transcoders;
  bool other_model = false;
  PromptInputs prompts;
  std::int64_t prompt = 0;
  AttributeOptions attribute{.max_features = 7500};
  ReplacementOptions replacement;
  PruneOptions prune;
  std::string supernodes;
  std::vector<std::string> changes;
  std::string graph, whole_graph, drawing;
  OutputOptions output;
  std::int64_t show = 15;
  bool json = false;
};

std::string file_stem(const std::string& path) {
  return path.empty() ? "graph" : std::filesystem::path(path).stem().string();
}

std::string prompt_text(const Prompt& prompt, const Model& model) {
  if (!prompt.text.empty() || model.tokenizer() == nullptr) return prompt.text;
  return model.tokenizer()->decode(prompt.ids);
}

void write_graph(const std::string& path, bool force, const AttributionGraph& graph) {
  Output file(path, force);
  circuit_json(graph, [&](std::string_view piece) { file.write(piece); });
  file.close();
  info("wrote {}", path);
}

int run_circuit(const Args& args, const Globals& globals) {
  for (const std::string& path : {args.graph, args.whole_graph, args.drawing, args.output.path})
    if (!path.empty()) check_writable(path, args.output.force);
  const Model model = load_model(args.model);
  TranscoderSet set = TranscoderSet::open(resolve_dictionaries(args.transcoders));
  set.bind(model, args.other_model);
  std::vector<Transcoder> transcoders;
  for (std::size_t i = 0; i < set.size(); ++i) transcoders.push_back(set.load(i));
  const std::vector<Prompt> prompts = load_prompts(args.prompts, model);
  if (args.prompt >= std::ssize(prompts))
    fail_usage("--prompt {}: there are {} prompts, counted from 0", args.prompt, prompts.size());
  const Prompt& prompt = prompts[static_cast<std::size_t>(args.prompt)];

  const auto start = std::chrono::steady_clock::now();
  Forward forward(model);
  Replacement replacement =
      set.cross_layer() != nullptr
          ? Replacement(forward, *set.cross_layer(), prompt.ids, args.replacement)
          : Replacement(forward, transcoders, prompt.ids, args.replacement);
  CircuitReport report;
  report.active = std::ssize(replacement.features());
  for (std::int32_t l = 0; l < model.config().n_layers; ++l)
    report.unexplained.push_back(replacement.unexplained(l));
  AttributeOptions options = args.attribute;
  ProgressLine progress("attributing", "targets", report.active);
  options.progress = [&](std::int64_t done, std::int64_t) { progress.update(done); };
  report.whole = attribute(replacement, options);
  progress.finish();
  report.whole.slug = file_stem(args.graph);
  report.whole.scan = args.transcoders;
  report.whole.prompt = prompt_text(prompt, model);
  if (!args.supernodes.empty())
    report.whole.supernodes = read_supernodes(args.supernodes, report.whole);
  report.scores = graph_scores(report.whole);
  report.pruned = prune(report.whole, args.prune);
  if (!args.changes.empty()) {
    const std::vector<NodeChange> changes = parse_node_changes(args.changes, report.whole);
    for (const std::string& change : args.changes)
      report.change += (report.change.empty() ? "" : ", ") + change;
    report.change += fmt::format(" ({} nodes)", changes.size());
    for (const Freedom freedom : {Freedom::direct, Freedom::constrained, Freedom::free})
      report.checks.push_back(check_changes(replacement, report.whole, changes, freedom));
    report.logits.assign(replacement.logits().begin(), replacement.logits().end());
    report.unchanged = likeliest_token(replacement.logits(), model);
    for (const ChangeCheck& check : report.checks)
      report.changed.push_back(likeliest_token(check.logits, model));
  }
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report.settings = {
      {"model", model.id()},
      {"transcoders", set.cross_layer() != nullptr
                          ? "cross-layer, " + args.transcoders
                          : fmt::format("{} of {} layers, {}", transcoders.size(),
                                        model.config().n_layers, args.transcoders)},
      {"prompt", clip(escape_controls(report.whole.prompt), 200)},
      {"targets", fmt::format("logits up to {} of the probability, at most {}; at most {} features",
                              options.logit_share, options.max_logits,
                              options.max_features == 0 ? "all" : grouped(options.max_features))},
      {"pruning", fmt::format("nodes to {}, edges to {} of the influence", args.prune.node_share,
                              args.prune.edge_share)},
      {"first token",
       args.replacement.constant_first ? "its MLP outputs are constants" : "as every other"}};

  if (!args.graph.empty()) write_graph(args.graph, args.output.force, report.pruned);
  if (!args.whole_graph.empty()) write_graph(args.whole_graph, args.output.force, report.whole);
  if (!args.drawing.empty()) {
    draw_dot(circuit_dot(report.pruned), args.drawing);
    info("wrote {}", args.drawing);
  }
  if (!args.output.path.empty()) {
    auto attributes = provenance(globals);
    attributes["model_id"] = model.id();
    attributes["model_sha256"] = model.sha256();
    ResultFile file(args.output.path, attributes);
    write_circuit(report, file);
    file.close();
    info("wrote {}", args.output.path);
  }
  Output out;
  if (args.json) {
    print_json(circuit_report_json(report, args.show), out);
  } else {
    out.write(circuit_text(report, args.show));
  }
  out.close();
  return 0;
}

}  // namespace

void register_circuit(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand("circuit", "attribution graph of a prompt over features");
  verb->group("Explain");
  verb->add_option("model", args->model, "model folder, GGUF file, or the name of a shipped model")
      ->required()
      ->option_text("MODEL");
  verb->add_option("--transcoders,--transcoder", args->transcoders,
                   "one a layer: a folder or file as SAELens or circuit-tracer write it; layers "
                   "without one are errors")
      ->required()
      ->option_text("PATH");
  verb->add_flag("--other-model", args->other_model,
                 "use transcoders that name another model than this");
  add_prompt_options(*verb, args->prompts);
  verb->add_option("--prompt", args->prompt, "which of the prompts (default 0, the first)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  add_output_options(*verb, args->output, "write the whole graph to this HDF5 file");
  verb->add_option("--graph", args->graph,
                   "write the pruned graph: JSON of the attribution-graph viewers")
      ->option_text("FILE");
  verb->add_option("--whole-graph", args->whole_graph, "write the graph as it is before pruning")
      ->option_text("FILE");
  verb->add_option("--draw", args->drawing,
                   "draw the pruned graph with Graphviz: .svg, .png or .pdf")
      ->option_text("FILE");
  AttributeOptions& a = args->attribute;
  verb->add_option("--logit-share", a.logit_share,
                   "logits until their probabilities reach this (default 0.95)")
      ->check(CLI::Range(0.0, 1.0))
      ->option_text("P");
  verb->add_option("--max-logits", a.max_logits, "at most so many logits (default 10)")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1000}))
      ->option_text("N");
  verb->add_option("--max-features", a.max_features,
                   "attribute the most influential features only (default 7500; 0 = all)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_option("--batch-tokens", a.batch_tokens,
                   "tokens of the prompt's copies in one backward pass (default 8192)")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1000000}))
      ->option_text("N");
  verb->add_flag("--constant-first", args->replacement.constant_first,
                 "no features or errors at the first token (circuit-tracer's way)");
  verb->add_option("--nodes", args->prune.node_share,
                   "prune to nodes with this share of the influence (default 0.8)")
      ->check(CLI::Range(0.0, 1.0))
      ->option_text("F");
  verb->add_option("--edges", args->prune.edge_share, "and to edges with this share (default 0.98)")
      ->check(CLI::Range(0.0, 1.0))
      ->option_text("F");
  verb->add_option("--supernodes", args->supernodes, "groups of nodes: JSON {\"name\": [ids]}")
      ->option_text("FILE");
  verb->add_option("--change", args->changes,
                   "test the graph: make nodes or a group FACTOR times what they are (default 0: "
                   "ablate); ids may have * for a number")
      ->option_text("NODE[=FACTOR]...");
  verb->add_option("--show", args->show, "most influential nodes to print (default 15)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] { return run_circuit(*args, globals); };
  });
}

}  // namespace lamina::cli
