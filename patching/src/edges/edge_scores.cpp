// Edge attribution: differences of what sources add, times gradients at what read points read.

#include <Eigen/Core>
#include <algorithm>
#include <memory>

#include "edges/circuit_chunk.h"
#include "lamina/core/error.h"
#include "lamina/patching/edges.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Collects the gradients at the read points of one layer and, when the layer is complete, adds
// their products with the sources' differences to the scores. Every prompt of the pass belongs to
// one pair; the gradients of a pair's prompts are added first.
class ScoreSums {
 public:
  ScoreSums(const EdgeGraph& graph, const CircuitChunk& chunk, std::int64_t d, double factor,
            std::vector<double>& sums)
      : graph_(graph), chunk_(chunk), d_(d), factor_(factor), sums_(sums) {}

  /// The pairs (within the chunk) of the next pass' prompts.
  void expect(std::vector<std::int64_t> pairs, const Batch& batch) {
    pairs_ = std::move(pairs);
    batch_ = &batch;
  }

  void add(const ReadPoint& point, std::span<const float> gradient) {
    if (point.layer != layer_ || point.kind == ReadPoint::Kind::logits) flush();
    layer_ = point.layer;
    const std::int64_t n = chunk_.delta.all_rows() * d_;
    const std::size_t at = gradients_.size();
    reads_.push_back(graph_.read_index(point));
    gradients_.resize(at + size(n), 0.0F);
    for (std::int64_t i = 0; i < batch_->prompts(); ++i) {
      const std::int64_t p = pairs_[size(i)];
      const float* from = gradient.data() + (batch_->offsets[size(i)] + chunk_.first[size(p)]) * d_;
      float* to = gradients_.data() + at + size(chunk_.delta.row_at(p) * d_);
      for (std::int64_t j = 0; j < chunk_.delta.rows(p) * d_; ++j) to[j] += from[j];
    }
  }

  /// To be called after every pass.
  void flush() {
    const auto reads = static_cast<std::int64_t>(reads_.size());
    if (reads == 0) return;
    const std::int64_t all = chunk_.delta.all_rows() * d_;
    std::int64_t sources = 0;
    for (const std::int64_t read : reads_) sources = std::max(sources, graph_.sources_of(read));
    // Blocks of sources of a fixed size: the result does not depend on the number of threads.
    constexpr std::int64_t kBlock = 32;
    const std::int64_t blocks = (sources + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t first = b * kBlock, count = std::min(kBlock, sources - first);
      Matrix products(count, reads);
      for (std::int64_t p = 0; p < chunk_.pairs; ++p) {
        const std::int64_t n = chunk_.delta.rows(p) * d_;
        if (n == 0) continue;
        const Eigen::Map<const Matrix> delta(chunk_.delta.at(p, first), count, n);
        const Eigen::Map<const Matrix, 0, Eigen::OuterStride<>> gradient(
            gradients_.data() + chunk_.delta.row_at(p) * d_, reads, n, Eigen::OuterStride<>(all));
        products.noalias() = delta * gradient.transpose();
        for (std::int64_t r = 0; r < reads; ++r) {
          const std::int64_t read = reads_[size(r)];
          const std::int64_t mine = std::min(count, graph_.sources_of(read) - first);
          for (std::int64_t u = 0; u < mine; ++u)
            sums_[size(graph_.edge_id(first + u, read))] += factor_ * products(u, r);
        }
      }
    }
    reads_.clear();
    gradients_.clear();
  }

 private:
  const EdgeGraph& graph_;
  const CircuitChunk& chunk_;
  std::int64_t d_;
  double factor_;
  std::vector<double>& sums_;
  std::vector<std::int64_t> pairs_;
  const Batch* batch_ = nullptr;
  std::int32_t layer_ = -2;
  std::vector<std::int64_t> reads_;
  std::vector<float> gradients_;  // [read][rows of the chunk, d_model]
};

// One chunk of pairs: the passes that its gradients need.
class ChunkScorer {
 public:
  ChunkScorer(Forward& forward, Backward& backward, const EdgeGraph& graph,
              std::span<const Pair> pairs, const Metric& metric, const EdgeScoreOptions& options,
              const CircuitChunk& chunk)
      : forward_(forward),
        backward_(backward),
        graph_(graph),
        pairs_(pairs),
        metric_(metric),
        options_(options),
        chunk_(chunk),
        d_(forward.model().config().d_model) {}

  void score(std::vector<double>& sums) {
    switch (options_.gradient) {
      case EdgeGradient::eap:
        return at_prompts(sums);
      case EdgeGradient::eap_ig:
        return along_inputs(sums);
      case EdgeGradient::eap_ig_activations:
        return along_activations(sums);
    }
  }

 private:
  const Pair& pair(std::int64_t p) const { return pairs_[size(chunk_.first_pair + p)]; }

  // Forward with a tape, the metric's gradient, and back; the read points go to `into`.
  void there_and_back(const Batch& batch, const std::vector<std::int64_t>& which,
                      std::span<const float> start, const Hooks& hooks, const Hooks& back_hooks,
                      ScoreSums& into) {
    forward_.run(batch, hooks, RunOptions{.start = start, .tape = &tape_});
    constexpr std::size_t kAtOnce = 32;
    const auto vocab = size(forward_.model().config().d_vocab);
    std::vector<float> logits, gradient;
    std::vector<std::int64_t> rows;
    for (std::size_t first = 0; first < which.size(); first += kAtOnce) {
      const std::size_t count = std::min(kAtOnce, which.size() - first);
      logits.resize(count * vocab);
      gradient.resize(count * vocab);
      rows.clear();
      for (std::size_t i = first; i < first + count; ++i) rows.push_back(batch.offsets[i + 1] - 1);
      forward_.run_logits(rows, logits);
      for (std::size_t i = 0; i < count; ++i) {
        metric_.gradient(chunk_.first_pair + which[first + i],
                         std::span(logits).subspan(i * vocab, vocab),
                         std::span(gradient).subspan(i * vocab, vocab));
      }
      for (float& g : gradient) g = -g;  // of ℓ
      backward_.seed(tape_, rows, gradient);
    }
    into.expect(which, batch);
    backward_.run(tape_, options_.rules, back_hooks,
                  [&](ReadPoint point, std::span<const float> g) { into.add(point, g); });
    into.flush();
  }

  std::vector<std::int64_t> every_pair() const {
    std::vector<std::int64_t> which(size(chunk_.pairs));
    for (std::int64_t p = 0; p < chunk_.pairs; ++p) which[size(p)] = p;
    return which;
  }

  void at_prompts(std::vector<double>& sums) {
    Batch batch;
    for (std::int64_t p = 0; p < chunk_.pairs; ++p)
      batch.add(options_.at_corrupted ? pair(p).corrupted : pair(p).clean);
    ScoreSums into(graph_, chunk_, d_, 1.0, sums);
    there_and_back(batch, every_pair(), {}, {}, {}, into);
  }

  // All steps of some pairs in one pass; their gradients are added before the products.
  void along_inputs(std::vector<double>& sums) {
    const std::int64_t m = options_.steps;
    ScoreSums into(graph_, chunk_, d_, 1.0 / static_cast<double>(m), sums);
    Batch batch;
    std::vector<std::int64_t> which;
    std::vector<float> start;
    for (std::int64_t k = 0; k < m; ++k) {
      // corrupted + k/m · (clean − corrupted), from clean and corrupted − clean.
      const float back = 1.0F - static_cast<float>(k) / static_cast<float>(m);
      for (std::int64_t p = 0; p < chunk_.pairs; ++p) {
        batch.add(pair(p).clean);
        which.push_back(p);
        const float* own = chunk_.clean.resid[0].data() + chunk_.clean.batch.offsets[size(p)] * d_;
        const std::size_t at = start.size();
        start.insert(start.end(), own, own + pair(p).tokens() * d_);
        const float* change = chunk_.delta.at(p, 0);
        float* to = start.data() + at + size(chunk_.first[size(p)] * d_);
        for (std::int64_t i = 0; i < chunk_.delta.rows(p) * d_; ++i) to[i] += back * change[i];
      }
    }
    there_and_back(batch, which, start, {}, {}, into);
  }

  void along_activations(std::vector<double>& sums) {
    const GraphShape& shape = graph_.shape();
    const std::int64_t m = options_.steps;
    const std::int64_t places = 1 + shape.n_layers * (shape.mlps ? 2 : 1);
    ScoreSums into(graph_, chunk_, d_, 1.0 / static_cast<double>(m * places), sums);
    Batch batch;
    std::vector<std::int64_t> which;
    for (std::int64_t k = 1; k <= m; ++k) {
      for (std::int64_t p = 0; p < chunk_.pairs; ++p) {
        batch.add(pair(p).clean);
        which.push_back(p);
      }
    }
    const auto along = [&](Site site, std::int64_t first_source, std::int64_t sources) {
      Hooks hooks, cut;
      hooks.write(site, [&, first_source, sources](SiteView& v) {
        for (std::int64_t i = 0; i < v.batch.prompts(); ++i) {
          const std::int64_t p = which[size(i)], k = 1 + i / chunk_.pairs;
          const float back = 1.0F - static_cast<float>(k) / static_cast<float>(m);
          float* to = v.values.data() + (v.batch.offsets[size(i)] + chunk_.first[size(p)]) * d_;
          for (std::int64_t u = first_source; u < first_source + sources; ++u) {
            const float* change = chunk_.delta.at(p, u);
            for (std::int64_t j = 0; j < chunk_.delta.rows(p) * d_; ++j) to[j] += back * change[j];
          }
        }
      });
      cut.write(site, [](SiteView& v) { std::ranges::fill(v.values, 0.0F); });
      there_and_back(batch, which, {}, hooks, cut, into);
    };
    along({SiteKind::resid_pre, 0}, 0, 1);
    for (std::int32_t l = 0; l < shape.n_layers; ++l) {
      along({SiteKind::attn_out, l}, graph_.head_source(l, 0), shape.n_heads);
      if (shape.mlps) along({SiteKind::mlp_out, l}, graph_.mlp_source(l), 1);
    }
  }

  Forward& forward_;
  Backward& backward_;
  const EdgeGraph& graph_;
  std::span<const Pair> pairs_;
  const Metric& metric_;
  const EdgeScoreOptions& options_;
  const CircuitChunk& chunk_;
  std::int64_t d_;
  Tape tape_;
};

void check(const EdgeScoreOptions& options, std::span<const Pair> pairs, const Metric& metric) {
  if (pairs.empty()) fail_usage("edges need at least one pair");
  if (metric.pairs() != static_cast<std::int64_t>(pairs.size()))
    fail_usage("a metric over {} pairs was given for {}", metric.pairs(), pairs.size());
  const bool integrated = options.gradient != EdgeGradient::eap;
  if (integrated && options.steps < 1)
    fail_usage("integrated gradients need at least one step, got {}", options.steps);
  if (integrated && options.ablation != Ablation::patching) {
    fail_usage(
        "integrated gradients walk between the two prompts of a pair: ablation {} has no "
        "such way",
        ablation_name(options.ablation));
  }
  if (integrated && options.at_corrupted)
    fail_usage("integrated gradients are taken along the way, not at the corrupted prompt");
}

}  // namespace

std::vector<double> score_edges(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                                const EdgeScoreOptions& options) {
  const ModelConfig& config = forward.model().config();
  check_edge_model(config);
  check(options, pairs, metric);
  const EdgeGraph graph(GraphShape::of(config));
  Backward backward(forward.model());
  SourceMeans means;
  if (options.ablation == Ablation::mean)
    means = mean_sources(forward, graph, pairs, options.batch_tokens);
  std::vector<std::vector<float>> biases;
  if (options.ablation != Ablation::patching) biases = attention_biases(forward);

  // Rows of one pass: all steps of a pair are in it.
  const std::int64_t copies = options.gradient == EdgeGradient::eap ? 1 : options.steps;
  const std::int64_t row_bytes =
      2 * graph.sources() * config.d_model * static_cast<std::int64_t>(sizeof(float)) +
      copies * static_cast<std::int64_t>(Tape::bytes_per_token(config));
  const std::int64_t most =
      std::clamp<std::int64_t>(static_cast<std::int64_t>(options.memory) / row_bytes, 1,
                               std::max<std::int64_t>(options.batch_tokens / copies, 1));
  std::vector<double> sums(size(graph.edges()), 0.0);
  const auto all = static_cast<std::int64_t>(pairs.size());
  for (std::int64_t first = 0; first < all;) {
    std::int64_t count = 0, tokens = 0;
    do {
      tokens += pairs[size(first + count)].tokens();
      ++count;
    } while (first + count < all && tokens + pairs[size(first + count)].tokens() <= most);
    const CircuitChunk chunk =
        make_chunk(forward, graph, pairs, first, count, options.ablation, means, biases);
    ChunkScorer(forward, backward, graph, pairs, metric, options, chunk).score(sums);
    first += count;
    if (options.progress) options.progress(first, all);
  }
  for (double& sum : sums) sum /= static_cast<double>(all);
  return sums;
}

}  // namespace lamina
