#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lamina/core/result_file.h"
#include "lamina/probes/linear_probe.h"

// What lamina probe prints.
namespace lamina::cli {

std::string probe_text(const ProbeRun& run);
nlohmann::ordered_json probe_json(const ProbeRun& run);

/// Stored probes on new rows.
struct AppliedRun {
  const StoredProbes* stored = nullptr;
  bool labelled = false;
  std::vector<FeatureRow> rows;
  std::vector<AppliedProbe> sites;
  std::vector<double> score, direction_auroc;  // [site] accuracy or R²; NaN without labels
};
/// Fills score and direction_auroc. Error if a label is none that the probes know.
void score_applied(AppliedRun& run);
void write_applied(ResultFile& file, const AppliedRun& run, const std::string& path);
std::string applied_text(const AppliedRun& run);
nlohmann::ordered_json applied_json(const AppliedRun& run);

}  // namespace lamina::cli
