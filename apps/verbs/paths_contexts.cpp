// lamina paths contexts: where features fire most strongly.

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "lamina/circuits/feature_contexts.h"
#include "lamina/core/error.h"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/activation_source.h"
#include "verbs/info.h"
#include "verbs/paths_inputs.h"

namespace lamina::cli {
namespace {

struct Args {
  PathsInputs inputs;
  std::vector<std::string> features, recordings;
  PromptInputs prompts;
  std::int64_t examples = 10, context = 10, skip = 0;
  bool every_place = false;
  OutputOptions output;
  bool json = false;
};

// A token's surroundings, each token by how strongly the feature fires there.
std::string line(const FeatureContexts& found, std::size_t feature,
                 const FeatureContexts::Place& place, const Args& args,
                 const Tokenizer* tokenizer) {
  const SeenTokens& seen = found.seen();
  const std::int64_t prompt = seen.prompt(place.token);
  std::string out, before;
  std::vector<std::int32_t> ids;
  for (std::int64_t t = place.token - args.context; t <= place.token + args.context; ++t) {
    if (t < 0 || t >= seen.tokens() || seen.prompt(t) != prompt) continue;
    // What the token adds to the text so far: blanks between words are no part of some tokens.
    std::string piece = fmt::format("{}{}", ids.empty() ? "" : " ", seen.id(t));
    if (tokenizer != nullptr) {
      ids.push_back(seen.id(t));
      const std::string with = tokenizer->decode(ids);
      piece = with.starts_with(before) ? with.substr(before.size()) : seen.text(t, tokenizer);
      before = with;
    } else {
      ids.push_back(seen.id(t));
    }
    piece = escape_controls(piece);
    const float value = found.at(feature, t);
    const std::size_t blanks = std::min(piece.find_first_not_of(' '), piece.size());
    const std::string blank = piece.substr(0, blanks), word = piece.substr(blanks);
    if (t == place.token) {
      out += blank + "«" + styled(Style::bold, word) + "»";
    } else if (value > 0) {
      out += blank + styled(value > 0.5F * place.value ? Style::good : Style::note, word);
    } else {
      out += piece;
    }
  }
  return out;
}

std::string contexts_text(const FeatureContexts& found, const Args& args,
                          const Tokenizer* tokenizer) {
  std::string out;
  for (std::size_t f = 0; f < found.features().size(); ++f) {
    out += fmt::format("{}  fires at {} of {} tokens\n",
                       styled(Style::bold, "feature " + hop_name(found.features()[f].name)),
                       grouped(found.count(f)), grouped(found.tokens()));
    Table table({">activation", "prompt", ">token", "context"});
    for (const FeatureContexts::Place& p : found.top(f, args.examples, args.every_place)) {
      const SeenTokens& seen = found.seen();
      table.row({short_number(p.value), clip(seen.prompt_id(seen.prompt(p.token)), 24),
                 std::to_string(seen.position(p.token)), line(found, f, p, args, tokenizer)});
    }
    if (!table.empty()) out += table.text(2);
  }
  return out;
}

nlohmann::ordered_json contexts_json(const FeatureContexts& found, const Args& args,
                                     const Tokenizer* tokenizer) {
  const SeenTokens& seen = found.seen();
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (std::size_t f = 0; f < found.features().size(); ++f) {
    const Hop& name = found.features()[f].name;
    nlohmann::ordered_json one = {{"layer", name.layer},
                                  {"feature", name.index},
                                  {"fires", found.count(f)},
                                  {"tokens", found.tokens()},
                                  {"places", nlohmann::ordered_json::array()}};
    for (const FeatureContexts::Place& p : found.top(f, args.examples, args.every_place)) {
      const std::int64_t prompt = seen.prompt(p.token);
      nlohmann::ordered_json place = {{"activation", p.value},
                                      {"prompt", seen.prompt_id(prompt)},
                                      {"position", seen.position(p.token)},
                                      {"text", seen.text(p.token, tokenizer)},
                                      {"context", seen.context(p.token, args.context, tokenizer)}};
      for (std::int64_t t = p.token - args.context; t <= p.token + args.context; ++t) {
        if (t < 0 || t >= seen.tokens() || seen.prompt(t) != prompt) continue;
        place["around"].push_back(
            {{"text", seen.text(t, tokenizer)}, {"activation", found.at(f, t)}});
      }
      one["places"].push_back(std::move(place));
    }
    all.push_back(std::move(one));
  }
  return all;
}

int run_contexts(const Args& args, const Globals& globals) {
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  std::vector<Hop> names;
  for (const std::string& text : args.features) {
    names.push_back(parse_hop(text));
    if (names.back().is_head) fail_usage("{}: expected a feature, LAYER.FEATURE (3.57)", text);
  }
  ActivationSource source(args.inputs.model, args.recordings, args.prompts);
  const TranscoderSet set = open_dictionaries(args.inputs, *source.model);
  // Only the dictionaries that are asked for.
  std::vector<std::unique_ptr<Transcoder>> held;
  std::vector<const Transcoder*> dictionaries;
  std::vector<std::int32_t> layers;
  std::vector<FeatureContexts::Feature> features;
  for (const Hop& name : names) {
    const auto known = std::find(layers.begin(), layers.end(), name.layer);
    features.push_back({static_cast<std::size_t>(known - layers.begin()), name});
    if (known != layers.end()) continue;
    layers.push_back(name.layer);
    if (set.cross_layer() != nullptr) {
      if (name.layer >= set.cross_layer()->layers())
        fail_usage("there is no dictionary of layer {}", name.layer);
      dictionaries.push_back(&set.cross_layer()->encoder(name.layer));
      continue;
    }
    for (std::size_t i = 0; i < set.size(); ++i) {
      if (set.config(i).output.site.layer != name.layer) continue;
      if (dictionaries.size() == layers.size())
        fail_usage("there are two dictionaries of layer {}: give the folder of one", name.layer);
      held.push_back(std::make_unique<Transcoder>(set.load(i)));
      dictionaries.push_back(held.back().get());
    }
    if (dictionaries.size() != layers.size())
      fail_usage("there is no dictionary of layer {}", name.layer);
  }
  FeatureContexts found(dictionaries, features, &*source.model, args.skip);
  found.output = {source.tokenizer(), args.examples, args.context, args.every_place};
  source.run(found, "features");
  if (!args.output.path.empty()) {
    ResultFile file(args.output.path, source.provenance(globals));
    file.group(found.name());
    found.write(file);
    file.close();
    info("wrote {}", args.output.path);
  }
  Output out;
  if (args.json) {
    print_json(contexts_json(found, args, source.tokenizer()), out);
  } else {
    out.write(contexts_text(found, args, source.tokenizer()));
  }
  out.close();
  return 0;
}

}  // namespace

void register_paths_contexts(CLI::App& paths, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = paths.add_subcommand("contexts", "where features fire most strongly");
  add_paths_inputs(*verb, args->inputs);
  verb->add_option("--feature", args->features, "features, LAYER.FEATURE (2.57)")
      ->required()
      ->option_text("L.F...");
  verb->add_option("--recordings", args->recordings, "read these instead of running prompts")
      ->option_text("FILE...");
  add_prompt_options(*verb, args->prompts);
  verb->add_option("--examples", args->examples, "places of each feature (default [ours] 10)")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{10000}))
      ->option_text("N");
  verb->add_option("--context", args->context,
                   "tokens shown on either side of one (default [ours] 10)")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1000}))
      ->option_text("N");
  verb->add_flag("--every-place", args->every_place,
                 "also several places of one prompt (default [ours]: the strongest of each)");
  verb->add_option("--skip", args->skip,
                   "tokens at the beginning of each prompt to leave out (default 0)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  add_output_options(*verb, args->output, "write the places to this HDF5 file");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] { return run_contexts(*args, globals); };
  });
}

}  // namespace lamina::cli
