#include "lamina/patching/bake_off.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "lamina/patching/exact.h"
#include "lamina/patching/node.h"

namespace lamina {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

class Bake {
 public:
  Bake(const Model& model, std::span<const Pair> pairs, const Metric& metric,
       const KnownCircuit* known, const BakeOffOptions& options)
      : forward_(model),
        apart_(model.ungrouped()),
        apart_forward_(apart_),
        pairs_(pairs),
        metric_(metric),
        known_(known),
        options_(options),
        graph_(GraphShape::of(model.config())),
        runner_(apart_forward_, pairs, metric, options.circuits) {
    // One node per source but the input, in the same order.
    for (std::int64_t v = 1; v < graph_.sources(); ++v) {
      const GraphNode& node = graph_.node(v);
      if (node.kind == GraphNode::Kind::head) {
        nodes_.push_back({.site = {SiteKind::z, node.layer}, .head = node.head});
      } else {
        nodes_.push_back({.site = {SiteKind::mlp_out, node.layer}});
      }
    }
  }

  std::vector<BakeOffRow> all() {
    exact_nodes();
    node_estimate("atp", {});
    AttributionOptions ig{.ig_steps = options_.steps, .ig_path = IgPath::node};
    node_estimate("ig", ig);
    node_estimate("relp", {.rules = BackwardRules::relp()});
    if (options_.exact_edges) exact_edges();
    edge_estimate("eap", {});
    edge_estimate("eap-ig", {.gradient = EdgeGradient::eap_ig, .steps = options_.steps});
    edge_estimate("relp", {.rules = BackwardRules::relp()});
    return std::move(rows_);
  }

 private:
  template <class Function>
  BakeOffRow& timed(const char* method, bool edges, Function function) {
    if (options_.started) options_.started(method);
    const auto start = std::chrono::steady_clock::now();
    std::vector<double> scores = function();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    rows_.push_back({.method = method,
                     .edges = edges,
                     .scores = std::move(scores),
                     .auroc = {kNone, kNone, kNone, kNone},
                     .cpr = kNone,
                     .cmd = kNone,
                     .pearson = kNone,
                     .spearman = kNone,
                     .seconds = seconds.count()});
    return rows_.back();
  }

  // [node, pair] → minus the mean over pairs: what ablating the node does to −metric.
  std::vector<double> loss_by_node(const std::vector<double>& values) const {
    std::vector<double> means(nodes_.size(), 0.0);
    for (std::size_t i = 0; i < values.size(); ++i)
      means[i / pairs_.size()] -= values[i] / static_cast<double>(pairs_.size());
    return means;
  }

  void exact_nodes() {
    BakeOffRow& row = timed("exact", false, [&] {
      PatchResult result =
          patch_exactly(forward_, pairs_, metric_, nodes_, {.direction = Direction::noise});
      for (std::size_t i = 0; i < result.patched.size(); ++i)
        result.patched[i] -= result.clean[i % pairs_.size()];
      return loss_by_node(result.patched);
    });
    compare_nodes(row);
  }

  void node_estimate(const char* method, AttributionOptions options) {
    options.direction = Direction::noise;
    compare_nodes(timed(method, false, [&] {
      return loss_by_node(attribute(forward_, pairs_, metric_, nodes_, options));
    }));
  }

  void exact_edges() {
    compare_edges(timed("exact", true, [&] { return exact_edge_scores(runner_); }));
  }

  void edge_estimate(const char* method, const EdgeScoreOptions& options) {
    compare_edges(
        timed(method, true, [&] { return score_edges(forward_, pairs_, metric_, options); }));
  }

  static void correlate(BakeOffRow& row, const BakeOffRow& exact) {
    if (&row == &exact) return;
    const Agreement found = agreement(row.scores, exact.scores, 10, 0, 0);
    row.pearson = found.pearson.value;
    row.spearman = found.spearman.value;
  }

  void compare_nodes(BakeOffRow& row) {
    correlate(row, rows_.front());
    if (known_ != nullptr) row.auroc = node_auroc(row.scores, graph_, *known_);
  }

  void compare_edges(BakeOffRow& row) {
    graph_.set_scores(row.scores);
    for (const BakeOffRow& other : rows_) {
      if (other.edges && other.method == "exact") correlate(row, other);
    }
    if (known_ != nullptr) row.auroc = edge_auroc(graph_, *known_);
    const FaithfulnessResult f = measure_faithfulness(runner_, graph_, false, false);
    row.cpr = f.cpr;
    row.cmd = f.cmd;
  }

  Forward forward_;
  Model apart_;
  Forward apart_forward_;
  std::span<const Pair> pairs_;
  const Metric& metric_;
  const KnownCircuit* known_;
  const BakeOffOptions& options_;
  EdgeGraph graph_;
  CircuitRunner runner_;
  std::vector<Node> nodes_;
  std::vector<BakeOffRow> rows_;
};

}  // namespace

std::vector<BakeOffRow> bake_off(const Model& model, std::span<const Pair> pairs,
                                 const Metric& metric, const KnownCircuit* known,
                                 const BakeOffOptions& options) {
  return Bake(model, pairs, metric, known, options).all();
}

}  // namespace lamina
