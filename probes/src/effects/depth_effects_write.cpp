// The results of layer_effects.h, residual_erasure.h, block_jacobian.h and depth_gradients.h in a
// result file.

#include <limits>
#include <numeric>
#include <string>

#include "lamina/core/error.h"
#include "lamina/probes/block_jacobian.h"
#include "lamina/probes/depth_gradients.h"
#include "lamina/probes/layer_effects.h"
#include "lamina/probes/residual_erasure.h"

namespace lamina {
namespace {

using Names = std::vector<std::string>;

std::vector<std::int64_t> numbers(std::int64_t count) {
  std::vector<std::int64_t> out(static_cast<std::size_t>(count));
  std::iota(out.begin(), out.end(), 0);
  return out;
}

template <class T>
void append(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

void write_layer_effects(ResultFile& file, const LayerEffects& results,
                         const LayerEffectsOptions& options) {
  const std::int64_t layers = results.n_layers;
  file.setting("part", std::string(effect_part_name(options.part)));
  if (options.split_at_answer) {
    file.setting("splits", "where the answer begins");
  } else if (!options.split_at.empty()) {
    std::string text;
    for (const std::int64_t t : options.split_at)
      text += (text.empty() ? "" : ",") + fmt::format("{}", t);
    file.setting("splits", text);
  } else {
    file.setting("splits", fmt::format("[ours] at most {}, evenly spread over {}, {} … below "
                                       "length - 4; the middle of shorter prompts",
                                       options.splits, options.split_step, 2 * options.split_step));
  }
  file.setting("first_skipped_position", std::int64_t{1});
  file.setting("smallest_denominator", 1e-6);
  Names variants;
  std::vector<double> effect, out, layer_effect, score, out_score;
  std::vector<std::int32_t> prompts, splits, tokens;
  for (const EffectTable& t : results.tables) {
    variants.emplace_back(effect_variant_name(t.variant));
    for (std::size_t i = 0; i < 3; ++i) {
      append(effect, t.effect[i]);
      append(out, t.out[i].empty() ? std::vector<double>(static_cast<std::size_t>(layers),
                                                         std::numeric_limits<double>::quiet_NaN())
                                   : t.out[i]);
      append(layer_effect, t.layer_effect[i]);
      score.push_back(t.depth_score[i]);
      out_score.push_back(t.out_depth_score[i]);
    }
    prompts.push_back(static_cast<std::int32_t>(t.prompts));
    splits.push_back(static_cast<std::int32_t>(t.splits));
    tokens.push_back(static_cast<std::int32_t>(t.tokens));
  }
  file.axis("variant", variants);
  file.axis("statistic", Names(kEffectStatistics.begin(), kEffectStatistics.end()));
  file.axis("layer_skipped", numbers(layers));
  file.axis("layer", numbers(layers));
  file.dataset("effect", Names{"variant", "statistic", "layer_skipped", "layer"}, effect,
               "relative change of what the layer adds to a token when another layer is skipped",
               "");
  file.dataset("out_effect", Names{"variant", "statistic", "layer_skipped"}, out,
               "L2 norm of the change of the next-token probabilities; NaN for local variants", "");
  file.dataset("layer_effect", Names{"variant", "statistic", "layer_skipped"}, layer_effect,
               "sum of effect over layers, over the number of layers behind (at least 1)", "");
  file.dataset("depth_score", Names{"variant", "statistic"}, score,
               "mean of layer_skipped weighted by layer_effect", "layers");
  file.dataset("out_depth_score", Names{"variant", "statistic"}, out_score,
               "mean of layer_skipped weighted by out_effect", "layers");
  file.dataset("prompts", Names{"variant"}, prompts, "prompts that were long enough", "");
  file.dataset("splits", Names{"variant"}, splits, "splits of all prompts", "");
  file.dataset("tokens", Names{"variant"}, tokens, "tokens read, of all splits", "");
}

void write_erasure(ResultFile& file, const Erasure& results, std::span<const Prompt> prompts,
                   const ErasureOptions& options) {
  file.setting("read_at", std::string(erasure_scope_name(options.scope)));
  file.setting("mean_tokens", results.mean_tokens);
  file.setting("mean", "[ours] over every token of the prompts of this run, position 0 among them");
  const std::int64_t streams = results.n_layers + 1;
  Names ids;
  std::vector<std::int32_t> prompt, position, token_id;
  std::vector<std::uint8_t> read;
  for (const ErasureMap& map : results.maps) {
    const Prompt& p = prompts[static_cast<std::size_t>(map.prompt)];
    ids.push_back(p.id);
    for (std::size_t t = 0; t < p.ids.size(); ++t) {
      prompt.push_back(static_cast<std::int32_t>(map.prompt));
      position.push_back(static_cast<std::int32_t>(t));
      token_id.push_back(p.ids[t]);
      read.push_back(0);
    }
    const std::size_t begin = read.size() - p.ids.size();
    for (const std::int64_t r : map.reads) read[begin + static_cast<std::size_t>(r)] = 1;
  }
  // [stream, token] of all prompts side by side
  const std::size_t tokens = prompt.size();
  std::vector<double> effect(static_cast<std::size_t>(streams) * tokens);
  std::size_t begin = 0;
  for (const ErasureMap& map : results.maps) {
    const std::size_t n = prompts[static_cast<std::size_t>(map.prompt)].ids.size();
    for (std::size_t l = 0; l < static_cast<std::size_t>(streams); ++l) {
      for (std::size_t t = 0; t < n; ++t) effect[l * tokens + begin + t] = map.effect[l * n + t];
    }
    begin += n;
  }
  file.axis("stream", numbers(streams));
  file.axis("erased", numbers(static_cast<std::int64_t>(tokens)));
  file.axis("prompt", ids);
  file.dataset("effect", Names{"stream", "erased"}, effect,
               "largest L2 norm of the change of the probabilities read, the token's residual "
               "replaced by the mean where it enters this layer (the last: leaves the model)",
               "");
  file.dataset("prompt_index", Names{"erased"}, prompt, "index into prompt", "");
  file.dataset("position", Names{"erased"}, position, "within the prompt", "");
  file.dataset("token_id", Names{"erased"}, token_id, "", "");
  file.dataset("read", Names{"erased"}, read, "1: an answer is read here", "");
}

void write_block_jacobian(ResultFile& file, const BlockJacobian& results,
                          const JacobianOptions& options) {
  file.setting("pairs", options.probes);
  file.setting("seed", static_cast<std::int64_t>(options.seed));
  file.setting("exact", std::string(results.exact ? "yes" : "no"));
  file.setting("tokens", results.tokens);
  file.setting("scale", "[ours] root mean square over tokens, divided by sqrt(d_model)");
  file.axis("layer", numbers(results.n_layers));
  const Names layer{"layer"};
  file.dataset("own", layer, results.own, "distance of a token's own Jacobian from the identity",
               "norm of the identity");
  file.dataset("own_error", layer, results.own_error, "standard error of own",
               "norm of the identity");
  file.dataset("all", layer, results.all,
               "distance of the Jacobian of all tokens from the identity, per token",
               "norm of the identity");
  file.dataset("all_error", layer, results.all_error, "standard error of all",
               "norm of the identity");
}

void write_depth_gradients(ResultFile& file, const DepthGradients& results,
                           std::span<const Prompt> prompts, const DepthGradientOptions& options) {
  file.setting("part", std::string(effect_part_name(options.part)));
  file.setting("steps", options.steps);
  file.setting("baseline", "mean over the prompt's tokens");
  const auto layers = static_cast<std::size_t>(results.n_layers);
  std::vector<std::string> ids;
  std::vector<std::int32_t> prompt, position, token_id;
  std::vector<double> probability, baseline;
  for (const DepthGradientMap& map : results.maps) {
    const Prompt& p = prompts[static_cast<std::size_t>(map.prompt)];
    ids.push_back(p.id);
    probability.push_back(map.probability);
    append(baseline, map.baseline);
    for (std::size_t t = 0; t < p.ids.size(); ++t) {
      prompt.push_back(static_cast<std::int32_t>(map.prompt));
      position.push_back(static_cast<std::int32_t>(t));
      token_id.push_back(p.ids[t]);
    }
  }
  const std::size_t tokens = prompt.size();
  std::vector<double> attribution(layers * tokens);
  std::size_t begin = 0;
  for (const DepthGradientMap& map : results.maps) {
    const std::size_t n = prompts[static_cast<std::size_t>(map.prompt)].ids.size();
    for (std::size_t l = 0; l < layers; ++l) {
      for (std::size_t t = 0; t < n; ++t) {
        attribution[l * tokens + begin + t] = map.attribution[l * n + t];
      }
    }
    begin += n;
  }
  file.axis("layer", numbers(results.n_layers));
  file.axis("token", numbers(static_cast<std::int64_t>(tokens)));
  file.axis("prompt", ids);
  file.dataset("attribution", Names{"layer", "token"}, attribution,
               "integrated gradient of the answer's probability over what the layer writes there",
               "probability");
  file.dataset("probability", Names{"prompt"}, probability,
               "sum of the probabilities of the answer's tokens", "probability");
  file.dataset("baseline_probability", Names{"prompt", "layer"}, baseline,
               "the same with the layer writing its mean at every token", "probability");
  file.dataset("prompt_index", Names{"token"}, prompt, "index into prompt", "");
  file.dataset("position", Names{"token"}, position, "within the prompt", "");
  file.dataset("token_id", Names{"token"}, token_id, "", "");
}

}  // namespace lamina
