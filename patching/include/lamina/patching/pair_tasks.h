#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/core/prompts.h"
#include "lamina/core/tokenizer.h"
#include "lamina/patching/pairs.h"
#include "lamina/probes/word_list.h"

namespace lamina {

// Pairs made from templates and word lists, checked against a tokenizer.

/// The sentences and words of a task, from a file (docs/pairs.md):
///   {"task": "ioi", "templates": ["When {A} and {B} …, {S} gave a {object} to", …],
///    "lists": {"name": ["Mary", …], "object": […]}}
/// An entry of a list is a word, or its forms ([singular, plural], [country, capital]).
struct TaskLists {
  std::string source;  // for messages
  std::string task;    // ioi, greater_than, sva, capitals, translation
  std::vector<std::string> templates;
  std::map<std::string, std::vector<std::vector<std::string>>> lists;  // [entry][form]
};

/// Names of the tasks.
std::span<const std::string_view> pair_tasks();

/// Reads and checks a task: an Error names the file and the slot of a template that has no list,
/// the list that is missing or too short or has another number of forms than the task needs.
TaskLists read_task_lists(const std::filesystem::path& path);
TaskLists parse_task_lists(std::string_view json, std::string_view source);

/// Word translation from one language of a word list to another, few-shot.
TaskLists translation_lists(const WordList& words, std::string_view from, std::string_view to);

/// How an IOI prompt is corrupted.
///   flip   the second subject becomes the indirect object: the answer changes sides
///   order  the first two names change places: the answer stays (ABBA becomes BABA)
///   abc    all names become three others
enum class IoiCorruption : std::uint8_t { flip, order, abc };
IoiCorruption parse_ioi_corruption(std::string_view name);

struct PairTaskOptions {
  std::uint64_t seed = 0;
  IoiCorruption corruption = IoiCorruption::flip;
  std::int64_t shots = 4;  // translation: examples in front of the question
  PromptOptions prompt;    // how the pairs will be read
};

/// A pair and the line of a pair file that reads as it.
struct MadePair {
  Pair pair;
  std::string json;
};

/// Makes pairs, one after the other, without repeats. The same seed, lists and tokenizer give the
/// same pairs on every machine. What does not fit the tokenizer is left out and counted: answers of
/// several tokens, answers that merge with the prompt's last token, prompts of unequal lengths,
/// unknown words. Tokenizers that know words at blanks only get blanks around punctuation;
/// tokenizers that split numbers into digits get greater-than with the decade digit as its answer.
class PairMaker {
 public:
  /// `tokenizer` must outlive the maker. UsageError if there are not enough words for the shots.
  PairMaker(TaskLists lists, const Tokenizer& tokenizer, std::int64_t d_vocab,
            const PairTaskOptions& options = {});
  ~PairMaker();

  /// The next pair; nullopt after 5000 drafts in a row that did not fit or were there before.
  std::optional<MadePair> next();

  struct Dropped {
    std::int64_t drafts = 0;
    std::set<std::string> words;  // that were to blame, if words were
  };
  /// Reason → what was left out.
  const std::map<std::string, Dropped>& dropped() const;
  std::int64_t drafts() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// logit_diff of every pair's clean prompt (or corrupted prompt), [pair].
std::vector<double> logit_differences(Forward& forward, std::span<const Pair> pairs,
                                      bool corrupted);

}  // namespace lamina
