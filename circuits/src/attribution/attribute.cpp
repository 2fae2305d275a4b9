#include <algorithm>
#include <cmath>
#include <numeric>

#include "attribution/target_batch.h"
#include "lamina/circuits/attribution_graph.h"
#include "lamina/core/error.h"
#include "lamina/core/math.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

std::string token_text(const Model& model, std::int64_t id) {
  if (model.tokenizer() == nullptr || id >= model.tokenizer()->vocab_size())
    return fmt::format("#{}", id);
  return model.tokenizer()->piece(static_cast<std::int32_t>(id));
}

// Directions of this many targets are kept at once.
constexpr std::size_t kTargetsAtOnce = 16384;

IncomingEdges edges_of(std::span<const float> row) {
  IncomingEdges out;
  const auto count = size(std::count_if(row.begin(), row.end(), [](float w) { return w != 0; }));
  out.source.reserve(count);
  out.weight.reserve(count);
  for (std::size_t s = 0; s < row.size(); ++s) {
    if (row[s] == 0) continue;
    out.source.push_back(static_cast<std::int32_t>(s));
    out.weight.push_back(row[s]);
  }
  return out;
}

// Influence of every source on the logits through the rows known so far. `order`: rows from the
// logits down, weights into one of them in rows[i].
std::vector<double> partial_influence(std::int64_t sources,
                                      const std::vector<IncomingEdges>& feature_rows,
                                      const std::vector<IncomingEdges>& logit_rows,
                                      const std::vector<LogitReadout>& logits) {
  std::vector<double> influence(size(sources));
  const auto push = [&](const IncomingEdges& row, double share) {
    double sum = 0;
    for (float w : row.weight) sum += std::abs(w);
    if (share == 0 || sum == 0) return;
    const double factor = share / std::max(sum, 1e-8);
    for (std::size_t i = 0; i < row.weight.size(); ++i)
      influence[size(row.source[i])] += factor * std::abs(row.weight[i]);
  };
  for (std::size_t i = 0; i < logits.size(); ++i) push(logit_rows[i], logits[i].probability);
  // Features stand in order of their layers: all that a feature acts on stands behind it.
  for (std::size_t i = feature_rows.size(); i-- > 0;) push(feature_rows[i], influence[i]);
  return influence;
}

}  // namespace

std::string_view circuit_node_kind_name(CircuitNodeKind kind) {
  constexpr std::string_view kNames[] = {"feature", "error", "token", "logit"};
  return kNames[static_cast<std::size_t>(kind)];
}

std::int64_t AttributionGraph::edges() const {
  std::int64_t sum = 0;
  for (const IncomingEdges& in : incoming) sum += static_cast<std::int64_t>(in.source.size());
  return sum;
}

std::int64_t AttributionGraph::count(CircuitNodeKind kind) const {
  return std::count_if(nodes.begin(), nodes.end(),
                       [&](const CircuitNode& n) { return n.kind == kind; });
}

std::int64_t AttributionGraph::find(std::string_view id) const {
  const auto found =
      std::find_if(nodes.begin(), nodes.end(), [&](const CircuitNode& n) { return n.id == id; });
  return found == nodes.end() ? -1 : found - nodes.begin();
}

double LogitReadout::value(const ReplacementRun& run) const {
  double sum = constant;
  for (std::size_t i = 0; i < direction.size(); ++i) sum += double{direction[i]} * run.residual[i];
  return sum;
}

std::vector<LogitReadout> salient_logits(const Replacement& replacement, double share,
                                         std::int64_t most) {
  if (!(share > 0 && share <= 1)) fail_usage("the share of logits is 0 to 1, got {}", share);
  if (most < 1) fail_usage("at least one logit is needed, got {}", most);
  const Model& model = replacement.model();
  const ModelConfig& c = model.config();
  const std::int64_t d = c.d_model, vocabulary = c.d_out();
  const std::span<const float> logits = replacement.logits();
  const auto k = size(std::min(most, vocabulary));
  std::vector<std::int32_t> ids(k);
  std::vector<float> values(k);
  math::top_k(logits, ids, values);
  const double log_sum = math::log_sum_exp(logits);

  std::vector<double> mean(size(d));
  std::vector<float> rows;
  for (std::int64_t first = 0; first < vocabulary; first += 4096) {
    const std::int64_t count = std::min<std::int64_t>(4096, vocabulary - first);
    rows.resize(size(count * d));
    model.unembedding_rows(first, count, rows);
    for (std::size_t i = 0; i < rows.size(); ++i) mean[i % size(d)] += rows[i];
  }
  for (double& m : mean) m /= static_cast<double>(vocabulary);
  std::vector<float> weight(size(d)), bias(size(d));
  model.final_norm_weight(weight);
  if (c.norm != NormKind::none && c.final_norm)
    model.norm_bias(SiteKind::ln_final_normalized, -1, bias);
  // The head's own bias: the logits of nothing, the soft-cap undone.
  std::vector<float> head_bias(size(vocabulary));
  if (c.head_bias) {
    replacement.forward().unembed(std::vector<float>(size(d)), head_bias);
    if (c.final_softcap > 0) {
      for (float& b : head_bias)
        b = static_cast<float>(c.final_softcap * std::atanh(double{b} / c.final_softcap));
    }
  }
  const double mean_bias =
      std::accumulate(head_bias.begin(), head_bias.end(), 0.0) / static_cast<double>(vocabulary);

  std::vector<LogitReadout> out;
  double sum = 0;
  std::vector<float> row(size(d));
  for (std::size_t i = 0; i < k && (i == 0 || sum < share); ++i) {
    LogitReadout one{.token = ids[i], .probability = std::exp(double{values[i]} - log_sum)};
    sum += one.probability;
    model.unembedding_rows(ids[i], 1, row);
    one.constant = head_bias[size(ids[i])] - mean_bias;
    one.direction.resize(size(d));
    for (std::size_t j = 0; j < size(d); ++j) {
      const double direction = row[j] - mean[j];
      one.constant += direction * bias[j];
      one.direction[j] = static_cast<float>(direction * weight[j]);
    }
    out.push_back(std::move(one));
  }
  return out;
}

AttributionGraph attribute(Replacement& replacement, const AttributeOptions& options) {
  const Model& model = replacement.model();
  const std::span<const ActiveFeature> features = replacement.features();
  const auto n_features = static_cast<std::int64_t>(features.size());
  const std::int64_t sources = replacement.sources();
  const std::vector<LogitReadout> logits =
      salient_logits(replacement, options.logit_share, options.max_logits);
  const std::int64_t wanted =
      options.max_features > 0 ? std::min(options.max_features, n_features) : n_features;
  const std::int64_t total = wanted + static_cast<std::int64_t>(logits.size());

  circuits::TargetBatch batch(replacement, options.batch_tokens, options.memory, total);
  // Sources of a row are counted as in the replacement model until the nodes are known.
  std::vector<IncomingEdges> logit_rows(logits.size()), feature_rows(features.size());
  std::int64_t done = 0;
  const auto attribute_some = [&](const std::vector<circuits::Target>& targets,
                                  const std::function<IncomingEdges&(std::size_t)>& row_of) {
    const std::vector<std::size_t> order = batch.order(targets);
    std::vector<circuits::Target> sorted;
    for (std::size_t i : order) sorted.push_back(targets[i]);
    for (std::size_t first = 0; first < sorted.size();) {
      const std::span<const circuits::Target> left = std::span(sorted).subspan(first);
      const auto part = left.first(size(batch.fits(left)));
      const std::span<const float> rows = batch.run(part);
#pragma omp parallel for schedule(dynamic)
      for (std::size_t i = 0; i < part.size(); ++i)
        row_of(order[first + i]) = edges_of(rows.subspan(i * size(sources), size(sources)));
      first += part.size();
      done += static_cast<std::int64_t>(part.size());
      if (options.progress) options.progress(done, total);
    }
  };

  std::vector<circuits::Target> targets;
  for (const LogitReadout& logit : logits) targets.push_back(batch.target(logit));
  attribute_some(targets, [&](std::size_t i) -> IncomingEdges& { return logit_rows[i]; });

  std::vector<std::int64_t> chosen;
  std::vector<bool> attributed(features.size());
  std::int64_t left = wanted;
  while (left > 0) {
    std::vector<std::int64_t> next;
    if (wanted == n_features) {
      next.resize(size(n_features));
      std::iota(next.begin(), next.end(), 0);
    } else {
      const std::vector<double> influence =
          partial_influence(sources, feature_rows, logit_rows, logits);
      for (std::int64_t i = 0; i < n_features; ++i)
        if (!attributed[size(i)]) next.push_back(i);
      const std::int64_t some = std::min(left, std::max<std::int64_t>(1, options.rank_every));
      std::stable_sort(next.begin(), next.end(),
                       [&](auto a, auto b) { return influence[size(a)] > influence[size(b)]; });
      next.resize(size(some));
    }
    for (std::size_t first = 0; first < next.size(); first += kTargetsAtOnce) {
      const auto some =
          std::span(next).subspan(first, std::min(kTargetsAtOnce, next.size() - first));
      targets.clear();
      for (std::int64_t i : some) targets.push_back(batch.target(features[size(i)]));
      attribute_some(targets,
                     [&](std::size_t i) -> IncomingEdges& { return feature_rows[size(some[i])]; });
    }
    for (std::int64_t i : next) attributed[size(i)] = true;
    chosen.insert(chosen.end(), next.begin(), next.end());
    left -= static_cast<std::int64_t>(next.size());
  }
  std::sort(chosen.begin(), chosen.end());

  AttributionGraph graph;
  graph.model = model.id();
  graph.n_layers = model.config().n_layers;
  for (std::int32_t id : replacement.ids()) graph.tokens.push_back(token_text(model, id));
  const std::int64_t tokens = replacement.tokens();
  const ReplacementRun& clean = replacement.clean();
  const ReplacementRun bias = replacement.biases();
  std::vector<std::int32_t> node_of(size(sources), -1);
  const auto add = [&](CircuitNode node, std::int64_t source) {
    if (source >= 0) node_of[size(source)] = static_cast<std::int32_t>(graph.nodes.size());
    graph.nodes.push_back(std::move(node));
  };
  for (std::int64_t i : chosen) {
    const ActiveFeature& f = features[size(i)];
    add({.kind = CircuitNodeKind::feature,
         .layer = f.layer,
         .position = f.position,
         .index = f.feature,
         .activation = f.activation,
         .pre_activation = clean.pre_activations[size(i)],
         .bias = bias.pre_activations[size(i)],
         .id = fmt::format("{}_{}_{}", f.layer, f.feature, f.position)},
        i);
  }
  for (std::int32_t l = 0; l < graph.n_layers; ++l) {
    for (std::int32_t p = 0; p < tokens; ++p) {
      add({.kind = CircuitNodeKind::error,
           .layer = l,
           .position = p,
           .index = -1,
           .id = fmt::format("{}_err_{}", l, p)},
          n_features + l * tokens + p);
    }
  }
  for (std::int32_t p = 0; p < tokens; ++p) {
    const std::int32_t id = replacement.ids()[size(p)];
    add({.kind = CircuitNodeKind::token,
         .layer = -1,
         .position = p,
         .index = id,
         .id = fmt::format("E_{}_{}", id, p)},
        n_features + graph.n_layers * tokens + p);
  }
  for (const LogitReadout& logit : logits) {
    add({.kind = CircuitNodeKind::logit,
         .layer = static_cast<std::int32_t>(graph.n_layers),
         .position = static_cast<std::int32_t>(tokens - 1),
         .index = logit.token,
         .pre_activation = logit.value(clean),
         .bias = logit.value(bias),
         .probability = logit.probability,
         .id = fmt::format("{}_{}_{}", graph.n_layers + 1, logit.token, tokens - 1),
         .label = token_text(model, logit.token)},
        -1);
  }

  graph.incoming.resize(graph.nodes.size());
  const auto keep = [&](IncomingEdges& row, IncomingEdges& in) {
    std::size_t kept = 0;
    for (std::size_t e = 0; e < row.source.size(); ++e) {
      const std::int32_t node = node_of[size(row.source[e])];
      if (node < 0) continue;
      row.source[kept] = node;
      row.weight[kept++] = row.weight[e];
    }
    row.source.resize(kept);
    row.weight.resize(kept);
    in = std::move(row);
  };
  for (std::size_t i = 0; i < chosen.size(); ++i)
    keep(feature_rows[size(chosen[i])], graph.incoming[i]);
  for (std::size_t i = 0; i < logits.size(); ++i)
    keep(logit_rows[i], graph.incoming[graph.nodes.size() - logits.size() + i]);
  return graph;
}

}  // namespace lamina
