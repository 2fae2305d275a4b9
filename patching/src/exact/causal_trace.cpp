#include "lamina/patching/causal_trace.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "exact/counter_noise.h"
#include "exact/patched_runs.h"
#include "lamina/core/error.h"
#include "nodes/nodes.h"
#include "nodes/site_values.h"

namespace lamina {
namespace {

constexpr Site kEmbed{SiteKind::embed, -1};

void check_subject(const Pair& pair) {
  if (!pair.subject) fail_usage("pair '{}' has no subject; causal tracing needs one", pair.id);
  const auto [first, end] = *pair.subject;
  if (first < 0 || end <= first || end > pair.tokens()) {
    fail_usage("pair '{}': subject tokens {} … {} of a prompt of {}", pair.id, first, end - 1,
               pair.tokens());
  }
}

class Trace {
 public:
  Trace(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
        std::span<const Node> nodes, const TraceOptions& options);
  TraceResult run();

 private:
  void check() const;
  std::vector<Site> written(const Node& node) const;
  void run_group(std::size_t first, std::size_t end, TraceResult& result);
  void add_noise(SiteView& view, std::size_t first_pair) const;

  Forward& forward_;
  std::span<const Pair> pairs_;
  const Metric& metric_;
  std::span<const Node> nodes_;
  const TraceOptions& options_;
  const ModelConfig& config_;
  std::vector<Site> sites_;  // everything that is put back, as it is recorded
  double sigma_ = 0.0;
  std::int64_t done_ = 0;
};

Trace::Trace(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
             std::span<const Node> nodes, const TraceOptions& options)
    : forward_(forward),
      pairs_(pairs),
      metric_(metric),
      nodes_(nodes),
      options_(options),
      config_(forward.model().config()) {
  check();
  for (const Node& node : nodes) {
    for (const Site site : written(node)) sites_.push_back(site);
  }
  std::sort(sites_.begin(), sites_.end());
  sites_.erase(std::unique(sites_.begin(), sites_.end()), sites_.end());
}

void Trace::check() const {
  if (pairs_.empty()) fail_usage("causal tracing needs at least one pair");
  if (metric_.pairs() != std::ssize(pairs_)) {
    fail_usage("the metric was made for {} pairs, {} are traced", metric_.pairs(), pairs_.size());
  }
  if (options_.samples < 1)
    fail_usage("{} noised runs were asked for; at least 1", options_.samples);
  if (options_.window < 1) fail_usage("a window of {} layers; at least 1", options_.window);
  if (!(options_.noise_sigmas > 0)) {
    fail_usage("noise of {} standard deviations; it must be positive", options_.noise_sigmas);
  }
  std::int64_t longest = 0;
  for (const Pair& pair : pairs_) {
    longest = std::max(longest, pair.tokens());
    check_subject(pair);
  }
  check_nodes(nodes_, config_, longest);
  for (const Node& node : nodes_) {
    if (node.site.layer < 0 || site_shape(node.site, config_).attention) {
      fail_usage("{} cannot be restored in causal tracing: token sites of the layers can",
                 site_name(node.site));
    }
  }
}

std::vector<Site> Trace::written(const Node& node) const {
  const bool windowed = node.site.kind == SiteKind::attn_out || node.site.kind == SiteKind::mlp_out;
  const LayerWindow window =
      layer_window(node.site.layer, windowed ? options_.window : 1, config_.n_layers);
  std::vector<Site> sites;
  for (std::int32_t layer = window.first; layer < window.end; ++layer) {
    sites.push_back({node.site.kind, layer});
  }
  return sites;
}

// Prompt i of the batch is sample i % samples of pair first_pair + i / samples.
void Trace::add_noise(SiteView& view, std::size_t first_pair) const {
  const auto samples = static_cast<std::size_t>(options_.samples);
  const std::int64_t row = view.shape.row();
  for (std::size_t i = 0; i + 1 < view.batch.offsets.size(); ++i) {
    const Pair& pair = pairs_[first_pair + i / samples];
    const std::uint64_t key = mixed(mixed(options_.seed, mixed_name(pair.id)), i % samples);
    const std::int64_t from = (view.batch.offsets[i] + pair.subject->first) * row;
    const std::int64_t count = (pair.subject->second - pair.subject->first) * row;
    for (std::int64_t k = 0; k < count; ++k) {
      view.values[static_cast<std::size_t>(from + k)] +=
          static_cast<float>(options_.noise_sigmas * sigma_) *
          normal_number(key, static_cast<std::uint64_t>(k));
    }
  }
}

TraceResult Trace::run() {
  TraceResult result;
  sigma_ = result.sigma = options_.sigma > 0 ? options_.sigma : subject_deviation(forward_, pairs_);
  result.restored.assign(nodes_.size() * pairs_.size(), std::numeric_limits<double>::quiet_NaN());
  std::vector<std::uint64_t> bytes;
  for (const Pair& pair : pairs_) {
    const std::int64_t length = pair.tokens();
    bytes.push_back(
        static_cast<std::uint64_t>(length * options_.samples) *
        (RunState::bytes_per_token(config_) + PatchedRuns::bytes_per_row(config_, false)));
    for (const Site site : sites_) {
      bytes.back() += SiteValues::bytes(site, config_, std::span(&length, 1));
    }
  }
  for (const auto& [first, end] : groups_within(bytes, options_.memory / 2)) {
    run_group(first, end, result);
  }
  return result;
}

void Trace::run_group(std::size_t first_pair, std::size_t end_pair, TraceResult& result) {
  const auto samples = static_cast<std::size_t>(options_.samples);
  Batch clean, noised;
  for (std::size_t p = first_pair; p < end_pair; ++p) {
    clean.add(pairs_[p].clean);
    for (std::size_t s = 0; s < samples; ++s) noised.add(pairs_[p].clean);
  }
  SiteValues values(config_, sites_, clean);
  Hooks reading;
  values.attach(reading);
  forward_.run(clean, reading);
  each_last_row(forward_, clean, options_.memory / 8,
                [&](std::int64_t prompt, std::span<const float> logits) {
                  result.clean.push_back(
                      metric_.value(static_cast<std::int64_t>(first_pair) + prompt, logits));
                });
  Hooks noising;
  noising.write(kEmbed, [&](SiteView& view) { add_noise(view, first_pair); });
  RunState state;
  RunOptions keep;
  keep.keep = &state;
  forward_.run(noised, noising, keep);
  std::vector<double> base;  // [pair of the group, sample]
  const auto pair_of = [&](std::int64_t prompt) {
    return first_pair + static_cast<std::size_t>(prompt) / samples;
  };
  each_last_row(forward_, noised, options_.memory / 8,
                [&](std::int64_t prompt, std::span<const float> logits) {
                  base.push_back(metric_.value(static_cast<std::int64_t>(pair_of(prompt)), logits));
                });
  for (std::size_t p = first_pair; p < end_pair; ++p) {
    const auto from = base.begin() + static_cast<std::ptrdiff_t>((p - first_pair) * samples);
    result.noised.push_back(
        std::accumulate(from, from + static_cast<std::ptrdiff_t>(samples), 0.0) /
        static_cast<double>(samples));
  }

  // Metric of every restoration, [node, pair of the group, sample], filled run by run.
  const std::size_t here = end_pair - first_pair;
  std::vector<double> restored(nodes_.size() * here * samples);
  std::vector<PatchedRun> runs;
  const auto total = static_cast<std::int64_t>(nodes_.size() * pairs_.size() * samples);
  const auto advance = [&] {
    ++done_;
    if (options_.progress) options_.progress(done_, total);
  };
  for (std::size_t n = 0; n < nodes_.size(); ++n) {
    const std::vector<Site> sites = written(nodes_[n]);
    const Site start = latest_equal(sites.front(), config_);
    const std::int32_t layer = start_layer(start, config_);
    const bool only_last_row =
        layer == config_.n_layers || (layer + 1 == config_.n_layers && behind_keys(start.kind));
    for (std::size_t i = 0; i < here * samples; ++i) {
      const Pair& pair = pairs_[first_pair + i / samples];
      const std::int64_t at = nodes_[n].position;
      const std::int64_t last = pair.tokens() - 1;
      // In front of the subject the noised run is the clean one.
      const bool unchanged = config_.causal && at >= 0 && at < pair.subject->first;
      const bool unread = only_last_row && at >= 0 && at != last;
      if (at > last || unchanged || unread) {
        if (at <= last) ++result.skipped;
        restored[n * here * samples + i] = base[i];
        advance();
        continue;
      }
      std::int64_t first = only_last_row ? last : at >= 0 ? at : pair.subject->first;
      if (!config_.causal) first = 0;
      runs.push_back({.id = static_cast<std::int64_t>(n * here * samples + i),
                      .prompt = static_cast<std::int64_t>(i),
                      .layer = layer,
                      .first = first,
                      .group = runs_of_site(start.kind)});
    }
  }
  PatchedRuns patched(forward_, state, options_.memory / 2);
  patched.writes = [&](const PatchedRun& run, WriteList& list) {
    const Node& node = nodes_[static_cast<std::size_t>(run.id) / (here * samples)];
    const std::int64_t length = pairs_[pair_of(run.prompt)].tokens();
    const NodeSlice slice = node_slice(node, config_);
    const std::int64_t from = node.position >= 0              ? node.position
                              : run.layer == config_.n_layers ? length - 1
                                                              : run.first;
    const std::int64_t end = node.position >= 0 ? node.position + 1 : length;
    for (const Site site : written(node)) {
      for (std::int64_t t = from; t < end; ++t) {
        const std::span<const float> row =
            values.row(site, run.prompt / static_cast<std::int64_t>(samples), t);
        list.set(latest_equal(site, config_), t, slice.offset,
                 row.subspan(static_cast<std::size_t>(slice.offset),
                             static_cast<std::size_t>(slice.count)));
      }
    }
  };
  patched.consume = [&](const PatchedRun& run, std::span<const float> logits) {
    restored[static_cast<std::size_t>(run.id)] =
        metric_.value(static_cast<std::int64_t>(pair_of(run.prompt)), logits);
    ++result.runs;
    advance();
  };
  patched.run(std::move(runs));
  for (std::size_t n = 0; n < nodes_.size(); ++n) {
    for (std::size_t p = 0; p < here; ++p) {
      if (nodes_[n].position >= pairs_[first_pair + p].tokens()) continue;
      const auto from = restored.begin() + static_cast<std::ptrdiff_t>((n * here + p) * samples);
      result.restored[n * pairs_.size() + first_pair + p] =
          std::accumulate(from, from + static_cast<std::ptrdiff_t>(samples), 0.0) /
          static_cast<double>(samples);
    }
  }
}

}  // namespace

double subject_deviation(Forward& forward, std::span<const Pair> pairs) {
  std::vector<double> values;
  for (const Pair& pair : pairs) {
    check_subject(pair);
    Batch batch;
    batch.add(pair.clean);
    Hooks hooks;
    hooks.read(kEmbed, [&](SiteView& view) {
      const auto row = static_cast<std::size_t>(view.shape.row());
      for (std::int32_t t = pair.subject->first; t < pair.subject->second; ++t) {
        for (const float v : view.values.subspan(static_cast<std::size_t>(t) * row, row)) {
          values.push_back(static_cast<double>(v));
        }
      }
    });
    // Only the embedding is wanted: one step is the shortest pass there is.
    const std::vector<Step> step = {{.layer = 0, .attention = false, .mlp = false}};
    RunOptions options;
    options.steps = step;
    forward.run(batch, hooks, options);
  }
  const auto n = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double squares = 0.0;
  for (const double v : values) squares += (v - mean) * (v - mean);
  return std::sqrt(squares / (n - 1));
}

LayerWindow layer_window(std::int32_t layer, std::int64_t width, std::int64_t layers) {
  const std::int64_t half = width / 2;
  return {static_cast<std::int32_t>(std::max<std::int64_t>(0, layer - half)),
          static_cast<std::int32_t>(std::min<std::int64_t>(layers, layer + (width - half)))};
}

TraceResult trace_causes(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                         std::span<const Node> nodes, const TraceOptions& options) {
  return Trace(forward, pairs, metric, nodes, options).run();
}

}  // namespace lamina
