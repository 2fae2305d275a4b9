#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/core/prompts.h"
#include "lamina/patching/layer_path.h"
#include "lamina/patching/metric.h"
#include "lamina/patching/output_distance.h"
#include "lamina/patching/pairs.h"

namespace lamina {

/// The prompts that paths are judged by.
struct PathPrompts {
  std::vector<std::string> ids;                    // [prompt]
  std::vector<std::vector<std::int32_t>> tokens;   // [prompt][token]
  std::vector<std::vector<std::int32_t>> answers;  // [prompt] right next tokens; empty: unknown

  std::int64_t count() const { return static_cast<std::int64_t>(tokens.size()); }
};
/// Prompts as given; a target is the answer.
PathPrompts path_prompts(std::span<const Prompt> prompts);
/// The clean prompts of pairs and their correct answers.
PathPrompts path_prompts(std::span<const Pair> pairs);

struct JudgeOptions {
  bool last_only = false;  // judge the last token of each prompt; otherwise every token
  DistanceKind distance = DistanceKind::angular;
  const Metric* metric = nullptr;                 // pair i is prompt i; must outlive the judge
  std::uint64_t memory = std::uint64_t{1} << 30;  // bytes beyond the weights
};

/// How good a path is, beside the whole model. NaN where there is nothing to measure.
struct PathQuality {
  double layers = 0;    // layers_used()
  double distance = 0;  // total_distance() of the judged rows
  double nll = 0;       // −log p of the next token, nats; mean over rows whose next one is known
  double perplexity = 0;  // e^nll
  double kl = 0;          // KL(whole model ‖ path), nats, mean over rows
  double agreement = 0;   // share of rows with the same most likely token as the whole model
  double accuracy = 0;    // share of prompts with answers whose most likely next token is one
  double metric = 0;      // mean over pairs
  // Of each prompt, means over its rows; metric as it is.
  std::vector<double> prompt_nll, prompt_kl, prompt_agreement, prompt_metric;
};

/// Judges layer paths by what they make of some prompts. Memory is bounded: prompts run in batches,
/// logits exist for a few rows at a time. (Beside that the judge keeps d_model floats per judged
/// token, and judge_all() 32 bytes per judged token and candidate.) Results depend on neither, nor
/// on the threads.
class PathJudge {
 public:
  /// Runs the whole model over the prompts. `prompts` and `forward` must outlive the judge.
  PathJudge(Forward& forward, const PathPrompts& prompts, const JudgeOptions& options);
  ~PathJudge();

  /// Error naming path, prompt and token if the path's logits are not finite.
  PathQuality judge(std::span<const Step> path);

  /// The same for many paths; what they share with `base` at their front is computed once.
  /// `progress` is told candidates done, counted in all prompts.
  std::vector<PathQuality> judge_all(std::span<const Step> base,
                                     std::span<const LayerPath> candidates,
                                     const std::function<void(double done)>& progress = {});
  /// The same, PathQuality::distance alone. NaN for logits that are not finite.
  std::vector<double> distances(std::span<const Step> base, std::span<const LayerPath> candidates,
                                const std::function<void(double done)>& progress = {});

  std::int64_t rows() const;  // tokens that are judged
  const JudgeOptions& options() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lamina
