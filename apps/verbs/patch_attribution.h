#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "lamina/core/result_file.h"
#include "lamina/patching/attribution.h"
#include "verbs/patch_methods.h"
#include "verbs/patch_sweep.h"

// The methods of `patch` that estimate: attribution patching, integrated gradients, RelP.
namespace lamina::cli {

struct AttributionArgs {
  std::string at;                  // clean or corrupted; empty: the run that is patched
  std::vector<std::string> rules;  // empty: the method's own
  double stabiliser = 1e-6;
  std::string ig_path = "node";
  std::int64_t ig_steps = 0;  // 0: the path's own
  std::string check;          // number of nodes, or "all"
  std::int64_t top_k = 10;
  std::int64_t resamples = 1000;
};
void add_attribution_options(CLI::App& verb, AttributionArgs& args);

/// Whether it is one of the methods of this file: atp, ig, relp.
bool is_attribution(std::string_view method);

/// UsageError for options that a method does not have, and numbers that cannot be read.
void check_attribution_options(std::string_view method, const AttributionArgs& args);

/// What a run with an estimating method has beside the sweep's own results.
struct AttributionReport {
  std::vector<std::pair<std::string, std::string>> settings;
  /// Relevance of RelP, by pair id: metric, at the embedding, in front of every layer.
  struct Relevance {
    double metric = 0.0, embed = 0.0;
    std::vector<double> resid_pre;
  };
  std::map<std::string, Relevance> relevance;
  /// Exact patching of some nodes; empty without --check.
  std::vector<std::size_t> checked;  // of the nodes of the sweep, ascending
  std::vector<double> exact;         // patched − base [checked node, pair]
  std::vector<SiteAgreement> agreement;
  double check_seconds = 0.0;
};

/// nullopt unless `name` is atp, ig or relp. PatchResult::patched is base + estimate. `report` gets
/// settings and relevance and must outlive the method.
std::optional<PatchMethod> attribution_method(std::string_view name, const AttributionArgs& args,
                                              Direction direction, AttributionReport& report);

/// --check: patches nodes exactly and compares. `sweep`: the estimates, as the method gave them.
void check_estimates(const AttributionArgs& args, Forward& forward, std::span<const Pair> pairs,
                     MetricKind metric, std::span<const Node> nodes, const PatchOptions& options,
                     Align align, const PatchResult& sweep, std::uint64_t seed,
                     AttributionReport& report);

std::string attribution_text(const AttributionReport& report);
void attribution_json(const AttributionReport& report, nlohmann::ordered_json& json);
/// Into the group and axes that write_patch() made.
void write_attribution(const AttributionReport& report, std::span<const Pair> pairs,
                       std::span<const Node> nodes, ResultFile& file);

}  // namespace lamina::cli
