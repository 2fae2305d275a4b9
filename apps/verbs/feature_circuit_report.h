#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lamina/circuits/feature_circuit.h"
#include "lamina/core/result_file.h"
#include "lamina/patching/attribution.h"

namespace lamina::cli {

/// Estimates against patched runs, of some nodes.
struct FeatureCheck {
  std::string name;                   // "drawn", "largest"
  std::vector<std::size_t> nodes;     // indices into the effects' nodes
  std::vector<double> exact;          // [node]
  std::vector<Agreement> agreements;  // [method]
};

/// Everything that `lamina feature-circuit` found.
struct FeatureCircuitReport {
  std::vector<std::pair<std::string, std::string>> settings;
  std::vector<Transcoder> dictionaries;
  FeatureEffects effects;
  std::optional<FeatureSweep> sweep;
  std::vector<FeatureCheck> checks;
  std::vector<FeatureEdges> edges;  // [method], all between the same nodes; empty: not asked for
  std::vector<double> seconds;      // [method]
};

/// Indices of the `count` nodes to which any method gives the largest |effect|, largest first.
std::vector<std::size_t> largest_by_any(const FeatureEffects& effects, std::size_t count);

std::string feature_circuit_text(const FeatureCircuitReport& report, std::int64_t show);
nlohmann::ordered_json feature_circuit_json(const FeatureCircuitReport& report, std::int64_t show);
void write_feature_circuit(const FeatureCircuitReport& report, ResultFile& file);

}  // namespace lamina::cli
