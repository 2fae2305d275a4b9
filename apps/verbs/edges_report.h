#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lamina/core/result_file.h"
#include "lamina/patching/edges.h"
#include "lamina/patching/faithfulness.h"
#include "lamina/patching/graph.h"

namespace lamina::cli {

/// What a scored graph says about a circuit that is known.
struct KnownScores {
  std::int64_t edges = 0, counterfactual = 0, nodes = 0;  // known ones
  KnownAuroc auroc;
  double mib = 0.0;  // AUROC of all known edges, as MIB's circuit track computes it
};
KnownScores known_scores(const EdgeGraph& graph, const KnownCircuit& known);

/// The circuit that was asked for.
struct ChosenCircuit {
  std::string how;  // "the 100 edges of the largest |score|, pruned"
  std::int64_t edges = 0, nodes = 0;
  double metric = 0.0, full = 0.0, empty = 0.0;
  double faithfulness = 0.0, completeness = 0.0;
};

/// Everything that `lamina edges` found.
struct EdgeReport {
  std::vector<std::pair<std::string, std::string>> settings;
  EdgeGraph graph;
  double clean = 0.0, corrupted = 0.0;  // mean metric
  bool has_runs = false;                // clean and corrupted were measured
  std::optional<ChosenCircuit> circuit;
  std::optional<FaithfulnessResult> faithfulness;
  std::optional<KnownScores> known;
  double seconds = 0.0;  // of the scores
};

std::string edges_text(const EdgeReport& report, std::int64_t show);
nlohmann::ordered_json edges_json(const EdgeReport& report, std::int64_t show);
void write_edges(const EdgeReport& report, ResultFile& file);

}  // namespace lamina::cli
