#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "lamina/probes/choice.h"
#include "lamina/probes/skip.h"

namespace lamina {

/// How an answer is read off a model.
enum class ChoiceScore : std::uint8_t {
  text,            ///< the option whose text has the largest log-probability
  text_per_token,  ///< … divided by its tokens
  text_per_byte,   ///< … divided by its bytes (as in the file, without the blank before it)
  letter,          ///< the letter with the largest log-probability, options listed
  generated,       ///< the first letter standing alone in a greedy answer, options listed
};
inline constexpr std::int64_t kChoiceScores = 5;
std::string_view choice_score_name(ChoiceScore score);

/// What some questions in a row gave: n questions, A alphas, W the run's width.
struct ChoicePart {
  std::int64_t first = 0, count = 0;   // questions first … first + n − 1
  std::vector<double> text_logprob;    // [n, W] nats, summed over tokens; NaN beyond the options
  std::vector<double> letter_logprob;  // [n, W]
  std::vector<std::string> generated;  // [n]
  std::vector<VoidCounts> used;        // [A] of one α each
  std::vector<double> question_usage;  // [A, n, phase] share of active (token, layer) pairs

  bool operator==(const ChoicePart&) const = default;
};

struct ChoiceOptions {
  std::int64_t max_new = 8;  // tokens of a generated answer; 0: none are generated
  std::int64_t batch_questions = 16;
  std::vector<std::int32_t> stop;  // tokens that end an answer
  std::function<void(std::int64_t questions)> progress;
  /// To go on where a run was cut off: a part that begins at question `first` and is known already
  /// (nullptr: none is), and what is to be told of every new part.
  std::function<const ChoicePart*(std::int64_t first)> known;
  std::function<void(const ChoicePart& part)> keep;
};

/// What one run over all questions gave. Q questions, W = the largest number of options.
struct ChoiceRun {
  std::int64_t width = 0;
  std::vector<double> text_logprob;       // [Q, W] nats, summed over tokens; NaN beyond the options
  std::vector<std::int32_t> text_tokens;  // [Q, W] tokens that the sum is over; 0 beyond
  std::vector<double> letter_logprob;     // [Q, W]
  std::vector<std::string> generated;     // [Q]
  std::vector<std::int32_t> chosen;       // [score, Q] −1: no answer
  std::vector<VoidCounts> used;           // per α of `alphas`: one α each; PP: the listed prompts
  std::vector<double> question_usage;     // [alpha, Q, phase] share of active (token, layer) pairs
};

/// Asks every question under `run`'s skipping. Options share their prompt's keys and values.
/// `alphas`: which α to count usage at; under SkipMode::blocks it must be the run's own.
ChoiceRun run_choices(Forward& forward, const Task& task, std::span<const ChoicePrompt> prompts,
                      SkipRun& run, std::span<const double> alphas, const ChoiceOptions& options);

/// Questions answered rightly, and without any answer.
struct ChoiceTally {
  std::int64_t right = 0, silent = 0, all = 0;
};
ChoiceTally tally(const ChoiceRun& run, const Task& task, ChoiceScore score);

/// The runs of one evaluation: modes × alphas. Modes that do not depend on α were run once.
struct ChoiceGrid {
  std::vector<std::string> modes;
  std::vector<double> alphas;
  std::vector<ChoiceRun> runs;
  std::vector<std::size_t> at;  // [mode, alpha] index into runs

  const ChoiceRun& run(std::size_t mode, std::size_t alpha) const {
    return runs[at[mode * alphas.size() + alpha]];
  }
  const VoidCounts& used(std::size_t mode, std::size_t alpha) const {
    const std::vector<VoidCounts>& counts = run(mode, alpha).used;
    return counts[counts.size() == 1 ? 0 : alpha];
  }
};

/// Writes everything into the current group: dimensions mode, alpha, score, question, option, phase
/// and layer.
void write_choices(ResultFile& file, const Task& task, const ChoiceGrid& grid);

}  // namespace lamina
