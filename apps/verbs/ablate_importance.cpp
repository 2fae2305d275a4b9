// lamina ablate --method importance: every measure of every layer, and how far they agree.

#include <cmath>
#include <nlohmann/json.hpp>

#include "lamina/patching/layer_importance.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/ablate.h"

namespace lamina::cli {
namespace {

struct ImportanceReport {
  std::int64_t layers = 0, rows = 0;
  bool has_mlp = false;
  PathQuality whole;
  std::vector<double> lim, zd;                              // [layer]
  SublayerRelevance gradient, relevance;                    // [layer]
  std::vector<PathQuality> no_attention, no_mlp, no_layer;  // [layer]

  // What was measured, by layer, turned so that higher = more important.
  struct Measure {
    std::string name;
    std::vector<double> values;
  };
  std::vector<Measure> of_layers() const {
    std::vector<Measure> all = {{"LIM", lim}, {"-ZD", zd}, {"gradient", {}}, {"RelP", {}}};
    for (double& z : all[1].values) z = -z;
    for (std::size_t l = 0; l < lim.size(); ++l) {
      all[2].values.push_back(gradient.attention[l] + (has_mlp ? gradient.mlp[l] : 0));
      all[3].values.push_back(relevance.attention[l] + (has_mlp ? relevance.mlp[l] : 0));
    }
    all.push_back({"removal", column(no_layer, &PathQuality::distance)});
    if (!std::isnan(whole.nll))
      all.push_back({"removal, NLL", column(no_layer, &PathQuality::nll)});
    return all;
  }
  std::vector<Measure> of_sublayers() const {
    std::vector<Measure> all = {{"gradient", gradient.attention},
                                {"RelP", relevance.attention},
                                {"removal", column(no_attention, &PathQuality::distance)}};
    if (!std::isnan(whole.nll)) {
      all.push_back({"removal, NLL", column(no_attention, &PathQuality::nll)});
    }
    const auto append = [&](std::size_t at, const std::vector<double>& values) {
      all[at].values.insert(all[at].values.end(), values.begin(), values.end());
    };
    append(0, gradient.mlp);
    append(1, relevance.mlp);
    append(2, column(no_mlp, &PathQuality::distance));
    if (all.size() > 3) append(3, column(no_mlp, &PathQuality::nll));
    return all;
  }
  static std::vector<double> column(const std::vector<PathQuality>& from,
                                    double PathQuality::*member) {
    std::vector<double> values;
    for (const PathQuality& q : from) values.push_back(q.*member);
    return values;
  }
};

std::vector<double> correlations(const std::vector<ImportanceReport::Measure>& measures) {
  std::vector<double> all;
  for (const auto& a : measures) {
    for (const auto& b : measures) all.push_back(rank_correlation(a.values, b.values));
  }
  return all;
}

std::string correlation_table(const std::vector<ImportanceReport::Measure>& measures) {
  std::vector<std::string> headings = {""};
  for (const auto& m : measures) headings.push_back(">" + m.name);
  Table table(headings);
  const std::vector<double> all = correlations(measures);
  for (std::size_t i = 0; i < measures.size(); ++i) {
    std::vector<std::string> cells = {measures[i].name};
    for (std::size_t j = 0; j < measures.size(); ++j) {
      const double r = all[i * measures.size() + j];
      cells.push_back(j > i || std::isnan(r) ? "" : fmt::format("{:.2f}", r));
    }
    table.row(cells);
  }
  return table.text(2);
}

std::string importance_text(const ImportanceReport& r, const Ablation& run) {
  const bool nll = !std::isnan(r.whole.nll), metric = run.metric() != nullptr;
  std::vector<std::string> headings = {">layer", ">LIM", ">ZD", ">RelP a"};
  if (r.has_mlp) headings.emplace_back(">RelP m");
  headings.emplace_back(">without a");
  if (r.has_mlp) headings.insert(headings.end(), {">without m", ">without both"});
  if (nll) headings.emplace_back(">NLL +");
  if (metric) headings.push_back(fmt::format(">{} +", metric_name(run.metric()->kind())));
  Table table(headings);
  for (std::size_t l = 0; l < r.lim.size(); ++l) {
    std::vector<std::string> cells = {std::to_string(l), fmt::format("{:.3f}", r.lim[l]),
                                      fmt::format("{:.2f}%", 100 * r.zd[l]),
                                      value_text(r.relevance.attention[l])};
    if (r.has_mlp) cells.push_back(value_text(r.relevance.mlp[l]));
    cells.push_back(value_text(r.no_attention[l].distance));
    if (r.has_mlp) {
      cells.push_back(value_text(r.no_mlp[l].distance));
      cells.push_back(value_text(r.no_layer[l].distance));
    }
    if (nll) cells.push_back(fmt::format("{:+.3f}", r.no_layer[l].nll - r.whole.nll));
    if (metric) cells.push_back(fmt::format("{:+.3f}", r.no_layer[l].metric - r.whole.metric));
    table.row(cells);
  }
  std::string out = basis_text(run, r.rows) + table.text(2);
  out += fmt::format(
      "  LIM: -cos(layer input, output). ZD: share of weights with {} > 1, lower = more "
      "important.\n"
      "  RelP: relevance that passes through a sublayer's output (a attention, m MLP).\n"
      "  without: {} distance of the logits, in {}, when it is left out{}.\n\n",
      run.args().two_sided ? "|z|" : "z", run.args().distance,
      distance_units(parse_distance(run.args().distance)),
      nll || metric ? ".\n  +: change of it when the whole layer is left out" : "");
  out += styled(Style::bold, fmt::format("rank correlation over {} layers", r.layers)) + "\n" +
         correlation_table(r.of_layers());
  if (r.has_mlp) {
    out += styled(Style::bold, fmt::format("rank correlation over {} sublayers", 2 * r.layers)) +
           "\n" + correlation_table(r.of_sublayers());
  }
  return out;
}

nlohmann::ordered_json matrix_json(const std::vector<ImportanceReport::Measure>& measures) {
  nlohmann::ordered_json json;
  const std::vector<double> all = correlations(measures);
  for (std::size_t i = 0; i < measures.size(); ++i) {
    for (std::size_t j = 0; j < measures.size(); ++j) {
      const double r = all[i * measures.size() + j];
      json[measures[i].name][measures[j].name] =
          std::isnan(r) ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(r);
    }
  }
  return json;
}

std::string importance_json(const ImportanceReport& r, const Ablation& run) {
  const QualityColumns columns(run, r.whole);
  nlohmann::ordered_json json = {{"method", "importance"},
                                 {"distance", columns.distance},
                                 {"tokens", r.rows},
                                 {"whole", columns.json(r.whole)}};
  for (std::size_t l = 0; l < r.lim.size(); ++l) {
    nlohmann::ordered_json layer = {{"layer", l},
                                    {"lim", r.lim[l]},
                                    {"zd", r.zd[l]},
                                    {"relevance_attention", r.relevance.attention[l]},
                                    {"gradient_attention", r.gradient.attention[l]}};
    if (r.has_mlp) {
      layer["relevance_mlp"] = r.relevance.mlp[l];
      layer["gradient_mlp"] = r.gradient.mlp[l];
    }
    layer["without_attention"] = columns.json(r.no_attention[l]);
    if (r.has_mlp) {
      layer["without_mlp"] = columns.json(r.no_mlp[l]);
      layer["without_layer"] = columns.json(r.no_layer[l]);
    }
    json["layers"].push_back(layer);
  }
  json["rank_correlation"] = matrix_json(r.of_layers());
  if (r.has_mlp) json["rank_correlation_sublayers"] = matrix_json(r.of_sublayers());
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

void write_importance(const ImportanceReport& r, const Ablation& run) {
  const std::unique_ptr<ResultFile> file = run.begin_file("layer_importance");
  const DistanceKind kind = parse_distance(run.args().distance);
  file->setting("distance_kind", run.args().distance);
  file->setting("positions", run.args().positions);
  file->setting("zd_two_sided", static_cast<std::int64_t>(run.args().two_sided ? 1 : 0));
  file->setting("whole_nll", r.whole.nll);
  file->setting("whole_metric", r.whole.metric);
  std::vector<std::int64_t> layers;
  for (std::int64_t l = 0; l < r.layers; ++l) layers.push_back(l);
  file->axis("layer", layers);
  const auto add = [&](const char* name, const std::vector<double>& values, const char* what,
                       const std::string& units) {
    file->dataset(name, std::vector<std::string>{"layer"}, std::span<const double>(values), what,
                  units);
  };
  add("lim", r.lim, "-cos(layer input, layer output), mean over tokens", "1");
  add("zd", r.zd, "share of the layer's weights with z > 1 (|z| > 1 if zd_two_sided)", "1");
  const auto sublayer = [&](const std::string& name, const SublayerRelevance& relevance,
                            const std::vector<PathQuality>& removed, bool mlp) {
    if (mlp && !r.has_mlp) return;
    const std::vector<double>& own = mlp ? r.relevance.mlp : r.relevance.attention;
    const std::vector<double>& slope = mlp ? relevance.mlp : relevance.attention;
    add(("relevance_" + name).c_str(), own,
        "sum over tokens of |output . relevance| (RelP), mean over prompts", "");
    add(("gradient_" + name).c_str(), slope,
        "sum over tokens of |output . gradient|, mean over prompts", "");
    add(("distance_without_" + name).c_str(),
        ImportanceReport::column(removed, &PathQuality::distance),
        "distance of the logits from the whole model's without this sublayer",
        std::string(distance_units(kind)));
    add(("nll_without_" + name).c_str(), ImportanceReport::column(removed, &PathQuality::nll),
        "-log p of the next token without this sublayer, mean over tokens", "nats");
    add(("metric_without_" + name).c_str(), ImportanceReport::column(removed, &PathQuality::metric),
        "mean metric without this sublayer", "");
  };
  sublayer("attention", r.gradient, r.no_attention, false);
  sublayer("mlp", r.gradient, r.no_mlp, true);
  add("distance_without_layer", ImportanceReport::column(r.no_layer, &PathQuality::distance),
      "distance of the logits from the whole model's without this layer",
      std::string(distance_units(kind)));
  add("nll_without_layer", ImportanceReport::column(r.no_layer, &PathQuality::nll),
      "-log p of the next token without this layer, mean over tokens", "nats");
  add("metric_without_layer", ImportanceReport::column(r.no_layer, &PathQuality::metric),
      "mean metric without this layer", "");
  const std::vector<ImportanceReport::Measure> measures = r.of_layers();
  std::vector<std::string> names;
  for (const auto& m : measures) names.push_back(m.name);
  file->axis("measure", names);
  file->axis("other_measure", names);
  file->dataset("rank_correlation", std::vector<std::string>{"measure", "other_measure"},
                std::span<const double>(correlations(measures)),
                "Spearman's rank correlation over the layers, every measure turned so that higher "
                "is more important",
                "1");
  file->close();
}

}  // namespace

std::string ablate_importance(Ablation& run) {
  const ModelConfig& config = run.config();
  ImportanceReport r;
  r.layers = config.n_layers;
  r.has_mlp = config.d_mlp > 0;
  r.lim = layer_input_metric(run.forward(), run.prompts(), run.last_only(), run.memory());
  r.zd = weight_outliers(run.model(), run.args().two_sided);
  r.gradient = sublayer_relevance(run.forward(), run.prompts(), run.metric(), run.last_only(), {},
                                  run.memory());
  r.relevance = sublayer_relevance(run.forward(), run.prompts(), run.metric(), run.last_only(),
                                   BackwardRules::relp(), run.memory());

  PathJudge judge = run.judge();
  r.rows = judge.rows();
  r.whole = judge.judge(all_steps(config));
  std::vector<LayerPath> candidates;
  for (std::int32_t l = 0; l < config.n_layers; ++l) {
    std::vector<Sublayer> removed = {{l, false}};
    candidates.push_back(path_without(removed, config));
    if (!r.has_mlp) continue;
    removed.push_back({l, true});
    candidates.push_back(path_without(removed, config));
    removed.erase(removed.begin());
    candidates.push_back(path_without(removed, config));
  }
  ProgressLine progress("removing", "candidates", std::ssize(candidates));
  const std::vector<PathQuality> qualities =
      judge.judge_all(all_steps(config), candidates,
                      [&](double done) { progress.update(static_cast<std::int64_t>(done)); });
  progress.finish();
  const std::size_t each = r.has_mlp ? 3 : 1;
  for (std::size_t i = 0; i < qualities.size(); i += each) {
    r.no_attention.push_back(qualities[i]);
    r.no_layer.push_back(qualities[r.has_mlp ? i + 1 : i]);
    if (r.has_mlp) r.no_mlp.push_back(qualities[i + 2]);
  }
  if (!run.args().output.path.empty()) write_importance(r, run);
  return run.args().json ? importance_json(r, run) : importance_text(r, run);
}

}  // namespace lamina::cli
