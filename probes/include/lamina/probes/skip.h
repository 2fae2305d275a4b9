#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/core/prompts.h"
#include "lamina/core/run.h"
#include "lamina/probes/void.h"
#include "lamina/probes/void_rule.h"

namespace lamina {

/// What happens to a block that is void for a token.
enum class SkipMode : std::uint8_t {
  /// Nothing: decisions are only made.
  none,
  /// All blocks run as ever; what left the token's last active block (the embedding if none is)
  /// goes to the final norm. What the authors' release does.
  last_active,
  /// [ours] What the block adds to the token is dropped: the stream leaves the block as it entered,
  /// and later layers see that. The token's keys and values in this block stay as computed, because
  /// they are made before its decision can be. δ_l is what the block would have changed; dropped
  /// ones count in later λ.
  blocks,
};
std::string_view skip_mode_name(SkipMode mode);
/// "none", "last-active" or "blocks"; UsageError otherwise.
SkipMode parse_skip_mode(std::string_view name);

struct SkipOptions {
  SkipMode mode = SkipMode::none;
  double alpha = 0.8;
  VoidRule rule = VoidRule::l2;
  /// Layers left out for every token, whatever the mode. The detector does not see them. They are
  /// computed and dropped, which costs their time.
  std::vector<std::int32_t> layers;
};

/// Hooks that skip, for any pass: Forward::run with or without a cache, or generate(). They start
/// afresh with every pass. The object must outlive the passes and not be used by two at a time.
class SkipRun {
 public:
  /// UsageError for layers that the model lacks, and an α that is negative or not finite.
  SkipRun(const ModelConfig& config, SkipOptions options);
  SkipRun(const SkipRun&) = delete;
  SkipRun& operator=(const SkipRun&) = delete;

  const Hooks& hooks() const { return hooks_; }
  const SkipOptions& options() const { return options_; }

  // Of the last pass.
  std::int64_t tokens() const { return tokens_; }
  /// [token, layer] ‖block's output‖ − ‖its input‖; NaN for a layer that is left out.
  std::span<const double> deltas() const { return deltas_; }
  /// [token, layer] 1: active; 0: void, or left out.
  std::span<const std::uint8_t> active() const { return active_; }
  /// What active() would be with another α, had nothing been skipped on the way.
  std::vector<std::uint8_t> active_at(double alpha) const;

 private:
  void begin(const SiteView& view);
  void enter(const SiteView& view);
  void leave(SiteView& view);

  ModelConfig config_;
  SkipOptions options_;
  std::vector<std::uint8_t> left_out_;  // [layer]
  Hooks hooks_;

  std::int64_t tokens_ = 0;
  std::vector<double> deltas_;
  std::vector<std::uint8_t> active_;
  std::vector<double> norms_;            // [token] of the stream as it is now
  std::vector<VoidDetector> detectors_;  // [token]
  std::vector<float> before_;            // [token, d_model] what entered this block
  std::vector<float> last_;              // [token, d_model] what left the last active block
};

/// What a model says after every token: the log-probability, in nats, of the id that follows in the
/// prompt (NaN at its end) and the likeliest next id.
struct NextTokens {
  std::vector<float> logprob;      // [token]
  std::vector<std::int32_t> best;  // [token] ties: smaller id
  VoidCounts counts;               // of the pass: one α, that of the run
};

/// Runs the prompts under `run`'s skipping. Passes hold up to `batch_tokens` tokens.
NextTokens next_tokens(Forward& forward, std::span<const Prompt> prompts, SkipRun& run,
                       std::int64_t batch_tokens = 1024, const Progress& progress = {});

}  // namespace lamina
