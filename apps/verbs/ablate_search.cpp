// lamina ablate --method search: a shorter or better path for each prompt.

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "lamina/patching/path_search.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/ablate.h"

namespace lamina::cli {
namespace {

struct SearchReport {
  std::vector<PromptPaths> found;  // [prompt]
  std::vector<BudgetRow> budgets;
  std::string quality;  // what it is
};

std::string quality_name(const Ablation& run) {
  if (run.metric() == nullptr) return "log p(answer)";
  const MetricKind kind = run.metric()->kind();
  const bool turned = kind == MetricKind::nll || kind == MetricKind::kl;
  return (turned ? "-" : "") + std::string(metric_name(kind));
}

const PathTried& tried_at(const PromptPaths& prompt, std::int64_t index) {
  return prompt.tree.tried[static_cast<std::size_t>(index)];
}

// How the prompts fare: counts and means over all of them.
struct Outcome {
  std::int64_t right = 0, shorter = 0;  // of the whole model; with a right path of fewer layers
  std::int64_t wrong = 0, mended = 0;   // with a right path at all
  double whole_layers = 0, shorter_layers = 0;  // mean over `shorter`
};

Outcome outcome(const SearchReport& report) {
  Outcome o;
  for (const PromptPaths& prompt : report.found) {
    o.whole_layers = prompt.tree.tried[0].value.layers;
    const std::int64_t shortest = prompt.shortest_right();
    if (prompt.right[0] == 0) {
      ++o.wrong;
      o.mended += shortest >= 0 ? 1 : 0;
      continue;
    }
    ++o.right;
    const double layers = tried_at(prompt, shortest).value.layers;
    if (layers < o.whole_layers) {
      ++o.shorter;
      o.shorter_layers += layers;
    }
  }
  if (o.shorter > 0) o.shorter_layers /= static_cast<double>(o.shorter);
  return o;
}

std::string counted(std::int64_t prompts) {
  return fmt::format("{} {}", grouped(prompts), prompts == 1 ? "prompt" : "prompts");
}

std::string search_text(const SearchReport& report, const Ablation& run) {
  const std::int64_t show = run.args().show;
  const ModelConfig& config = run.config();
  Table table({"prompt", "path", ">layers", ">" + report.quality, "answer", ""});
  std::int64_t shown = 0;
  for (std::size_t p = 0; p < report.found.size() && shown < show; ++p, ++shown) {
    const PromptPaths& prompt = report.found[p];
    const auto row = [&](std::string name, std::int64_t at, const char* what) {
      const PathTried& tried = tried_at(prompt, at);
      table.row({std::move(name),
                 at == 0 ? "whole model" : clip(layer_path_text(tried.path, config), 50),
                 layers_text(tried.value.layers), fmt::format("{:.3f}", tried.value.quality),
                 prompt.right[static_cast<std::size_t>(at)] != 0 ? "right" : "wrong", what});
    };
    const auto best = static_cast<std::int64_t>(prompt.tree.best);
    const std::int64_t shortest = prompt.shortest_right();
    row(clip(escape_controls(run.prompts().ids[p]), 24), 0, best == 0 ? "best reward" : "");
    if (best != 0) {
      row("", best, shortest == best ? "best reward, shortest right" : "best reward");
    }
    if (shortest > 0 && shortest != best) row("", shortest, "shortest right");
  }
  std::string out;
  if (shown > 0) out += table.text(2);
  if (shown < static_cast<std::int64_t>(report.found.size())) {
    out += fmt::format("  … and {} more prompts (--show)\n",
                       report.found.size() - static_cast<std::size_t>(shown));
  }
  const Outcome o = outcome(report);
  std::int64_t paths = 0, asked = 0, ran = 0;
  for (const PromptPaths& prompt : report.found) {
    paths += std::ssize(prompt.tree.tried);
    asked += prompt.steps_asked;
    ran += prompt.steps_run;
  }
  out += fmt::format("\n{} paths tried for {}; {:.0f}% of their steps were reused\n",
                     grouped(paths), counted(std::ssize(report.found)),
                     100.0 - 100.0 * static_cast<double>(ran) /
                                 static_cast<double>(std::max<std::int64_t>(1, asked)));
  out += fmt::format("whole model right: {}, {} of them also by a shorter path{}\n",
                     counted(o.right), o.shorter,
                     o.shorter > 0 ? fmt::format(" (mean {:.1f} of {} layers)", o.shorter_layers,
                                                 layers_text(o.whole_layers))
                                   : "");
  if (o.wrong > 0) {
    out += fmt::format("whole model wrong: {}, {} of them right by a path\n", counted(o.wrong),
                       o.mended);
  }
  out += "\n" +
         styled(Style::bold, "quality against layers: each prompt's best path within a budget") +
         "\n";
  Table budget(
      {">layers at most", ">used", ">" + report.quality, ">right", ">any right", ">prompts"});
  // The whole range in a dozen rows; the file has all of them.
  const std::size_t step = std::max<std::size_t>(1, (report.budgets.size() + 11) / 12);
  for (std::size_t i = 0; i < report.budgets.size(); ++i) {
    const BudgetRow& row = report.budgets[i];
    if (i % step != 0 && row.layers != o.whole_layers && i + 1 != report.budgets.size()) continue;
    budget.row({layers_text(row.layers), fmt::format("{:.1f}", row.used),
                fmt::format("{:.3f}", row.quality), share_text(row.right),
                share_text(row.any_right), grouped(row.prompts)});
  }
  out += budget.text(2);
  out +=
      "  right: the most likely next token is an answer; any right: after some path within the "
      "budget.\n  Paths are chosen with the prompt's answer known: a bound, not a rule for new "
      "prompts.\n";
  return out;
}

nlohmann::ordered_json path_json(const PromptPaths& prompt, std::int64_t at,
                                 const ModelConfig& config) {
  if (at < 0) return nullptr;
  const PathTried& tried = tried_at(prompt, at);
  return {
      {"path", layer_path_text(tried.path, config)},
      {"layers", tried.value.layers},
      {"quality", std::isfinite(tried.value.quality) ? nlohmann::ordered_json(tried.value.quality)
                                                     : nlohmann::ordered_json(nullptr)},
      {"right", prompt.right[static_cast<std::size_t>(at)] != 0},
      {"edits", tried.edits}};
}

std::string search_json(const SearchReport& report, const Ablation& run) {
  const Outcome o = outcome(report);
  nlohmann::ordered_json json = {{"method", "search"},     {"quality", report.quality},
                                 {"whole_right", o.right}, {"shorter", o.shorter},
                                 {"whole_wrong", o.wrong}, {"mended", o.mended}};
  for (std::size_t p = 0; p < report.found.size(); ++p) {
    const PromptPaths& prompt = report.found[p];
    json["prompts"].push_back(
        {{"id", run.prompts().ids[p]},
         {"answers", prompt.answers},
         {"tried", prompt.tree.tried.size()},
         {"exhausted", prompt.tree.exhausted},
         {"whole", path_json(prompt, 0, run.config())},
         {"best", path_json(prompt, static_cast<std::int64_t>(prompt.tree.best), run.config())},
         {"shortest_right", path_json(prompt, prompt.shortest_right(), run.config())}});
  }
  for (const BudgetRow& row : report.budgets) {
    json["budgets"].push_back({{"layers", row.layers},
                               {"used", row.used},
                               {"quality", row.quality},
                               {"right", row.right},
                               {"any_right", row.any_right},
                               {"prompts", row.prompts}});
  }
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

// Datasets [tried]: every path of every prompt, in the order it was tried.
void write_search(const SearchReport& report, const Ablation& run) {
  const AblateArgs& args = run.args();
  const std::unique_ptr<ResultFile> file = run.begin_file("path_search");
  file->setting("quality", report.quality);
  file->setting("simulations", args.simulations);
  file->setting("cost_per_layer", args.cost);
  file->setting("edits", args.edits);
  file->setting("block", args.block);
  file->setting("repeats", args.repeats);
  file->setting("explore", args.explore);
  file->setting("sublayers", static_cast<std::int64_t>(args.sublayers ? 1 : 0));
  std::vector<std::int64_t> numbers;
  std::vector<std::int32_t> prompts, right, edits, best, shortest;
  std::vector<std::string> paths;
  std::vector<double> layers, quality, reward;
  for (std::size_t p = 0; p < report.found.size(); ++p) {
    const PromptPaths& prompt = report.found[p];
    const auto base = static_cast<std::int32_t>(numbers.size());
    best.push_back(base + static_cast<std::int32_t>(prompt.tree.best));
    const std::int64_t short_one = prompt.shortest_right();
    shortest.push_back(short_one < 0 ? -1 : base + static_cast<std::int32_t>(short_one));
    for (std::size_t i = 0; i < prompt.tree.tried.size(); ++i) {
      const PathTried& tried = prompt.tree.tried[i];
      numbers.push_back(static_cast<std::int64_t>(numbers.size()));
      prompts.push_back(static_cast<std::int32_t>(p));
      paths.push_back(layer_path_text(tried.path, run.config()));
      layers.push_back(tried.value.layers);
      quality.push_back(tried.value.quality);
      reward.push_back(tried.reward);
      right.push_back(prompt.right[i]);
      edits.push_back(tried.edits);
    }
  }
  file->axis("tried", numbers);
  file->axis("prompt", run.prompts().ids);
  const std::vector<std::string> by_tried = {"tried"}, by_prompt = {"prompt"},
                                 by_budget = {"budget"};
  file->dataset("tried_prompt", by_tried, prompts,
                "index of the prompt that the path was tried for", "");
  file->dataset("path", by_tried, paths, "layers that the path runs", "");
  file->dataset("layers", by_tried, layers, "layers that run; a sublayer alone counts half",
                "layers");
  file->dataset("quality", by_tried, quality, report.quality + " at the prompt's last token", "");
  file->dataset("reward", by_tried, reward, "quality - cost_per_layer x layers", "");
  file->dataset("right", by_tried, right, "1: the most likely next token is an answer", "");
  file->dataset("edits", by_tried, edits, "fewest edits by which the search reached the path", "");
  file->dataset("best", by_prompt, best, "index along tried of the path with the highest reward",
                "");
  file->dataset("shortest_right", by_prompt, shortest,
                "index along tried of the right path with the fewest layers; -1: none", "");
  std::vector<double> budget, used, budget_quality, budget_right, budget_any;
  std::vector<std::int32_t> counted;
  for (const BudgetRow& row : report.budgets) {
    budget.push_back(row.layers);
    used.push_back(row.used);
    budget_quality.push_back(row.quality);
    budget_right.push_back(row.right);
    budget_any.push_back(row.any_right);
    counted.push_back(static_cast<std::int32_t>(row.prompts));
  }
  file->axis("budget", budget);
  file->dataset("budget_used", by_budget, used,
                "layers used, mean over prompts of the best path within the budget", "layers");
  file->dataset("budget_quality", by_budget, budget_quality, "its quality, mean over prompts", "");
  file->dataset("budget_right", by_budget, budget_right, "share of prompts for which it is right",
                "1");
  file->dataset("budget_any_right", by_budget, budget_any,
                "share of prompts for which some path within the budget is right", "1");
  file->dataset("budget_prompts", by_budget, counted, "prompts with a path within the budget", "");
  file->close();
}

}  // namespace

std::string ablate_search(Ablation& run) {
  const AblateArgs& args = run.args();
  PathSearchOptions options;
  options.tree.simulations = args.simulations;
  options.tree.cost = args.cost;
  options.tree.edits = args.edits;
  options.tree.block = args.block;
  options.tree.repeats = args.repeats;
  options.tree.explore = args.explore;
  options.tree.seed = run.globals().seed;
  options.metric = run.metric();
  options.sublayers = args.sublayers;
  options.memory = run.memory();
  ProgressLine progress("searching", "paths", args.simulations * run.prompts().count());
  options.progress = [&](std::int64_t done, std::int64_t) { progress.update(done); };
  SearchReport report;
  report.found = search_paths(run.forward(), run.prompts(), options);
  progress.finish();
  report.budgets = budget_table(report.found);
  report.quality = quality_name(run);
  if (!args.output.path.empty()) write_search(report, run);
  return args.json ? search_json(report, run) : search_text(report, run);
}

}  // namespace lamina::cli
