// Results of the attention analysis as datasets.

#include <cmath>
#include <numeric>

#include "lamina/probes/attention_stats.h"

namespace lamina {
namespace {

using Names = std::vector<std::string>;

std::vector<std::int64_t> counting(std::size_t n) {
  std::vector<std::int64_t> values(n);
  std::iota(values.begin(), values.end(), 0);
  return values;
}

double share(std::int64_t part, std::int64_t all) {
  return all > 0 ? static_cast<double>(part) / static_cast<double>(all)
                 : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

void AttentionProbe::write(ResultFile& file) const {
  const AttentionResults& r = results_;
  file.setting("source", std::string(attention_source_name(options_.source)));
  file.setting("collapse", options_.collapse);
  file.setting("overload", options_.overload);
  file.setting("state_share", options_.state_share);
  file.setting("sink", options_.sink);
  file.setting("bin_width", options_.bin_width);
  file.setting("key_queries", options_.key_queries);
  file.setting("ours",
               std::string("collapse, overload, state_share, bin_width, key_queries; queries "
                           "that see one key are left out of all but entropy and logits"));
  file.setting("tokens", r.tokens);
  file.setting("prompts", r.prompts);
  file.axis("layer", counting(static_cast<std::size_t>(r.layers)));
  file.axis("head", counting(static_cast<std::size_t>(r.heads)));
  file.axis("position_bin", bins_);
  file.axis("key", counting(static_cast<std::size_t>(options_.first_keys)));

  const Names cell{"layer", "head"};
  const auto write = [&](std::string_view name, auto value, std::string_view text,
                         std::string_view units) {
    std::vector<double> all;
    all.reserve(r.head.size());
    for (const HeadStats& h : r.head) all.push_back(static_cast<double>(value(h)));
    file.dataset(name, cell, all, text, units);
  };
  const auto moments = [&](const std::string& name, auto value, const std::string& text,
                           std::string_view units) {
    write(
        name, [&](const HeadStats& h) { return value(h).mean(); }, text + ", mean", units);
    write(
        name + "_sd", [&](const HeadStats& h) { return std::sqrt(value(h).variance()); },
        text + ", standard deviation", units);
    write(
        name + "_min", [&](const HeadStats& h) { return value(h).lowest(); }, text + ", smallest",
        units);
    write(
        name + "_max", [&](const HeadStats& h) { return value(h).highest(); }, text + ", largest",
        units);
  };
  moments(
      "entropy", [](const HeadStats& h) { return h.entropy; }, "attention entropy of all queries",
      "nats");
  moments(
      "entropy_normalized", [](const HeadStats& h) { return h.normalized; },
      "attention entropy over the logarithm of the number of visible keys, queries that see two "
      "keys or more",
      "");
  write(
      "collapsed", [](const HeadStats& h) { return h.collapsed_share(); },
      "share of queries whose normalized entropy is at most 'collapse'", "");
  write(
      "overloaded", [](const HeadStats& h) { return h.overloaded_share(); },
      "share of queries whose normalized entropy is at least 'overload'", "");
  write(
      "sink", [](const HeadStats& h) { return h.sink.mean(); },
      "attention on position 0, mean over queries that see it", "");
  write(
      "sink_top", [](const HeadStats& h) { return share(h.sink_top, h.sink.count); },
      "share of those queries whose largest weight is on position 0", "");
  write(
      "previous", [](const HeadStats& h) { return h.previous.mean(); },
      "attention on the token before the query's", "");
  write(
      "self", [](const HeadStats& h) { return h.self.mean(); }, "attention on the query's token",
      "");
  write(
      "duplicate", [](const HeadStats& h) { return h.duplicate.mean(); },
      "attention on earlier copies of the query's token, of queries that see one", "");
  write(
      "induction", [](const HeadStats& h) { return h.induction.mean(); },
      "attention on the tokens behind earlier copies, of queries that see one", "");
  write(
      "queries", [](const HeadStats& h) { return h.entropy.count; }, "queries", "");
  write(
      "queries_of_two_keys", [](const HeadStats& h) { return h.normalized.count; },
      "queries that see two keys or more", "");
  if (options_.source != AttentionSource::pattern) {
    write(
        "logit_mean", [](const HeadStats& h) { return h.logit_mean(); },
        "attention logits of visible keys (scaled, capped), mean", "");
    write(
        "logit_max", [](const HeadStats& h) { return h.logit_max; },
        "attention logits of visible keys, largest", "");
  }
  if (options_.source == AttentionSource::queries_keys) {
    moments(
        "query_norm", [](const HeadStats& h) { return h.query_norm; },
        "Euclidean norm of the head's query", "");
    moments(
        "key_norm", [](const HeadStats& h) { return h.key_norm; },
        "Euclidean norm of the key that the head reads", "");
  }

  Names states, patterns;
  for (const HeadStats& h : r.head) {
    states.emplace_back(head_state(h, options_));
    patterns.emplace_back(head_pattern(h, options_));
  }
  file.dataset("state", cell, states,
               "collapsed or overloaded if at least 'state_share' of the queries are", "");
  file.dataset("pattern", cell, patterns,
               "largest of sink, previous, self, duplicate and induction that reaches 'sink'", "");

  const Names profile{"layer", "head", "position_bin"};
  std::vector<double> entropy, normalized, queries, received;
  for (const HeadStats& h : r.head) {
    for (const PositionBin& bin : h.bins) {
      entropy.push_back(bin.entropy.mean());
      normalized.push_back(bin.normalized.mean());
      queries.push_back(static_cast<double>(bin.entropy.count));
    }
    for (std::size_t j = 0; j < h.key_sum.size(); ++j) {
      received.push_back(h.key_seen[j] > 0 ? h.key_sum[j] / static_cast<double>(h.key_seen[j])
                                           : std::numeric_limits<double>::quiet_NaN());
    }
  }
  file.dataset("position_entropy", profile, entropy,
               "attention entropy of queries from position_bin up to the next bin, mean", "nats");
  file.dataset("position_entropy_normalized", profile, normalized,
               "the same over the logarithm of the number of visible keys", "");
  file.dataset("position_queries", profile, queries, "queries of the bin", "");
  file.dataset("key_share", Names{"layer", "head", "key"}, received,
               "attention on key position 0, 1, …, mean over the queries that see it", "");
  if (r.strong_keys.empty()) return;

  Names prompts;
  std::vector<std::int32_t> positions, tokens;
  std::vector<double> shares;
  for (const StrongKey& key : r.strong_keys) {
    prompts.push_back(key.prompt_id);
    positions.push_back(static_cast<std::int32_t>(key.position));
    tokens.push_back(key.token_id);
    shares.push_back(key.share);
  }
  const Names entry{"strong_key"};
  file.axis("strong_key", counting(r.strong_keys.size()));
  file.dataset("strong_key_prompt", entry, prompts, "id of the prompt", "");
  file.dataset("strong_key_position", entry, positions, "position of the key, never 0", "");
  file.dataset("strong_key_token", entry, tokens, "id of the token", "");
  file.dataset("strong_key_share", entry, shares,
               "attention on it, mean over all heads and the queries that see it", "");
}

}  // namespace lamina
