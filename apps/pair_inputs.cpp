#include "pair_inputs.h"

#include <algorithm>
#include <functional>
#include <span>

#include "lamina/core/error.h"
#include "lamina/core/prompts.h"

namespace lamina::cli {
namespace {

constexpr std::int64_t kBatchTokens = 512;

// Calls use(pair index, logits [d_vocab]) with the last row's logits of every clean prompt.
void clean_logits(std::span<const Pair> pairs, Forward& forward,
                  const std::function<void(std::size_t, std::span<const float>)>& use) {
  std::vector<float> logits(static_cast<std::size_t>(forward.model().config().d_vocab));
  for (std::size_t i = 0; i < pairs.size();) {
    const std::size_t first = i;
    Batch batch;
    do {
      batch.add(pairs[i++].clean);
    } while (i < pairs.size() && batch.tokens() + pairs[i].tokens() <= kBatchTokens);
    forward.run(batch);
    for (std::size_t p = first; p < i; ++p) {
      const std::vector<std::int64_t> row = {batch.offsets[p - first + 1] - 1};
      forward.run_logits(row, logits);
      use(p, logits);
    }
  }
}

bool is_solved(const Pair& pair, std::span<const float> logits) {
  const auto largest = [&](const std::vector<std::int32_t>& ids) {
    float best = -std::numeric_limits<float>::infinity();
    for (const std::int32_t id : ids) best = std::max(best, logits[static_cast<std::size_t>(id)]);
    return best;
  };
  const float correct = largest(pair.correct);
  if (!pair.wrong.empty()) return correct > largest(pair.wrong);
  return correct >= *std::max_element(logits.begin(), logits.end());
}

}  // namespace

void add_pair_options(CLI::App& verb, PairInputs& inputs) {
  verb.add_option("--pairs", inputs.file, "clean and corrupted prompts with their answers (.jsonl)")
      ->required()
      ->option_text("FILE");
  verb.add_option("--limit", inputs.limit, "use the first N pairs (of the solved ones)")
      ->check(CLI::PositiveNumber)
      ->option_text("N");
  verb.add_flag("--solved-only", inputs.solved_only,
                "only pairs whose clean prompt the model answers correctly");
  verb.add_option("--bos", inputs.bos,
                  "beginning-of-sequence token: as the model says (default), always, never")
      ->check(CLI::IsMember({"model", "always", "never"}))
      ->option_text("WHEN");
  verb.add_option("--metric", inputs.metric,
                  "logit_diff (default), prob_diff, prob, logprob, nll, kl (to the clean run)")
      ->option_text("METRIC");
}

LoadedPairs load_pairs(const PairInputs& inputs, Forward& forward) {
  const Model& model = forward.model();
  const Bos bos = inputs.bos == "always"  ? Bos::always
                  : inputs.bos == "never" ? Bos::never
                                          : Bos::model;
  LoadedPairs loaded;
  loaded.pairs =
      read_pairs(inputs.file, model.tokenizer(), model.config().d_vocab, PromptOptions{bos, true});
  loaded.in_file = std::ssize(loaded.pairs);
  for (const Pair& pair : loaded.pairs) {
    const std::size_t longest = std::max(pair.clean.size(), pair.corrupted.size());
    if (static_cast<std::int64_t>(longest) > model.config().n_ctx) {
      fail("{}: pair '{}' has {} tokens; the model's context holds {}", inputs.file, pair.id,
           longest, model.config().n_ctx);
    }
  }
  if (inputs.solved_only) {
    std::vector<bool> solved(loaded.pairs.size());
    clean_logits(loaded.pairs, forward, [&](std::size_t p, std::span<const float> logits) {
      solved[p] = is_solved(loaded.pairs[p], logits);
    });
    std::vector<Pair> kept;
    for (std::size_t p = 0; p < solved.size(); ++p) {
      if (solved[p]) kept.push_back(std::move(loaded.pairs[p]));
    }
    loaded.unsolved = loaded.in_file - std::ssize(kept);
    loaded.pairs = std::move(kept);
    if (loaded.pairs.empty()) {
      fail("{}: the model solves none of the {} pairs", inputs.file, loaded.in_file);
    }
  }
  if (inputs.limit > 0 && inputs.limit < std::ssize(loaded.pairs)) {
    loaded.pairs.resize(static_cast<std::size_t>(inputs.limit));
  }
  return loaded;
}

Metric make_metric(MetricKind kind, std::span<const Pair> pairs, Forward& forward) {
  Metric metric(kind, pairs, forward.model().config().d_vocab);
  if (kind == MetricKind::kl) {
    clean_logits(pairs, forward, [&](std::size_t p, std::span<const float> logits) {
      metric.set_reference(static_cast<std::int64_t>(p), logits);
    });
  }
  return metric;
}

}  // namespace lamina::cli
