#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "lamina/patching/layer_path.h"
#include "lamina/patching/path_judge.h"

namespace lamina {

struct FinerCutOptions {
  std::int64_t remove = -1;     // stop after this many removals; −1: when nothing is left
  double limit = -1;            // stop before the distance exceeds this; negative: no limit
  std::vector<Sublayer> first;  // removed beforehand, in this order (to go on with an earlier run)
  /// Of the removal in progress: candidates tried and to try, removals done.
  std::function<void(double tried, std::int64_t candidates, std::int64_t removed)> progress;
  /// After each removal. Returning false ends the run.
  std::function<bool(const struct Removal&)> removed;
};

/// One removal and what is left after it.
struct Removal {
  Sublayer sublayer;
  double distance = 0;  // between the whole model and what is left, as the judge measures it
  PathQuality left;
  /// Distance that the removal of each candidate would have led to, in the order of
  /// all_sublayers(); NaN for those removed before.
  std::vector<double> candidates;
};

/// FinerCut: removes attention and MLP sublayers one at a time, greedily, each time the one whose
/// removal leaves the outputs closest to those of the whole model (ties: the later one). What runs
/// before the removed sublayer's layer is not computed again.
/// Source: Zhang et al., FinerCut, and the code YaNgZhAnG-V5/llm_dissect.
std::vector<Removal> finercut(PathJudge& judge, const ModelConfig& config,
                              const FinerCutOptions& options);

}  // namespace lamina
