#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/model.h"
#include "lamina/patching/attribution.h"
#include "lamina/patching/edges.h"
#include "lamina/patching/faithfulness.h"
#include "lamina/patching/metric.h"
#include "lamina/patching/pairs.h"

namespace lamina {

/// What one method found in one model. Values that a method or a model does not have are NaN.
struct BakeOffRow {
  std::string method;  // "exact", "atp", "ig", "relp" of nodes; "eap", "eap-ig", "relp" … of edges
  bool edges = false;           // scores edges; otherwise nodes: all heads (their z) and MLPs
  std::vector<double> scores;   // [edge] or [node]; what ablating it does to −metric
  KnownAuroc auroc;             // against the known circuit
  double cpr = 0.0, cmd = 0.0;  // linear axis
  double pearson = 0.0, spearman = 0.0;  // with the exact scores
  double seconds = 0.0;
};

struct BakeOffOptions {
  std::int64_t steps = 5;  // of integrated gradients
  bool exact_edges = true;
  CircuitOptions circuits;
  std::function<void(std::string_view method)> started;  // called before each method
};

/// Runs every method on the same model and pairs: clean prompts, ablated to their corrupted ones.
/// `known` is optional. Rows in a fixed order, nodes first.
std::vector<BakeOffRow> bake_off(const Model& model, std::span<const Pair> pairs,
                                 const Metric& metric, const KnownCircuit* known,
                                 const BakeOffOptions& options = {});

}  // namespace lamina
