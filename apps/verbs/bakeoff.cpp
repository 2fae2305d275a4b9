// lamina bakeoff: every method of finding causes on the same models, in one table.

#include <cmath>
#include <nlohmann/json.hpp>

#include "inputs.h"
#include "lamina/core/error.h"
#include "lamina/core/result_file.h"
#include "lamina/patching/bake_off.h"
#include "pair_inputs.h"
#include "paths.h"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/info.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

struct Args {
  std::string model;
  PairInputs pairs{.limit = 20};
  std::string known;
  std::int64_t steps = 5;
  bool no_exact_edges = false, json = false;
  OutputOptions output;
};

struct Entry {
  std::string name, pairs, known;  // files; known may be empty
};

struct Baked {
  std::string name;
  std::int64_t pairs = 0;
  std::vector<BakeOffRow> rows;
};

std::vector<Entry> entries(const Args& args) {
  if (!args.model.empty()) {
    if (args.pairs.file.empty()) fail_usage("{} needs its --pairs", args.model);
    return {{args.model, args.pairs.file, args.known}};
  }
  if (!args.pairs.file.empty() || !args.known.empty())
    fail_usage("--pairs and --known belong to a model: name it, or leave them out");
  const std::filesystem::path data = data_folder();
  std::vector<Entry> all;
  for (const char* name : {"previous_token", "induction", "majority", "indirect_object"}) {
    const std::filesystem::path folder = data / "planted" / name;
    all.push_back({folder, folder / "pairs.jsonl", folder / "circuit.json"});
  }
  all.push_back({data / "organism", data / "organism" / "pairs" / "ioi.jsonl", ""});
  return all;
}

std::string number(double value) {
  return std::isnan(value) ? "–" : fmt::format("{:.3f}", value);
}

nlohmann::ordered_json number_or_null(double value) {
  if (std::isnan(value)) return nullptr;
  return value;
}

Baked bake(const Entry& entry, const Args& args) {
  const Model model = load_model(entry.name);
  Forward forward(model);
  PairInputs inputs = args.pairs;
  inputs.file = entry.pairs;
  const LoadedPairs loaded = load_pairs(inputs, forward);
  const Metric metric = make_metric(parse_metric(inputs.metric), loaded.pairs, forward);
  std::optional<KnownCircuit> known;
  if (!entry.known.empty())
    known = read_known_circuit(entry.known, EdgeGraph(GraphShape::of(model.config())));
  BakeOffOptions options{.steps = args.steps, .exact_edges = !args.no_exact_edges};
  Baked baked{.name = model.id(), .pairs = std::ssize(loaded.pairs)};
  baked.rows = bake_off(model, loaded.pairs, metric, known ? &*known : nullptr, options);
  return baked;
}

std::string table_text(const std::vector<Baked>& all) {
  Table table({"model", ">pairs", "method", "scores", ">AUROC nodes", ">AUROC edges", ">CPR",
               ">CMD", ">Pearson", ">Spearman", ">seconds"});
  for (const Baked& baked : all) {
    bool first = true;
    for (const BakeOffRow& r : baked.rows) {
      table.row({first ? baked.name : "", first ? fmt::format("{}", baked.pairs) : "", r.method,
                 r.edges ? "edges" : "nodes", number(r.auroc.nodes), number(r.auroc.edges),
                 number(r.cpr), number(r.cmd), number(r.pearson), number(r.spearman),
                 fmt::format("{:.3f}", r.seconds)});
      first = false;
    }
  }
  return table.text() +
         "\nAUROC edges: those that differ between the prompts of a pair. CPR (higher) and CMD "
         "(lower is better): linear\naxis. Pearson, Spearman: with the exact scores of the same "
         "nodes or edges.\n";
}

void write_rows(const std::vector<Baked>& all, const Args& args, ResultFile& file) {
  file.group("bakeoff");
  file.setting("steps", args.steps);
  file.setting("metric_kind", args.pairs.metric);
  std::vector<std::string> rows, models, methods, kinds;
  std::vector<std::int32_t> pairs;
  for (const Baked& baked : all) {
    for (const BakeOffRow& r : baked.rows) {
      const std::string kind = r.edges ? "edges" : "nodes";
      rows.push_back(baked.name + "/" + r.method + "/" + kind);
      models.push_back(baked.name);
      methods.push_back(r.method);
      kinds.push_back(kind);
      pairs.push_back(static_cast<std::int32_t>(baked.pairs));
    }
  }
  const std::vector<std::string> row = {"run"};
  file.axis("run", std::span<const std::string>(rows));
  file.dataset("model", row, std::span<const std::string>(models), "the model", "");
  file.dataset("method", row, std::span<const std::string>(methods), "the method", "");
  file.dataset("scored", row, std::span<const std::string>(kinds), "nodes or edges", "");
  file.dataset("pairs", row, std::span<const std::int32_t>(pairs), "pairs of prompts", "");
  const auto column = [&](const char* name, double BakeOffRow::*member, const char* what,
                          const char* units) {
    std::vector<double> values;
    for (const Baked& baked : all) {
      for (const BakeOffRow& r : baked.rows) values.push_back(r.*member);
    }
    file.dataset(name, row, std::span<const double>(values), what, units);
  };
  const auto aurocs = [&](const char* name, double KnownAuroc::*member, const char* what) {
    std::vector<double> values;
    for (const Baked& baked : all) {
      for (const BakeOffRow& r : baked.rows) values.push_back(r.auroc.*member);
    }
    file.dataset(name, row, std::span<const double>(values), what, "");
  };
  aurocs("auroc_nodes", &KnownAuroc::nodes,
         "AUROC of |score| for the known nodes that differ between the prompts");
  aurocs("auroc_all_nodes", &KnownAuroc::all_nodes, "AUROC of |score| for all known nodes");
  aurocs("auroc_edges", &KnownAuroc::edges,
         "AUROC of |score| for the known edges that differ between the prompts");
  aurocs("auroc_all_edges", &KnownAuroc::all_edges, "AUROC of |score| for all known edges");
  column("cpr", &BakeOffRow::cpr, "circuit performance ratio, linear axis", "");
  column("cmd", &BakeOffRow::cmd, "circuit-model distance, linear axis", "");
  column("pearson", &BakeOffRow::pearson, "correlation with the exact scores", "");
  column("spearman", &BakeOffRow::spearman, "rank correlation with the exact scores", "");
  column("seconds", &BakeOffRow::seconds, "time of the scores", "s");
}

nlohmann::ordered_json rows_json(const std::vector<Baked>& all) {
  auto list = nlohmann::ordered_json::array();
  for (const Baked& baked : all) {
    for (const BakeOffRow& r : baked.rows) {
      list.push_back({{"model", baked.name},
                      {"pairs", baked.pairs},
                      {"method", r.method},
                      {"scores", r.edges ? "edges" : "nodes"},
                      {"auroc_nodes", number_or_null(r.auroc.nodes)},
                      {"auroc_edges", number_or_null(r.auroc.edges)},
                      {"auroc_all_edges", number_or_null(r.auroc.all_edges)},
                      {"cpr", number_or_null(r.cpr)},
                      {"cmd", number_or_null(r.cmd)},
                      {"pearson", number_or_null(r.pearson)},
                      {"spearman", number_or_null(r.spearman)},
                      {"seconds", r.seconds}});
    }
  }
  return list;
}

int run_bakeoff(const Args& args, const Globals& globals) {
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  parse_metric(args.pairs.metric);
  const std::vector<Entry> todo = entries(args);
  std::vector<Baked> all;
  ProgressLine progress("baking", "models", std::ssize(todo));
  for (const Entry& entry : todo) {
    all.push_back(bake(entry, args));
    progress.update(std::ssize(all));
  }
  progress.finish();
  if (!args.output.path.empty()) {
    ResultFile file(args.output.path, provenance(globals));
    write_rows(all, args, file);
    file.close();
  }
  Output out;
  if (args.json) {
    print_json(rows_json(all), out);
  } else {
    out.write(table_text(all));
  }
  out.close();
  if (!args.output.path.empty()) info("wrote {}", args.output.path);
  return 0;
}

}  // namespace

void register_bakeoff(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb =
      app.add_subcommand("bakeoff", "every method of finding causes on the same models");
  verb->group("Intervene");
  verb->add_option("model", args->model,
                   "model folder, GGUF file, or shipped model (default: the planted models and "
                   "the organism)")
      ->option_text("MODEL");
  add_pair_options(*verb, args->pairs);
  verb->get_option("--pairs")->required(false);
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  verb->add_option("--known", args->known, "the circuit that the model is known to have")
      ->option_text("FILE");
  verb->add_option("--steps", args->steps, "steps of integrated gradients (default 5)")
      ->check(CLI::Range(1, 10000))
      ->option_text("M");
  verb->add_flag("--no-exact-edges", args->no_exact_edges,
                 "leave out the exact edges, the slowest part for a large model");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] { return run_bakeoff(*args, globals); };
  });
}

}  // namespace lamina::cli
