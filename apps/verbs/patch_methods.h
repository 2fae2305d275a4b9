#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "lamina/patching/exact.h"

// The ways to score nodes. Everything around them (which nodes, normalisation, tables, files) is
// the same for all.
namespace lamina::cli {

/// What a method is asked: the metric of every pair with every node replaced.
struct PatchJob {
  Forward& forward;
  std::span<const Pair> pairs;
  const Metric& metric;
  std::span<const Node> nodes;
  PatchOptions options;
};

struct PatchMethod {
  std::string_view name;
  std::string_view does;  // a few words, for the tables
  bool exact;             // the numbers are those of patched runs, not estimates
  /// PatchResult::patched: the metric of the patched runs or, for estimates, base + estimate.
  std::function<PatchResult(const PatchJob&)> run;
};

/// Every method, the default first.
std::span<const PatchMethod> patch_methods();
/// UsageError that lists the names.
const PatchMethod& patch_method(std::string_view name);

}  // namespace lamina::cli
