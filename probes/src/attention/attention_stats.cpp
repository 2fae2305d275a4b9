#include "lamina/probes/attention_stats.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "lamina/core/error.h"

namespace lamina {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr std::int64_t kMostBins = 4096;

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

double share_of(std::int64_t part, std::int64_t all) {
  return all > 0 ? static_cast<double>(part) / static_cast<double>(all) : kNaN;
}

void check_share(double value, const char* what) {
  if (!(value >= 0 && value <= 1)) {
    fail_usage("entropy: {} is {}, a number from 0 to 1 expected", what, value);
  }
}

void check_range(std::int64_t value, std::int64_t low, std::int64_t high, const char* what) {
  if (value < low || value > high) {
    fail_usage("entropy: {} is {}, {} to {} expected", what, value, low, high);
  }
}

Site site_of(SiteKind kind, std::int32_t layer) {
  return {kind, layer};
}

bool rotates(const ModelConfig& config) {
  return config.positions == Positions::rotary;
}

}  // namespace

std::string_view attention_source_name(AttentionSource source) {
  switch (source) {
    case AttentionSource::queries_keys:
      return "queries and keys";
    case AttentionSource::scores:
      return "scores";
    case AttentionSource::pattern:
      break;
  }
  return "pattern";
}

std::vector<Site> attention_sites(const ModelConfig& config, AttentionSource source) {
  std::vector<Site> sites;
  for (std::int32_t l = 0; l < config.n_layers; ++l) {
    switch (source) {
      case AttentionSource::queries_keys:
        sites.push_back(site_of(rotates(config) ? SiteKind::rot_q : SiteKind::q, l));
        sites.push_back(site_of(rotates(config) ? SiteKind::rot_k : SiteKind::k, l));
        break;
      case AttentionSource::scores:
        sites.push_back(site_of(SiteKind::attn_scores, l));
        break;
      case AttentionSource::pattern:
        sites.push_back(site_of(SiteKind::pattern, l));
        break;
    }
  }
  return sites;
}

AttentionSource live_attention_source(const ModelConfig& config) {
  return config.qk_norm && !rotates(config) ? AttentionSource::scores
                                            : AttentionSource::queries_keys;
}

AttentionSource recorded_attention_source(const ModelConfig& config, const Recording& recording) {
  for (const AttentionSource source :
       {live_attention_source(config), AttentionSource::scores, AttentionSource::pattern}) {
    const std::vector<Site> sites = attention_sites(config, source);
    if (std::all_of(sites.begin(), sites.end(), [&](Site s) { return recording.has(s); })) {
      return source;
    }
  }
  fail(
      "{}: entropy needs queries and keys, attention scores or the pattern of every layer, which "
      "were not recorded (record with --sites {})",
      recording.path().string(),
      live_attention_source(config) == AttentionSource::scores ? "attn_scores"
      : rotates(config)                                        ? "rot_q,rot_k"
                                                               : "q,k");
}

void HeadStats::add(const HeadStats& o) {
  entropy.add(o.entropy);
  normalized.add(o.normalized);
  collapsed += o.collapsed;
  overloaded += o.overloaded;
  sink.add(o.sink);
  sink_top += o.sink_top;
  previous.add(o.previous);
  self.add(o.self);
  duplicate.add(o.duplicate);
  induction.add(o.induction);
  logits += o.logits;
  logit_sum += o.logit_sum;
  logit_max = std::max(logit_max, o.logit_max);
  query_norm.add(o.query_norm);
  key_norm.add(o.key_norm);
  for (std::size_t i = 0; i < key_sum.size(); ++i) {
    key_sum[i] += o.key_sum[i];
    key_seen[i] += o.key_seen[i];
  }
  for (std::size_t i = 0; i < bins.size(); ++i) {
    bins[i].entropy.add(o.bins[i].entropy);
    bins[i].normalized.add(o.bins[i].normalized);
  }
}

double HeadStats::logit_mean() const {
  return logits > 0 ? logit_sum / static_cast<double>(logits) : kNaN;
}
double HeadStats::collapsed_share() const {
  return share_of(collapsed, normalized.count);
}
double HeadStats::overloaded_share() const {
  return share_of(overloaded, normalized.count);
}

std::string_view head_state(const HeadStats& head, const AttentionOptions& options) {
  if (head.collapsed_share() >= options.state_share) return "collapsed";
  if (head.overloaded_share() >= options.state_share) return "overloaded";
  return "";
}

std::string_view head_pattern(const HeadStats& head, const AttentionOptions& options) {
  std::string_view name;
  double best = options.sink;
  const auto consider = [&](const Moments& share, std::string_view what) {
    const double mean = share.mean();
    if (std::isnan(mean) || mean < best || (mean == best && !name.empty())) return;
    best = mean;
    name = what;
  };
  consider(head.sink, "sink");
  consider(head.previous, "previous");
  consider(head.self, "self");
  consider(head.duplicate, "duplicate");
  consider(head.induction, "induction");
  return name;
}

std::vector<std::int64_t> position_bins(const ModelConfig& config, std::int64_t bin_width) {
  const std::int64_t positions = std::max<std::int64_t>(config.n_ctx, 1);
  std::vector<std::int64_t> starts = {0};
  std::int64_t next = bin_width > 0 ? bin_width : 1;
  while (next < positions && static_cast<std::int64_t>(starts.size()) < kMostBins) {
    starts.push_back(next);
    next += bin_width > 0 ? bin_width : next;
  }
  return starts;
}

AttentionProbe::AttentionProbe(const ModelConfig& config, AttentionOptions options)
    : config_(config), options_(options) {
  if (static_cast<std::int64_t>(config_.layers.size()) != config_.n_layers) {
    fail_usage(
        "entropy: the configuration has {} layers with a window, {} expected; a recording's "
        "own lacks them, take its model's",
        config_.layers.size(), config_.n_layers);
  }
  check_share(options_.collapse, "the collapse threshold");
  check_share(options_.overload, "the overload threshold");
  check_share(options_.state_share, "the share of queries that names a head");
  check_share(options_.sink, "the sink threshold");
  if (options_.collapse >= options_.overload) {
    fail_usage("entropy: the collapse threshold {} is not below the overload threshold {}",
               options_.collapse, options_.overload);
  }
  check_range(options_.bin_width, 0, std::int64_t{1} << 40, "the width of a position bin");
  check_range(options_.first_keys, 1, 4096, "the number of first keys");
  check_range(options_.strongest, 0, 100000, "the number of strongest keys");
  check_range(options_.key_queries, 1, std::int64_t{1} << 40, "the queries a strong key needs");
  bins_ = position_bins(config_, options_.bin_width);
  HeadStats empty;
  empty.key_sum.resize(size(options_.first_keys));
  empty.key_seen.resize(size(options_.first_keys));
  empty.bins.resize(bins_.size());
  results_.layers = config_.n_layers;
  results_.heads = config_.n_heads;
  results_.head.assign(size(config_.n_layers * config_.n_heads), empty);
}

std::vector<Site> AttentionProbe::sites(const ModelConfig& config) const {
  return attention_sites(config, options_.source);
}

std::unique_ptr<Probe> AttentionProbe::fresh() const {
  return std::make_unique<AttentionProbe>(config_, options_);
}

void AttentionProbe::merge(Probe& other) {
  auto* from = dynamic_cast<AttentionProbe*>(&other);
  if (from == nullptr || !(from->options_ == options_) || from->bins_ != bins_ ||
      from->results_.layers != results_.layers || from->results_.heads != results_.heads) {
    fail("entropy: cannot be merged with a {} of other settings", other.name());
  }
  AttentionResults& a = results_;
  AttentionResults& b = from->results_;
  for (std::size_t i = 0; i < a.head.size(); ++i) a.head[i].add(b.head[i]);
  a.tokens += b.tokens;
  a.prompts += b.prompts;
  a.strong_keys.insert(a.strong_keys.end(), b.strong_keys.begin(), b.strong_keys.end());
  keep_strongest(a.strong_keys, options_.strongest);
  b = AttentionProbe(config_, options_).results_;
}

void AttentionProbe::keep_strongest(std::vector<StrongKey>& keys, std::int64_t most) {
  std::stable_sort(keys.begin(), keys.end(),
                   [](const StrongKey& a, const StrongKey& b) { return a.share > b.share; });
  if (keys.size() > size(most)) keys.resize(size(most));
}

}  // namespace lamina
