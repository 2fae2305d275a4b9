#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/circuits/attribution_graph.h"

namespace lamina {

/// The graph JSON of the field's attribution-graph viewers (circuit-tracer, Neuronpedia): an object
/// with metadata, qParams, nodes, links. Fields of ours that they do not know: a node's
/// `preactivation` and `bias`. An error's node_id is `{layer}_err_{position}`: circuit-tracer's
/// own, `0_{layer}_{position}`, may be that of a feature.
std::string circuit_json(const AttributionGraph& graph);
/// The same, handed over in pieces of about 1 MiB.
void circuit_json(const AttributionGraph& graph,
                  const std::function<void(std::string_view)>& write);

/// Reads what circuit_json() and circuit-tracer write. Errors name the file and the thing: text
/// that is no JSON, fields missing or of a wrong type, node ids that come twice, links to unknown
/// nodes, weights that are not finite, files larger than 4 GiB, more than 4 million nodes. Links of
/// weight 0 are read over; several between the same nodes are an error.
AttributionGraph read_circuit_json(const std::filesystem::path& path);

/// GraphML (nodes and edges with their numbers as attributes) and Graphviz' language: layers from
/// the bottom up, tokens from left to right, supernodes as boxes, width of an edge by its weight.
std::string circuit_graphml(const AttributionGraph& graph);
std::string circuit_dot(const AttributionGraph& graph);

/// Whether `id` is what `pattern` says: * stands for any text without an underscore ("3_17_*").
bool node_id_matches(std::string_view pattern, std::string_view id);

/// Supernodes from a file: a JSON object {"name": ["node id", …]} or a list of lists whose first
/// entries are names, as the viewers keep them (qParams.supernodes). Names of nodes may have * for
/// a number: "3_17_*" is feature 17 of layer 3 anywhere. Error for ids and patterns that match no
/// node and for a node in two groups.
std::vector<Supernode> read_supernodes(const std::filesystem::path& path,
                                       const AttributionGraph& graph);

/// Draws a DOT text with Graphviz' `dot` into `path`, whose ending (.svg, .png, .pdf) is the
/// format. Error if there is no `dot` (it says how to get it) or it fails.
void draw_dot(const std::string& dot, const std::filesystem::path& path);

}  // namespace lamina
