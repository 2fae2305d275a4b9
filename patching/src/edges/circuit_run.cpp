#include "lamina/patching/circuit_run.h"

#include <algorithm>
#include <memory>

#include "edges/circuit_chunk.h"
#include "edges/circuit_pass.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

constexpr std::string_view kAblations[] = {"patching", "zero", "mean"};

}  // namespace

std::string_view ablation_name(Ablation ablation) {
  return kAblations[static_cast<std::size_t>(ablation)];
}

Ablation parse_ablation(std::string_view name) {
  for (std::size_t i = 0; i < std::size(kAblations); ++i) {
    if (name == kAblations[i]) return static_cast<Ablation>(i);
  }
  fail_usage("there is no ablation \"{}\"; the names are patching, zero, mean", name);
}

void check_edge_model(const ModelConfig& config) {
  if (config.norm_place == NormPlace::post && config.norm != NormKind::none) {
    fail_usage(
        "this {} model puts norms over its residual stream: what one component adds for "
        "another is not defined, there are no edges",
        config.family);
  }
  if (config.norm_place == NormPlace::sandwich && config.norm != NormKind::none &&
      config.out_bias) {
    fail_usage(
        "this {} model has a bias inside the norm on attention's output: the heads' shares "
        "of it are not defined, there are no edges",
        config.family);
  }
}

struct CircuitRunner::Impl {
  Forward& forward;
  std::span<const Pair> pairs;
  const Metric& metric;
  CircuitOptions options;
  EdgeGraph graph;
  SourceMeans means;
  std::vector<std::vector<float>> biases;
  std::vector<double> clean, corrupted;
  struct Range {
    std::int64_t first, count;
    std::unique_ptr<CircuitChunk> chunk;  // kept if the memory allows it
  };
  std::vector<Range> ranges;
  bool keep_chunks = false;
  std::int64_t prompts_run = 0;

  Impl(Forward& f, std::span<const Pair> p, const Metric& m, const CircuitOptions& o)
      : forward(f), pairs(p), metric(m), options(o), graph(GraphShape::of(f.model().config())) {}

  const ModelConfig& config() const { return forward.model().config(); }

  /// Bytes of sources per token row.
  std::int64_t row_bytes() const {
    return graph.sources() * config().d_model * static_cast<std::int64_t>(sizeof(float));
  }
  /// Token rows of one batch of patched prompts.
  std::int64_t batch_rows() const {
    const auto fits = static_cast<std::int64_t>(options.memory) / 4 / row_bytes();
    return std::clamp<std::int64_t>(fits, 1, std::max<std::int64_t>(options.batch_tokens, 1));
  }

  void split_pairs();
  void plain_runs();
  template <class Function>
  void for_each_chunk(Function function);
  CircuitPass pass() {
    return CircuitPass{.forward = forward, .graph = graph, .metric = metric, .rows = batch_rows()};
  }
};

void CircuitRunner::Impl::split_pairs() {
  const auto all = static_cast<std::int64_t>(pairs.size());
  std::int64_t tokens = 0;
  for (std::int64_t i = 0; i < all; ++i) tokens += pairs[size(i)].tokens();
  // Ablated values and differences, and the clean run's own state.
  const std::int64_t per_row =
      2 * row_bytes() + static_cast<std::int64_t>(RunState::bytes_per_token(config())) * 3;
  keep_chunks = tokens * per_row <= static_cast<std::int64_t>(options.memory) / 2;
  const std::int64_t rows = batch_rows();
  for (std::int64_t first = 0; first < all;) {
    std::int64_t count = 0, sum = 0;
    do {
      sum += pairs[size(first + count)].tokens();
      ++count;
    } while (first + count < all && sum + pairs[size(first + count)].tokens() <= rows);
    ranges.push_back({first, count, nullptr});
    first += count;
  }
}

template <class Function>
void CircuitRunner::Impl::for_each_chunk(Function function) {
  for (Range& range : ranges) {
    if (range.chunk == nullptr) {
      range.chunk = std::make_unique<CircuitChunk>(make_chunk(
          forward, graph, pairs, range.first, range.count, options.ablation, means, biases));
    }
    function(*range.chunk);
    if (!keep_chunks) range.chunk.reset();
  }
}

void CircuitRunner::Impl::plain_runs() {
  for (const bool is_clean : {true, false}) {
    std::vector<double>& values = is_clean ? clean : corrupted;
    values.resize(pairs.size());
    for (const Range& range : ranges) {
      Batch batch;
      std::vector<std::int64_t> which, rows;
      for (std::int64_t i = range.first; i < range.first + range.count; ++i) {
        batch.add(is_clean ? pairs[size(i)].clean : pairs[size(i)].corrupted);
        which.push_back(i);
        rows.push_back(batch.tokens() - 1);
      }
      forward.run(batch);
      const std::vector<double> found = metric_of_rows(forward, metric, which, rows);
      std::copy(found.begin(), found.end(), values.begin() + range.first);
    }
  }
}

CircuitRunner::CircuitRunner(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                             const CircuitOptions& options) {
  const ModelConfig& config = forward.model().config();
  check_edge_model(config);
  if (config.n_kv_heads != config.n_heads) {
    fail_usage(
        "circuits need a key and value head per query head, the model has {} for {}: use "
        "its ungrouped form",
        config.n_kv_heads, config.n_heads);
  }
  if (pairs.empty()) fail_usage("circuits need at least one pair");
  if (metric.pairs() != static_cast<std::int64_t>(pairs.size())) {
    fail_usage("a metric over {} pairs was given for {}", metric.pairs(), pairs.size());
  }
  impl_ = std::make_unique<Impl>(forward, pairs, metric, options);
  Impl& s = *impl_;
  s.split_pairs();
  if (options.ablation == Ablation::mean)
    s.means = mean_sources(forward, s.graph, pairs, s.batch_rows());
  if (options.ablation != Ablation::patching) s.biases = attention_biases(forward);
  s.plain_runs();
}

CircuitRunner::~CircuitRunner() = default;
CircuitRunner::CircuitRunner(CircuitRunner&&) noexcept = default;

const EdgeGraph& CircuitRunner::graph() const {
  return impl_->graph;
}
const std::vector<double>& CircuitRunner::clean() const {
  return impl_->clean;
}
const std::vector<double>& CircuitRunner::corrupted() const {
  return impl_->corrupted;
}
std::int64_t CircuitRunner::prompts_run() const {
  return impl_->prompts_run;
}

std::vector<double> CircuitRunner::run(std::span<const EdgeMask> circuits,
                                       std::int32_t from_layer) {
  Impl& s = *impl_;
  if (from_layer < 0 || from_layer >= s.config().n_layers) {
    fail_usage("a circuit cannot start at layer {} of {}", from_layer, s.config().n_layers);
  }
  std::vector<EdgeMask> pruned;
  EdgeGraph scratch = s.graph;
  for (const EdgeMask& circuit : circuits) {
    scratch.set_mask(circuit);
    scratch.prune();
    pruned.push_back(scratch.mask());
  }
  const std::size_t pairs = s.pairs.size();
  std::vector<double> values(circuits.size() * pairs);
  for (std::size_t c = 0; c < circuits.size(); ++c)
    std::copy(s.clean.begin(), s.clean.end(),
              values.begin() + static_cast<std::ptrdiff_t>(c * pairs));
  s.for_each_chunk([&](const CircuitChunk& chunk) {
    std::vector<CircuitPass::Item> items;
    for (std::size_t c = 0; c < pruned.size(); ++c) {
      for (std::int64_t p = 0; p < chunk.pairs; ++p) {
        // Equal prompts: nothing can change.
        if (chunk.delta.rows(p) > 0)
          items.push_back({&pruned[c], p, c * pairs + size(chunk.first_pair + p)});
      }
    }
    s.prompts_run += static_cast<std::int64_t>(items.size());
    s.pass().run(chunk, items, from_layer, values);
  });
  return values;
}

std::vector<double> CircuitRunner::run_means(std::span<const EdgeMask> circuits,
                                             std::int32_t from_layer) {
  const std::vector<double> values = run(circuits, from_layer);
  const std::size_t pairs = impl_->pairs.size();
  std::vector<double> means(circuits.size(), 0.0);
  for (std::size_t i = 0; i < values.size(); ++i) means[i / pairs] += values[i];
  for (double& mean : means) mean /= static_cast<double>(pairs);
  return means;
}

std::vector<double> CircuitRunner::without_each_edge(
    const std::function<void(std::int64_t, std::int64_t)>& progress) {
  Impl& s = *impl_;
  const auto edges = size(s.graph.edges());
  std::vector<double> sums(edges, 0.0);
  const auto chunks = static_cast<std::int64_t>(s.ranges.size());
  std::int64_t chunks_done = 0;
  s.for_each_chunk([&](const CircuitChunk& chunk) {
    for (std::int64_t read = 0; read < s.graph.reads(); ++read) {
      s.prompts_run += s.pass().without_each_source(chunk, read, s.clean, sums);
      if (progress) {
        progress((chunks_done * s.graph.edges() + s.graph.first_edge(read + 1)) / chunks,
                 s.graph.edges());
      }
    }
    ++chunks_done;
  });
  for (double& sum : sums) sum /= static_cast<double>(s.pairs.size());

  // A node that reads through one edge only is no node without it: it falls, and with it what it
  // adds. (The MLP of a first parallel layer; other nodes read through several edges.)
  if (s.graph.shape().parallel && s.graph.shape().mlps &&
      s.options.ablation != Ablation::patching) {
    const auto id = s.graph.find_edge("input->m0");
    EdgeMask mask(edges, 1);
    mask[size(*id)] = 0;
    sums[size(*id)] = run_means(std::span(&mask, 1))[0];
  }
  return sums;
}

}  // namespace lamina
