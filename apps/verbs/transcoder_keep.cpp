// lamina transcoder keep: how few features, and how few neurons, do a task.

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>

#include "inputs.h"
#include "lamina/circuits/keep.h"
#include "lamina/core/error.h"
#include "lamina/core/result_file.h"
#include "pair_inputs.h"
#include "paths.h"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/info.h"
#include "verbs/transcoder.h"

namespace lamina::cli {
namespace {

struct Args {
  std::string model;
  DictionaryInputs dictionaries;
  PairInputs pairs;
  OutputOptions output;
  std::vector<std::int64_t> counts = {0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024};
  std::int64_t show = 5;
  bool json = false;
};

struct Curve {
  std::string name;
  KeepCurve values;
};

std::vector<Transcoder> load_transcoders(const Args& args, const Model& model) {
  std::vector<Transcoder> all;
  for (const std::string& path : args.dictionaries.paths) {
    TranscoderSet set =
        TranscoderSet::open(resolve_dictionaries(path), read_options(args.dictionaries));
    if (set.cross_layer())
      fail("{}: a cross-layer transcoder; keep takes those of one layer", path);
    set.bind(model, args.dictionaries.other_model);
    for (std::size_t i = 0; i < set.size(); ++i) all.push_back(set.load(i));
  }
  return all;
}

std::string units_text(const char* what, const RankedUnits& units, std::int64_t show) {
  double sum = 0;
  for (double v : units.variance) sum += v;
  std::string text = fmt::format("  {} that vary most:", what);
  for (std::size_t i = 0;
       i < units.unit.size() && std::ssize(units.unit) > 0 && static_cast<std::int64_t>(i) < show;
       ++i) {
    text +=
        fmt::format(" #{} ({:.1f}%)", units.unit[i], sum > 0 ? 100 * units.variance[i] / sum : 0.0);
  }
  return text + "\n";
}

std::string curve_text(const Curve& curve, const std::string& metric, std::int64_t show) {
  const KeepCurve& v = curve.values;
  std::string text =
      styled(Style::bold, curve.name) +
      fmt::format("  {} of the model {:.4f}, with its MLP as the transcoder {:.4f}\n", metric,
                  v.original, v.spliced);
  Table table({">kept", ">features", ">neurons"});
  for (std::size_t i = 0; i < v.features_kept.size(); ++i) {
    const std::int64_t f = v.features_kept[i], n = v.neurons_kept[i];
    if (i > 0 && f == v.features_kept[i - 1] && n == v.neurons_kept[i - 1]) break;  // all of both
    table.row({f == n ? std::to_string(f) : fmt::format("{} | {}", f, n),
               fmt::format("{:.4f}", v.features.metric[i]),
               fmt::format("{:.4f}", v.neurons.metric[i])});
  }
  text += table.text(2);
  if (show > 0) text += units_text("features", v.features, show);
  if (show > 0) text += units_text("neurons", v.neurons, show);
  return text;
}

nlohmann::ordered_json curves_json(const std::vector<Curve>& curves, const Args& args,
                                   std::int64_t pairs) {
  nlohmann::ordered_json all = {{"metric", args.pairs.metric}, {"pairs", pairs}};
  auto& list = all["dictionaries"] = nlohmann::ordered_json::array();
  for (const Curve& curve : curves) {
    const KeepCurve& v = curve.values;
    const auto units = [&](const RankedUnits& u, const std::vector<std::int64_t>& kept) {
      const auto n = static_cast<std::ptrdiff_t>(std::min<std::size_t>(
          u.unit.size(), static_cast<std::size_t>(std::max<std::int64_t>(args.show, 0))));
      return nlohmann::ordered_json{
          {"kept", kept},
          {"metric", u.metric},
          {"top", std::vector<std::int32_t>(u.unit.begin(), u.unit.begin() + n)},
          {"variance", std::vector<double>(u.variance.begin(), u.variance.begin() + n)}};
    };
    list.push_back({{"name", curve.name},
                    {"original", v.original},
                    {"spliced", v.spliced},
                    {"features", units(v.features, v.features_kept)},
                    {"neurons", units(v.neurons, v.neurons_kept)}});
  }
  return all;
}

// [dictionary, kept] and, for every dictionary, its units by rank; shorter lists end with −1.
void write_curves(const std::vector<Curve>& curves, const Args& args, std::int64_t pairs,
                  ResultFile& file) {
  file.group("transcoder_keep");
  file.setting("metric", args.pairs.metric);
  file.setting("pairs", args.pairs.file);
  file.setting("prompts", pairs);
  file.setting("position", std::string("last token of the clean prompts"));
  file.setting("ranking", std::string("[ours] variance of the activation times the squared norm of "
                                      "the decoder row or column of W_out; others at their means"));
  std::vector<std::string> names;
  std::size_t ranks = 0;
  for (const Curve& c : curves) {
    names.push_back(c.name);
    ranks = std::max({ranks, c.values.features.unit.size(), c.values.neurons.unit.size()});
  }
  std::vector<std::int64_t> rank(ranks);
  std::iota(rank.begin(), rank.end(), 0);
  file.axis("dictionary", std::span<const std::string>(names));
  file.axis("kept", std::span<const std::int64_t>(args.counts));
  file.axis("rank", std::span<const std::int64_t>(rank));
  const std::vector<std::string> one = {"dictionary"}, curve = {"dictionary", "kept"},
                                 ranked = {"dictionary", "rank"};
  std::vector<double> original, spliced;
  for (const Curve& c : curves) {
    original.push_back(c.values.original);
    spliced.push_back(c.values.spliced);
  }
  file.dataset("original", one, std::span<const double>(original), "metric of the model", "");
  file.dataset("spliced", one, std::span<const double>(spliced),
               "metric with the MLP as its transcoder at the last token", "");
  const auto units = [&](const char* name, const RankedUnits KeepCurve::*which) {
    std::vector<double> metric, variance;
    std::vector<std::int32_t> unit;
    for (const Curve& c : curves) {
      const RankedUnits& u = c.values.*which;
      metric.insert(metric.end(), u.metric.begin(), u.metric.end());
      for (std::size_t r = 0; r < ranks; ++r) {
        unit.push_back(r < u.unit.size() ? u.unit[r] : -1);
        variance.push_back(r < u.unit.size() ? u.variance[r] : 0.0);
      }
    }
    const std::string text(name);
    file.dataset(text + "_metric", curve, std::span<const double>(metric),
                 "metric with so many " + text + " kept (or all there are)", "");
    file.dataset(text, ranked, std::span<const std::int32_t>(unit),
                 "numbers of the " + text + ", most varying first; -1: there are no more", "");
    file.dataset(text + "_variance", ranked, std::span<const double>(variance),
                 "variance over prompts of what it adds", "");
  };
  units("features", &KeepCurve::features);
  units("neurons", &KeepCurve::neurons);
}

int run_keep(const Args& args, const Globals& globals) {
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  const MetricKind kind = parse_metric(args.pairs.metric);
  const Model model = load_model(args.model);
  Forward forward(model);
  const std::vector<Transcoder> transcoders = load_transcoders(args, model);
  const LoadedPairs loaded = load_pairs(args.pairs, forward);
  const Metric metric = make_metric(kind, loaded.pairs, forward);
  const std::int64_t pairs = std::ssize(loaded.pairs);
  std::vector<Curve> curves;
  ProgressLine progress("keeping", "dictionaries", std::ssize(transcoders));
  for (const Transcoder& t : transcoders) {
    curves.push_back(
        {t.config.name, keep_by_variance(forward, loaded.pairs, metric, t, args.counts)});
    progress.update(std::ssize(curves));
  }
  progress.finish();
  if (!args.output.path.empty()) {
    auto attributes = provenance(globals);
    attributes["model_id"] = model.id();
    attributes["model_sha256"] = model.sha256();
    ResultFile file(args.output.path, attributes);
    write_curves(curves, args, pairs, file);
    file.close();
    info("wrote {}", args.output.path);
  }
  Output out;
  if (args.json) {
    print_json(curves_json(curves, args, pairs), out);
  } else {
    for (const Curve& c : curves) out.write(curve_text(c, args.pairs.metric, args.show));
  }
  out.close();
  return 0;
}

}  // namespace

void register_transcoder_keep(CLI::App& transcoder, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = transcoder.add_subcommand(
      "keep", "a task with only the most varying features, or neurons, of an MLP");
  verb->add_option("model", args->model, "model folder, GGUF file, or the name of a shipped model")
      ->required()
      ->option_text("MODEL");
  verb->add_option("--transcoder,--transcoders", args->dictionaries.paths,
                   "transcoders of MLPs: SAELens or circuit-tracer folders or files")
      ->required()
      ->option_text("PATH...");
  add_dictionary_options(*verb, args->dictionaries);
  verb->add_flag("--other-model", args->dictionaries.other_model,
                 "go on if a dictionary's file names another model");
  add_pair_options(*verb, args->pairs);
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  verb->add_option("--keep", args->counts,
                   "how many units to keep (default [ours] 0 and the powers of 2 up to 1024)")
      ->delimiter(',')
      ->check(CLI::NonNegativeNumber)
      ->option_text("N,...");
  verb->add_option("--show", args->show, "most varying units to print (default 5)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback(
      [args, &globals] { globals.action = [args, &globals] { return run_keep(*args, globals); }; });
}

}  // namespace lamina::cli
