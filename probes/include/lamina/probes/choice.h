#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/chat.h"
#include "lamina/core/tokenizer.h"

namespace lamina {

/// One multiple-choice question.
struct Question {
  std::string id;       // the file's, or the line number
  std::string subject;  // MMLU's subject, our topic; may be empty
  std::string context;  // BoolQ's passage; may be empty
  std::string text;
  std::vector<std::string> options;  // 2 … 26
  std::int64_t right = 0;            // index into options
};

/// Layouts of a line, told apart by their keys.
enum class TaskLayout : std::uint8_t {
  lamina,  ///< question, options, answer: a letter or an index from 0; id, topic, context
  mmlu,    ///< question, choices, answer: an index or a letter; subject
  arc,     ///< question {stem, choices [{text, label}]}, answerKey; or choices {text [], label []}
  boolq,   ///< question, passage, answer: true or false; options are Yes and No
  gpqa,    ///< Question, Correct Answer, Incorrect Answer 1 … 3
};
std::string_view task_layout_name(TaskLayout layout);

struct Task {
  TaskLayout layout = TaskLayout::lamina;
  std::vector<Question> questions;
};

/// Reads a JSONL file of one of the layouts; keys that a layout does not name are ignored. Error
/// naming file and line for anything else: lines of different layouts, an answer that is none of
/// the options, fewer than two options, empty texts, no questions, ids that stand twice.
Task read_task(const std::filesystem::path& path);

/// Puts the options of every question into an order drawn from `seed` and the question's index.
/// GPQA's file names the right answer first, so its options must be shuffled before use (the
/// authors' script always puts it last).
void shuffle_options(Task& task, std::uint64_t seed);

/// A prompt and what may follow it. All continuations begin behind the same tokens.
struct Continuations {
  std::vector<std::int32_t> prefix;                // never empty
  std::vector<std::vector<std::int32_t>> options;  // the tokens that follow it, never empty
};

/// One question as the model gets it.
struct ChoicePrompt {
  Continuations text;                // asked without options; an option's own text follows
  Continuations letter;              // asked with options A, B, …; a letter follows
  std::vector<std::int32_t> listed;  // the second prompt, as generation continues it
};

/// How questions are written. nullptr: plain text, "Question: …\nAnswer:".
struct ChoiceFormat {
  const ChatTemplate* chat = nullptr;
  std::span<const Question> examples = {};  // answered ones in front of every question
};
/// The wordings, for the record: what stands around a question with and without options.
std::string choice_wording(bool chat);

/// Error naming the question if it does not fit in `n_ctx` together with `max_new` tokens.
std::vector<ChoicePrompt> choice_prompts(const Task& task, const Tokenizer& tokenizer,
                                         const ChoiceFormat& format, std::int64_t n_ctx,
                                         std::int64_t max_new);

/// The first of the letters A, B, … (as many as there are options) that stands alone in an answer:
/// with no letter or digit beside it. nullopt if there is none.
std::optional<std::int64_t> answer_letter(std::string_view answer, std::int64_t options);

/// Wilson's score interval for `right` of `all` at 95 %. NaN for all = 0.
struct Interval {
  double low = 0, high = 0;
};
Interval wilson(std::int64_t right, std::int64_t all);

}  // namespace lamina
