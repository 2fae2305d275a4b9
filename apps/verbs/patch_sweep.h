#pragma once

#include <string>
#include <vector>

#include "lamina/patching/node.h"
#include "verbs/patch_methods.h"
#include "verbs/patch_report.h"

// From what was typed to nodes and their scores, whatever the method.
namespace lamina::cli {

/// --site, --layers and --by. Without --by, sites with heads are split by head, others by position.
struct NodeChoice {
  std::vector<std::string> sites;
  std::string layers;
  std::vector<std::string> by;
  bool by_position = true;  // false: without --by, sites without heads stay whole
};

/// How positions of prompts of different lengths are named: 0, 1 … or −1, −2 …
enum class Align : std::uint8_t { start, end };

/// "0-5,7,-1" in a model of `count` layers. UsageError for anything else.
std::vector<std::int32_t> parse_layers(std::string_view text, std::int64_t count);

/// The sites that were asked for, by kind: firing order of kinds as typed, layers ascending.
std::vector<std::vector<Site>> chosen_sites(const NodeChoice& choice, const ModelConfig& config);

/// Nodes and the grids they form. `positions`: of the longest prompt. Positions from the end are
/// named −positions … −1, and are node positions 0 … all the same.
struct ChosenNodes {
  std::vector<Node> nodes;
  std::vector<PatchGrid> grids;
};
ChosenNodes chosen_nodes(const NodeChoice& choice, const ModelConfig& config,
                         std::span<const Pair> pairs, const Tokenizer* tokenizer, Align align);

/// Runs the method. With Align::end, position j means j − (positions − the pair's tokens): pairs of
/// different lengths are scored length by length.
PatchResult run_method(const PatchMethod& method, Forward& forward, std::span<const Pair> pairs,
                       MetricKind metric, std::span<const Node> nodes, const PatchOptions& options,
                       Align align);

}  // namespace lamina::cli
