// lamina eval: multiple-choice questions, with and without skipping layers.

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "inputs.h"
#include "lamina/core/chat.h"
#include "lamina/core/error.h"
#include "lamina/core/sha256.h"
#include "lamina/probes/choice.h"
#include "lamina/probes/choice_eval.h"
#include "paths.h"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/eval_journal.h"
#include "verbs/info.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Args {
  std::string model;
  std::string task;
  OutputOptions output;
  std::string chat = "auto";
  std::int64_t shots = 0;
  std::string examples;
  std::int64_t limit = 0;
  bool shuffle = false;
  std::vector<std::string> modes;
  std::vector<double> alphas = {0.8};
  std::string rule = "l2";
  std::string layers;
  std::int64_t max_new = 8;
  std::int64_t batch = 16;
  bool resume = false;
  bool json = false;
};

// "3,5-7,-1": layers, −1 the last.
std::vector<std::int32_t> parse_layers(const std::string& text, std::int64_t n_layers) {
  std::vector<std::int32_t> layers;
  const auto bad = [&] {
    fail_usage("--skip-layers is '{}', expected layers 0 to {} such as 3,5-7,-1", text,
               n_layers - 1);
  };
  const auto number = [&](std::string_view item) {
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(item.data(), item.data() + item.size(), value);
    if (error != std::errc() || end != item.data() + item.size()) bad();
    if (value < 0) value += n_layers;
    if (value < 0 || value >= n_layers) bad();
    return static_cast<std::int32_t>(value);
  };
  for (std::string_view rest = text;;) {
    const std::string_view item = rest.substr(0, rest.find(','));
    const std::size_t dash = item.find('-', 1);
    const std::int32_t first = number(item.substr(0, dash));
    const std::int32_t last = dash == item.npos ? first : number(item.substr(dash + 1));
    if (last < first) bad();
    for (std::int32_t l = first; l <= last; ++l) {
      if (std::find(layers.begin(), layers.end(), l) == layers.end()) layers.push_back(l);
    }
    if (item.size() == rest.size()) break;
    rest.remove_prefix(item.size() + 1);
  }
  return layers;
}

std::optional<ChatTemplate> choose_chat(const Args& args, const Model& model) {
  if (args.chat == "none") return std::nullopt;
  const Tokenizer& tokenizer = *model.tokenizer();
  if (args.chat == "auto") return ChatTemplate::load(resolve_model(args.model), tokenizer);
  const auto name = [&](std::optional<std::int32_t> id) {
    return id ? tokenizer.piece(*id) : std::string();
  };
  return ChatTemplate::of(parse_chat_format(args.chat), name(tokenizer.bos_id()),
                          name(tokenizer.eos_id()));
}

struct Loaded {
  Task task;
  std::vector<Question> examples;
};

Loaded load_task(const Args& args, const Globals& globals) {
  Loaded out;
  out.task = read_task(args.task);
  const bool shuffled = args.shuffle || out.task.layout == TaskLayout::gpqa;
  if (shuffled) shuffle_options(out.task, globals.seed);
  std::vector<Question>& questions = out.task.questions;
  if (args.shots > 0) {
    Task other;
    if (!args.examples.empty()) {
      other = read_task(args.examples);
      if (args.shuffle || other.layout == TaskLayout::gpqa) shuffle_options(other, globals.seed);
    }
    std::vector<Question>& from = args.examples.empty() ? questions : other.questions;
    const std::string& file = args.examples.empty() ? args.task : args.examples;
    const auto have = static_cast<std::int64_t>(from.size());
    if (args.shots > have)
      fail("{}: {} examples were asked for, it holds {}", file, args.shots, have);
    const auto end = from.begin() + args.shots;
    out.examples.assign(from.begin(), end);
    from.erase(from.begin(), end);
    if (questions.empty()) fail("{}: all its questions are examples, none is left to ask", file);
  }
  if (args.limit > 0 && args.limit < static_cast<std::int64_t>(questions.size())) {
    questions.resize(static_cast<std::size_t>(args.limit));
  }
  return out;
}

ChoiceGrid run_grid(Forward& forward, const Task& task, std::span<const ChoicePrompt> prompts,
                    const Args& args, const ChoiceOptions& base,
                    std::span<const std::int32_t> layers, EvalJournal* journal) {
  const ModelConfig& config = forward.model().config();
  const VoidRule rule = parse_void_rule(args.rule);
  ChoiceGrid grid;
  grid.alphas = args.alphas;
  grid.modes = {"none"};
  for (const std::string& mode : args.modes) {
    if (std::find(grid.modes.begin(), grid.modes.end(), mode) == grid.modes.end()) {
      grid.modes.push_back(mode);
    }
  }
  if (!layers.empty()) grid.modes.emplace_back("layers");
  const auto once = [](const std::string& mode) { return mode == "none" || mode == "layers"; };
  std::int64_t runs = 0;
  for (const std::string& mode : grid.modes) {
    runs += once(mode) ? 1 : static_cast<std::int64_t>(args.alphas.size());
  }
  const auto questions = static_cast<std::int64_t>(task.questions.size());
  ProgressLine progress("asking", "questions", runs * questions);
  std::int64_t done = 0;
  ChoiceOptions options = base;
  options.progress = [&](std::int64_t asked) { progress.update(done + asked); };
  for (const std::string& mode : grid.modes) {
    for (std::size_t a = 0; a < args.alphas.size(); ++a) {
      if (once(mode) && a > 0) {
        grid.at.push_back(grid.at.back());
        continue;
      }
      SkipOptions skip;
      skip.alpha = args.alphas[a];
      skip.rule = rule;
      if (mode == "layers") {
        skip.layers.assign(layers.begin(), layers.end());
      } else {
        skip.mode = parse_skip_mode(mode);
      }
      SkipRun run(config, skip);
      const std::span<const double> alphas =
          once(mode) ? std::span<const double>(args.alphas) : std::span(&args.alphas[a], 1);
      const auto number = static_cast<std::int64_t>(grid.runs.size());
      if (journal != nullptr) {
        options.known = [=](std::int64_t first) { return journal->find(number, first); };
        options.keep = [=](const ChoicePart& part) { journal->keep(number, part); };
      }
      grid.at.push_back(grid.runs.size());
      grid.runs.push_back(run_choices(forward, task, prompts, run, alphas, options));
      done += questions;
    }
  }
  progress.finish();
  return grid;
}

// What an evaluation is: equal for equal answers.
std::string fingerprint(const Model& model, std::span<const ChoicePrompt> prompts, const Args& args,
                        const ChoiceOptions& options, std::span<const std::int32_t> layers) {
  Sha256 hash;
  hash.update(fmt::format("{} {} {} {} {} {} {} {} {}\n", model.sha256(),
                          fmt::join(args.modes, ","), fmt::join(args.alphas, ","), args.rule,
                          fmt::join(layers, ","), args.max_new, args.batch,
                          fmt::join(options.stop, ","), prompts.size()));
  for (const ChoicePrompt& prompt : prompts) {
    for (const Continuations* part : {&prompt.text, &prompt.letter}) {
      hash.update(fmt::format("{}", fmt::join(part->prefix, " ")));
      for (const auto& option : part->options) {
        hash.update(fmt::format("|{}", fmt::join(option, " ")));
      }
      hash.update("\n");
    }
    hash.update(fmt::format("{}\n", fmt::join(prompt.listed, " ")));
  }
  return hash.hex();
}

std::string percent(double share) {
  return std::isnan(share) ? "" : fmt::format("{:.1f}%", 100 * share);
}

std::string accuracy_text(const ChoiceTally& t) {
  const Interval i = wilson(t.right, t.all);
  return fmt::format("{:.1f} [{:.0f}, {:.0f}]",
                     100.0 * static_cast<double>(t.right) / static_cast<double>(t.all), 100 * i.low,
                     100 * i.high);
}

// The rows of the table: modes that do not depend on α stand once.
std::string grid_text(const ChoiceGrid& grid, const Task& task, bool generated) {
  std::vector<std::string> headings = {"skipped", ">alpha",  ">PP used", ">RG used",
                                       ">text",   ">/token", ">/byte",   ">letter"};
  if (generated) headings.insert(headings.end(), {">generated", ">silent"});
  Table table(headings);
  for (std::size_t m = 0; m < grid.modes.size(); ++m) {
    for (std::size_t a = 0; a < grid.alphas.size(); ++a) {
      const std::string& mode = grid.modes[m];
      const bool once = mode == "none" || mode == "layers";
      if (once && a > 0) continue;
      const ChoiceRun& run = grid.run(m, a);
      const VoidCounts& used = grid.used(m, a);
      std::vector<std::string> row = {mode, once ? "" : fmt::format("{}", grid.alphas[a]),
                                      once ? "" : percent(used.model_usage(0, 0)),
                                      once ? "" : percent(used.model_usage(0, 1))};
      for (std::int64_t s = 0; s < (generated ? kChoiceScores : kChoiceScores - 1); ++s) {
        row.push_back(accuracy_text(tally(run, task, static_cast<ChoiceScore>(s))));
      }
      if (generated) {
        row.push_back(std::to_string(tally(run, task, ChoiceScore::generated).silent));
      }
      table.row(row);
    }
  }
  return table.text(2);
}

Json grid_json(const ChoiceGrid& grid, const Task& task, bool generated) {
  Json rows = Json::array();
  for (std::size_t m = 0; m < grid.modes.size(); ++m) {
    for (std::size_t a = 0; a < grid.alphas.size(); ++a) {
      Json row;
      row["mode"] = grid.modes[m];
      row["alpha"] = grid.alphas[a];
      for (std::int64_t phase = 0; phase < 2; ++phase) {
        const double used = grid.used(m, a).model_usage(0, phase);
        row["usage"][kVoidPhases[static_cast<std::size_t>(phase)]] =
            std::isnan(used) ? Json() : Json(used);
      }
      for (std::int64_t s = 0; s < (generated ? kChoiceScores : kChoiceScores - 1); ++s) {
        const auto score = static_cast<ChoiceScore>(s);
        const ChoiceTally t = tally(grid.run(m, a), task, score);
        const Interval interval = wilson(t.right, t.all);
        row["scores"][std::string(choice_score_name(score))] = {
            {"right", t.right},
            {"accuracy", static_cast<double>(t.right) / static_cast<double>(t.all)},
            {"low", interval.low},
            {"high", interval.high},
            {"unanswered", t.silent}};
      }
      rows.push_back(row);
    }
  }
  return rows;
}

void write_file(const Args& args, const Globals& globals, const Model& model, const Task& task,
                const ChoiceGrid& grid, const std::string& chat, std::size_t examples,
                std::span<const std::int32_t> layers) {
  std::map<std::string, std::string> root = provenance(globals);
  root["model_id"] = model.id();
  root["model_sha256"] = model.sha256();
  ResultFile file(args.output.path, root);
  file.group("eval");
  file.setting("task", args.task);
  file.setting("layout", std::string(task_layout_name(task.layout)));
  file.setting("chat", chat);
  file.setting("wording", choice_wording(chat != "none"));
  file.setting("shots", static_cast<std::int64_t>(examples));
  file.setting("options_shuffled",
               std::string(args.shuffle || task.layout == TaskLayout::gpqa ? "yes" : "no"));
  file.setting("rule", args.rule);
  file.setting("skipped_layers", fmt::format("{}", fmt::join(layers, ",")));
  file.setting("max_new", args.max_new);
  file.setting("interval", std::string("Wilson score, 95 %"));
  write_choices(file, task, grid);
  file.close();
}

int run_eval(const Args& args, const Globals& globals) {
  if (!args.examples.empty() && args.shots == 0) {
    fail_usage("--examples gives the answered questions of --shots; how many is missing");
  }
  if (args.resume && args.output.path.empty()) fail_usage("--resume needs the output file, -o");
  check_alphas(args.alphas);
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  const Loaded loaded = load_task(args, globals);
  const Task& task = loaded.task;
  const Model model = load_model(args.model);
  if (model.tokenizer() == nullptr) fail("{}: the model has no tokenizer", args.model);
  const ModelConfig& config = model.config();
  std::vector<std::int32_t> layers;
  if (!args.layers.empty()) layers = parse_layers(args.layers, config.n_layers);
  const std::optional<ChatTemplate> chat = choose_chat(args, model);
  const std::string chat_name = chat ? std::string(chat_format_name(chat->format())) : "none";

  ChoiceFormat format{chat ? &*chat : nullptr, loaded.examples};
  const std::vector<ChoicePrompt> prompts =
      choice_prompts(task, *model.tokenizer(), format, config.n_ctx, args.max_new);
  ChoiceOptions options;
  options.max_new = args.max_new;
  options.batch_questions = args.batch;
  if (const auto eos = model.tokenizer()->eos_id()) options.stop.push_back(*eos);
  if (chat) {
    if (const auto end = model.tokenizer()->find_name(chat->turn_end())) {
      options.stop.push_back(*end);
    }
  }
  Forward forward(model);
  std::optional<EvalJournal> journal;
  if (!args.output.path.empty()) {
    journal.emplace(args.output.path, fingerprint(model, prompts, args, options, layers),
                    args.resume, args.output.force);
    if (journal->questions() > 0) {
      info("going on: {} answers were there", grouped(journal->questions()));
    }
  }
  const ChoiceGrid grid =
      run_grid(forward, task, prompts, args, options, layers, journal ? &*journal : nullptr);

  if (!args.output.path.empty()) {
    write_file(args, globals, model, task, grid, chat_name, loaded.examples.size(), layers);
    journal->remove();
  }
  Output out;
  if (args.json) {
    Json json;
    json["task"] = args.task;
    json["layout"] = task_layout_name(task.layout);
    json["questions"] = task.questions.size();
    json["chat"] = chat_name;
    json["runs"] = grid_json(grid, task, args.max_new > 0);
    print_json(json, out);
  } else {
    out.write(
        styled(Style::bold, fmt::format("{} questions, layout {}, chat template {}",
                                        grouped(static_cast<std::int64_t>(task.questions.size())),
                                        task_layout_name(task.layout), chat_name)) +
        "\n" + grid_text(grid, task, args.max_new > 0) +
        "  accuracy in % with Wilson's 95 % interval; used: share of layers not void\n");
  }
  out.close();
  if (!args.output.path.empty()) info("wrote {}", args.output.path);
  return 0;
}

}  // namespace

void register_eval(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand("eval", "multiple-choice questions, layers skipped or not");
  verb->group("Read");
  verb->add_option("model", args->model, "model folder, GGUF file, or a shipped model's name")
      ->required()
      ->option_text("MODEL");
  verb->add_option("--task", args->task,
                   "questions: JSONL in the layout of lamina, MMLU, ARC, BoolQ or GPQA")
      ->required()
      ->option_text("FILE");
  verb->add_option("--chat", args->chat,
                   "chat template: auto (the model's, default), none, chatml, llama2, llama3, "
                   "mistral, gemma")
      ->check(CLI::IsMember({"auto", "none", "chatml", "llama2", "llama3", "mistral", "gemma"}))
      ->option_text("FORMAT");
  verb->add_option("--shots", args->shots,
                   "answered questions in front of each (default 0): the first of --examples, or "
                   "of the task, which are then not asked")
      ->check(CLI::Range(0, 100))
      ->option_text("K");
  verb->add_option("--examples", args->examples, "file that --shots come from")
      ->option_text("FILE");
  verb->add_flag("--shuffle", args->shuffle,
                 "options in an order drawn by --seed (GPQA's always are)");
  verb->add_option("--limit", args->limit, "ask the first N questions only")
      ->check(CLI::PositiveNumber)
      ->option_text("N");
  verb->add_option("--skip", args->modes,
                   "also with voids skipped: last-active, blocks, or both (default neither)")
      ->delimiter(',')
      ->check(CLI::IsMember({"last-active", "blocks"}))
      ->option_text("MODE...");
  verb->add_option("--alpha", args->alphas, "thresholds to skip at (default 0.8)")
      ->delimiter(',')
      ->option_text("A...");
  verb->add_option("--rule", args->rule, "l2 (default), or lac: a token halts at its first void")
      ->check(CLI::IsMember({"l2", "lac"}))
      ->option_text("RULE");
  verb->add_option("--skip-layers", args->layers,
                   "also with these layers left out, such as 3,5-7,-1")
      ->option_text("SET");
  verb->add_option("--max-new", args->max_new,
                   "tokens of a generated answer at most (default 8; 0: none)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_option("--batch", args->batch, "questions asked at once (default 16)")
      ->check(CLI::Range(1, 4096))
      ->option_text("N");
  add_output_options(*verb, args->output, "write the results to this HDF5 file");
  verb->add_flag("--resume", args->resume, "go on with an interrupted evaluation");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback(
      [args, &globals] { globals.action = [args, &globals] { return run_eval(*args, globals); }; });
}

}  // namespace lamina::cli
