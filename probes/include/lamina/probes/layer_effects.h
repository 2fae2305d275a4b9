#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/core/prompts.h"
#include "lamina/core/result_file.h"

// What later layers and the output lose when a layer is skipped. After "Do Language Models Use
// Their Depth Efficiently?" (Csordás, Manning, Potts 2025) and its released code.
// docs/depth-effects.md has the formulas.

namespace lamina {

/// Where a layer s is skipped, and where the effect is read. Position 0 is never skipped: models
/// park large activations there.
enum class EffectVariant : std::uint8_t {
  /// Skipped at positions 1 … t − 1, read at t and later: what later tokens take from it.
  future,
  /// Skipped at every position but 0, read at all of them.
  current,
  /// As future, but every later layer reads its original input minus what s added: nothing between
  /// the two is computed again. Whole layers only, no effect on the output.
  local,
  /// As current, computed as local.
  current_local,
};
std::string_view effect_variant_name(EffectVariant variant);
/// "future", "current", "local" or "current-local"; UsageError otherwise.
EffectVariant parse_effect_variant(std::string_view name);

/// What of a layer is skipped. The change of later layers is always that of the whole layer.
enum class EffectPart : std::uint8_t { layer, attention, mlp };
std::string_view effect_part_name(EffectPart part);
EffectPart parse_effect_part(std::string_view name);

/// How the numbers of several tokens become one. Of the maxima over a prompt's tokens and splits:
/// the largest and the mean over prompts; and the mean over all tokens read.
enum class EffectStatistic : std::uint8_t { max, prompt_mean, token_mean };
inline constexpr std::array<const char*, 3> kEffectStatistics = {"max", "prompt_mean",
                                                                 "token_mean"};

/// Called with the number of steps done and of all.
using StepProgress = std::function<void(std::int64_t done, std::int64_t total)>;

struct LayerEffectsOptions {
  std::vector<EffectVariant> variants = {EffectVariant::future};
  EffectPart part = EffectPart::layer;
  /// Splits t of a prompt of n tokens: at most `splits`, evenly spread over 8, 16, … < n − 4, as
  /// the authors draw them at random. [ours] A shorter prompt is split in its middle.
  std::int64_t splits = 4;
  std::int64_t split_step = 8;
  std::vector<std::int64_t> split_at;  // these instead, where a prompt has them; ≥ 2
  bool split_at_answer = false;        // instead: where what was given ends (Prompt::given)
  std::int64_t batch_tokens = 1024;    // rows computed at once
  std::uint64_t memory = std::uint64_t{256} << 20;  // for probabilities of the undisturbed pass
  StepProgress progress;
};

/// The splits of one prompt under these options; none if it is too short.
std::vector<std::int64_t> effect_splits(const Prompt& prompt, const LayerEffectsOptions& options);

/// What one variant found. L layers; effect of s on l at s · L + l, 0 for l < s.
struct EffectTable {
  EffectVariant variant = EffectVariant::future;
  std::int64_t prompts = 0;  // that were long enough
  std::int64_t splits = 0;   // of all prompts
  std::int64_t tokens = 0;   // read: of all splits
  // By EffectStatistic.
  std::array<std::vector<double>, 3> effect;  // [L, L] ‖Δ_l − Δ_l^skip‖ / ‖Δ_l‖
  std::array<std::vector<double>, 3> out;  // [L] ‖p − p^skip‖; empty for the local variants
  /// [L] mean of effect[s, l] over the layers behind s, the sum over all l.
  std::array<std::vector<double>, 3> layer_effect;
  std::array<double, 3> depth_score{};      // Σ s e_s / Σ e_s; NaN if nothing has an effect
  std::array<double, 3> out_depth_score{};  // the same of `out`
};

struct LayerEffects {
  std::int64_t n_layers = 0;
  std::vector<EffectTable> tables;  // by LayerEffectsOptions::variants
};

/// Runs every prompt once as it is and then again from behind every skipped layer, several splits
/// at a time; a value is that of a full pass with the layer skipped, bit for bit. Memory: the
/// residual stream of `batch_tokens` tokens (or the longest prompt) at every layer, and `memory`.
/// UsageError for a model that is no causal language model, and for options that exclude each
/// other; Error if no prompt is long enough.
LayerEffects measure_layer_effects(Forward& forward, std::span<const Prompt> prompts,
                                   const LayerEffectsOptions& options = {});

/// Writes to the file's current group.
void write_layer_effects(ResultFile& file, const LayerEffects& results,
                         const LayerEffectsOptions& options);

/// Σ s e_s / Σ e_s over e [L].
double depth_score(std::span<const double> e);

}  // namespace lamina
