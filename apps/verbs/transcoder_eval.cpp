// lamina transcoder eval: how well dictionaries rebuild, and what their features do.

#include "lamina/circuits/transcoder_eval.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "inputs.h"
#include "lamina/core/error.h"
#include "paths.h"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/activation_source.h"
#include "verbs/info.h"
#include "verbs/transcoder.h"

namespace lamina::cli {
namespace {

struct Args {
  std::string model;
  DictionaryInputs dictionaries;
  std::vector<std::string> recordings;
  PromptInputs prompts;
  OutputOptions output;
  TranscoderEvalOptions options;
  bool no_splice = false;
  bool together = false;
  std::int64_t show = 5;
  bool json = false;
};

std::vector<Transcoder> load_dictionaries(const Args& args, const ActivationSource& source) {
  std::vector<Transcoder> all;
  const bool other = args.dictionaries.other_model;
  for (const std::string& path : args.dictionaries.paths) {
    TranscoderSet set =
        TranscoderSet::open(resolve_dictionaries(path), read_options(args.dictionaries));
    if (set.cross_layer()) {
      fail("{}: a cross-layer transcoder; eval takes dictionaries of one layer each", path);
    }
    if (source.model) set.bind(*source.model, other);
    for (std::size_t i = 0; i < set.size(); ++i) {
      if (!source.model && !other) {
        require_same_model(set.config(i), source.recordings.front().header().model_id);
      }
      all.push_back(set.load(i));
    }
  }
  return all;
}

std::string number(double value) {
  return std::isnan(value) ? "–" : short_number(value);
}

std::string fixed(double value) {
  return std::isnan(value) ? "–" : fmt::format("{:.4f}", value);
}

std::string tables(const TranscoderEval& eval, const std::vector<Transcoder>& dictionaries,
                   const std::optional<SpliceLoss>& together) {
  Table quality({"dictionary", "rebuilds", ">features", ">L0", ">expl. var.", ">per token",
                 ">cosine", ">MSE", ">dead", ">dense"});
  Table losses({"dictionary", ">CE", ">CE spliced", ">CE zero", ">score"});
  const auto loss_row = [&](const std::string& name, const SpliceLoss& loss) {
    losses.row(
        {name, fixed(loss.original), fixed(loss.spliced), fixed(loss.zero), fixed(loss.score())});
  };
  for (std::size_t i = 0; i < dictionaries.size(); ++i) {
    const TranscoderConfig& c = dictionaries[i].config;
    const ReconstructionSums& s = eval.sums(i);
    quality.row({c.name, dictionary_place_name(c.output), grouped(c.features), number(s.l0()),
                 fixed(s.explained_variance()), fixed(s.explained_variance_rows()),
                 fixed(s.mean_cosine()), number(s.mse(c.d_out)), grouped(eval.dead(i)),
                 grouped(eval.dense(i))});
    if (!eval.losses().empty()) loss_row(c.name, eval.losses()[i]);
  }
  if (together) loss_row("all together", *together);
  std::string text = fmt::format("{} tokens\n", grouped(eval.tokens())) + quality.text();
  if (!losses.empty()) {
    text += fmt::format("\ncross-entropy of the next token, nats, {} tokens\n",
                        grouped(eval.losses().front().tokens)) +
            losses.text();
  }
  return text;
}

// The features that fire most strongly, each with its strongest place.
std::string feature_table(const FeatureStats& features, const SeenTokens& seen,
                          const Tokenizer* tokenizer, std::int64_t show) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(features.features()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return features.max(a) > features.max(b);
  });
  Table table({">feature", ">frequency", ">mean", ">max", "strongest at"});
  for (std::int64_t f : order) {
    if (show-- == 0 || features.count(f) == 0) break;
    std::string place;
    if (!features.top(f).empty()) {
      place = clip(escape_controls(seen.context(features.top(f)[0].token, 5, tokenizer)), 60);
    }
    table.row({std::to_string(f), number(features.frequency(f)), number(features.mean(f)),
               number(features.max(f)), place});
  }
  return table.empty() ? "" : table.text(2);
}

nlohmann::ordered_json loss_json(const SpliceLoss& loss) {
  return {{"tokens", loss.tokens},
          {"original", loss.original},
          {"spliced", loss.spliced},
          {"zero", loss.zero},
          {"score", loss.score()}};
}

nlohmann::ordered_json json_of(const TranscoderEval& eval,
                               const std::vector<Transcoder>& dictionaries,
                               const std::optional<SpliceLoss>& together) {
  nlohmann::ordered_json all = {{"tokens", eval.tokens()}};
  auto& list = all["dictionaries"] = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < dictionaries.size(); ++i) {
    const TranscoderConfig& c = dictionaries[i].config;
    const ReconstructionSums& s = eval.sums(i);
    nlohmann::ordered_json one = {{"name", c.name},
                                  {"reads", dictionary_place_name(c.input)},
                                  {"rebuilds", dictionary_place_name(c.output)},
                                  {"features", c.features},
                                  {"l0", s.l0()},
                                  {"explained_variance", s.explained_variance()},
                                  {"explained_variance_per_token", s.explained_variance_rows()},
                                  {"mse", s.mse(c.d_out)},
                                  {"normalized_mse", s.normalized_mse()},
                                  {"cosine", s.mean_cosine()},
                                  {"norm_ratio", s.mean_norm_ratio()},
                                  {"dead", eval.dead(i)},
                                  {"dense", eval.dense(i)}};
    if (!eval.losses().empty()) one["ce"] = loss_json(eval.losses()[i]);
    list.push_back(std::move(one));
  }
  if (together) all["together"] = loss_json(*together);
  return all;
}

int run_eval(const Args& args, const Globals& globals) {
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  if (args.options.store_features && args.output.path.empty()) {
    fail_usage("--store-features needs -o FILE");
  }
  ActivationSource source(args.model, args.recordings, args.prompts);
  const std::vector<Transcoder> dictionaries = load_dictionaries(args, source);
  std::vector<const Transcoder*> pointers;
  std::vector<TranscoderConfig> configs;
  for (const Transcoder& t : dictionaries) {
    pointers.push_back(&t);
    configs.push_back(t.config);
  }
  const Tokenizer* tokenizer = source.model ? source.model->tokenizer() : nullptr;
  OutputMeans means(configs, args.options.skip);
  source.run(means, "means");
  TranscoderEval eval(pointers, source.model ? &*source.model : nullptr, tokenizer, means.means(),
                      args.options);
  source.run(eval, "features");

  std::optional<SpliceLoss> together;
  if (source.model && !args.no_splice) {
    SpliceOptions options;
    options.skip = args.options.skip;
    const std::int64_t passes = 1 + 2 * static_cast<std::int64_t>(dictionaries.size());
    ProgressLine progress("splicing", "passes", passes);
    options.progress = [&](std::int64_t done, std::int64_t) { progress.update(done); };
    eval.set_losses(splice_losses(*source.forward, source.prompts, pointers, options));
    progress.finish();
    options.progress = nullptr;
    if (args.together) {
      together = splice_together(*source.forward, source.prompts, pointers, options);
    }
  }
  if (!args.output.path.empty()) {
    ResultFile file(args.output.path, source.provenance(globals));
    file.group(eval.name());
    if (together) {
      file.setting("together_ce_spliced", together->spliced);
      file.setting("together_ce_zero", together->zero);
      file.setting("together_ce_score", together->score());
    }
    eval.write(file);
    file.close();
  }
  Output out;
  if (args.json) {
    print_json(json_of(eval, dictionaries, together), out);
  } else {
    out.write(tables(eval, dictionaries, together));
    for (std::size_t i = 0; args.show > 0 && i < dictionaries.size(); ++i) {
      out.print("\nstrongest features of {}\n", dictionaries[i].config.name);
      out.write(feature_table(eval.features(i), eval.seen(), tokenizer, args.show));
    }
  }
  out.close();
  if (!args.output.path.empty()) info("wrote {}", args.output.path);
  return 0;
}

}  // namespace

void register_transcoder_eval(CLI::App& transcoder, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = transcoder.add_subcommand(
      "eval", "how well dictionaries rebuild, and what their features do");
  verb->add_option("model", args->model, "model folder, GGUF file or the name of one that ships")
      ->option_text("MODEL");
  verb->add_option("--transcoder,--transcoders", args->dictionaries.paths,
                   "SAELens or circuit-tracer folders or files: transcoders or autoencoders")
      ->required()
      ->option_text("PATH...");
  verb->add_option("--recordings", args->recordings,
                   "read these instead of running the model; without MODEL no cross-entropies")
      ->option_text("FILE...");
  add_prompt_options(*verb, args->prompts);
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  add_dictionary_options(*verb, args->dictionaries);
  verb->add_flag("--other-model", args->dictionaries.other_model,
                 "go on if a dictionary's file names another model");
  verb->add_option("--skip", args->options.skip,
                   "tokens at the beginning of each prompt to leave out (default 0)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_option("--dead", args->options.dead,
                   "a feature is dead if it fires at this share of tokens or fewer (default 0 "
                   "[ours])")
      ->check(CLI::Range(0.0, 1.0))
      ->option_text("SHARE");
  verb->add_option("--dense", args->options.dense,
                   "and dense if at more than this share (default 0.1 [ours])")
      ->check(CLI::Range(0.0, 1.0))
      ->option_text("SHARE");
  verb->add_option("--examples", args->options.examples,
                   "strongest tokens to keep of each feature (default 5)")
      ->check(CLI::Range(0, 1000))
      ->option_text("N");
  verb->add_option("--context", args->options.context,
                   "tokens shown on either side of one (default 10)")
      ->check(CLI::Range(0, 1000))
      ->option_text("N");
  verb->add_flag("--store-features", args->options.store_features,
                 "store all activations in -o, sparsely");
  verb->add_flag("--no-splice", args->no_splice, "no cross-entropies");
  verb->add_flag("--together", args->together,
                 "also the cross-entropy with all dictionaries spliced in at once");
  verb->add_option("--show", args->show, "strongest features to print of each (default 5)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback(
      [args, &globals] { globals.action = [args, &globals] { return run_eval(*args, globals); }; });
}

}  // namespace lamina::cli
