// lamina paths find: the strongest ways on which a feature or a logit of a prompt comes about.

#include <charconv>
#include <memory>
#include <nlohmann/json.hpp>

#include "lamina/circuits/graph_io.h"
#include "lamina/circuits/paths.h"
#include "lamina/core/error.h"
#include "lamina/patching/pairs.h"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/info.h"
#include "verbs/paths_inputs.h"

namespace lamina::cli {
namespace {

struct Args {
  PathsInputs inputs;
  PromptInputs prompts;
  std::int64_t prompt = 0, at = -1;
  std::string from, logit, minus;
  PathOptions options;
  OutputOptions output;
  std::string graph, drawing;
  bool json = false;
};

// "4.9.57", layer, position, feature, or as paths are printed: "4.57@9".
PathNode parse_root(const std::string& text) {
  const bool printed = text.find('@') != text.npos;
  std::int64_t numbers[3] = {-1, -1, -1};
  const char *at = text.data(), *end = at + text.size();
  for (int i = 0; i < 3; ++i) {
    const auto [next, error] = std::from_chars(at, end, numbers[i]);
    const char behind = i == 2 ? '\0' : i == 1 && printed ? '@' : '.';
    if (error != std::errc() || numbers[i] < 0 || numbers[i] >= (1 << 30) ||
        (i == 2 ? next != end : next == end || *next != behind)) {
      fail_usage("--from '{}': expected LAYER.POSITION.FEATURE (4.9.57) or 4.57@9", text);
    }
    at = next + 1;
  }
  if (printed) std::swap(numbers[1], numbers[2]);
  return {.kind = PathNodeKind::feature,
          .layer = static_cast<std::int32_t>(numbers[0]),
          .position = static_cast<std::int32_t>(numbers[1]),
          .index = numbers[2]};
}

// The one token that `text` is behind `last`; in a model without tokenizer, its number.
std::int32_t parse_token(const std::string& text, const char* option, const Model& model,
                         std::int32_t last) {
  if (model.tokenizer() == nullptr) {
    std::int32_t id = -1;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
    if (error != std::errc() || end != text.data() + text.size())
      fail_usage("{} '{}': the model has no tokenizer, expected a token id", option, text);
    return id;
  }
  const auto id = find_answer(*model.tokenizer(), last, text);
  if (!id) fail_usage("{} '{}': not one token of this model", option, text);
  return *id;
}

class Texts {
 public:
  Texts(const FoundPaths& found, const Tokenizer* tokenizer)
      : found_(found), tokenizer_(tokenizer) {}

  std::string word(std::int32_t position) const {
    return position < std::ssize(found_.tokens)
               ? clip(quoted_piece(found_.tokens[static_cast<std::size_t>(position)]), 16)
               : "";
  }
  std::string node(const PathNode& n) const {
    if (n.kind == PathNodeKind::logit) {
      return fmt::format("logit {}{}", token_text(tokenizer_, n.index),
                         n.other < 0 ? "" : " − " + token_text(tokenizer_, n.other));
    }
    return fmt::format("{} {}", path_node_name(n), word(n.position));
  }

 private:
  const FoundPaths& found_;
  const Tokenizer* tokenizer_;
};

// The nodes behind the root, the root's own name if there are none.
std::string way(const FoundPaths& found, std::int32_t end, const Texts& texts) {
  std::string out;
  for (const std::int32_t p : found.path(end)) {
    const PathPrefix& prefix = found.prefixes[static_cast<std::size_t>(p)];
    if (prefix.parent < 0 && p != end) continue;
    out += (out.empty() ? "" : " ← ") + texts.node(prefix.node);
  }
  return out;
}

std::string paths_text(const FoundPaths& found, const Texts& texts) {
  std::string out = styled(Style::bold, "paths") +
                    "  from what is explained down, by what their ends contribute\n";
  Table table({">contributes", "path"});
  for (const std::int32_t end : found.ends()) {
    table.row({fmt::format("{:+.3f}", found.prefixes[static_cast<std::size_t>(end)].contribution),
               way(found, end, texts)});
  }
  out += table.text(2);
  out += "\n" + styled(Style::bold, "accounts") + "  what a contribution is the sum of\n";
  Table accounts({">contributes", ">on paths", ">features", ">heads", ">embedding", ">errors",
                  ">biases", "of"});
  for (std::size_t i = 0; i < found.prefixes.size(); ++i) {
    const PathPrefix& p = found.prefixes[i];
    if (!p.expanded) continue;
    const auto number = [](double v) {
      return v == 0 ? std::string("–") : fmt::format("{:+.3f}", v);
    };
    const PathPrefix::Account& a = p.account;
    accounts.row({fmt::format("{:+.3f}", p.contribution), number(a.kept),
                  number(a.features + a.skips), number(a.heads), number(a.embeddings),
                  number(a.errors), number(a.biases),
                  way(found, static_cast<std::int32_t>(i), texts)});
  }
  return out + accounts.text(2);
}

nlohmann::ordered_json paths_json(const FoundPaths& found) {
  nlohmann::ordered_json json;
  for (const std::string& token : found.tokens) json["tokens"].push_back(token);
  json["rounding"] = found.rounding();
  json["prefixes"] = nlohmann::ordered_json::array();
  for (const PathPrefix& p : found.prefixes) {
    nlohmann::ordered_json one = {{"name", path_node_name(p.node)},
                                  {"kind", path_node_kind_name(p.node.kind)},
                                  {"layer", p.node.layer},
                                  {"position", p.node.position},
                                  {"index", p.node.index},
                                  {"parent", p.parent},
                                  {"depth", p.depth},
                                  {"contribution", p.contribution}};
    if (p.expanded) {
      const PathPrefix::Account& a = p.account;
      one["account"] = {{"kept", a.kept},    {"features", a.features},     {"heads", a.heads},
                        {"skips", a.skips},  {"embeddings", a.embeddings}, {"errors", a.errors},
                        {"biases", a.biases}};
    }
    json["prefixes"].push_back(std::move(one));
  }
  json["paths"] = nlohmann::ordered_json::array();
  for (const std::int32_t end : found.ends()) json["paths"].push_back(found.path(end));
  return json;
}

void write_text(const std::string& path, bool force, const std::string& text) {
  Output file(path, force);
  file.write(text);
  file.close();
  info("wrote {}", path);
}

int run_find(const Args& args, const Globals& globals) {
  if (args.from.empty() == args.logit.empty())
    fail_usage("what is to be explained? give --from LAYER.POSITION.FEATURE or --logit TOKEN");
  for (const std::string& path : {args.output.path, args.graph, args.drawing})
    if (!path.empty()) check_writable(path, args.output.force);
  const Model model = load_model(args.inputs.model);
  const TranscoderSet set = open_dictionaries(args.inputs, model);
  std::vector<Transcoder> transcoders;
  for (std::size_t i = 0; i < set.size(); ++i) transcoders.push_back(set.load(i));
  const std::vector<Prompt> prompts = load_prompts(args.prompts, model);
  if (args.prompt >= std::ssize(prompts))
    fail_usage("--prompt {}: there are {} prompts, counted from 0", args.prompt, prompts.size());
  const Prompt& prompt = prompts[static_cast<std::size_t>(args.prompt)];
  Forward forward(model);
  const Replacement replacement = set.cross_layer() != nullptr
                                      ? Replacement(forward, *set.cross_layer(), prompt.ids)
                                      : Replacement(forward, transcoders, prompt.ids);
  const PathFinder finder(replacement);
  PathNode root;
  PathCursor cursor;
  if (!args.from.empty()) {
    root = parse_root(args.from);
    cursor = finder.feature(root.layer, root.position, root.index);
    if (cursor.value <= 0) {
      warn("feature {} of layer {} is not active at {}: explained is its pre-activation",
           root.index, root.layer, root.position);
    }
  } else {
    const std::int64_t at = args.at < 0 ? replacement.tokens() - 1 : args.at;
    if (at >= replacement.tokens())
      fail_usage("--at {}: the prompt has {} tokens", at, replacement.tokens());
    const std::int32_t last = prompt.ids[static_cast<std::size_t>(at)];
    const std::int32_t minus =
        args.minus.empty() ? -1 : parse_token(args.minus, "--minus", model, last);
    root = {.kind = PathNodeKind::logit,
            .layer = -1,
            .position = static_cast<std::int32_t>(at),
            .index = parse_token(args.logit, "--logit", model, last),
            .other = minus};
    cursor = finder.logit(static_cast<std::int32_t>(root.index), minus, root.position);
  }
  const FoundPaths found = find_paths(finder, root, cursor, args.options);

  if (!args.graph.empty())
    write_text(args.graph, args.output.force, path_graph_json(merge_paths(found)));
  if (!args.drawing.empty()) {
    draw_dot(path_graph_dot(merge_paths(found)), args.drawing);
    info("wrote {}", args.drawing);
  }
  if (!args.output.path.empty()) {
    auto attributes = provenance(globals);
    attributes["model_id"] = model.id();
    attributes["model_sha256"] = model.sha256();
    attributes["transcoders"] = args.inputs.transcoders;
    ResultFile file(args.output.path, attributes);
    found.write(file);
    file.setting("root", path_node_name(root));
    file.setting("prompt_id", prompt.id);
    file.close();
    info("wrote {}", args.output.path);
  }
  Output out;
  if (args.json) {
    print_json(paths_json(found), out);
  } else {
    const Texts texts(found, model.tokenizer());
    Facts facts;
    facts.add("model", model.id());
    std::string shown = prompt.text;
    if (shown.empty() && model.tokenizer() != nullptr)
      shown = model.tokenizer()->decode(prompt.ids);
    if (shown.empty()) shown = fmt::format("{}", fmt::join(prompt.ids, " "));
    facts.add("prompt", clip(escape_controls(shown), 200));
    facts.add("explained", fmt::format("{} at {} {}: {:.4f}", texts.node(root), root.position,
                                       texts.word(root.position), cursor.value));
    facts.add("search", fmt::format("{} steps, {} paths of each length by {} contribution{}",
                                    args.options.depth, args.options.width,
                                    args.options.absolute ? "absolute" : "signed",
                                    args.options.as_authors ? ", as the authors" : ""));
    facts.add("rounding", fmt::format("{:.1e} of what was added up", found.rounding()));
    out.write(facts.text() + "\n" + paths_text(found, texts));
  }
  out.close();
  return 0;
}

}  // namespace

void register_paths_find(CLI::App& paths, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = paths.add_subcommand(
      "find", "the strongest ways on which a feature or a logit of a prompt comes about");
  add_paths_inputs(*verb, args->inputs);
  add_prompt_options(*verb, args->prompts);
  verb->add_option("--prompt", args->prompt, "which of the prompts (default 0, the first)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  auto* from =
      verb->add_option("--from", args->from,
                       "explain a feature: LAYER.POSITION.FEATURE, or as paths are printed "
                       "(4.57@9)")
          ->option_text("L.P.F");
  auto* logit =
      verb->add_option("--logit", args->logit, "explain the logit of a token, over the mean logit")
          ->option_text("TOKEN")
          ->excludes(from);
  verb->add_option("--minus", args->minus, "over the logit of this token instead")
      ->option_text("TOKEN")
      ->needs(logit);
  verb->add_option("--at", args->at, "token at which the logit is read (default: the last)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("POSITION")
      ->needs(logit);
  verb->add_option("--depth", args->options.depth, "steps (default [ours] 3; the authors' 2)")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{100}))
      ->option_text("N");
  verb->add_option("--width", args->options.width, "paths kept of every length (default 5)")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{100000}))
      ->option_text("K");
  verb->add_flag("--absolute", args->options.absolute,
                 "rank by |contribution| [ours], not by contribution");
  verb->add_flag("--as-authors", args->options.as_authors,
                 "the authors' search: embeddings of token and position in one, heads of layer 0 "
                 "not followed, nothing read at the first token by heads");
  add_output_options(*verb, args->output, "write paths and accounts to this HDF5 file");
  verb->add_option("--graph", args->graph, "write the merged paths as JSON: nodes and edges")
      ->option_text("FILE");
  verb->add_option("--draw", args->drawing,
                   "draw the merged paths with Graphviz: .svg, .png or .pdf")
      ->option_text("FILE");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback(
      [args, &globals] { globals.action = [args, &globals] { return run_find(*args, globals); }; });
}

}  // namespace lamina::cli
