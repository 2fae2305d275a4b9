// What the methods of `lamina ablate` share: inputs, qualities as columns and as datasets.

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/ablate.h"

namespace lamina::cli {
namespace {

// A number JSON can hold.
nlohmann::ordered_json number(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json(nullptr);
}

}  // namespace

Ablation::Ablation(const AblateArgs& args, const Globals& globals)
    : args_(args),
      globals_(globals),
      model_(load_model(args.model)),
      forward_(model_),
      memory_(parse_bytes(args.memory, "--memory")) {
  if (args.pairs.file.empty()) {
    std::vector<Prompt> prompts = load_prompts(args.prompts, model_);
    if (args.pairs.limit > 0 && args.pairs.limit < std::ssize(prompts)) {
      prompts.resize(static_cast<std::size_t>(args.pairs.limit));
    }
    prompts_ = path_prompts(prompts);
  } else {
    PairInputs inputs = args.pairs;
    inputs.bos = args.prompts.bos;
    const MetricKind kind = parse_metric(inputs.metric);
    pairs_ = load_pairs(inputs, forward_).pairs;
    prompts_ = path_prompts(pairs_);
    metric_ = make_metric(kind, pairs_, forward_);
  }
}

PathJudge Ablation::judge() {
  return PathJudge(forward_, prompts_,
                   {.last_only = last_only(),
                    .distance = parse_distance(args_.distance),
                    .metric = metric(),
                    .memory = memory_});
}

std::unique_ptr<ResultFile> Ablation::begin_file(const std::string& group) const {
  auto attributes = provenance(globals_);
  attributes["model_id"] = model_.id();
  attributes["model_sha256"] = model_.sha256();
  auto file = std::make_unique<ResultFile>(args_.output.path, attributes);
  file->group(group);
  file->setting("prompts", prompts_.count());
  if (!args_.pairs.file.empty()) file->setting("pairs", args_.pairs.file);
  if (!args_.prompts.file.empty()) file->setting("prompts_file", args_.prompts.file);
  file->setting("metric", metric_ ? std::string(metric_name(metric_->kind())) : "none");
  return file;
}

QualityColumns::QualityColumns(const Ablation& run, const PathQuality& whole)
    : distance(run.args().distance),
      metric(run.metric() != nullptr ? std::string(metric_name(run.metric()->kind())) : ""),
      nll(!std::isnan(whole.nll)),
      accuracy(!std::isnan(whole.accuracy)) {}

std::vector<std::string> QualityColumns::headings() const {
  std::vector<std::string> headings = {">layers", ">" + distance};
  if (nll) headings.insert(headings.end(), {">NLL", ">perplexity"});
  headings.insert(headings.end(), {">KL", ">agrees"});
  if (accuracy) headings.emplace_back(">right");
  if (!metric.empty()) headings.push_back(">" + metric);
  return headings;
}

std::vector<std::string> QualityColumns::cells(const PathQuality& q) const {
  std::vector<std::string> cells = {layers_text(q.layers), value_text(q.distance)};
  if (nll) cells.insert(cells.end(), {fmt::format("{:.3f}", q.nll), value_text(q.perplexity)});
  cells.insert(cells.end(), {fmt::format("{:.3f}", q.kl), share_text(q.agreement)});
  if (accuracy) cells.push_back(share_text(q.accuracy));
  if (!metric.empty()) cells.push_back(fmt::format("{:.3f}", q.metric));
  return cells;
}

nlohmann::ordered_json QualityColumns::json(const PathQuality& q) const {
  nlohmann::ordered_json json = {{"layers", q.layers}, {"distance", number(q.distance)}};
  if (nll) {
    json["nll"] = number(q.nll);
    json["perplexity"] = number(q.perplexity);
  }
  json["kl"] = number(q.kl);
  json["agreement"] = number(q.agreement);
  if (accuracy) json["accuracy"] = number(q.accuracy);
  if (!metric.empty()) json["metric"] = number(q.metric);
  return json;
}

void write_qualities(ResultFile& file, const std::string& dimension,
                     const std::vector<PathQuality>& qualities, const Ablation& run) {
  const DistanceKind kind = parse_distance(run.args().distance);
  file.setting("distance_kind", run.args().distance);
  file.setting("positions", run.args().positions);
  file.axis("prompt", run.prompts().ids);
  const auto values = [&](const char* name, double PathQuality::*member, const char* what,
                          const std::string& units) {
    std::vector<double> out;
    for (const PathQuality& q : qualities) out.push_back(q.*member);
    file.dataset(name, std::vector{dimension}, std::span<const double>(out), what, units);
  };
  const auto of_prompts = [&](const char* name, std::vector<double> PathQuality::*member,
                              const char* what, const std::string& units) {
    std::vector<double> out;
    for (const PathQuality& q : qualities) {
      out.insert(out.end(), (q.*member).begin(), (q.*member).end());
    }
    file.dataset(name, std::vector<std::string>{dimension, "prompt"}, std::span<const double>(out),
                 what, units);
  };
  values("layers", &PathQuality::layers, "layers that run; a sublayer alone counts half", "layers");
  values("distance", &PathQuality::distance, "distance of the logits from the whole model's",
         std::string(distance_units(kind)));
  values("nll", &PathQuality::nll, "-log p of the next token, mean over tokens that have one",
         "nats");
  values("kl", &PathQuality::kl, "KL(whole model || path), mean over tokens", "nats");
  values("agreement", &PathQuality::agreement,
         "share of tokens with the whole model's most likely next token", "1");
  values("accuracy", &PathQuality::accuracy,
         "share of prompts with answers whose most likely next token is one", "1");
  of_prompts("prompt_nll", &PathQuality::prompt_nll, "nll of each prompt", "nats");
  of_prompts("prompt_kl", &PathQuality::prompt_kl, "kl of each prompt", "nats");
  of_prompts("prompt_agreement", &PathQuality::prompt_agreement, "agreement of each prompt", "1");
  if (run.metric() != nullptr) {
    values("metric", &PathQuality::metric, "mean of the metric over the pairs", "");
    of_prompts("prompt_metric", &PathQuality::prompt_metric, "metric of each pair", "");
  }
}

std::string layers_text(double layers) {
  return fmt::format("{}", layers);
}

std::string share_text(double share) {
  return std::isnan(share) ? "" : fmt::format("{:.1f}%", 100 * share);
}

std::string value_text(double value) {
  return std::isnan(value) ? "" : short_number(value);
}

std::string basis_text(const Ablation& run, std::int64_t rows) {
  return fmt::format("{}: {} layers, judged by {} {} of {} {}\n", run.model().id(),
                     run.config().n_layers, grouped(rows), rows == 1 ? "token" : "tokens",
                     grouped(run.prompts().count()),
                     run.metric() != nullptr      ? "pairs' clean prompts"
                     : run.prompts().count() == 1 ? "prompt"
                                                  : "prompts");
}

}  // namespace lamina::cli
