#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/patching/metric.h"
#include "lamina/patching/pairs.h"

// Options of the verbs that compare a clean with a corrupted prompt, and what they mean.
namespace lamina::cli {

/// --pairs FILE, --limit, --solved-only, --bos and --metric.
struct PairInputs {
  std::string file;
  std::string bos = "model";
  std::string metric = "logit_diff";
  std::int64_t limit = 0;
  bool solved_only = false;
};
void add_pair_options(CLI::App& verb, PairInputs& inputs);

/// The pairs that are used, and how many the file had.
struct LoadedPairs {
  std::vector<Pair> pairs;
  std::int64_t in_file = 0;
  std::int64_t unsolved = 0;  // left out by --solved-only
};
/// Reads the file. A pair is solved if, after its clean prompt, some correct answer has a larger
/// logit than every wrong one (than every other token if it has no wrong ones). --limit counts
/// what is left. Error if nothing is left or a prompt is longer than the model's context.
LoadedPairs load_pairs(const PairInputs& inputs, Forward& forward);

/// The metric over `pairs`; kl is measured against the model's own logits after the clean prompts.
Metric make_metric(MetricKind kind, std::span<const Pair> pairs, Forward& forward);

}  // namespace lamina::cli
