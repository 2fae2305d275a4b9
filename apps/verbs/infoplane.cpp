// lamina infoplane: what each layer says of the input and of a label, in nats.

#include "lamina/probes/infoplane.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <unordered_map>

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
  std::string label = "label", position = "last", input = "row";
  std::string projection = "pca", binning = "width";
  std::int64_t skip = 0;
  InfoPlaneOptions options;
  bool json = false;
};

// The number of each row's input: its own, its token's id, or that of a label's value.
std::vector<std::int64_t> input_numbers(const Args& args, const FeatureSource& source,
                                        const FeatureOptions& features,
                                        std::span<const FeatureRow> rows) {
  std::vector<std::int64_t> out;
  if (args.input == "row" || args.input == "token") {
    for (const FeatureRow& row : rows) {
      out.push_back(args.input == "token" ? row.id : static_cast<std::int64_t>(out.size()));
    }
    return out;
  }
  if (!args.input.starts_with("label:")) {
    fail_usage("--input '{}': row, token or label:NAME expected", args.input);
  }
  FeatureOptions by_input = features;
  by_input.group = args.input.substr(6);
  std::unordered_map<std::string, std::int64_t> known;
  for (const FeatureRow& row : source.rows(by_input)) {
    out.push_back(known.emplace(row.group, static_cast<std::int64_t>(known.size())).first->second);
  }
  return out;
}

std::string infoplane_text(const InfoPlaneResults& r, const Args& args, std::size_t rows) {
  const InfoPlaneOptions& o = args.options;
  std::string out = fmt::format(
      "{} rows; H(Y) {:.3f} nats, H(X) {:.3f} nats (X: {}); {} {} of {} bins of equal {}\n\n",
      grouped(static_cast<std::int64_t>(rows)), r.target_entropy, r.input_entropy, args.input,
      o.components, args.projection == "pca" ? "principal components" : "random directions", o.bins,
      args.binning);
  Table table(
      {"site", ">I(X;T)", ">I(T;Y)", ">shuffled", ">variance", ">KL bound", ">W2", ">sliced W1"});
  std::vector<double> target;
  const auto number = [](double v) {
    return std::isnan(v) ? std::string("–") : fmt::format("{:.3f}", v);
  };
  for (const SiteInformation& s : r.sites) {
    target.push_back(s.target);
    table.row({s.site, number(s.input), number(s.target), number(s.shuffled), number(s.variance),
               number(s.kl_bound), number(s.gaussian_wasserstein), number(s.sliced_wasserstein)});
  }
  out += table.text(2);
  if (target.size() > 1) {
    out += fmt::format("\n  I(T;Y) from 0 to H(Y) over the sites: {}\n",
                       curve(target, 0, r.target_entropy));
  }
  return out;
}

nlohmann::ordered_json infoplane_json(const InfoPlaneResults& r) {
  const auto value = [](double v) {
    return std::isnan(v) ? nlohmann::ordered_json() : nlohmann::ordered_json(v);
  };
  nlohmann::ordered_json json = {{"target_entropy", r.target_entropy},
                                 {"input_entropy", r.input_entropy}};
  for (const SiteInformation& s : r.sites) {
    json["sites"].push_back({{"site", s.site},
                             {"layer", s.layer},
                             {"states", s.states},
                             {"entropy", s.entropy},
                             {"input_information", s.input},
                             {"target_information", s.target},
                             {"shuffled_information", value(s.shuffled)},
                             {"variance", s.variance},
                             {"kl_bound", s.kl_bound},
                             {"gaussian_wasserstein", s.gaussian_wasserstein},
                             {"sliced_wasserstein", value(s.sliced_wasserstein)}});
  }
  return json;
}

int run_infoplane(Args& args, const Globals& globals) {
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  InfoPlaneOptions& options = args.options;
  options.projection = args.projection == "pca" ? InfoProjection::pca : InfoProjection::random;
  options.binning = args.binning == "width" ? InfoBins::width : InfoBins::count;
  options.seed = globals.seed;
  FeatureSource source(args.inputs, globals);
  FeatureOptions features;
  features.sites = source.sites();
  features.choice = parse_row_choice(args.position, features.index);
  features.skip = args.skip;
  features.label = args.label;
  features.skip_unlabelled = args.inputs.skip_unlabelled;
  const std::vector<FeatureRow> rows = source.rows(features);
  const ProbeTargets targets = probe_targets(rows, ProbeKind::logistic);
  const std::vector<std::int64_t> inputs = input_numbers(args, source, features, rows);
  InfoPlaneResults results;
  results.target_entropy =
      plugin_entropy(std::vector<std::int64_t>(targets.label.begin(), targets.label.end()));
  results.input_entropy = plugin_entropy(inputs);
  source.read(features, [&](const Features& read, std::size_t s) {
    const Site site = read.options().sites[s];
    results.sites.push_back(
        site_information(site_name(site), read.values(s), read.width(s), targets, inputs, options));
    results.sites.back().layer = site.layer;
  });
  if (!args.output.path.empty()) {
    ResultFile file(args.output.path, source.provenance(globals));
    file.group("infoplane");
    file.setting("label", args.label);
    file.setting("position", args.position);
    file.setting("input", args.input);
    file.setting("rows", static_cast<std::int64_t>(rows.size()));
    write_infoplane(file, results, options);
    file.close();
  }
  Output out;
  if (args.json) {
    print_json(infoplane_json(results), out);
  } else {
    out.write(infoplane_text(results, args, rows.size()));
  }
  out.close();
  if (!args.output.path.empty()) info("wrote {}", args.output.path);
  return 0;
}

}  // namespace

void register_infoplane(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand(
      "infoplane", "mutual information of layers with the input and with a label");
  verb->group("Read");
  add_feature_options(*verb, args->inputs, nullptr);
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  InfoPlaneOptions& o = args->options;
  verb->add_option("--label", args->label,
                   "the prompts' label that is the target Y (default label)")
      ->option_text("NAME");
  verb->add_option("--position", args->position,
                   "token to read: last (default), first, mean, all (a row per token), or a number")
      ->option_text("WHICH");
  verb->add_option("--skip", args->skip,
                   "first tokens of every prompt that mean and all leave out (default 0)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_option("--input", args->input,
                   "what the input X is: row (every row its own, default), token, or label:NAME")
      ->option_text("WHAT");
  verb->add_option("--projection", args->projection, "before binning: pca (default) or random")
      ->check(CLI::IsMember({"pca", "random"}))
      ->option_text("HOW");
  verb->add_option("--components", o.components, "components binned together (default 2)")
      ->check(CLI::Range(1, 64))
      ->option_text("N");
  verb->add_option("--bins", o.bins, "bins per component (default 8)")
      ->check(CLI::Range(2, 100000))
      ->option_text("N");
  verb->add_option("--binning", args->binning, "bins of equal width (default) or count")
      ->check(CLI::IsMember({"width", "count"}))
      ->option_text("HOW");
  verb->add_option("--gaussian", o.gaussian,
                   "principal components of the KL and W2 estimates (default 8)")
      ->check(CLI::Range(1, 1024))
      ->option_text("N");
  verb->add_option("--slices", o.slices, "random directions of the sliced W1 (default 64)")
      ->check(CLI::Range(0, 100000))
      ->option_text("N");
  verb->add_option("--controls", o.controls, "repetitions with shuffled labels (default 5)")
      ->check(CLI::Range(0, 10000))
      ->option_text("N");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] { return run_infoplane(*args, globals); };
  });
}

}  // namespace lamina::cli
