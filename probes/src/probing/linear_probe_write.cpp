// Results of linear probes as datasets, and trained probes as a file of tensors.

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"
#include "lamina/probes/linear_probe.h"

namespace lamina {
namespace {

using Names = std::vector<std::string>;

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

std::vector<std::int64_t> numbers(std::int64_t n) {
  std::vector<std::int64_t> out(size(n));
  for (std::int64_t i = 0; i < n; ++i) out[size(i)] = i;
  return out;
}

// Names of the scores: of class 1 for two classes, of each class for more.
Names outputs(const ProbeTargets& targets) {
  if (targets.classes.empty()) return {"value"};
  return targets.classes.size() == 2 ? Names{targets.classes[1]} : targets.classes;
}

class Writer {
 public:
  Writer(ResultFile& file, const ProbeRun& run) : file_(file), run_(run) {
    for (const SiteProbe& site : run.sites) widest_ = std::max(widest_, site.width);
  }

  void axes() {
    Names sites;
    for (const SiteProbe& site : run_.sites) sites.push_back(site.site);
    file_.axis("site", sites);
    file_.axis("strength", run_.options.strengths);
    file_.axis("fold", numbers(run_.options.folds));
    file_.axis("repetition", numbers(run_.options.controls));
    file_.axis("output", outputs(run_.targets));
    file_.axis("component", numbers(widest_));
    file_.axis("row", numbers(static_cast<std::int64_t>(run_.rows.size())));
  }
  // One value per site, or several.
  template <class Get>
  void values(std::string_view name, const Names& more, Get get, std::string_view description,
              std::string_view units = "1") {
    std::vector<double> all;
    for (const SiteProbe& site : run_.sites) {
      const std::vector<double> some = get(site);
      all.insert(all.end(), some.begin(), some.end());
    }
    Names dimensions{"site"};
    dimensions.insert(dimensions.end(), more.begin(), more.end());
    file_.dataset(name, dimensions, all, description, units);
  }
  // A score of every site with the ends of its interval.
  template <class Get>
  void score(const std::string& name, const Names& more, Get get, const std::string& description) {
    using Part = double Score::*;
    const std::pair<const char*, Part> parts[] = {
        {"", &Score::value}, {"_low", &Score::low}, {"_high", &Score::high}};
    for (const auto& [tail, part] : parts) {
      values(
          name + tail, more,
          [&get, of = part](const SiteProbe& site) {  // no capture of a binding: Clang 16
            std::vector<double> out;
            for (const Score& s : get(site)) out.push_back(s.*of);
            return out;
          },
          *tail == 0 ? description : "end of its 95 % interval: " + description);
    }
  }
  // Rows [output, width] with NaN where another site is wider.
  void components(std::string_view name, std::vector<double> SiteProbe::*field,
                  std::string_view description) {
    values(
        name, {"output", "component"},
        [&](const SiteProbe& site) {
          std::vector<double> out(size(site.outputs * widest_),
                                  std::numeric_limits<double>::quiet_NaN());
          for (std::int64_t o = 0; o < site.outputs; ++o) {
            std::copy_n((site.*field).begin() + o * site.width, site.width,
                        out.begin() + o * widest_);
          }
          return out;
        },
        description);
  }

 private:
  ResultFile& file_;
  const ProbeRun& run_;
  std::int64_t widest_ = 0;
};

void write_settings(ResultFile& file, const ProbeRun& run) {
  const LinearProbeOptions& o = run.options;
  file.setting("kind", std::string(probe_kind_name(o.kind)));
  file.setting("label", run.features.label);
  file.setting("group", run.features.group);
  file.setting("position", row_choice_text(run.features.choice, run.features.index));
  file.setting("skip", run.features.skip);
  file.setting("folds", o.folds);
  file.setting("controls", o.controls);
  file.setting("resamples", o.resamples);
  file.setting("shrinkage", o.shrinkage);
  file.setting("seed", std::to_string(o.seed));
  file.setting("rows", static_cast<std::int64_t>(run.rows.size()));
  file.setting("units", static_cast<std::int64_t>(run.targets.units));
  file.setting(
      "objective",
      std::string(o.kind == ProbeKind::ridge
                      ? "mean squared error / 2 + strength / 2 * squared weights, features "
                        "standardised on the training rows, intercept free"
                      : "mean -log p + strength / 2 * squared weights, features "
                        "standardised on the training rows, intercept free"));
  file.setting(
      "choice_of_strength",
      std::string("per held-out fold, by folds left out of its training rows (least loss); "
                  "of the stored weights, by the loss of all folds"));
}

}  // namespace

void write_linear_probes(ResultFile& file, const ProbeRun& run) {
  const bool ridge = run.options.kind == ProbeKind::ridge;
  write_settings(file, run);
  Writer writer(file, run);
  writer.axes();
  using Values = std::vector<double>;
  std::vector<std::int32_t> layers;
  for (const SiteProbe& site : run.sites) layers.push_back(site.layer);
  file.dataset("layer", Names{"site"}, layers, "layer of the site, -1 outside the layers", "layer");
  writer.values(
      "width", {}, [](const SiteProbe& s) { return Values{double(s.width)}; }, "values per row");
  writer.values(
      "constant_features", {},
      [](const SiteProbe& s) { return Values{double(s.constant_features)}; },
      "features that are the same in all rows");
  writer.values(
      "chosen_strength", {}, [](const SiteProbe& s) { return Values{s.strength}; },
      "strength of the stored weights");
  writer.values(
      "path_loss", {"strength"}, [](const SiteProbe& s) { return s.path_loss; },
      ridge ? "held-out mean squared error" : "held-out mean -log p of the label",
      ridge ? "" : "nats");
  writer.values(
      "path_score", {"strength"}, [](const SiteProbe& s) { return s.path_score; },
      ridge ? "held-out R2" : "held-out accuracy");
  writer.values(
      "fold_score", {"fold"}, [](const SiteProbe& s) { return s.fold_score; },
      "score of the fold's held-out rows");
  writer.values(
      "fold_strength", {"fold"}, [](const SiteProbe& s) { return s.fold_strength; },
      "strength chosen without the fold");
  if (ridge) {
    writer.score(
        "r2", {}, [](const SiteProbe& s) { return std::vector<Score>{s.r2}; },
        "held-out R2, spread about the training rows' mean");
  } else {
    writer.score(
        "accuracy", {}, [](const SiteProbe& s) { return std::vector<Score>{s.accuracy}; },
        "held-out accuracy");
    writer.score(
        "balanced_accuracy", {},
        [](const SiteProbe& s) { return std::vector<Score>{s.balanced_accuracy}; },
        "held-out accuracy, mean over classes");
    writer.score(
        "auroc", {}, [](const SiteProbe& s) { return std::vector<Score>{s.auroc}; },
        "held-out area under the ROC curve, pairs of the same fold; NaN but for two "
        "classes");
    writer.score(
        "direction_auroc", {"output"}, [](const SiteProbe& s) { return s.direction_auroc; },
        "held-out AUROC of the projection on the difference of means");
    writer.score(
        "whitened_auroc", {"output"}, [](const SiteProbe& s) { return s.whitened_auroc; },
        "the same for the whitened difference of means");
    writer.components("direction", &SiteProbe::direction,
                      "mean of the class minus mean of the other rows");
    writer.components("whitened_direction", &SiteProbe::whitened,
                      "inverse of the shrunk within-class covariance times direction");
    writer.values(
        "midpoint", {"output"}, [](const SiteProbe& s) { return s.midpoint; },
        "direction times the point half way between the two means");
    std::vector<std::int32_t> labels(run.targets.label.begin(), run.targets.label.end());
    file.axis("class", run.targets.classes);
    file.dataset("row_class", Names{"row"}, labels, "index of the row's label in class", "");
  }
  if (ridge) {
    file.dataset("row_value", Names{"row"}, run.targets.value, "the row's label", "");
  }
  writer.values(
      "control", {"repetition"}, [](const SiteProbe& s) { return s.control; },
      "score of the same procedure with labels shuffled within folds");
  writer.values(
      "selectivity", {}, [](const SiteProbe& s) { return Values{s.selectivity}; },
      "score minus mean of control");
  writer.components("weight", &SiteProbe::weight, "weights of the features as they are");
  writer.values(
      "bias", {"output"}, [](const SiteProbe& s) { return s.bias; },
      "score = weight * features + bias");
  file.dataset("row_fold", Names{"row"}, run.fold, "the fold that held the row out", "");
  std::vector<std::int32_t> tokens;
  Names prompts;
  for (const FeatureRow& row : run.rows) {
    tokens.push_back(static_cast<std::int32_t>(row.token));
    prompts.push_back(row.prompt_id);
  }
  file.dataset("row_token", Names{"row"}, tokens, "the row's token within its prompt", "token");
  file.dataset("row_prompt", Names{"row"}, prompts, "id of the row's prompt", "");
  writer.values(
      "decision", {"row", "output"}, [](const SiteProbe& s) { return s.decision; },
      "held-out score of the row");
}

void write_probe_file(const std::filesystem::path& path, const ProbeRun& run,
                      const std::string& model_sha256) {
  struct Kept {
    std::string name;
    std::vector<std::uint64_t> shape;
    std::vector<float> values;
  };
  std::vector<Kept> kept;
  Names sites;
  for (const SiteProbe& site : run.sites) {
    sites.push_back(site.site);
    const auto add = [&](const char* name, const std::vector<double>& values, bool vectors) {
      if (values.empty()) return;
      std::vector<std::uint64_t> shape{static_cast<std::uint64_t>(site.outputs)};
      if (vectors) shape.push_back(static_cast<std::uint64_t>(site.width));
      kept.push_back({site.site + "." + name, shape, {values.begin(), values.end()}});
    };
    add("weight", site.weight, true);
    add("bias", site.bias, false);
    add("direction", site.direction, true);
    std::vector<double> unit = site.direction;
    for (std::int64_t o = 0; o < site.outputs && !unit.empty(); ++o) {
      double squares = 0;
      for (std::int64_t i = 0; i < site.width; ++i)
        squares += std::pow(unit[size(o * site.width + i)], 2);
      const double scale = squares > 0 ? 1 / std::sqrt(squares) : 0.0;
      for (std::int64_t i = 0; i < site.width; ++i) unit[size(o * site.width + i)] *= scale;
    }
    add("unit", unit, true);
    add("midpoint", site.midpoint, false);
    add("whitened", site.whitened, true);
  }
  std::vector<F32Tensor> tensors;
  for (const Kept& k : kept) tensors.push_back({k.name, k.shape, k.values});
  nlohmann::ordered_json about = {
      {"kind", probe_kind_name(run.options.kind)},
      {"label", run.features.label},
      {"position", row_choice_text(run.features.choice, run.features.index)},
      {"skip", run.features.skip},
      {"classes", run.targets.classes},
      {"outputs", outputs(run.targets)},
      {"sites", sites},
      {"model_sha256", model_sha256}};
  write_safetensors(path, tensors, {{"format", "lamina-probes"}, {"probes", about.dump()}});
}

}  // namespace lamina
