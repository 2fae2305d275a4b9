#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lamina/circuits/graph_prune.h"
#include "lamina/circuits/intervention.h"
#include "lamina/core/model.h"
#include "lamina/core/result_file.h"

// What `lamina circuit` found, as text, JSON and HDF5; `lamina graph` prints its tables too.
namespace lamina::cli {

/// The likeliest next token of a run.
struct LikeliestToken {
  std::int64_t id = 0;
  std::string text;
  double probability = 0.0;
};
LikeliestToken likeliest_token(std::span<const float> logits, const Model& model);

struct CircuitReport {
  std::vector<std::pair<std::string, std::string>> settings;
  AttributionGraph whole, pruned;
  GraphScores scores;
  std::int64_t active = 0;              // features of the prompt, in the graph or not
  std::vector<double> unexplained;      // [layer]
  std::string change;                   // what was changed; empty without
  std::vector<ChangeCheck> checks;      // of the whole graph
  std::vector<float> logits;            // of the last token, without the change
  LikeliestToken unchanged;             // what the model says
  std::vector<LikeliestToken> changed;  // [check] what it says then
  double seconds = 0.0;
};

/// "L3 #17 at 5 “word”", "error of L2 at 4 “word”", "“word” at 1", "→ “word”".
std::string node_text(const AttributionGraph& graph, const CircuitNode& node);
/// The nodes of the largest influence with what acts on them most.
std::string nodes_table(const AttributionGraph& graph, const std::vector<double>& influence,
                        std::int64_t show);
std::string circuit_text(const CircuitReport& report, std::int64_t show);
nlohmann::ordered_json circuit_report_json(const CircuitReport& report, std::int64_t show);
/// The group /analyses/circuit: the whole graph, and which of it is in the pruned one.
void write_circuit(const CircuitReport& report, ResultFile& file);

}  // namespace lamina::cli
