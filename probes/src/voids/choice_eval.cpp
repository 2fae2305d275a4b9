#include "lamina/probes/choice_eval.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>

#include "lamina/core/error.h"
#include "lamina/core/math.h"

namespace lamina {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// Some questions asked together, one cache sequence each.
class Group {
 public:
  Group(Forward& forward, SkipRun& run, std::span<const double> alphas,
        std::span<const ChoicePrompt> prompts, std::int64_t width, const Tokenizer& tokenizer,
        const ChoiceOptions& options)
      : forward_(forward),
        run_(run),
        alphas_(alphas),
        prompts_(prompts),
        width_(width),
        tokenizer_(tokenizer),
        options_(options),
        vocab_(forward.model().config().d_vocab) {}

  ChoicePart ask(std::int64_t first) {
    out_.first = first;
    out_.count = count();
    out_.text_logprob.assign(size(count() * width_), kNaN);
    out_.letter_logprob = out_.text_logprob;
    out_.generated.resize(size(count()));
    out_.used.assign(alphas_.size(), VoidCounts(1, forward_.model().config().n_layers));
    out_.question_usage.assign(alphas_.size() * size(count()) * 2, kNaN);
    score(&ChoicePrompt::text, false, out_.text_logprob);
    KvCache cache = score(&ChoicePrompt::letter, true, out_.letter_logprob);
    if (options_.max_new > 0) answer(cache);
    for (const auto& [key, pairs] : usage_) {
      const auto [alpha, question, phase] = key;
      out_.question_usage[(alpha * size(count()) + question) * 2 + phase] =
          static_cast<double>(pairs.first) / static_cast<double>(pairs.second);
    }
    return std::move(out_);
  }

 private:
  std::int64_t count() const { return static_cast<std::int64_t>(prompts_.size()); }

  // log p of ids[i] at token row rows[i] of the last pass; a few rows of logits at a time.
  std::vector<double> logprobs(std::span<const std::int64_t> rows,
                               std::span<const std::int32_t> ids) {
    constexpr std::int64_t kChunkValues = std::int64_t{1} << 23;  // 32 MiB
    const auto chunk = size(std::clamp<std::int64_t>(kChunkValues / vocab_, 1, 256));
    std::vector<double> out(rows.size());
    for (std::size_t at = 0; at < rows.size(); at += chunk) {
      const std::size_t some = std::min(chunk, rows.size() - at);
      logits_.resize(some * size(vocab_));
      forward_.run_logits(rows.subspan(at, some), logits_);
#pragma omp parallel for schedule(static)
      for (std::int64_t r = 0; r < static_cast<std::int64_t>(some); ++r) {
        const auto row = std::span(logits_).subspan(size(r * vocab_), size(vocab_));
        out[at + size(r)] = double{row[size(ids[at + size(r)])]} - math::log_sum_exp(row);
      }
    }
    return out;
  }

  // Counts who was active in the last pass: row t belongs to question asked[prompt of t].
  void count_usage(const Batch& batch, std::span<const std::int64_t> asked, std::int64_t phase) {
    const std::int64_t layers = forward_.model().config().n_layers;
    for (std::size_t a = 0; a < alphas_.size(); ++a) {
      std::vector<std::uint8_t> other;
      std::span<const std::uint8_t> active = run_.active();
      if (alphas_[a] != run_.options().alpha) {
        other = run_.active_at(alphas_[a]);
        active = other;
      }
      VoidCounts& counts = out_.used[a];
      counts.tokens[size(phase)] += batch.tokens();
      for (std::int64_t p = 0; p < batch.prompts(); ++p) {
        std::int64_t sum = 0;
        for (std::int64_t t = batch.offsets[size(p)]; t < batch.offsets[size(p + 1)]; ++t) {
          for (std::int64_t l = 0; l < layers; ++l) {
            counts.at(0, phase, l) += active[size(t * layers + l)];
            sum += active[size(t * layers + l)];
          }
        }
        auto& pairs = usage_[{a, size(asked[size(p)]), size(phase)}];
        pairs.first += sum;
        pairs.second += batch.length(p) * layers;
      }
    }
  }

  // The log-probabilities of all options behind their prompts.
  KvCache score(Continuations ChoicePrompt::*part, bool counted, std::vector<double>& sums) {
    KvCache cache(forward_.model().config(), count());
    Batch batch;
    std::vector<std::int64_t> everyone;
    std::vector<std::int64_t> rows;
    std::vector<std::int32_t> ids;
    for (std::int64_t q = 0; q < count(); ++q) {
      const Continuations& c = prompts_[size(q)].*part;
      batch.add(c.prefix);
      everyone.push_back(q);
      for (const auto& option : c.options) {
        rows.push_back(batch.tokens() - 1);
        ids.push_back(option.front());
      }
    }
    forward_.run(batch, run_.hooks(), &cache, everyone);
    if (counted) count_usage(batch, everyone, 0);
    std::vector<double> first = logprobs(rows, ids);
    std::size_t at = 0, widest = 0;
    for (std::int64_t q = 0; q < count(); ++q) {
      const Continuations& c = prompts_[size(q)].*part;
      widest = std::max(widest, c.options.size());
      for (std::size_t o = 0; o < c.options.size(); ++o) {
        sums[size(q * width_) + o] = first[at++];
      }
    }
    // What follows the first token of an option: option by option, behind the prompts in the cache.
    for (std::size_t o = 0; o < widest; ++o) {
      Batch rest;
      std::vector<std::int64_t> asked;
      rows.clear();
      ids.clear();
      for (std::int64_t q = 0; q < count(); ++q) {
        const Continuations& c = prompts_[size(q)].*part;
        if (o >= c.options.size() || c.options[o].size() < 2) continue;
        const std::span<const std::int32_t> option = c.options[o];
        for (std::size_t i = 1; i < option.size(); ++i) {
          rows.push_back(rest.tokens() + static_cast<std::int64_t>(i) - 1);
          ids.push_back(option[i]);
        }
        rest.add(option.first(option.size() - 1));
        asked.push_back(q);
      }
      if (asked.empty()) continue;
      forward_.run(rest, run_.hooks(), &cache, asked);
      const std::vector<double> more = logprobs(rows, ids);
      std::size_t next = 0;
      for (std::int64_t q : asked) {
        const Continuations& c = prompts_[size(q)].*part;
        double& sum = sums[size(q * width_) + o];
        for (std::size_t i = 1; i < c.options[o].size(); ++i) sum += more[next++];
        cache.truncate(q, static_cast<std::int64_t>(c.prefix.size()));
      }
    }
    return cache;
  }

  // Greedy answers behind the listed prompts, whose beginning is in the cache.
  void answer(KvCache& cache) {
    std::vector<std::vector<std::int32_t>> answers(size(count()));
    std::vector<std::int64_t> speaking;
    Batch batch;
    for (std::int64_t q = 0; q < count(); ++q) {
      // The last token of the prompt runs again, for its logits; its decisions were counted.
      const std::vector<std::int32_t>& listed = prompts_[size(q)].listed;
      const std::size_t known = std::min(prompts_[size(q)].letter.prefix.size(), listed.size() - 1);
      cache.truncate(q, static_cast<std::int64_t>(known));
      batch.add(std::span(listed).subspan(known));
      speaking.push_back(q);
    }
    for (std::int64_t step = 0; !speaking.empty(); ++step) {
      forward_.run(batch, run_.hooks(), &cache, speaking);
      if (step > 0) count_usage(batch, speaking, 1);
      std::vector<std::int64_t> rows;
      for (std::int64_t p = 0; p < batch.prompts(); ++p) {
        rows.push_back(batch.offsets[size(p + 1)] - 1);
      }
      logits_.resize(rows.size() * size(vocab_));
      forward_.run_logits(rows, logits_);
      std::vector<std::int64_t> still;
      Batch next;
      for (std::size_t r = 0; r < rows.size(); ++r) {
        const auto row = std::span(logits_).subspan(r * size(vocab_), size(vocab_));
        const auto id =
            static_cast<std::int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
        if (std::find(options_.stop.begin(), options_.stop.end(), id) != options_.stop.end()) {
          continue;
        }
        answers[size(speaking[r])].push_back(id);
        if (step + 1 >= options_.max_new) continue;
        still.push_back(speaking[r]);
        next.add({&id, 1});
      }
      batch = std::move(next);
      speaking = std::move(still);
    }
    for (std::int64_t q = 0; q < count(); ++q) {
      out_.generated[size(q)] = tokenizer_.decode(answers[size(q)], true);
    }
  }

  Forward& forward_;
  SkipRun& run_;
  std::span<const double> alphas_;
  std::span<const ChoicePrompt> prompts_;
  std::int64_t width_;
  const Tokenizer& tokenizer_;
  const ChoiceOptions& options_;
  std::int64_t vocab_;
  ChoicePart out_;
  // [alpha, question of the group, phase] → active and all (token, layer) pairs
  std::map<std::array<std::size_t, 3>, std::pair<std::int64_t, std::int64_t>> usage_;
  std::vector<float> logits_;
};

// Error unless a known part is what this run would have made at `first`.
void check_part(const ChoicePart& part, std::int64_t first, std::int64_t count,
                const ChoiceRun& run, std::int64_t layers) {
  const std::size_t n = size(count), values = n * size(run.width), alphas = run.used.size();
  bool fits = part.first == first && part.count == count && part.text_logprob.size() == values &&
              part.letter_logprob.size() == values && part.generated.size() == n &&
              part.used.size() == alphas && part.question_usage.size() == alphas * n * 2;
  for (const VoidCounts& counts : part.used) {
    fits = fits && counts.alphas == 1 && counts.layers == layers &&
           counts.active.size() == size(2 * layers);
  }
  if (!fits) fail_usage("the known answers at question {} are not those of this run", first);
}

// Puts what some questions gave into the whole.
void add_part(const ChoicePart& part, std::int64_t questions, ChoiceRun& run) {
  const std::int64_t at = part.first * run.width;
  std::copy(part.text_logprob.begin(), part.text_logprob.end(), run.text_logprob.begin() + at);
  std::copy(part.letter_logprob.begin(), part.letter_logprob.end(),
            run.letter_logprob.begin() + at);
  std::copy(part.generated.begin(), part.generated.end(), run.generated.begin() + part.first);
  for (std::size_t a = 0; a < run.used.size(); ++a) {
    run.used[a].add(part.used[a]);
    std::copy_n(
        part.question_usage.begin() + static_cast<std::int64_t>(a) * part.count * 2, part.count * 2,
        run.question_usage.begin() + (static_cast<std::int64_t>(a) * questions + part.first) * 2);
  }
}

// The option with the largest value; ties go to the first.
std::int32_t largest(std::span<const double> values) {
  return static_cast<std::int32_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

void choose(const Task& task, bool generated, ChoiceRun& run) {
  const auto questions = static_cast<std::int64_t>(task.questions.size());
  run.chosen.assign(size(kChoiceScores * questions), -1);
  const auto slot = [&](ChoiceScore score, std::int64_t q) -> std::int32_t& {
    return run.chosen[size(static_cast<std::int64_t>(score) * questions + q)];
  };
  for (std::int64_t q = 0; q < questions; ++q) {
    const Question& question = task.questions[size(q)];
    const std::size_t options = question.options.size();
    const auto text = std::span(run.text_logprob).subspan(size(q * run.width), options);
    std::vector<double> per_token, per_byte;
    for (std::size_t o = 0; o < options; ++o) {
      per_token.push_back(text[o] / run.text_tokens[size(q * run.width) + o]);
      per_byte.push_back(text[o] / static_cast<double>(question.options[o].size()));
    }
    slot(ChoiceScore::text, q) = largest(text);
    slot(ChoiceScore::text_per_token, q) = largest(per_token);
    slot(ChoiceScore::text_per_byte, q) = largest(per_byte);
    slot(ChoiceScore::letter, q) =
        largest(std::span(run.letter_logprob).subspan(size(q * run.width), options));
    if (generated) {
      const auto letter = answer_letter(run.generated[size(q)], static_cast<std::int64_t>(options));
      if (letter) slot(ChoiceScore::generated, q) = static_cast<std::int32_t>(*letter);
    }
  }
}

}  // namespace

std::string_view choice_score_name(ChoiceScore score) {
  constexpr std::string_view kNames[] = {"text", "text_per_token", "text_per_byte", "letter",
                                         "generated"};
  return kNames[static_cast<std::size_t>(score)];
}

ChoiceRun run_choices(Forward& forward, const Task& task, std::span<const ChoicePrompt> prompts,
                      SkipRun& run, std::span<const double> alphas, const ChoiceOptions& options) {
  const ModelConfig& config = forward.model().config();
  const Tokenizer* tokenizer = forward.model().tokenizer();
  if (tokenizer == nullptr) fail("{}: the model has no tokenizer", forward.model().id());
  if (prompts.size() != task.questions.size()) {
    fail_usage("{} prompts for {} questions", prompts.size(), task.questions.size());
  }
  if (run.options().mode == SkipMode::blocks &&
      (alphas.size() != 1 || alphas[0] != run.options().alpha)) {
    fail_usage("blocks are skipped at α {}: usage at another α has no meaning",
               run.options().alpha);
  }
  const auto questions = static_cast<std::int64_t>(prompts.size());
  ChoiceRun out;
  for (const Question& q : task.questions) {
    out.width = std::max(out.width, static_cast<std::int64_t>(q.options.size()));
  }
  out.text_logprob.assign(size(questions * out.width), kNaN);
  out.letter_logprob = out.text_logprob;
  out.text_tokens.assign(size(questions * out.width), 0);
  for (std::int64_t q = 0; q < questions; ++q) {
    const Continuations& text = prompts[size(q)].text;
    for (std::size_t o = 0; o < text.options.size(); ++o) {
      out.text_tokens[size(q * out.width) + o] = static_cast<std::int32_t>(text.options[o].size());
    }
  }
  out.generated.resize(size(questions));
  out.used.assign(alphas.size(), VoidCounts(1, config.n_layers));
  out.question_usage.assign(alphas.size() * size(questions) * 2, kNaN);
  const std::int64_t step = std::max<std::int64_t>(options.batch_questions, 1);
  for (std::int64_t first = 0; first < questions; first += step) {
    const std::int64_t count = std::min(step, questions - first);
    const ChoicePart* known = options.known ? options.known(first) : nullptr;
    ChoicePart fresh;
    if (known == nullptr) {
      Group group(forward, run, alphas, prompts.subspan(size(first), size(count)), out.width,
                  *tokenizer, options);
      fresh = group.ask(first);
      if (options.keep) options.keep(fresh);
    } else {
      check_part(*known, first, count, out, config.n_layers);
    }
    add_part(known == nullptr ? fresh : *known, questions, out);
    if (options.progress) options.progress(first + count);
  }
  choose(task, options.max_new > 0, out);
  return out;
}

ChoiceTally tally(const ChoiceRun& run, const Task& task, ChoiceScore score) {
  ChoiceTally out;
  out.all = static_cast<std::int64_t>(task.questions.size());
  for (std::int64_t q = 0; q < out.all; ++q) {
    const std::int32_t chosen = run.chosen[size(static_cast<std::int64_t>(score) * out.all + q)];
    out.right += chosen == task.questions[size(q)].right;
    out.silent += chosen < 0;
  }
  return out;
}

}  // namespace lamina
