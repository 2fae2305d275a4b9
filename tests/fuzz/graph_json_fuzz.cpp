#include <unistd.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "lamina/circuits/graph_analysis.h"
#include "lamina/circuits/graph_io.h"
#include "lamina/circuits/graph_prune.h"
#include "lamina/core/error.h"

namespace {

using namespace lamina;

// A refusal of one line is fine; any other exception ends the program.
template <class Action>
void attempt(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    if (std::string_view(error.what()).find('\n') != std::string_view::npos) std::abort();
  }
}

void expect(bool what) {
  if (!what) std::abort();
}

// Graphs are read from files.
class InputFile {
 public:
  InputFile()
      : path_(std::filesystem::temp_directory_path() /
              ("lamina_graph_fuzz_" + std::to_string(getpid()))) {}
  InputFile(const InputFile&) = delete;
  ~InputFile() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  const std::filesystem::path& write(std::string_view text) const {
    std::ofstream(path_, std::ios::binary) << text;
    return path_;
  }

 private:
  std::filesystem::path path_;
};

const InputFile& input_file() {
  static const InputFile file;
  return file;
}

void check(const AttributionGraph& g) {
  expect(g.incoming.size() == g.nodes.size());
  for (const CircuitNode& n : g.nodes) {
    expect(n.position >= 0 && static_cast<std::size_t>(n.position) < g.tokens.size());
    expect(n.layer >= -1 && n.layer <= g.n_layers);
  }
  for (const IncomingEdges& in : g.incoming) {
    expect(in.source.size() == in.weight.size());
    for (std::size_t e = 0; e < in.source.size(); ++e) {
      expect(in.source[e] >= 0 && static_cast<std::size_t>(in.source[e]) < g.nodes.size());
      expect(e == 0 || in.source[e - 1] < in.source[e]);
      expect(std::isfinite(in.weight[e]) && in.weight[e] != 0);
    }
  }
}

// What was accepted can be written and read again, and no operation on it breaks.
void use(const AttributionGraph& g) {
  check(g);
  const AttributionGraph again = read_circuit_json(input_file().write(circuit_json(g)));
  check(again);
  expect(again.nodes.size() == g.nodes.size() && again.edges() == g.edges());
  for (std::size_t i = 0; i < g.nodes.size(); ++i) {
    expect(again.nodes[i].id == g.nodes[i].id && again.nodes[i].kind == g.nodes[i].kind);
    expect(again.nodes[i].layer == g.nodes[i].layer);
    expect(again.incoming[i].source == g.incoming[i].source);
    expect(again.incoming[i].weight == g.incoming[i].weight);
  }
  attempt([&] { static_cast<void>(circuit_graphml(g)); });
  attempt([&] { static_cast<void>(circuit_dot(g)); });
  attempt([&] { check(prune(g)); });
  attempt([&] { static_cast<void>(graph_scores(g)); });
  attempt([&] { check(collapse_supernodes(g)); });
  attempt([&] { static_cast<void>(merge_graphs(std::vector{g, again})); });
  attempt([&] { static_cast<void>(communities(g)); });
  if (g.nodes.empty()) return;
  const std::int32_t first[] = {0};
  const std::int32_t last[] = {static_cast<std::int32_t>(g.nodes.size() - 1)};
  attempt([&] { static_cast<void>(strongest_paths(g, first, last, 3)); });
}

AttributionGraph small_graph() {
  AttributionGraph g;
  g.tokens = {"a", "b"};
  g.n_layers = 2;
  for (const char* id : {"0_3_0", "0_3_1", "1_17_1", "1_err_1", "E_5_0", "L_7_1"}) {
    CircuitNode n;
    n.id = id;
    n.layer = 0;
    g.nodes.push_back(n);
  }
  g.incoming.resize(g.nodes.size());
  return g;
}

}  // namespace

/// Reads the input as an attribution graph and as supernodes of a graph.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const AttributionGraph small = small_graph();
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  attempt([&] { use(read_circuit_json(input_file().write(text))); });
  attempt([&] {
    AttributionGraph g = small;
    g.supernodes = read_supernodes(input_file().write(text), g);
    for (const Supernode& s : g.supernodes) {
      for (const std::string& id : s.members) expect(g.find(id) >= 0);
    }
    attempt([&] { check(collapse_supernodes(g)); });
  });
  return 0;
}
