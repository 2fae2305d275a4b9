// lamina inflection: entropy, gradients and their score per layer; two models compared.

#include "lamina/probes/inflection.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "inputs.h"
#include "lamina/core/error.h"
#include "ui/glyphs.h"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/info.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

struct Args {
  std::string model, against;
  PromptInputs prompts;
  OutputOptions output;
  std::string loss = "automatic", gradient = "token";
  InflectionOptions options;
  bool json = false;
};

std::string run_text(const InflectionResults& r, std::size_t m, const InflectionOptions& options) {
  const InflectionRun& run = r.runs[m];
  const bool lossy = r.loss != InflectionLoss::none, pair = !r.delta_cka.empty() && m == 0;
  std::string out = fmt::format("{}: {} tokens", run.model_id, grouped(run.tokens));
  if (lossy) {
    out +=
        fmt::format(", {} loss {:.4f} nats, accuracy {:.1f} % of {}", inflection_loss_name(r.loss),
                    run.loss, 100 * run.accuracy, grouped(run.predicted));
  }
  std::vector<std::string> headings = {"layer", ">entropy", ">of most"};
  if (lossy) headings.insert(headings.end(), {">grad/token", ">grad weights"});
  if (pair) headings.push_back(">Δ-CKA");
  if (lossy) headings.insert(headings.end(), {">SKI", "", ""});
  Table table(headings);
  const auto number = [](double v) {
    if (std::abs(v) < 1e-12) v = 0.0;  // a difference of equal models, up to rounding
    return std::isnan(v) ? std::string("–") : fmt::format("{:.3g}", v);
  };
  std::vector<std::string> start = {"embed", "", ""};
  if (lossy) start.insert(start.end(), {number(run.token_gradient[0]), ""});
  if (pair) start.push_back(number(r.delta_cka[0]));
  if (lossy || pair) table.row(start);
  for (std::size_t l = 0; l < run.entropy.size(); ++l) {
    std::vector<std::string> cells = {std::to_string(l), number(run.entropy[l]),
                                      number(run.entropy_normalized[l])};
    if (lossy) {
      cells.push_back(number(run.token_gradient[l + 1]));
      cells.push_back(number(run.layer_gradient[l]));
    }
    if (pair) cells.push_back(number(r.delta_cka[l + 1]));
    if (lossy) {
      const auto layer = static_cast<std::int32_t>(l);
      std::string mark = layer >= run.band_first && layer <= run.band_last ? "│" : " ";
      for (std::size_t c = 0; c < run.candidates.size(); ++c) {
        if (run.candidates[c] == layer) mark += fmt::format(" candidate {}", c + 1);
      }
      cells.insert(cells.end(), {fmt::format("{:.3f}", run.score[l]), bar(run.score[l]), mark});
    }
    table.row(cells);
  }
  out += "\n" + table.text(2);
  if (lossy) {
    out += fmt::format(
        "  SKI = {:g} · low entropy + {:g} · low gradient (per {}), each scaled to 0 to 1 over "
        "layers;\n  band: layers {} to {}, at least {:g} of the peak\n",
        options.weight, 1 - options.weight, options.batch_gradient ? "batch" : "token",
        run.band_first, run.band_last, options.band);
  }
  return out;
}

nlohmann::ordered_json run_json(const InflectionRun& run) {
  nlohmann::ordered_json json = {{"model_id", run.model_id},
                                 {"tokens", run.tokens},
                                 {"entropy", run.entropy},
                                 {"entropy_normalized", run.entropy_normalized}};
  if (run.score.empty()) return json;
  json["batches"] = run.batches;
  json["predicted"] = run.predicted;
  json["loss"] = run.loss;
  json["accuracy"] = run.accuracy;
  json["token_gradient"] = run.token_gradient;
  json["batch_gradient"] = run.batch_gradient;
  json["layer_gradient"] = run.layer_gradient;
  for (std::size_t i = 0; i < run.parameters.size(); ++i) {
    json["parameter_gradient"][run.parameters[i]] = run.parameter_gradient[i];
  }
  json["ski"] = run.score;
  json["candidates"] = run.candidates;
  json["band"] = {run.band_first, run.band_last};
  return json;
}

int run_inflection(Args& args, const Globals& globals) {
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  InflectionOptions& options = args.options;
  options.loss = parse_inflection_loss(args.loss);
  options.batch_gradient = args.gradient == "batch";
  const Model model = load_model(args.model);
  std::optional<Model> other;
  if (!args.against.empty()) other.emplace(load_model(args.against));
  const std::vector<Prompt> prompts = load_prompts(args.prompts, model);
  Forward forward(model);
  std::optional<Forward> other_forward;
  std::vector<Forward*> models = {&forward};
  if (other) models.push_back(&other_forward.emplace(*other));

  ProgressLine progress("measuring", "tokens", total_tokens(prompts));
  options.progress = [&](std::int64_t, std::int64_t tokens) { progress.update(tokens); };
  const InflectionResults results = measure_inflection(models, prompts, options);
  progress.finish();

  if (!args.output.path.empty()) {
    auto attributes = provenance(globals);
    attributes["model_id"] = model.id();
    attributes["model_sha256"] = model.sha256();
    if (other) {
      attributes["against_id"] = other->id();
      attributes["against_sha256"] = other->sha256();
    }
    ResultFile file(args.output.path, attributes);
    file.group("inflection");
    write_inflection(file, results, options);
    file.close();
  }
  Output out;
  if (args.json) {
    nlohmann::ordered_json json;
    json["loss"] = inflection_loss_name(results.loss);
    for (const InflectionRun& run : results.runs) json["runs"].push_back(run_json(run));
    if (!results.delta_cka.empty()) {
      json["delta_cka"] = results.delta_cka;
      json["full_delta_cka"] = results.full_delta_cka;
      json["basis_components"] = results.components;
    }
    print_json(json, out);
  } else {
    for (std::size_t m = 0; m < results.runs.size(); ++m) {
      out.print("{}{}", m > 0 ? "\n" : "", run_text(results, m, options));
    }
  }
  out.close();
  if (results.loss == InflectionLoss::none && args.loss == "automatic") {
    info("this model has no loss here: no gradients and no score, only entropies{}",
         other ? " and Δ-CKA" : "");
  }
  if (!args.output.path.empty()) info("wrote {}", args.output.path);
  return 0;
}

}  // namespace

void register_inflection(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand("inflection",
                                      "attention entropy and gradients per layer, and their score");
  verb->group("Read");
  verb->add_option("model", args->model, "model folder, GGUF file, or a shipped model's name")
      ->required()
      ->option_text("MODEL");
  add_prompt_options(*verb, args->prompts);
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  InflectionOptions& o = args->options;
  verb->add_option("--against", args->against,
                   "a second model or checkpoint of the same shape: adds Δ-CKA")
      ->option_text("MODEL");
  verb->add_option("--loss", args->loss,
                   "next-token, label (classifiers), none, or automatic (default)")
      ->check(CLI::IsMember({"automatic", "next-token", "label", "none"}))
      ->option_text("WHICH");
  verb->add_option("--label", o.label,
                   "the prompts' label that holds the answer: a name or number (default label)")
      ->option_text("NAME");
  verb->add_option("--weight", o.weight, "share of the entropy in the score (default 0.5)")
      ->check(CLI::Range(0.0, 1.0))
      ->option_text("W");
  verb->add_option("--gradient", args->gradient,
                   "gradient in the score: mean per token (default), or of a batch")
      ->check(CLI::IsMember({"token", "batch"}))
      ->option_text("PER");
  verb->add_option("--band", o.band,
                   "share of the peak that layers of the band reach (default 0.8)")
      ->check(CLI::Range(0.0, 1.0))
      ->option_text("SHARE");
  verb->add_option("--components", o.components,
                   "most principal components of the shared basis (default 64)")
      ->check(CLI::Range(1, 1 << 20))
      ->option_text("N");
  verb->add_option("--variance", o.variance,
                   "share of the variance that suffices for the basis (default 0.95)")
      ->check(CLI::Range(0.0, 1.0))
      ->option_text("SHARE");
  verb->add_option("--skip", o.skip,
                   "first tokens of every prompt that Δ-CKA leaves out (default 0)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_option("--batch-tokens", o.batch_tokens,
                   "tokens of a batch: weight gradients are of batches (default 512)")
      ->check(CLI::Range(1, 1 << 24))
      ->option_text("N");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] { return run_inflection(*args, globals); };
  });
}

}  // namespace lamina::cli
