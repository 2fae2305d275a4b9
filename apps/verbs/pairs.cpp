// lamina pairs: clean and corrupted prompts for patching, made for a model's tokenizer.

#include <algorithm>
#include <memory>

#include "inputs.h"
#include "lamina/core/error.h"
#include "lamina/core/forward.h"
#include "lamina/patching/pair_tasks.h"
#include "lamina/probes/word_list.h"
#include "paths.h"
#include "ui/output.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

struct Args {
  std::string task, model;
  std::int64_t count = 100;
  std::string corruption = "flip";
  std::string from = "fr", to = "en";
  std::int64_t shots = 4;
  std::string lists, words, bos = "model";
  bool solved = false;
  OutputOptions output;
};

constexpr std::size_t kShownWords = 6;  // of those that were left out

TaskLists load_lists(const Args& args) {
  if (args.lists.empty() && args.task == "translation") {
    const auto path = args.words.empty() ? data_folder() / "words" / "concepts.json"
                                         : std::filesystem::path(args.words);
    return translation_lists(read_word_list(path), args.from, args.to);
  }
  const auto path = args.lists.empty() ? data_folder() / "pairs" / (args.task + ".json")
                                       : std::filesystem::path(args.lists);
  TaskLists lists = read_task_lists(path);
  if (lists.task != args.task) {
    fail("{}: task {} expected, found {}", lists.source, args.task, lists.task);
  }
  return lists;
}

std::string reasons(const PairMaker& maker) {
  std::string out;
  for (const auto& [why, dropped] : maker.dropped()) {
    out += fmt::format("{}{} {}: {}", out.empty() ? "" : "; ", dropped.drafts,
                       dropped.drafts == 1 ? "draft" : "drafts", why);
    if (dropped.words.empty()) continue;
    std::vector<std::string> shown(dropped.words.begin(), dropped.words.end());
    const std::size_t rest = shown.size() - std::min(shown.size(), kShownWords);
    shown.resize(shown.size() - rest);
    out += fmt::format(" ({}{})", fmt::join(shown, ", "),
                       rest > 0 ? fmt::format(" and {} more words", rest) : "");
  }
  return out.empty() ? "nothing" : out;
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (double value : values) sum += value;
  return sum / static_cast<double>(std::max<std::size_t>(values.size(), 1));
}

// Pairs as the tokenizer allows them; with --solved only those that the model gets right.
class Collector {
 public:
  Collector(const Args& args, PairMaker& maker, const Model* model) : args_(args), maker_(maker) {
    if (model != nullptr) forward_.emplace(*model);
  }

  std::vector<MadePair> collect() {
    const auto wanted = static_cast<std::size_t>(args_.count);
    // A model that solves less than one pair in twenty does not know the task.
    const std::size_t most = forward_ ? 20 * wanted + 200 : wanted;
    std::vector<MadePair> kept;
    std::vector<double> clean, corrupted;
    std::optional<ProgressLine> progress;
    if (forward_) progress.emplace("solving", "pairs", args_.count);
    while (kept.size() < wanted && tried_ < most) {
      std::vector<MadePair> made;
      const std::size_t ask = std::min(forward_ ? kChunk : wanted, most - tried_);
      while (made.size() < ask) {
        auto pair = maker_.next();
        if (!pair) break;
        made.push_back(std::move(*pair));
      }
      if (made.empty()) break;
      if (!forward_) {
        tried_ += made.size();
        std::move(made.begin(), made.end(), std::back_inserter(kept));
        continue;
      }
      std::vector<Pair> pairs;
      for (const MadePair& pair : made) pairs.push_back(pair.pair);
      const std::vector<double> on_clean = logit_differences(*forward_, pairs, false);
      const std::vector<double> on_corrupted = logit_differences(*forward_, pairs, true);
      for (std::size_t i = 0; i < made.size() && kept.size() < wanted; ++i) {
        ++tried_;
        if (!(on_clean[i] > 0)) continue;
        kept.push_back(std::move(made[i]));
        clean.push_back(on_clean[i]);
        corrupted.push_back(on_corrupted[i]);
      }
      progress->update(static_cast<std::int64_t>(kept.size()));
    }
    progress.reset();
    if (forward_ && tried_ > 0) {
      info(
          "solved {} of {} pairs ({:.1f} %); mean logit_diff of these: clean {:.2f}, corrupted "
          "{:.2f}",
          kept.size(), tried_,
          100.0 * static_cast<double>(kept.size()) / static_cast<double>(tried_), mean(clean),
          mean(corrupted));
    }
    return kept;
  }
  std::size_t tried() const { return tried_; }

 private:
  static constexpr std::size_t kChunk = 64;
  const Args& args_;
  PairMaker& maker_;
  std::optional<Forward> forward_;
  std::size_t tried_ = 0;
};

int run_pairs(const Args& args, const Globals& globals) {
  PairTaskOptions options;
  options.seed = globals.seed;
  options.corruption = parse_ioi_corruption(args.corruption);
  options.shots = args.shots;
  options.prompt.bos = args.bos == "always"  ? Bos::always
                       : args.bos == "never" ? Bos::never
                                             : Bos::model;
  const TaskLists lists = load_lists(args);
  Output out(args.output.path, args.output.force);

  // Weights are needed only to see what the model solves.
  std::optional<Model> model;
  std::optional<Tokenizer> own;
  if (args.solved) {
    model.emplace(load_model(args.model));
  } else {
    own.emplace(Tokenizer::load(resolve_model(args.model)));
  }
  if (model && model->tokenizer() == nullptr) {
    fail("{}: the model has no tokenizer, which words need", model->id());
  }
  const Tokenizer& tokenizer = model ? *model->tokenizer() : *own;
  const std::int64_t d_vocab = model ? model->config().d_vocab : tokenizer.vocab_size();

  PairMaker maker(lists, tokenizer, d_vocab, options);
  Collector collector(args, maker, model ? &*model : nullptr);
  const std::vector<MadePair> pairs = collector.collect();
  if (pairs.empty()) {
    if (collector.tried() > 0) {
      fail("{}: the model solves none of {} pairs of the task {}", args.model, collector.tried(),
           args.task);
    }
    fail("{}: no pair of the task {} fits the tokenizer; left out: {}", args.model, args.task,
         reasons(maker));
  }
  for (const MadePair& pair : pairs) out.write(pair.json + "\n");
  out.close();
  info("left out: {}", reasons(maker));
  if (static_cast<std::int64_t>(pairs.size()) < args.count) {
    warn("{} pairs instead of {}: {}", pairs.size(), args.count,
         collector.tried() > pairs.size() ? "the model solves too few" : "there are no more");
  }
  if (!args.output.path.empty()) info("wrote {}: {} pairs", args.output.path, pairs.size());
  return 0;
}

}  // namespace

void register_pairs(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb =
      app.add_subcommand("pairs", "make clean and corrupted prompts for a model's tokenizer");
  verb->group("Intervene");
  const auto tasks = pair_tasks();
  verb->add_option("task", args->task, fmt::format("{}", fmt::join(tasks, ", ")))
      ->required()
      ->check(CLI::IsMember(std::vector<std::string>(tasks.begin(), tasks.end())))
      ->option_text("TASK");
  verb->add_option("--model", args->model, "model whose tokenizer the pairs must fit")
      ->required()
      ->option_text("MODEL");
  verb->add_option("-n,--count", args->count, "how many pairs (default 100)")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1'000'000}))
      ->option_text("N");
  verb->add_flag("--solved", args->solved,
                 "only pairs whose clean prompt the model answers correctly");
  add_output_options(*verb, args->output, "write to FILE instead of standard output");
  verb->add_option("--corruption", args->corruption,
                   "ioi: flip (default) the acting name, order of the names, or abc: other names")
      ->check(CLI::IsMember({"flip", "order", "abc"}))
      ->option_text("HOW");
  verb->add_option("--from", args->from, "translation: language asked about (default fr)")
      ->option_text("LANG");
  verb->add_option("--to", args->to, "translation: language of the answer (default en)")
      ->option_text("LANG");
  verb->add_option("--shots", args->shots, "translation: examples in a prompt (default 4)")
      ->check(CLI::Range(0, 64))
      ->option_text("N");
  CLI::Option* lists =
      verb->add_option("--lists", args->lists, "own templates and words (docs/pairs.md)")
          ->option_text("FILE");
  verb->add_option("--words", args->words, "translation: word list (default: the shipped one)")
      ->option_text("FILE")
      ->excludes(lists);
  verb->add_option("--bos", args->bos,
                   "beginning-of-sequence token: as the model says (default), always, never")
      ->check(CLI::IsMember({"model", "always", "never"}))
      ->option_text("WHEN");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] { return run_pairs(*args, globals); };
  });
}

}  // namespace lamina::cli
