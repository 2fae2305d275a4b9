// lamina ablate --method finercut and --method path: whole paths, judged.

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "lamina/patching/finercut.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/ablate.h"

namespace lamina::cli {
namespace {

struct FinerCutReport {
  std::vector<Sublayer> first;    // removed beforehand
  PathQuality whole, start;       // the model, and what was left of it at the beginning
  std::vector<Removal> removals;  // so far

  LayerPath left(const ModelConfig& config) const {
    std::vector<Sublayer> removed = first;
    for (const Removal& removal : removals) removed.push_back(removal.sublayer);
    return path_without(removed, config);
  }
};

// Written after every removal, so that a long run that is cut off leaves what it had.
void write_finercut(const FinerCutReport& report, const Ablation& run) {
  const std::unique_ptr<ResultFile> file = run.begin_file("finercut");
  std::vector<std::int64_t> numbers = {0};
  std::vector<std::string> names, removed = {""}, sublayers;
  std::vector<PathQuality> qualities = {report.start};
  for (const Sublayer& s : all_sublayers(run.config())) sublayers.push_back(sublayer_name(s));
  std::vector<double> candidates(sublayers.size(), std::numeric_limits<double>::quiet_NaN());
  for (const Removal& removal : report.removals) {
    numbers.push_back(static_cast<std::int64_t>(numbers.size()));
    removed.push_back(sublayer_name(removal.sublayer));
    qualities.push_back(removal.left);
    candidates.insert(candidates.end(), removal.candidates.begin(), removal.candidates.end());
  }
  std::string beforehand;
  for (const Sublayer& s : report.first)
    beforehand += (beforehand.empty() ? "" : ",") + sublayer_name(s);
  file->setting("removed_beforehand", beforehand);
  file->setting("left", layer_path_text(report.left(run.config()), run.config()));
  file->axis("removal", numbers);
  file->axis("sublayer", sublayers);
  write_qualities(*file, "removal", qualities, run);
  const std::vector<std::string> by_removal = {"removal"}, by_candidate = {"removal", "sublayer"};
  file->dataset("removed", by_removal, removed,
                "sublayer that this removal takes: layer number, a attention or m MLP", "");
  file->dataset("candidate_distance", by_candidate, candidates,
                "distance that the removal of each sublayer would have led to",
                std::string(distance_units(parse_distance(run.args().distance))));
  file->close();
}

std::string finercut_text(const FinerCutReport& report, const Ablation& run, std::int64_t rows) {
  const QualityColumns columns(run, report.whole);
  std::vector<std::string> headings = {">", "removed"};
  for (std::string& heading : columns.headings()) headings.push_back(heading);
  Table table(headings);
  const auto add = [&](std::string number, std::string removed, const PathQuality& quality) {
    std::vector<std::string> cells = {std::move(number), std::move(removed)};
    for (std::string& cell : columns.cells(quality)) cells.push_back(cell);
    table.row(cells);
  };
  add("0", "", report.whole);
  const std::size_t before = report.first.size();
  if (before > 0) add(std::to_string(before), "(before)", report.start);
  for (std::size_t i = 0; i < report.removals.size(); ++i) {
    add(std::to_string(before + i + 1), sublayer_name(report.removals[i].sublayer),
        report.removals[i].left);
  }
  return basis_text(run, rows) + table.text(2) +
         fmt::format(
             "  {} in {}, NLL and KL in nats; agrees: same most likely token as the whole "
             "model\nleft: {}\n",
             columns.distance, distance_units(parse_distance(columns.distance)),
             layer_path_text(report.left(run.config()), run.config()));
}

std::string finercut_json(const FinerCutReport& report, const Ablation& run, std::int64_t rows) {
  const QualityColumns columns(run, report.whole);
  nlohmann::ordered_json json = {{"method", "finercut"},
                                 {"distance", columns.distance},
                                 {"tokens", rows},
                                 {"whole", columns.json(report.whole)}};
  json["removed_beforehand"] = nlohmann::ordered_json::array();
  for (const Sublayer& s : report.first) json["removed_beforehand"].push_back(sublayer_name(s));
  json["removals"] = nlohmann::ordered_json::array();
  for (const Removal& removal : report.removals) {
    nlohmann::ordered_json entry = {{"removed", sublayer_name(removal.sublayer)}};
    entry.update(columns.json(removal.left));
    json["removals"].push_back(entry);
  }
  json["left"] = layer_path_text(report.left(run.config()), run.config());
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace

std::string ablate_finercut(Ablation& run) {
  const AblateArgs& args = run.args();
  FinerCutReport report;
  if (!args.removed.empty()) report.first = parse_sublayers(args.removed, run.config());
  const auto total = static_cast<std::int64_t>(all_sublayers(run.config()).size());
  const auto before = static_cast<std::int64_t>(report.first.size());
  if (args.remove > total - before) {
    fail_usage("--remove {} sublayers, but only {} are left to remove", args.remove,
               total - before);
  }
  FinerCutOptions options;
  options.remove = args.remove >= 0         ? args.remove
                   : args.max_distance >= 0 ? total - before
                                            : std::max<std::int64_t>(0, total / 2 - before);
  options.limit = args.max_distance;
  options.first = report.first;

  PathJudge judge = run.judge();
  report.whole = judge.judge(all_steps(run.config()));
  report.start = judge.judge(path_without(report.first, run.config()));
  // Candidates of all removals together: n + (n − 1) + …
  const auto tried = [&](std::int64_t removals) {
    return removals * (total - before) - removals * (removals - 1) / 2;
  };
  ProgressLine progress("removing", "candidates", tried(options.remove));
  options.progress = [&](double done, std::int64_t, std::int64_t removed) {
    progress.update(tried(removed) + static_cast<std::int64_t>(done));
  };
  options.removed = [&](const Removal& removal) {
    report.removals.push_back(removal);
    if (!args.output.path.empty()) write_finercut(report, run);
    return true;
  };
  finercut(judge, run.config(), options);
  progress.finish();
  if (report.removals.empty() && !args.output.path.empty()) write_finercut(report, run);
  return args.json ? finercut_json(report, run, judge.rows())
                   : finercut_text(report, run, judge.rows());
}

std::string ablate_paths(Ablation& run) {
  const AblateArgs& args = run.args();
  std::vector<LayerPath> paths = {all_steps(run.config())};
  for (const std::string& text : args.paths) paths.push_back(parse_layer_path(text, run.config()));
  PathJudge judge = run.judge();
  std::vector<PathQuality> qualities;
  std::vector<std::string> names;
  ProgressLine progress("running", "paths", static_cast<std::int64_t>(paths.size()));
  for (const LayerPath& path : paths) {
    qualities.push_back(judge.judge(path));
    names.push_back(layer_path_text(path, run.config()));
    progress.update(static_cast<std::int64_t>(qualities.size()));
  }
  progress.finish();
  if (!args.output.path.empty()) {
    const std::unique_ptr<ResultFile> file = run.begin_file("paths");
    file->axis("path", names);
    write_qualities(*file, "path", qualities, run);
    file->close();
  }
  const QualityColumns columns(run, qualities[0]);
  if (args.json) {
    nlohmann::ordered_json json = {{"method", "path"},
                                   {"distance", columns.distance},
                                   {"tokens", judge.rows()},
                                   {"whole", columns.json(qualities[0])}};
    for (std::size_t i = 1; i < paths.size(); ++i) {
      nlohmann::ordered_json entry = {{"path", names[i]}};
      entry.update(columns.json(qualities[i]));
      json["paths"].push_back(entry);
    }
    return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  }
  std::vector<std::string> headings = {"path"};
  for (std::string& heading : columns.headings()) headings.push_back(heading);
  Table table(headings);
  for (std::size_t i = 0; i < paths.size(); ++i) {
    std::vector<std::string> cells = {i == 0 ? "whole model" : clip(names[i], 60)};
    for (std::string& cell : columns.cells(qualities[i])) cells.push_back(cell);
    table.row(cells);
  }
  return basis_text(run, judge.rows()) + table.text(2) +
         fmt::format(
             "  {} in {}, NLL and KL in nats; agrees: same most likely token as the whole "
             "model\n",
             columns.distance, distance_units(parse_distance(columns.distance)));
}

}  // namespace lamina::cli
