// lamina cka: how alike the representations of layers are, within one model or between two.

#include "lamina/probes/cka.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "inputs.h"
#include "lamina/core/error.h"
#include "paths.h"
#include "ui/output.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/cka_tables.h"
#include "verbs/info.h"
#include "verbs/probe_source.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

struct Args {
  ProbeSource source;
  std::string against, against_prompts;
  PromptInputs prompts;
  OutputOptions output;
  CkaOptions options;
  std::vector<std::string> measures;
  std::string mode = "exact", pool = "none", memory = "4G";
  double block = 0.9;
  bool json = false;
};

// One side: recordings, or a model with its prompts.
struct Side {
  std::vector<Recording> recordings;
  std::unique_ptr<Model> model;
  std::unique_ptr<Forward> forward;
  std::vector<Prompt> prompts;
  CkaSource source;

  std::string id() const { return model ? model->id() : recordings.front().header().model_id; }
  std::string sha256() const {
    return model ? model->sha256() : recordings.front().header().model_sha256;
  }
  std::string paths() const {
    std::string all;
    for (const Recording& r : recordings) all += (all.empty() ? "" : "\n") + r.path().string();
    return all;
  }
  std::int64_t tokens() const {
    std::int64_t tokens = total_tokens(prompts);
    for (const Recording& recording : recordings) tokens += recording.tokens();
    return tokens;
  }
  std::vector<const Prompt*> all() const {
    std::vector<const Prompt*> out;
    for (std::span<const Prompt> part : source.all_prompts()) {
      for (const Prompt& prompt : part) out.push_back(&prompt);
    }
    return out;
  }
};

void open_recordings(Side& side, const std::vector<std::string>& paths) {
  for (const std::string& path : paths) side.recordings.push_back(Recording::open(path));
  side.source.recordings = side.recordings;
  side.source.name = paths.front();
}

void open_model(Side& side, const std::string& model) {
  side.model = std::make_unique<Model>(load_model(model));
  side.forward = std::make_unique<Forward>(*side.model);
  side.source.forward = side.forward.get();
  side.source.name = side.model->id();
}

Side open_first(const Args& args) {
  Side side;
  const bool recorded = !args.source.recordings.empty();
  if (!recorded && args.source.model.empty()) {
    fail_usage("nothing to read; give recordings, or --model and prompts");
  }
  if (recorded && !args.source.model.empty()) {
    fail_usage(
        "recordings and --model were both given; recordings are read without their model "
        "(a second model goes to --against)");
  }
  if (recorded) {
    open_recordings(side, args.source.recordings);
  } else {
    open_model(side, args.source.model);
    side.prompts = load_prompts(args.prompts, *side.model);
    side.source.prompts = side.prompts;
  }
  return side;
}

// The second side: over --against-prompts, or the prompts of the first.
Side open_second(const Args& args, const Side& first) {
  Side side;
  if (std::filesystem::exists(args.against) && file_kind(args.against) == FileKind::hdf5) {
    if (!args.against_prompts.empty()) {
      fail_usage("--against-prompts is for a model; {} is a recording", args.against);
    }
    open_recordings(side, {args.against});
    return side;
  }
  open_model(side, args.against);
  PromptInputs inputs = args.prompts;
  if (!args.against_prompts.empty()) {
    inputs.file = args.against_prompts;
    inputs.texts.clear();
  }
  if (has_prompts(inputs)) {
    side.prompts = load_prompts(inputs, *side.model);
  } else {
    // Ids of the recording mean the same only to the same tokenizer.
    const std::int64_t vocabulary = side.model->config().d_vocab,
                       context = side.model->config().n_ctx;
    const std::string& tokenizer = first.recordings.front().header().tokenizer_sha256;
    const Tokenizer* const own = side.model->tokenizer();
    if (own == nullptr || own->sha256() != tokenizer) {
      fail(
          "{}: it has another tokenizer than the recording {}; give the prompts again "
          "(--prompts or --against-prompts)",
          side.source.name, first.source.name);
    }
    for (const Prompt* prompt : first.all()) {
      if (static_cast<std::int64_t>(prompt->ids.size()) > context) {
        fail("prompt '{}' has {} tokens; the context of {} holds {}", prompt->id,
             prompt->ids.size(), side.source.name, context);
      }
      for (std::int32_t id : prompt->ids) {
        if (id >= vocabulary) {
          fail("prompt '{}' holds token id {}; {} has {}", prompt->id, id, side.source.name,
               vocabulary);
        }
      }
      side.prompts.push_back(*prompt);
    }
  }
  side.source.prompts = side.prompts;
  return side;
}

// Rows are paired by position; say so if they are not about the same tokens.
void warn_about_ids(const Side& a, const Side& b, CkaPool pool) {
  if (pool != CkaPool::none) return;
  const std::vector<const Prompt*> first = a.all(), second = b.all();
  std::size_t differ = 0;
  for (std::size_t p = 0; p < std::min(first.size(), second.size()); ++p) {
    differ += first[p]->ids != second[p]->ids;
  }
  if (differ > 0) {
    warn("{} of {} prompts have other token ids on the two sides; rows are paired by position",
         differ, first.size());
  }
}

// Massive activations of first tokens: docs/cka.md.
void warn_about_first_tokens(const CkaResults& r, const CkaOptions& options) {
  if (options.skip > 0) return;
  constexpr double kMost = 0.5;
  std::int64_t layers = 0;
  double largest = 0;
  for (const auto* shares : {&r.first_token, &r.first_token_other}) {
    for (double share : *shares) {
      layers += share > kMost;
      largest = std::max(largest, std::isnan(share) ? 0 : share);
    }
  }
  if (layers == 0) return;
  warn(
      "the prompts' first tokens hold more than half of the variance of {} of {} layers (up to "
      "{:.1f} %) and decide their similarity; --skip 1 leaves them out",
      layers, r.first_token.size() + r.first_token_other.size(), 100 * largest);
}

int run_cka(Args& args, const Globals& globals) {
  CkaOptions& o = args.options;
  o.mode = parse_cka_mode(args.mode);
  o.pool = parse_cka_pool(args.pool);
  o.memory = parse_bytes(args.memory, "--memory");
  o.seed = globals.seed;
  if (args.measures.empty()) {
    args.measures = o.mode == CkaMode::exact ? std::vector<std::string>{"linear", "debiased", "rbf"}
                                             : std::vector<std::string>{"debiased"};
  }
  o.measures = parse_cka_measures(args.measures);
  if (o.mode == CkaMode::minibatch && o.measures.linear) {
    fail_usage("linear needs exact sums; minibatches give debiased and rbf");
  }
  const bool recorded = !args.source.recordings.empty();
  if (recorded && args.against.empty() && has_prompts(args.prompts)) {
    fail_usage("recordings and prompts were both given; a recording has its own prompts");
  }
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  const Side first = open_first(args);
  std::optional<Side> second;
  if (!args.against.empty()) {
    second.emplace(open_second(args, first));
  }

  ProgressLine progress("comparing", "tokens", first.tokens());
  const CkaResults results =
      measure_cka(first.source, second ? &second->source : nullptr, o,
                  [&](std::int64_t, std::int64_t tokens) { progress.update(tokens); });
  progress.finish();

  if (!args.output.path.empty()) {
    auto attributes = provenance(globals);
    attributes["model_id"] = first.id();
    attributes["model_sha256"] = first.sha256();
    if (!first.paths().empty()) attributes["recordings"] = first.paths();
    if (second) {
      attributes["against_id"] = second->id();
      attributes["against_sha256"] = second->sha256();
      if (!second->paths().empty()) attributes["against_recordings"] = second->paths();
    }
    ResultFile file(args.output.path, attributes);
    file.group("cka");
    write_cka(file, results, o);
    file.close();
  }
  Output out;
  if (args.json) {
    nlohmann::ordered_json json;
    json["model_id"] = first.id();
    if (second) json["against_id"] = second->id();
    add_cka_json(json, results, o);
    print_json(json, out);
  } else {
    out.print("{}{}{}: ", first.id(), second ? " against " : "", second ? second->id() : "");
    out.write(cka_text(results, o, args.block));
  }
  out.close();
  if (second) warn_about_ids(first, *second, o.pool);
  for (const std::string& note : results.notes) warn("{}", note);
  warn_about_first_tokens(results, o);
  if (!args.output.path.empty()) info("wrote {}", args.output.path);
  return 0;
}

}  // namespace

void register_cka(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand("cka", "similarity of representations, layer by layer");
  verb->group("Read");
  CkaOptions& o = args->options;
  verb->add_option("recordings", args->source.recordings, "recordings to read")
      ->option_text("RECORDING...");
  verb->add_option("--model", args->source.model, "the model to run now over --prompts")
      ->option_text("MODEL");
  add_prompt_options(*verb, args->prompts);
  verb->add_option("--against", args->against,
                   "a second recording, or a model to run: layers against its layers")
      ->option_text("WHICH");
  verb->add_option("--against-prompts", args->against_prompts,
                   "other prompts for the model of --against, one for each of the first's")
      ->option_text("FILE");
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  verb->add_option("--measure", args->measures,
                   "of linear, debiased, rbf, svcca, pwcca (default linear,debiased,rbf)")
      ->delimiter(',')
      ->option_text("NAME...");
  verb->add_option("--mode", args->mode,
                   "exact (default), or minibatch: debiased CKA averaged over minibatches, much "
                   "faster, with a standard error")
      ->check(CLI::IsMember({"exact", "minibatch"}))
      ->option_text("MODE");
  verb->add_option("--site", o.site,
                   "sites to compare, one a layer (default: the stream entering block 0, and "
                   "resid_post)")
      ->option_text("SITE");
  verb->add_option("--skip", o.skip, "first tokens of every prompt to leave out (default 0)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_option("--pool", args->pool,
                   "a row is a token (none, default), or a prompt: the mean or the last of its "
                   "tokens")
      ->check(CLI::IsMember({"none", "mean", "last"}))
      ->option_text("HOW");
  verb->add_option("--minibatch", o.minibatch, "rows of a minibatch (default 256)")
      ->check(CLI::Range(4, 8192))
      ->option_text("N");
  verb->add_option("--sample", o.sample,
                   "rows that the RBF kernel sees, drawn by --seed (default 1000)")
      ->check(CLI::Range(2, 20000))
      ->option_text("N");
  verb->add_option("--bandwidth", o.bandwidth,
                   "width of the RBF kernel over the median distance (default 0.5)")
      ->check(CLI::PositiveNumber)
      ->option_text("X");
  verb->add_option("--variance", o.variance,
                   "share of the variance that SVCCA keeps (default 0.99)")
      ->check(CLI::Range(0.0, 1.0))
      ->option_text("SHARE");
  verb->add_option("--floor", o.floor,
                   "PWCCA leaves out directions below this share of the largest variance (default "
                   "1e-06)")
      ->check(CLI::Range(0.0, 1.0))
      ->option_text("SHARE");
  verb->add_option("--memory", args->memory,
                   "most memory for exact sums; a recording is read several times if they need "
                   "more (default 4G)")
      ->option_text("BYTES");
  verb->add_option("--block", args->block,
                   "similarity that all layers of a printed block reach (default 0.9)")
      ->check(CLI::Range(0.0, 1.0))
      ->option_text("X");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback(
      [args, &globals] { globals.action = [args, &globals] { return run_cka(*args, globals); }; });
}

}  // namespace lamina::cli
