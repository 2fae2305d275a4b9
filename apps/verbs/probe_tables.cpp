#include "verbs/probe_tables.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "lamina/core/error.h"
#include "ui/glyphs.h"
#include "ui/table.h"
#include "ui/text.h"
#include "verbs/feature_source.h"

namespace lamina::cli {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::string number(double v) {
  return std::isnan(v) ? "–" : fmt::format("{:.3f}", v);
}

double mean(const std::vector<Score>& scores) {
  double sum = 0;
  for (const Score& s : scores) sum += s.value;
  return scores.empty() ? kNaN : sum / static_cast<double>(scores.size());
}

// How many rows each class has, most first: what guessing would get.
std::vector<std::int64_t> class_counts(const ProbeTargets& targets) {
  std::vector<std::int64_t> counts(targets.classes.size(), 0);
  for (std::int32_t label : targets.label) ++counts[static_cast<std::size_t>(label)];
  return counts;
}

double majority(const ProbeTargets& targets) {
  const auto counts = class_counts(targets);
  return static_cast<double>(*std::max_element(counts.begin(), counts.end())) /
         static_cast<double>(targets.label.size());
}

nlohmann::ordered_json score_json(const Score& s) {
  const auto value = [](double v) {
    return std::isnan(v) ? nlohmann::ordered_json() : nlohmann::ordered_json(v);
  };
  return {{"value", value(s.value)}, {"low", value(s.low)}, {"high", value(s.high)}};
}

}  // namespace

std::string probe_text(const ProbeRun& run) {
  const bool ridge = run.options.kind == ProbeKind::ridge;
  const bool two = run.targets.classes.size() == 2;
  std::string out = fmt::format(
      "{} rows of {} {}, position {}, label '{}'", grouped(std::int64_t(run.rows.size())),
      grouped(run.targets.units), run.features.group.empty() ? "prompts" : "groups",
      row_choice_text(run.features.choice, run.features.index), run.features.label);
  if (!ridge) {
    const auto counts = class_counts(run.targets);
    out += ":";
    for (std::size_t c = 0; c < counts.size() && c < 8; ++c) {
      out += fmt::format("{} {} {}", c > 0 ? "," : "", run.targets.classes[c], counts[c]);
    }
    if (counts.size() > 8) out += fmt::format(" and {} more classes", counts.size() - 8);
    out += fmt::format("; the commonest has {:.1f} %", 100 * majority(run.targets));
  }
  out += fmt::format("\n{}, {} folds, held out; 95 % intervals\n\n",
                     ridge ? "ridge regression" : "logistic regression", run.options.folds);
  std::vector<std::string> headings = {"site", ridge ? ">R²" : ">accuracy", ">interval"};
  if (!ridge) headings.push_back(">balanced");
  if (two) headings.push_back(">AUROC");
  headings.insert(headings.end(), {">shuffled", ">selectivity", ">strength"});
  if (!ridge) headings.insert(headings.end(), {">means", ">whitened"});
  Table table(headings);
  std::vector<double> scores;
  for (const SiteProbe& site : run.sites) {
    const Score& score = site.score(run.options.kind);
    scores.push_back(score.value);
    std::vector<std::string> cells = {
        site.site, number(score.value),
        std::isnan(score.low) ? "" : fmt::format("{:.3f}–{:.3f}", score.low, score.high)};
    if (!ridge) cells.push_back(number(site.balanced_accuracy.value));
    if (two) cells.push_back(number(site.auroc.value));
    cells.insert(cells.end(), {number(site.control_mean), number(site.selectivity),
                               fmt::format("{:g}", site.strength)});
    if (!ridge) {
      cells.insert(cells.end(),
                   {number(mean(site.direction_auroc)), number(mean(site.whitened_auroc))});
    }
    table.row(cells);
  }
  out += table.text(2);
  if (!ridge) {
    out +=
        "\n  means, whitened: AUROC of the held-out projection on the difference of class "
        "means, and on that\n  whitened by the within-class covariance";
    out += two ? "\n" : " (mean over classes against the rest)\n";
  }
  if (scores.size() > 1) {
    const double low = ridge ? 0.0 : 1.0 / static_cast<double>(run.targets.classes.size());
    out += fmt::format("\n  {} from {:.2f} to 1 over the sites: {}\n", ridge ? "R²" : "accuracy",
                       low, curve(scores, low, 1.0));
  }
  return out;
}

nlohmann::ordered_json probe_json(const ProbeRun& run) {
  const bool ridge = run.options.kind == ProbeKind::ridge;
  nlohmann::ordered_json json = {{"kind", probe_kind_name(run.options.kind)},
                                 {"label", run.features.label},
                                 {"rows", run.rows.size()},
                                 {"units", run.targets.units},
                                 {"folds", run.options.folds},
                                 {"strengths", run.options.strengths}};
  if (!ridge) {
    json["classes"] = run.targets.classes;
    json["class_rows"] = class_counts(run.targets);
    json["majority"] = majority(run.targets);
  }
  for (const SiteProbe& site : run.sites) {
    nlohmann::ordered_json one = {{"site", site.site}, {"layer", site.layer}};
    if (ridge) {
      one["r2"] = score_json(site.r2);
    } else {
      one["accuracy"] = score_json(site.accuracy);
      one["balanced_accuracy"] = score_json(site.balanced_accuracy);
      if (run.targets.classes.size() == 2) one["auroc"] = score_json(site.auroc);
      for (const Score& s : site.direction_auroc) one["direction_auroc"].push_back(score_json(s));
      for (const Score& s : site.whitened_auroc) one["whitened_auroc"].push_back(score_json(s));
    }
    one["control"] = site.control;
    if (!site.control.empty()) one["selectivity"] = site.selectivity;
    one["strength"] = site.strength;
    one["fold_strength"] = site.fold_strength;
    one["path_score"] = site.path_score;
    one["path_loss"] = site.path_loss;
    json["sites"].push_back(std::move(one));
  }
  return json;
}

void score_applied(AppliedRun& run) {
  run.score.assign(run.sites.size(), kNaN);
  run.direction_auroc.assign(run.sites.size(), kNaN);
  if (!run.labelled) return;
  const StoredProbes& stored = *run.stored;
  if (stored.kind == ProbeKind::ridge) {
    const ProbeTargets targets = probe_targets(run.rows, ProbeKind::ridge);
    double average = 0, total = 0;
    for (double y : targets.value) average += y / static_cast<double>(targets.value.size());
    for (double y : targets.value) total += (y - average) * (y - average);
    for (std::size_t s = 0; s < run.sites.size(); ++s) {
      double error = 0;
      for (std::size_t r = 0; r < targets.value.size(); ++r) {
        error += std::pow(targets.value[r] - run.sites[s].score[r], 2);
      }
      run.score[s] = 1 - error / total;
    }
    return;
  }
  std::vector<std::int32_t> labels;
  for (const FeatureRow& row : run.rows) {
    const auto found = std::find(stored.classes.begin(), stored.classes.end(), row.label);
    if (found == stored.classes.end()) {
      fail("prompt '{}': label '{}' is none of the probe's: {}", row.prompt_id, row.label,
           fmt::join(stored.classes, ", "));
    }
    labels.push_back(static_cast<std::int32_t>(found - stored.classes.begin()));
  }
  for (std::size_t s = 0; s < run.sites.size(); ++s) {
    const AppliedProbe& site = run.sites[s];
    std::int64_t right = 0;
    for (std::size_t r = 0; r < labels.size(); ++r) right += site.predicted[r] == labels[r];
    run.score[s] = static_cast<double>(right) / static_cast<double>(labels.size());
    if (stored.classes.size() != 2) continue;
    // Rank sum with ties at their middle.
    std::map<double, std::pair<double, double>> at;  // projection → rows of class 0, of class 1
    for (std::size_t r = 0; r < labels.size(); ++r) {
      auto& [zero, one] = at[site.projection[r]];
      (labels[r] == 1 ? one : zero) += 1;
    }
    double below = 0, ones = 0, ordered = 0;
    for (const auto& [projection, counts] : at) {
      ordered += counts.second * (below + counts.first / 2);
      below += counts.first;
      ones += counts.second;
    }
    if (below > 0 && ones > 0) run.direction_auroc[s] = ordered / (below * ones);
  }
}

void write_applied(ResultFile& file, const AppliedRun& run, const std::string& path) {
  using Names = std::vector<std::string>;
  const StoredProbes& stored = *run.stored;
  const Names output = stored.classes.empty()       ? Names{"value"}
                       : stored.classes.size() == 2 ? Names{stored.classes[1]}
                                                    : stored.classes;
  file.setting("probes", path);
  file.setting("kind", std::string(probe_kind_name(stored.kind)));
  file.setting("position", row_choice_text(stored.choice, stored.index));
  Names sites, prompts, labels;
  std::vector<std::int64_t> numbers;
  std::vector<std::int32_t> tokens, predicted;
  std::vector<double> scores, projections;
  for (const AppliedProbe& site : run.sites) {
    sites.push_back(site.site);
    scores.insert(scores.end(), site.score.begin(), site.score.end());
    projections.insert(projections.end(), site.projection.begin(), site.projection.end());
    predicted.insert(predicted.end(), site.predicted.begin(), site.predicted.end());
  }
  for (const FeatureRow& row : run.rows) {
    numbers.push_back(static_cast<std::int64_t>(numbers.size()));
    prompts.push_back(row.prompt_id);
    labels.push_back(row.label);
    tokens.push_back(static_cast<std::int32_t>(row.token));
  }
  file.axis("site", sites);
  file.axis("row", numbers);
  file.axis("output", output);
  file.dataset("row_prompt", Names{"row"}, prompts, "id of the row's prompt", "");
  file.dataset("row_token", Names{"row"}, tokens, "the row's token within its prompt", "token");
  if (run.labelled) file.dataset("row_label", Names{"row"}, labels, "the row's label", "");
  file.dataset("score", Names{"site", "row", "output"}, scores,
               "weight * features + bias: log-odds, or the predicted number", "1");
  if (!projections.empty()) {
    file.dataset("projection", Names{"site", "row", "output"}, projections,
                 "features along the unit difference of means", "1");
    file.axis("class", stored.classes);
    file.dataset("predicted", Names{"site", "row"}, predicted, "index of the likeliest class", "");
  }
  if (!run.labelled) return;
  file.dataset(stored.classes.empty() ? "r2" : "accuracy", Names{"site"}, run.score,
               "agreement with the rows' labels", "1");
  file.dataset("direction_auroc", Names{"site"}, run.direction_auroc,
               "AUROC of the projection; NaN but for two classes", "1");
}

std::string applied_text(const AppliedRun& run) {
  const StoredProbes& stored = *run.stored;
  const bool ridge = stored.kind == ProbeKind::ridge;
  std::string out = fmt::format("{} rows{}\n\n", grouped(std::int64_t(run.rows.size())),
                                run.labelled ? "" : ", no labels to compare with");
  std::vector<std::string> headings = {"site"};
  if (run.labelled) headings.push_back(ridge ? ">R²" : ">accuracy");
  if (run.labelled && stored.classes.size() == 2) headings.push_back(">means AUROC");
  headings.push_back(ridge ? ">mean value" : "predicted");
  Table table(headings);
  for (std::size_t s = 0; s < run.sites.size(); ++s) {
    const AppliedProbe& site = run.sites[s];
    std::vector<std::string> cells = {site.site};
    if (run.labelled) cells.push_back(number(run.score[s]));
    if (run.labelled && stored.classes.size() == 2) cells.push_back(number(run.direction_auroc[s]));
    if (ridge) {
      double sum = 0;
      for (double v : site.score) sum += v;
      cells.push_back(number(sum / static_cast<double>(site.score.size())));
    } else {
      std::string text;
      for (std::size_t c = 0; c < stored.classes.size() && c < 8; ++c) {
        text += fmt::format(
            "{}{} {}", c > 0 ? ", " : "", stored.classes[c],
            std::count(site.predicted.begin(), site.predicted.end(), static_cast<std::int32_t>(c)));
      }
      cells.push_back(text);
    }
    table.row(cells);
  }
  return out + table.text(2);
}

nlohmann::ordered_json applied_json(const AppliedRun& run) {
  nlohmann::ordered_json json = {{"kind", probe_kind_name(run.stored->kind)},
                                 {"classes", run.stored->classes},
                                 {"rows", run.rows.size()},
                                 {"labelled", run.labelled}};
  for (std::size_t s = 0; s < run.sites.size(); ++s) {
    nlohmann::ordered_json one = {{"site", run.sites[s].site}};
    if (run.labelled) {
      one[run.stored->kind == ProbeKind::ridge ? "r2" : "accuracy"] = run.score[s];
      if (!std::isnan(run.direction_auroc[s])) one["direction_auroc"] = run.direction_auroc[s];
    }
    one["score"] = run.sites[s].score;
    one["predicted"] = run.sites[s].predicted;
    json["sites"].push_back(std::move(one));
  }
  return json;
}

}  // namespace lamina::cli
