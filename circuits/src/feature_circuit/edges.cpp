// Edges between features and errors: what of a node's effect passes directly to another.

#include <algorithm>
#include <map>

#include "feature_circuit/gradients.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

using namespace feature_circuit;
using patching::Chunk;
using patching::GradientPass;

double dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * double{b[i]};
  return sum;
}

class Edges {
 public:
  Edges(const FeatureStudy& study, const FeatureEffectOptions& options, FeatureMethod method,
        FeatureEdges& out)
      : study_(study),
        options_(options),
        method_(method),
        out_(out),
        pass_(study.forward, study.metric, nullptr),
        backward_(study.forward.model()),
        baselines_(study, options.baseline, options.count_from, options.batch_tokens) {
    const std::vector<Site> sites = all_sites(study.forward.model().config());
    for (const Transcoder& t : study.dictionaries) {
      depth_.push_back(std::find(sites.begin(), sites.end(), t.config.output.site) - sites.begin());
    }
    by_dictionary_.resize(study.dictionaries.size());
    for (std::size_t i = 0; i < out.nodes.size(); ++i)
      by_dictionary_[size(out.nodes[i].dictionary)].push_back(i);
  }

  void run(const Chunk& chunk) {
    const PlainRuns runs =
        run_plain(study_, pass_, baselines_, chunk, method_ == FeatureMethod::ig);
    const SiteGradients::Values gradients =
        SiteGradients(study_, options_, pass_)
            .of(method_, chunk, runs.state, runs.clean, runs.baseline);
    const BackwardRules rules =
        method_ == FeatureMethod::relp ? options_.relp_rules : BackwardRules{};
    to_metric(chunk, runs, rules);
    Tape tape;
    study_.forward.run(chunk.base, {}, {.tape = &tape});
    const std::vector<float> nothing(size(chunk.base.tokens()) *
                                     size(study_.forward.model().config().d_model));
    for (std::size_t to = 0; to < out_.nodes.size(); ++to) {
      const auto d = size(out_.nodes[to].dictionary);
      const std::vector<float> seed = seed_of(chunk, to, runs.clean[d], gradients[d]);
      Hooks hooks;
      hooks.write(site(d), [&](SiteView& view) {
        std::copy(seed.begin(), seed.end(), view.values.begin());
      });
      read_and_stop(hooks, chunk, runs, to, depth_[d]);
      backward_.seed_residual(tape, nothing);
      backward_.run(tape, rules, hooks);
    }
  }

  void finish() {
    std::map<std::int32_t, std::vector<std::uint8_t>> has;  // position → [pair]
    for (std::size_t p = 0; p < study_.pairs.size(); ++p) {
      const std::int64_t tokens = study_.pairs[p].tokens();
      const auto mark = [&](std::int32_t position) {
        auto& list = has[position];
        list.resize(study_.pairs.size());
        list[p] = 1;
      };
      for (std::int64_t t = 0; t < tokens; ++t) mark(position_of(t, tokens, options_.count_from));
      mark(kAllPositions);
    }
    const std::size_t n = out_.nodes.size();
    for (std::size_t to = 0; to <= n; ++to) {
      for (std::size_t from = 0; from < n; ++from) {
        const auto a = has.find(to == n ? kAllPositions : out_.nodes[to].position);
        const auto b = has.find(out_.nodes[from].position);
        if (a == has.end() || b == has.end()) continue;
        double pairs = 0;
        for (std::size_t p = 0; p < study_.pairs.size(); ++p)
          pairs += a->second[p] != 0 && b->second[p] != 0 ? 1 : 0;
        if (pairs > 0) out_.weights[to * n + from] /= pairs;
      }
    }
  }

 private:
  Site site(std::size_t d) const { return study_.dictionaries[d].config.output.site; }

  // Calls use(row) for the chunk's rows at which the node stands.
  template <class Use>
  void each_row(const Chunk& chunk, const FeatureNode& node, const Use& use) const {
    for (std::size_t p = 0; p < chunk.pairs.size(); ++p) {
      const std::int64_t tokens = chunk.pairs[p].tokens();
      for (std::int64_t t = 0; t < tokens; ++t) {
        if (node.position == kAllPositions ||
            node.position == position_of(t, tokens, options_.count_from)) {
          use(chunk.offsets[p] + t);
        }
      }
    }
  }

  // Gradient at its site of the node's value times the metric's gradient there.
  std::vector<float> seed_of(const Chunk& chunk, std::size_t to, const State& clean,
                             const std::vector<double>& gradient) const {
    const FeatureNode& node = out_.nodes[to];
    const Transcoder& t = study_.dictionaries[size(node.dictionary)];
    const std::size_t width = size(t.config.d_out);
    std::vector<float> seed(gradient.size());
    each_row(chunk, node, [&](std::int64_t row) {
      const double* g = gradient.data() + size(row) * width;
      std::vector<double> sum(width);
      const auto through = [&](std::int32_t feature, double sign) {
        const auto w = decoder_row(t, feature);
        double by = 0;
        for (std::size_t i = 0; i < width; ++i) by += double{w[i]} * g[i];
        const float* encoder = t.encoder.data() + size(feature) * width;
        for (std::size_t i = 0; i < width; ++i) sum[i] += sign * by * double{encoder[i]};
      };
      if (node.feature == kErrorNode) {
        sum.assign(g, g + width);
        for (const std::int32_t feature : clean.features(row)) through(feature, -1);
      } else if (clean.value(row, node.feature) > 0) {
        through(node.feature, 1);
      }
      for (std::size_t i = 0; i < width; ++i)
        seed[size(row) * width + i] = static_cast<float>(sum[i]);
    });
    return seed;
  }

  // At every site before `depth`: adds the edges from its nodes, then lets nothing through.
  void read_and_stop(Hooks& hooks, const Chunk& chunk, const PlainRuns& runs, std::size_t to,
                     std::ptrdiff_t depth) {
    for (std::size_t d = 0; d < depth_.size(); ++d) {
      if (depth_[d] >= depth) continue;
      hooks.write(site(d), [this, d, to, &chunk, &runs](SiteView& view) {
        for (const std::size_t from : by_dictionary_[d]) {
          out_.weights[to * out_.nodes.size() + from] +=
              edge(chunk, out_.nodes[from], runs.clean[d], runs.baseline[d], view.values);
        }
        std::fill(view.values.begin(), view.values.end(), 0.0F);
      });
    }
  }

  double edge(const Chunk& chunk, const FeatureNode& node, const State& clean,
              const State& baseline, std::span<const float> gradient) const {
    const Transcoder& t = study_.dictionaries[size(node.dictionary)];
    const std::size_t width = size(t.config.d_out);
    double sum = 0;
    each_row(chunk, node, [&](std::int64_t row) {
      const auto g = gradient.subspan(size(row) * width, width);
      if (node.feature != kErrorNode) {
        const double change =
            double{clean.value(row, node.feature)} - double{baseline.value(row, node.feature)};
        if (change != 0) sum += change * dot(decoder_row(t, node.feature), g);
        return;
      }
      const auto error = [&](const State& state) {
        return std::span(state.error).subspan(size(row) * width, width);
      };
      sum += dot(error(clean), g) - dot(error(baseline), g);
    });
    return sum;
  }

  void to_metric(const Chunk& chunk, const PlainRuns& runs, const BackwardRules& rules) {
    Hooks hooks;
    read_and_stop(hooks, chunk, runs, out_.nodes.size(),
                  std::numeric_limits<std::ptrdiff_t>::max());
    pass_.run(chunk, chunk.base, {}, rules, hooks);
  }

  const FeatureStudy& study_;
  const FeatureEffectOptions& options_;
  FeatureMethod method_;
  FeatureEdges& out_;
  GradientPass pass_;
  Backward backward_;
  Baselines baselines_;
  std::vector<std::ptrdiff_t> depth_;                    // [dictionary] of its site in the model
  std::vector<std::vector<std::size_t>> by_dictionary_;  // its nodes
};

}  // namespace

FeatureEdges feature_edges(const FeatureStudy& study, const FeatureEffectOptions& options,
                           FeatureMethod method, std::span<const FeatureNode> nodes) {
  check_feature_study(study);
  if (options.ig_steps < 1) fail_usage("integrated gradients with {} steps", options.ig_steps);
  if (options.batch_tokens < 1) fail_usage("batches of {} tokens", options.batch_tokens);
  for (const Transcoder& t : study.dictionaries) {
    if (t.config.input == t.config.output) continue;
    fail_usage("{}: it reads {} and rebuilds {}; edges are defined for autoencoders", t.config.name,
               dictionary_place_name(t.config.input), dictionary_place_name(t.config.output));
  }
  check_feature_nodes(study, nodes);
  FeatureEdges out;
  out.nodes.assign(nodes.begin(), nodes.end());
  out.weights.resize((nodes.size() + 1) * nodes.size());
  Edges edges(study, options, method, out);
  for (const Chunk& chunk : clean_chunks(study, options.batch_tokens)) {
    edges.run(chunk);
    if (options.progress) {
      options.progress(static_cast<std::int64_t>(chunk.first + chunk.pairs.size()),
                       static_cast<std::int64_t>(study.pairs.size()));
    }
  }
  edges.finish();
  return out;
}

}  // namespace lamina
