#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/probes/moments.h"
#include "lamina/probes/probe.h"

namespace lamina {

/// What attention is computed from. queries_keys: hook_rot_q and hook_rot_k (hook_q and hook_k
/// without rotation), tokens × width numbers; the other two hold tokens² numbers a head.
/// `pattern` says nothing about logits.
enum class AttentionSource : std::uint8_t { queries_keys, scores, pattern };
std::string_view attention_source_name(AttentionSource source);

/// The sites of a source, all layers.
std::vector<Site> attention_sites(const ModelConfig& config, AttentionSource source);
/// What to read while the model runs: queries and keys, or the scores in the one kind of model
/// whose sites do not hold them as they meet (norms on queries and keys, no rotation).
AttentionSource live_attention_source(const ModelConfig& config);
/// The first source that the recording holds completely. Error that says what to record otherwise.
AttentionSource recorded_attention_source(const ModelConfig& config, const Recording& recording);

/// All thresholds are [ours] but `sink` (Gu et al. 2024, "When Attention Sink Emerges").
struct AttentionOptions {
  AttentionSource source = AttentionSource::queries_keys;
  double collapse = 0.1;     // a query is collapsed if H ≤ this × log(visible keys)
  double overload = 0.9;     // and overloaded if H ≥ this × log(visible keys)
  double state_share = 0.5;  // a head is what at least this share of its queries are
  double sink = 0.3;         // share of attention that makes a head a sink (previous …) head
  std::int64_t bin_width = 0;  // positions a bin of the profile; 0: bins double, 0, 1, 2–3, 4–7 …
  std::int64_t first_keys = 8;   // key positions listed one by one
  std::int64_t strongest = 10;   // keys behind position 0 that are listed
  std::int64_t key_queries = 8;  // a key counts as strong if at least as many queries see it
  bool operator==(const AttentionOptions&) const = default;
};

/// One bin of query positions.
struct PositionBin {
  Moments entropy, normalized;
  bool operator==(const PositionBin&) const = default;
};

/// What the queries of one head do. Unless said otherwise over queries that see two keys or more:
/// with one key nothing is chosen.
struct HeadStats {
  Moments entropy;                             // nats, all queries
  Moments normalized;                          // over log(visible keys)
  std::int64_t collapsed = 0, overloaded = 0;  // queries
  Moments sink;                                // share on position 0, of queries that see it
  std::int64_t sink_top = 0;                   // of those: position 0 gets the largest share
  Moments previous;  // share on the token before, if there is one in sight
  Moments self;
  Moments duplicate;        // share on earlier copies of the query's token, if any is in sight
  Moments induction;        // share on what followed those copies (the query itself left out)
  std::int64_t logits = 0;  // scores of visible keys, all queries: how many, sum, largest
  double logit_sum = 0, logit_max = -std::numeric_limits<double>::infinity();
  Moments query_norm, key_norm;        // Euclidean, all tokens; key heads are shared
  std::vector<double> key_sum;         // [first_keys] attention received
  std::vector<std::int64_t> key_seen;  // [first_keys] by so many queries
  std::vector<PositionBin> bins;

  void add(const HeadStats& other);
  double logit_mean() const;
  /// Of queries that see two keys or more; NaN without.
  double collapsed_share() const;
  double overloaded_share() const;
  bool operator==(const HeadStats&) const = default;
};

/// A key behind position 0 and the mean share it gets, over all heads and the queries that see it.
struct StrongKey {
  std::string prompt_id;
  std::int64_t position = 0;
  std::int32_t token_id = 0;
  double share = 0;
  bool operator==(const StrongKey&) const = default;
};

struct AttentionResults {
  std::int64_t layers = 0, heads = 0, tokens = 0, prompts = 0;
  std::vector<HeadStats> head;         // [layer, head]
  std::vector<StrongKey> strong_keys;  // falling; ties: the earlier one
  const HeadStats& at(std::int64_t layer, std::int64_t h) const {
    return head[static_cast<std::size_t>(layer * heads + h)];
  }
  bool operator==(const AttentionResults&) const = default;
};

/// "collapsed", "overloaded", or "" (neither, or no query with two keys).
std::string_view head_state(const HeadStats& head, const AttentionOptions& options);
/// The largest share of "sink", "previous", "self", "duplicate", "induction" that reaches
/// options.sink, or "".
std::string_view head_pattern(const HeadStats& head, const AttentionOptions& options);

/// First query position of every bin.
std::vector<std::int64_t> position_bins(const ModelConfig& config, std::int64_t bin_width);

/// Attention entropy, sinks, simple patterns and logits of every head. Memory depends on the model
/// and the longest prompt, not on the number of tokens. Results depend neither on threads nor on
/// how prompts are cut into blocks.
class AttentionProbe : public Probe {
 public:
  /// `config` is the model's: a recording's lacks windows and scales. UsageError for thresholds
  /// outside [0, 1] or collapse ≥ overload, and for sizes out of range.
  explicit AttentionProbe(const ModelConfig& config, AttentionOptions options = {});

  std::string name() const override { return "entropy"; }
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  /// Error if attention is not finite or a recorded pattern does not add up to 1.
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  void write(ResultFile& file) const override;

  const AttentionResults& results() const { return results_; }
  const AttentionOptions& options() const { return options_; }

 private:
  struct Pass;
  void observe_heads(Pass& pass, std::int32_t layer, std::int64_t kv_head);
  void observe_strong_keys(const Pass& pass);
  static void keep_strongest(std::vector<StrongKey>& keys, std::int64_t most);

  ModelConfig config_;
  AttentionOptions options_;
  std::vector<std::int64_t> bins_;
  AttentionResults results_;
};

}  // namespace lamina
