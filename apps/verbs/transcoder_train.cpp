// lamina transcoder train: transcoders, skip transcoders and sparse autoencoders.

#include <algorithm>
#include <charconv>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "lamina/circuits/trainer.h"
#include "lamina/core/error.h"
#include "lamina/core/sha256.h"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/info.h"
#include "verbs/probe_source.h"
#include "verbs/transcoder.h"

namespace lamina::cli {
namespace {

namespace fs = std::filesystem;

struct Args {
  ProbeSource source;
  PromptInputs prompts;
  OutputOptions output;
  std::string kind = "transcoder", layers = "all", from, to;
  std::int64_t features = 0;  // 0: expansion × D_in
  double expansion = 8;
  std::string activation = "relu";
  std::int64_t k = 0;
  std::string loss = "text", penalty, dead;
  std::optional<double> lambda;
  bool free_decoder = false, zero_biases = false;
  std::int64_t steps = 0, epochs = 0;
  std::int64_t checkpoint_every = 500;
  bool resume = false, json = false;
  TrainingOptions training;
};

// "all", "3", "0,2-4": layers of the model, ascending.
std::vector<std::int32_t> parse_layers(const std::string& text, std::int64_t n_layers) {
  std::vector<std::int32_t> layers;
  if (text == "all") {
    for (std::int64_t l = 0; l < n_layers; ++l) layers.push_back(static_cast<std::int32_t>(l));
    return layers;
  }
  const char *at = text.data(), *end = at + text.size();
  while (true) {
    std::int32_t first = -1, last = -1;
    auto parsed = std::from_chars(at, end, first);
    bool good = parsed.ec == std::errc{};
    last = first;
    if (good && parsed.ptr != end && *parsed.ptr == '-') {
      parsed = std::from_chars(parsed.ptr + 1, end, last);
      good = parsed.ec == std::errc{};
    }
    if (!good || (parsed.ptr != end && *parsed.ptr != ',') || first < 0 || last < first) {
      fail_usage("--layers is '{}', expected all or a list such as 0,2-4", text);
    }
    if (last >= n_layers) fail_usage("--layers: layer {}, the model has {}", last, n_layers);
    for (std::int32_t l = first; l <= last; ++l) layers.push_back(l);
    if (parsed.ptr == end) break;
    at = parsed.ptr + 1;
  }
  std::sort(layers.begin(), layers.end());
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  return layers;
}

// "ln2_normalized", with "·w" or "*w" behind it for the norm's weights, in this layer.
DictionaryPlace parse_place(std::string name, std::int32_t layer, const ModelConfig& config) {
  DictionaryPlace place;
  for (const std::string_view mark : {"·w", "*w"}) {
    if (!name.ends_with(mark)) continue;
    place.norm_weights = true;
    name.resize(name.size() - mark.size());
    break;
  }
  place.site = parse_site(fmt::format("{}:{}", name, layer), config);
  return place;
}

void set_defaults(Args& args) {
  TrainingOptions& o = args.training;
  const FeatureActivation activation = parse_feature_activation(args.activation);
  const bool top =
      activation == FeatureActivation::topk || activation == FeatureActivation::batch_topk;
  const bool jump = activation == FeatureActivation::jump_relu;
  if (top && args.k == 0) args.k = 32;
  if (!top && args.k != 0) {
    fail_usage("--k is of topk and batch_topk, the activation is {}", args.activation);
  }
  if (args.penalty.empty()) args.penalty = top ? "none" : (jump ? "l0" : "l1");
  if (args.dead.empty()) args.dead = top ? "auxk" : "none";
  o.loss = parse_training_loss(args.loss);
  o.penalty = parse_sparsity_penalty(args.penalty);
  o.dead = parse_dead_features(args.dead);
  if (args.lambda) {
    o.lambda = *args.lambda;
  } else {
    o.lambda = o.loss == TrainingLoss::code ? 5.5e-5 : 1e-3;
  }
  if (o.penalty == SparsityPenalty::none) o.lambda = 0;
  o.unit_decoder = !args.free_decoder;
  o.mean_biases = !args.zero_biases;
  if (args.from.empty()) args.from = args.kind == "sae" ? "resid_post" : "ln2_normalized·w";
  if (args.to.empty()) args.to = args.kind == "sae" ? args.from : "mlp_out";
  if (args.kind == "sae" && args.to != args.from) {
    fail_usage("an autoencoder rebuilds what it reads; --from {} and --to {} differ", args.from,
               args.to);
  }
}

std::vector<TranscoderConfig> configs_of(const Args& args, const Model& model) {
  std::vector<TranscoderConfig> configs;
  for (std::int32_t layer : parse_layers(args.layers, model.config().n_layers)) {
    TranscoderConfig c;
    c.name = fmt::format("layer_{}", layer);
    c.model_id = model.id();
    c.input = parse_place(args.from, layer, model.config());
    c.output = parse_place(args.to, layer, model.config());
    c.d_in = site_shape(c.input.site, model.config()).row();
    c.d_out = site_shape(c.output.site, model.config()).row();
    c.features = args.features > 0
                     ? args.features
                     : static_cast<std::int64_t>(args.expansion * static_cast<double>(c.d_in));
    c.activation = parse_feature_activation(args.activation);
    c.k = args.k;
    c.skip = args.kind == "skip";
    c.subtract_decoder_bias = args.kind == "sae" && args.training.loss == TrainingLoss::code;
    configs.push_back(std::move(c));
  }
  return configs;
}

// What a resumed run must have in common with the interrupted one.
std::map<std::string, std::string> identity_of(const Args& args, const Model& model,
                                               std::span<const Recording> recordings,
                                               std::span<const Prompt> prompts) {
  const TrainingOptions& o = args.training;
  Sha256 inputs;
  const auto add = [&](std::span<const Prompt> list) {
    for (const Prompt& p : list) {
      inputs.update(std::as_bytes(std::span(p.ids)));
      inputs.update("\n");
    }
  };
  add(prompts);
  for (const Recording& r : recordings) {
    add(r.prompts());
    inputs.update(store_type_name(r.header().store));
  }
  const auto text = [](double v) { return fmt::format("{}", v); };
  return {{"kind", args.kind},
          {"layers", args.layers},
          {"input", args.from},
          {"output", args.to},
          {"features", args.features > 0 ? fmt::format("{}", args.features)
                                         : fmt::format("{} × width", args.expansion)},
          {"activation", args.activation},
          {"k", std::to_string(args.k)},
          {"loss", args.loss},
          {"penalty", args.penalty},
          {"lambda", text(o.lambda)},
          {"lambda warm-up", std::to_string(o.lambda_warmup)},
          {"tanh scale", text(o.tanh_scale)},
          {"threshold", text(o.threshold)},
          {"bandwidth", text(o.bandwidth)},
          {"dead features", args.dead},
          {"dead window", std::to_string(o.dead_window)},
          {"auxk", std::to_string(o.auxk)},
          {"auxk weight", text(o.auxk_weight)},
          {"decoder norm", o.unit_decoder ? "1" : "free"},
          {"first biases", o.mean_biases ? "means" : "zero"},
          {"batch", std::to_string(o.batch)},
          {"steps", std::to_string(o.steps)},
          {"epochs", std::to_string(args.epochs)},
          {"learning rate", text(o.learning_rate)},
          {"warm-up", std::to_string(o.rate_warmup)},
          {"decay", std::to_string(o.rate_decay)},
          {"beta1", text(o.beta1)},
          {"beta2", text(o.beta2)},
          {"epsilon", text(o.epsilon)},
          {"buffer", std::to_string(o.buffer_rows)},
          {"skip-first", std::to_string(o.skip_first)},
          {"seed", std::to_string(o.seed)},
          {"model", model.sha256()},
          {"inputs (SHA-256)", inputs.hex()}};
}

// One line with the means over dictionaries.
std::string step_text(std::int64_t step, std::span<const TrainingStep> all) {
  TrainingStep mean;
  const auto n = static_cast<double>(all.size());
  for (const TrainingStep& s : all) {
    mean.loss += s.loss / n;
    mean.error += s.error / n;
    mean.l0 += s.l0 / n;
    mean.dead += s.dead / n;
    mean.explained_variance += s.explained_variance / n;
  }
  return fmt::format("step {}: loss {}, error {}, L0 {}, dead {:.1f} %, explained {:.1f} %",
                     grouped(step), short_number(mean.loss), short_number(mean.error),
                     short_number(mean.l0), 100 * mean.dead, 100 * mean.explained_variance);
}

std::string table_text(std::span<const Transcoder> all, std::span<const TrainingStep> last) {
  Table table({"dictionary", ">features", ">loss", ">error", ">L0", ">dead %", ">explained %"});
  for (std::size_t i = 0; i < all.size(); ++i) {
    const TrainingStep& s = last[i];
    table.row({all[i].config.name, grouped(all[i].config.features), short_number(s.loss),
               short_number(s.error), short_number(s.l0), fmt::format("{:.1f}", 100 * s.dead),
               fmt::format("{:.1f}", 100 * s.explained_variance)});
  }
  return table.text(2);
}

nlohmann::ordered_json results_json(const TrainingRun& run, std::span<const Transcoder> all,
                                    double seconds) {
  nlohmann::ordered_json json = {
      {"steps", run.steps()}, {"tokens", run.position()}, {"seconds", seconds}};
  for (std::size_t i = 0; i < all.size(); ++i) {
    const TrainingStep& s = run.last()[i];
    json["dictionaries"].push_back({{"name", all[i].config.name},
                                    {"input", dictionary_place_name(all[i].config.input)},
                                    {"output", dictionary_place_name(all[i].config.output)},
                                    {"features", all[i].config.features},
                                    {"loss", s.loss},
                                    {"error", s.error},
                                    {"penalty", s.penalty},
                                    {"l0", s.l0},
                                    {"dead_share", s.dead},
                                    {"explained_variance", s.explained_variance}});
  }
  return json;
}

// The folder of a run: curves.h5, a folder per dictionary, checkpoint.safetensors while it runs.
struct RunFolder {
  fs::path folder, curves, checkpoint;

  explicit RunFolder(const Args& args)
      : folder(args.output.path),
        curves(folder / "curves.h5"),
        checkpoint(folder / "checkpoint.safetensors") {
    std::error_code ignored;
    const fs::path parent = folder.has_parent_path() ? folder.parent_path() : fs::path(".");
    if (fs::exists(folder, ignored) && !fs::is_directory(folder, ignored)) {
      fail("{}: is a file, expected a folder to write to", folder.string());
    }
    if (!fs::is_directory(parent, ignored)) {
      fail("{}: its folder {} does not exist", folder.string(), parent.string());
    }
    if (args.resume) {
      if (!fs::exists(checkpoint, ignored)) {
        fail("{}: there is no interrupted run to resume ({} is missing)", folder.string(),
             checkpoint.filename().string());
      }
      return;
    }
    if (fs::is_directory(folder, ignored) && !fs::is_empty(folder, ignored) && !args.output.force) {
      fail("{}: exists already; --resume continues an interrupted run, --force overwrites it",
           folder.string());
    }
    fs::create_directories(folder, ignored);
    if (!fs::is_directory(folder)) fail("{}: cannot be created", folder.string());
    fs::remove(checkpoint, ignored);
    fs::remove(curves, ignored);
  }
};

void train(TrainingRun& run, OpenedSource& source, std::span<const Prompt> prompts,
           std::int64_t epochs) {
  const std::int64_t steps = run.options().steps;
  ProgressLine progress("training", "steps", steps);
  std::int64_t told = 0;
  run.on_step([&](std::int64_t step, std::span<const TrainingStep> found) {
    progress.update(step);
    if (step == 1 || step == steps || step * 10 / steps != told) {
      told = step * 10 / steps;
      info("{}", step_text(step, found));
    }
  });
  if (source.live()) {
    train_live(run, source.forward(), prompts, epochs);
  } else {
    train_recorded(run, source.recordings(), epochs);
  }
  progress.finish();
}

int run_train(Args& args, const Globals& globals) {
  if (!args.source.recordings.empty() && has_prompts(args.prompts)) {
    fail_usage("recordings and prompts were both given; a recording has its own prompts");
  }
  if (args.steps > 0 && args.epochs > 0) fail_usage("--steps and --epochs were both given");
  if (args.resume && args.output.force) fail_usage("--resume and --force were both given");
  set_defaults(args);
  TrainingOptions& o = args.training;
  o.seed = globals.seed;
  OpenedSource source(args.source);
  const std::vector<TranscoderConfig> configs = configs_of(args, source.model());
  const std::vector<Prompt> prompts =
      source.live() ? load_prompts(args.prompts, source.model()) : std::vector<Prompt>();
  std::int64_t rows = training_rows(prompts, o.skip_first);
  for (const Recording& r : source.recordings()) rows += training_rows(r.prompts(), o.skip_first);
  if (args.steps == 0 && args.epochs == 0) args.epochs = 1;
  o.steps = args.steps > 0
                ? args.steps
                : args.epochs * (rows / o.batch) + args.epochs * (rows % o.batch) / o.batch;
  if (o.steps < 1) {
    fail(
        "training: {} tokens are less than one batch of {}; give more prompts, --steps or a "
        "smaller --batch",
        rows, o.batch);
  }
  TrainingRun run(source.model(), configs, o);
  const RunFolder folder(args);
  const auto identity = identity_of(args, source.model(), source.recordings(), prompts);
  run.checkpoint(folder.checkpoint, args.checkpoint_every, identity);
  info("training {} of {} features on {} tokens a pass, {} steps of {}; {} of memory",
       configs.size() == 1 ? "1 dictionary" : fmt::format("{} dictionaries", configs.size()),
       grouped(configs[0].features), grouped(rows), grouped(o.steps), grouped(o.batch),
       bytes_text(run.bytes()));
  if (args.resume) {
    run.resume(folder.checkpoint);
    info("resumed after step {}", grouped(run.steps()));
  }
  const auto start = std::chrono::steady_clock::now();
  train(run, source, prompts, args.epochs);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  const std::vector<Transcoder> trained = run.transcoders();
  std::map<std::string, std::string> how = {{"trained_by", "lamina " LAMINA_VERSION},
                                            {"training_tokens", std::to_string(rows)}};
  for (const char* key : {"loss", "penalty", "lambda", "batch", "steps", "learning rate", "seed"}) {
    how["training_" + std::string(key == std::string("learning rate") ? "rate" : key)] =
        identity.at(key);
  }
  for (const Transcoder& t : trained) write_saelens(folder.folder / t.config.name, t, how);
  ResultFile file(folder.curves, source.provenance(globals));
  file.group("transcoder_training");
  run.write(file);
  file.close();
  std::error_code ignored;
  fs::remove(folder.checkpoint, ignored);

  Output out;
  if (args.json) {
    print_json(results_json(run, trained, seconds), out);
  } else {
    out.write(fmt::format("last of {} steps, {} tokens:\n{}", grouped(run.steps()),
                          grouped(run.position()), table_text(trained, run.last())));
  }
  out.close();
  info("wrote {} and a folder per dictionary", folder.curves.string());
  return 0;
}

void add_shape_options(CLI::App& verb, Args& args) {
  verb.add_option("--kind", args.kind,
                  "transcoder (default), skip (with a linear path beside it) or sae")
      ->check(CLI::IsMember({"transcoder", "skip", "sae"}))
      ->option_text("KIND");
  verb.add_option("--layers", args.layers, "all (default) or a list such as 0,2-4; one pass")
      ->option_text("LIST");
  verb.add_option("--from", args.from,
                  "what is read, without its layer (default ln2_normalized·w, ·w: with the norm's "
                  "weights; sae: resid_post)")
      ->option_text("SITE");
  verb.add_option("--to", args.to, "what is rebuilt (default mlp_out; sae: what is read)")
      ->option_text("SITE");
  verb.add_option("--features", args.features, "features of each (default: --expansion)")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 24))
      ->option_text("F");
  verb.add_option("--expansion", args.expansion, "features per width of what is read (default 8)")
      ->check(CLI::Range(0.01, 1024.0))
      ->option_text("X");
  verb.add_option("--activation", args.activation, "relu (default), topk, batch_topk or jump_relu")
      ->check(CLI::IsMember({"relu", "topk", "batch_topk", "jump_relu"}))
      ->option_text("NAME");
  verb.add_option("--k", args.k, "features a token keeps, of topk and batch_topk (default 32)")
      ->check(CLI::PositiveNumber)
      ->option_text("K");
}

void add_loss_options(CLI::App& verb, Args& args) {
  TrainingOptions& o = args.training;
  verb.add_option("--loss", args.loss,
                  "text (default): squared error; code: divided by width and norm, a learnt bias "
                  "subtracted first")
      ->check(CLI::IsMember({"text", "code"}))
      ->option_text("NAME");
  verb.add_option("--penalty", args.penalty,
                  "none, l1, l0 or tanh (default: relu l1, jump_relu l0, otherwise none)")
      ->check(CLI::IsMember({"none", "l1", "l0", "tanh"}))
      ->option_text("NAME");
  verb.add_option("--lambda", args.lambda,
                  "weight of the penalty (default [ours] 1e-3 for text, 5.5e-5 for code)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("L");
  verb.add_option("--lambda-warmup", o.lambda_warmup, "steps over which λ rises (default 0)")
      ->option_text("N");
  verb.add_option("--tanh-scale", o.tanh_scale, "c of the penalty tanh(c·z) (default 4)")
      ->option_text("C");
  verb.add_option("--threshold", o.threshold, "jump_relu: threshold at the start (default 0.01)")
      ->option_text("T");
  verb.add_option("--bandwidth", o.bandwidth,
                  "jump_relu: width of the rectangle kernel (default 0.05)")
      ->option_text("E");
  verb.add_option("--dead", args.dead,
                  "for features that stopped: none, resample or auxk (default: topk and "
                  "batch_topk auxk, otherwise none)")
      ->check(CLI::IsMember({"none", "resample", "auxk"}))
      ->option_text("WHAT");
  verb.add_option("--dead-window", o.dead_window,
                  "steps without activity after which a feature is dead (default 1000)")
      ->option_text("N");
  verb.add_option("--auxk", o.auxk, "dead features that a token may use (default [ours] 64)")
      ->option_text("K");
  verb.add_option("--auxk-weight", o.auxk_weight, "weight of their loss (default 1/32)")
      ->option_text("A");
  verb.add_flag("--free-decoder", args.free_decoder, "decoder rows may have any norm (default: 1)");
  verb.add_flag("--zero-biases", args.zero_biases,
                "biases begin at zero (default: at the first tokens' means)");
}

void add_optimiser_options(CLI::App& verb, Args& args) {
  TrainingOptions& o = args.training;
  verb.add_option("--steps", args.steps, "steps, reading the tokens again as needed")
      ->check(CLI::PositiveNumber)
      ->option_text("N");
  verb.add_option("--epochs", args.epochs, "passes over the tokens instead (default 1)")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1000000}))
      ->option_text("N");
  verb.add_option("--batch", o.batch, fmt::format("tokens a step (default {})", o.batch))
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20))
      ->option_text("N");
  verb.add_option("--lr", o.learning_rate,
                  fmt::format("Adam's learning rate (default {})", o.learning_rate))
      ->option_text("RATE");
  verb.add_option("--warmup", o.rate_warmup, "steps over which the rate rises (default 0)")
      ->option_text("N");
  verb.add_option("--decay", o.rate_decay, "last steps, over which it falls to 0 (default 0)")
      ->option_text("N");
  verb.add_option("--beta1", o.beta1, "of Adam (default 0.9)")->option_text("B");
  verb.add_option("--beta2", o.beta2, "of Adam (default 0.999)")->option_text("B");
  verb.add_option("--buffer", o.buffer_rows,
                  fmt::format("tokens that are mixed, at least two batches (default [ours] {})",
                              o.buffer_rows))
      ->check(CLI::Range(std::int64_t{2}, std::int64_t{1} << 28))
      ->option_text("N");
  verb.add_option("--skip-first", o.skip_first,
                  "tokens left out at the beginning of every prompt (default 0)")
      ->option_text("N");
  verb.add_option("--checkpoint-every", args.checkpoint_every,
                  "steps between checkpoints, 0: none (default 500)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb.add_flag("--resume", args.resume, "continue an interrupted run with the same settings");
}

}  // namespace

void register_transcoder_train(CLI::App& transcoder, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = transcoder.add_subcommand(
      "train", "train dictionaries from recordings, or from a model that runs now");
  add_source_options(*verb, args->source);
  add_prompt_options(*verb, args->prompts);
  verb->add_option("-o,--output", args->output.path,
                   "folder to write: curves.h5, and per dictionary cfg.json and "
                   "sae_weights.safetensors")
      ->required()
      ->option_text("FOLDER");
  verb->add_flag("--force", args->output.force, "overwrite what the folder holds of a run");
  add_shape_options(*verb, *args);
  add_loss_options(*verb, *args);
  add_optimiser_options(*verb, *args);
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] { return run_train(*args, globals); };
  });
}

}  // namespace lamina::cli
