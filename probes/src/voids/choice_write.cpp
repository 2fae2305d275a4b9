#include "lamina/probes/choice_eval.h"

#include <limits>

namespace lamina {
namespace {

using Names = std::vector<std::string>;

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

template <class T>
void append(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

void write_questions(ResultFile& file, const Task& task, const ChoiceRun& run) {
  Names subjects, contexts, texts, options;
  std::vector<std::int32_t> right, bytes;
  for (const Question& q : task.questions) {
    subjects.push_back(q.subject);
    contexts.push_back(q.context);
    texts.push_back(q.text);
    right.push_back(static_cast<std::int32_t>(q.right));
    for (std::int64_t o = 0; o < run.width; ++o) {
      const bool there = o < static_cast<std::int64_t>(q.options.size());
      options.push_back(there ? q.options[size(o)] : "");
      bytes.push_back(there ? static_cast<std::int32_t>(q.options[size(o)].size()) : 0);
    }
  }
  const Names each{"question"}, cell{"question", "option"};
  file.dataset("question_text", each, texts, "the question", "");
  file.dataset("context", each, contexts, "the text it is about, if any", "");
  file.dataset("subject", each, subjects, "the file's subject or topic", "");
  file.dataset("right", each, right, "index of the right option, as asked", "");
  file.dataset("option_text", cell, options, "the options in the order they were asked in", "");
  file.dataset("option_bytes", cell, bytes, "bytes of the option's text; 0 beyond the last", "");
  file.dataset("option_tokens", cell, run.text_tokens,
               "tokens whose log-probabilities text_logprob adds up; 0 beyond the last option", "");
}

}  // namespace

void write_choices(ResultFile& file, const Task& task, const ChoiceGrid& grid) {
  const auto questions = static_cast<std::int64_t>(task.questions.size());
  const std::int64_t width = grid.runs.front().width;
  const std::int64_t layers = grid.runs.front().used.front().layers;
  Names ids, scores, options;
  for (const Question& q : task.questions) ids.push_back(q.id);
  for (std::int64_t s = 0; s < kChoiceScores; ++s) {
    scores.emplace_back(choice_score_name(static_cast<ChoiceScore>(s)));
  }
  for (std::int64_t o = 0; o < width; ++o) {
    options.emplace_back(1, static_cast<char>('A' + static_cast<int>(o)));
  }
  std::vector<std::int64_t> layer;
  for (std::int64_t l = 0; l < layers; ++l) layer.push_back(l);
  file.axis("mode", grid.modes);
  file.axis("alpha", grid.alphas);
  file.axis("score", scores);
  file.axis("question", ids);
  file.axis("option", options);
  file.axis("phase", Names(kVoidPhases.begin(), kVoidPhases.end()));
  file.axis("layer", layer);
  write_questions(file, task, grid.runs.front());

  std::vector<double> accuracy, low, high, silent, text, letter, usage, model_usage, per_question;
  std::vector<std::int32_t> chosen;
  Names generated;
  for (std::size_t m = 0; m < grid.modes.size(); ++m) {
    for (std::size_t a = 0; a < grid.alphas.size(); ++a) {
      const ChoiceRun& run = grid.run(m, a);
      for (std::int64_t s = 0; s < kChoiceScores; ++s) {
        const ChoiceTally t = tally(run, task, static_cast<ChoiceScore>(s));
        const Interval interval = wilson(t.right, t.all);
        accuracy.push_back(static_cast<double>(t.right) / static_cast<double>(t.all));
        low.push_back(interval.low);
        high.push_back(interval.high);
        silent.push_back(static_cast<double>(t.silent) / static_cast<double>(t.all));
      }
      append(text, run.text_logprob);
      append(letter, run.letter_logprob);
      append(chosen, run.chosen);
      append(generated, run.generated);
      append(usage, grid.used(m, a).usages());
      append(model_usage, grid.used(m, a).model_usages());
      const std::size_t pairs = size(questions * 2);
      const std::size_t from = run.used.size() == 1 ? 0 : a * pairs;
      per_question.insert(per_question.end(),
                          run.question_usage.begin() + static_cast<std::ptrdiff_t>(from),
                          run.question_usage.begin() + static_cast<std::ptrdiff_t>(from + pairs));
    }
  }
  const Names scored{"mode", "alpha", "score"}, cell{"mode", "alpha", "question", "option"};
  file.dataset("accuracy", scored, accuracy, "share of questions answered rightly", "");
  file.dataset("accuracy_low", scored, low, "lower end of Wilson's 95 % interval", "");
  file.dataset("accuracy_high", scored, high, "upper end of Wilson's 95 % interval", "");
  file.dataset("unanswered", scored, silent, "share of questions without an answer, counted wrong",
               "");
  file.dataset("text_logprob", cell, text,
               "log-probability of the option's text, asked without options; NaN beyond the last",
               "nats");
  file.dataset("letter_logprob", cell, letter,
               "log-probability of the option's letter, options listed; NaN beyond the last",
               "nats");
  file.dataset("chosen", Names{"mode", "alpha", "score", "question"}, chosen,
               "index of the option chosen; -1 = none", "");
  file.dataset("generated", Names{"mode", "alpha", "question"}, generated,
               "the greedy answer, options listed", "");
  file.dataset("usage", Names{"mode", "alpha", "phase", "layer"}, usage,
               "share of tokens for which the layer is active; PP: the prompts with listed "
               "options, RG: generated tokens that were run",
               "");
  file.dataset("model_usage", Names{"mode", "alpha", "phase"}, model_usage,
               "mean of usage over the layers", "");
  file.dataset("question_usage", Names{"mode", "alpha", "question", "phase"}, per_question,
               "share of the question's (token, layer) pairs that are active; NaN without tokens",
               "");
}

}  // namespace lamina
