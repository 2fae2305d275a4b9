// lamina clue: right answers told from wrong ones by the way the hidden state goes.

#include "lamina/probes/clue.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "lamina/core/error.h"
#include "ui/glyphs.h"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/feature_source.h"
#include "verbs/info.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

struct Args {
  FeatureInputs inputs;
  OutputOptions output;
  std::string label = "correct", positive, answer;
  std::string start = "first-generated", end = "last-generated";
  std::string centroids, keep;
  ClueOptions options;
  bool json = false;
};

std::string score_text(const Score& s) {
  if (std::isnan(s.value)) return "–";
  if (std::isnan(s.low)) return fmt::format("{:.3f}", s.value);
  return fmt::format("{:.3f} ({:.3f}–{:.3f})", s.value, s.low, s.high);
}

std::string clue_text(const ClueResults& r) {
  std::string out = fmt::format("{} traces judged, {:.1f} % of them right; 95 % intervals\n\n",
                                grouped(r.judged), 100 * r.base);
  Facts facts;
  facts.add("accuracy", score_text(r.accuracy));
  facts.add("balanced accuracy", score_text(r.balanced_accuracy));
  facts.add("AUROC", score_text(r.auroc));
  out += facts.text(2);
  if (r.reranking.questions > 0) {
    const ClueReranking& k = r.reranking;
    out += fmt::format("\n{} questions with {} candidates; the one chosen is right:\n\n",
                       grouped(k.questions), grouped(k.candidates));
    Facts ways;
    ways.add("nearest to success", score_text(k.nearest));
    ways.add("majority vote", score_text(k.majority));
    ways.add("first", score_text(k.first));
    ways.add("at random", fmt::format("{:.3f}", k.mean));
    ways.add("any right", fmt::format("{:.3f}", k.oracle));
    out += ways.text(2);
  }
  out += "\nby one layer alone\n\n";
  Table table({"site", ">accuracy", ">AUROC"});
  const auto number = [](double v) {
    return std::isnan(v) ? std::string("–") : fmt::format("{:.3f}", v);
  };
  for (std::size_t l = 0; l < r.sites.size(); ++l) {
    table.row({r.sites[l], number(r.layer_accuracy[l]), number(r.layer_auroc[l])});
  }
  out += table.text(2);
  if (r.sites.size() > 1) {
    out += fmt::format("\n  AUROC from 0.50 to 1 over the sites: {}\n",
                       curve(r.layer_auroc, 0.5, 1.0));
  }
  return out;
}

nlohmann::ordered_json clue_json(const ClueResults& r, std::span<const FeatureRow> rows) {
  const auto value = [](double v) {
    return std::isnan(v) ? nlohmann::ordered_json() : nlohmann::ordered_json(v);
  };
  const auto score = [&](const Score& s) {
    return nlohmann::ordered_json{
        {"value", value(s.value)}, {"low", value(s.low)}, {"high", value(s.high)}};
  };
  nlohmann::ordered_json json = {{"judged", r.judged},
                                 {"share_right", r.base},
                                 {"accuracy", score(r.accuracy)},
                                 {"balanced_accuracy", score(r.balanced_accuracy)},
                                 {"auroc", score(r.auroc)}};
  const ClueReranking& k = r.reranking;
  if (k.questions > 0) {
    json["reranking"] = {
        {"questions", k.questions}, {"candidates", k.candidates},    {"nearest", score(k.nearest)},
        {"first", score(k.first)},  {"majority", score(k.majority)}, {"random", k.mean},
        {"any", k.oracle}};
  }
  for (std::size_t l = 0; l < r.sites.size(); ++l) {
    json["sites"].push_back({{"site", r.sites[l]},
                             {"accuracy", value(r.layer_accuracy[l])},
                             {"auroc", value(r.layer_auroc[l])}});
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    json["traces"].push_back({{"prompt", rows[i].prompt_id},
                              {"question", rows[i].group},
                              {"correct", r.correct[i] == 1},
                              {"to_success", value(r.to_success[i])},
                              {"to_failure", value(r.to_failure[i])}});
  }
  return json;
}

int run_clue(Args& args, const Globals& globals) {
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  if (!args.keep.empty()) check_writable(args.keep, args.output.force);
  FeatureSource source(args.inputs, globals);
  args.options.seed = globals.seed;
  std::optional<ClueCentroids> given;
  FeatureOptions features;
  features.choice = RowChoice::difference;
  features.label = args.label;
  features.group = args.inputs.group;
  features.skip_unlabelled = args.inputs.skip_unlabelled;
  if (!args.centroids.empty()) {
    given = read_centroids(args.centroids);
    if (given->model_sha256 != source.model_sha256()) {
      fail("{}: its centroids are of a model with SHA-256 {}, this one has {}", args.centroids,
           given->model_sha256, source.model_sha256());
    }
    if (!args.inputs.sites.empty()) {
      fail_usage("--centroids are of certain sites, which --sites cannot change");
    }
    args.start = given->start;
    args.end = given->end;
    args.options.folds = 0;
    features.sites.clear();
    for (const std::string& name : given->sites) {
      features.sites.push_back(parse_site(name, source.config()));
    }
  } else {
    features.sites = source.sites();
  }
  features.start = parse_token_marker(args.start);
  features.end = parse_token_marker(args.end);

  const std::vector<FeatureRow> rows = source.rows(features);
  std::vector<std::uint8_t> correct;
  for (const FeatureRow& row : rows) correct.push_back(parse_correct(row, args.positive));
  std::vector<std::string> answers;
  if (!args.answer.empty()) {
    FeatureOptions by_answer = features;
    by_answer.group = args.answer;
    for (FeatureRow& row : source.rows(by_answer)) answers.push_back(std::move(row.group));
  }
  Clue clue(rows, correct, args.options, given ? &*given : nullptr);
  source.read(features, [&](const Features& read, std::size_t s) {
    clue.add_layer(site_name(read.options().sites[s]), read.values(s), read.width(s));
  });
  ClueResults results = clue.finish(answers);
  results.centroids.start = args.start;
  results.centroids.end = args.end;
  results.centroids.model_sha256 = source.model_sha256();

  if (!args.output.path.empty()) {
    auto attributes = source.provenance(globals);
    if (given) attributes["centroids"] = args.centroids;
    ResultFile file(args.output.path, attributes);
    file.group("clue");
    file.setting("label", args.label);
    file.setting("group", args.inputs.group);
    write_clue(file, results, rows, args.options);
    file.close();
  }
  if (!args.keep.empty()) write_centroids(args.keep, results.centroids);
  Output out;
  if (args.json) {
    print_json(clue_json(results, rows), out);
  } else {
    out.write(clue_text(results));
  }
  out.close();
  if (!args.output.path.empty()) info("wrote {}", args.output.path);
  if (!args.keep.empty()) info("wrote {}", args.keep);
  return 0;
}

}  // namespace

void register_clue(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand(
      "clue", "right answers told from wrong ones by how the hidden state moves");
  verb->group("Read");
  add_feature_options(*verb, args->inputs,
                      "label that names the question: its candidates are reranked, never parted");
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  verb->add_option("--label", args->label,
                   "label that says whether the answer is right (default correct)")
      ->option_text("NAME");
  verb->add_option("--positive", args->positive,
                   "the label's value that means right (default: 1, true, yes, correct, right)")
      ->option_text("VALUE");
  verb->add_option("--answer", args->answer, "label that holds the answer, for the majority vote")
      ->option_text("NAME");
  verb->add_option("--start", args->start,
                   "first-generated (default), last-generated, a number, or id:ID,… of tokens")
      ->option_text("MARKER");
  verb->add_option("--end", args->end,
                   "last-generated (default), first-generated, a number, or id:ID,… of tokens")
      ->option_text("MARKER");
  verb->add_option("--folds", args->options.folds, "folds of the cross-validation (default 5)")
      ->check(CLI::Range(2, 1000))
      ->option_text("K");
  verb->add_option("--split", args->options.train_share,
                   "one split instead: this share of the questions gives the centroids")
      ->check(CLI::Range(0.0, 1.0))
      ->option_text("SHARE");
  verb->add_option("--resamples", args->options.resamples,
                   "resamples of the intervals (default 1000)")
      ->check(CLI::Range(0, 1'000'000))
      ->option_text("N");
  verb->add_option("--keep", args->keep, "write the centroids to this safetensors file")
      ->option_text("FILE");
  verb->add_option("--centroids", args->centroids,
                   "judge by the centroids of such a file instead of the traces' own")
      ->option_text("FILE");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback(
      [args, &globals] { globals.action = [args, &globals] { return run_clue(*args, globals); }; });
}

}  // namespace lamina::cli
