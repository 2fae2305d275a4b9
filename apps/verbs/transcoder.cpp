// lamina transcoder: dictionaries of features. What their files hold.

#include "verbs/transcoder.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "paths.h"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/info.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

struct InfoArgs {
  DictionaryInputs inputs;
  bool json = false;
};

struct Range {
  double least = 0, mean = 0, most = 0;
};

// Over the rows [features, width] of a matrix, or over values with width 0.
Range norms(std::span<const float> matrix, std::int64_t features, std::int64_t width) {
  Range out{INFINITY, 0, -INFINITY};
  for (std::int64_t j = 0; j < features; ++j) {
    double sum = 0;
    for (std::int64_t i = 0; i < width; ++i) {
      const double w = matrix[static_cast<std::size_t>(j * width + i)];
      sum += w * w;
    }
    const double value = width == 0 ? matrix[static_cast<std::size_t>(j)] : std::sqrt(sum);
    out.least = std::min(out.least, value);
    out.most = std::max(out.most, value);
    out.mean += value / static_cast<double>(features);
  }
  return out;
}

std::string range_text(const Range& r) {
  return fmt::format("{} … {}, mean {}", short_number(r.least), short_number(r.most),
                     short_number(r.mean));
}

nlohmann::ordered_json range_json(const Range& r) {
  return {{"min", r.least}, {"max", r.most}, {"mean", r.mean}};
}

std::string activation_text(const TranscoderConfig& c) {
  std::string text(feature_activation_name(c.activation));
  if (c.k != 0) text += fmt::format(" (k = {})", c.k);
  return text;
}

const char* kind_of(const TranscoderConfig& c) {
  if (c.input == c.output) return "autoencoder";
  return c.skip ? "skip transcoder" : "transcoder";
}

// What both printouts say of one dictionary.
struct Described {
  TranscoderConfig config;
  DictionaryOrigin origin;
  Range encoder, decoder, threshold;
};

Described describe(const TranscoderSet& set, std::size_t i) {
  const Transcoder t = set.load(i);
  const TranscoderConfig& c = t.config;
  Described d{set.config(i),
              set.origin(i),
              norms(t.encoder, c.features, c.d_in),
              norms(t.decoder, c.features, c.d_out),
              {}};
  if (!t.threshold.empty()) d.threshold = norms(t.threshold, c.features, 0);
  return d;
}

std::string described_text(const Described& d) {
  const TranscoderConfig& c = d.config;
  Facts facts;
  facts.add("file", d.origin.path.string());
  facts.add("format", std::string(dictionary_format_name(d.origin.format)) +
                          (d.origin.architecture.empty() ? "" : ", " + d.origin.architecture));
  facts.add("kind", kind_of(c));
  facts.add("model", c.model_id.empty() ? "not said" : c.model_id);
  facts.add("reads", fmt::format("{} ({} values)", dictionary_place_name(c.input), c.d_in));
  facts.add("rebuilds", fmt::format("{} ({} values)", dictionary_place_name(c.output), c.d_out));
  facts.add("features", grouped(c.features));
  facts.add("activation", activation_text(c));
  if (c.activation == FeatureActivation::jump_relu ||
      c.activation == FeatureActivation::batch_topk) {
    facts.add("thresholds", range_text(d.threshold));
  }
  facts.add("subtracts b_dec", c.subtract_decoder_bias ? "yes" : "no");
  facts.add("|encoder rows|", range_text(d.encoder));
  facts.add("|decoder rows|", range_text(d.decoder));
  for (const std::string& note : d.origin.notes) facts.add("note", note);
  return styled(Style::bold, c.name) + "\n" + facts.text(2);
}

nlohmann::ordered_json described_json(const Described& d) {
  const TranscoderConfig& c = d.config;
  nlohmann::ordered_json j = {{"name", c.name},
                              {"file", d.origin.path.string()},
                              {"format", dictionary_format_name(d.origin.format)},
                              {"architecture", d.origin.architecture},
                              {"kind", kind_of(c)},
                              {"model", c.model_id},
                              {"reads", dictionary_place_name(c.input)},
                              {"rebuilds", dictionary_place_name(c.output)},
                              {"d_in", c.d_in},
                              {"d_out", c.d_out},
                              {"features", c.features},
                              {"activation", feature_activation_name(c.activation)},
                              {"k", c.k},
                              {"subtract_decoder_bias", c.subtract_decoder_bias},
                              {"skip", c.skip},
                              {"encoder_norm", range_json(d.encoder)},
                              {"decoder_norm", range_json(d.decoder)},
                              {"notes", d.origin.notes}};
  if (c.activation == FeatureActivation::jump_relu ||
      c.activation == FeatureActivation::batch_topk) {
    j["threshold"] = range_json(d.threshold);
  }
  return j;
}

std::string cross_layer_text(const std::string& path, const CrossLayerTranscoder& clt) {
  const TranscoderConfig& c = clt.encoder(0).config;
  Facts facts;
  facts.add("file", path);
  facts.add("format", dictionary_format_name(DictionaryFormat::cross_layer));
  facts.add("model", c.model_id.empty() ? "not said" : c.model_id);
  facts.add("layers", std::to_string(clt.layers()));
  facts.add("reads", fmt::format("{}, … ({} values)", dictionary_place_name(c.input), c.d_in));
  facts.add("rebuilds", fmt::format("{}, … ({} values)", dictionary_place_name(c.output), c.d_out));
  facts.add("features", fmt::format("{} a layer", grouped(c.features)));
  facts.add("activation", activation_text(c));
  return styled(Style::bold, "cross-layer transcoder") + "\n" + facts.text(2);
}

int run_info(const InfoArgs& args) {
  Output out;
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const std::string& path : args.inputs.paths) {
    const TranscoderSet set =
        TranscoderSet::open(resolve_dictionaries(path), read_options(args.inputs));
    for (std::size_t i = 0; i < set.size(); ++i) {
      const Described d = describe(set, i);
      if (args.json) all.push_back(described_json(d));
      if (!args.json) out.write(described_text(d));
    }
    if (set.cross_layer() && args.json) {
      const CrossLayerTranscoder& clt = *set.cross_layer();
      all.push_back({{"file", path},
                     {"format", dictionary_format_name(DictionaryFormat::cross_layer)},
                     {"model", clt.encoder(0).config.model_id},
                     {"layers", clt.layers()},
                     {"features", clt.features()},
                     {"d_model", clt.d_model()}});
    } else if (set.cross_layer()) {
      out.write(cross_layer_text(path, *set.cross_layer()));
    }
  }
  if (args.json) print_json(all, out);
  out.close();
  return 0;
}

}  // namespace

void add_dictionary_options(CLI::App& verb, DictionaryInputs& inputs) {
  verb.add_option("--input-hook", inputs.input_hook,
                  "what it reads, if its file does not say so (blocks.3.ln2.hook_normalized)")
      ->option_text("HOOK");
  verb.add_option("--output-hook", inputs.output_hook, "the same of what it rebuilds")
      ->option_text("HOOK");
  verb.add_option("--norm-weights", inputs.norm_weights,
                  "yes: a normalised input is read with the norm's weights applied; no: without "
                  "(default: as the hook's name says)")
      ->check(CLI::IsMember({"yes", "no"}))
      ->option_text("WHICH");
  verb.add_option("--activation", inputs.activation,
                  "its activation, if its file does not say so: relu, topk or jump_relu")
      ->check(CLI::IsMember({"relu", "topk", "jump_relu"}))
      ->option_text("NAME");
  verb.add_option("--k", inputs.k, "active features a token, of --activation topk")
      ->check(CLI::Range(1, 1 << 26))
      ->option_text("K");
  verb.add_option("--input-scale", inputs.input_scale,
                  "what its inputs were multiplied by in training, of expected_average_only_in")
      ->check(CLI::PositiveNumber)
      ->option_text("X");
}

DictionaryReadOptions read_options(const DictionaryInputs& inputs) {
  if (inputs.activation == "topk" && inputs.k == 0) fail_usage("--activation topk needs --k");
  DictionaryReadOptions options;
  options.input_hook = inputs.input_hook;
  options.output_hook = inputs.output_hook;
  options.activation = inputs.activation;
  options.k = inputs.k;
  options.input_scale = inputs.input_scale;
  if (!inputs.norm_weights.empty()) options.norm_weights = inputs.norm_weights == "yes";
  return options;
}

void register_transcoder_info(CLI::App& transcoder, Globals& globals) {
  auto args = std::make_shared<InfoArgs>();
  CLI::App* verb = transcoder.add_subcommand("info", "what files of dictionaries hold");
  verb->add_option("paths", args->inputs.paths, "SAELens or circuit-tracer folders or files")
      ->required()
      ->option_text("PATH...");
  add_dictionary_options(*verb, args->inputs);
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] { globals.action = [args] { return run_info(*args); }; });
}

void register_transcoder(CLI::App& app, Globals& globals) {
  CLI::App* verb =
      app.add_subcommand("transcoder", "dictionaries of features: train, evaluate, describe");
  verb->group("Explain");
  verb->require_subcommand(1);
  register_transcoder_train(*verb, globals);
  register_transcoder_eval(*verb, globals);
  register_transcoder_keep(*verb, globals);
  register_transcoder_info(*verb, globals);
}

}  // namespace lamina::cli
