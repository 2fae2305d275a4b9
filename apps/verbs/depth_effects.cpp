#include "verbs/depth_effects.h"

#include <algorithm>
#include <cmath>

#include "lamina/core/error.h"
#include "lamina/core/tokenizer.h"
#include "ui/terminal.h"

namespace lamina::cli {

void add_depth_effects_options(CLI::App& verb, DepthEffectsOptions& options) {
  verb.add_option("--variant", options.variants,
                  "where a layer is skipped and its effect read: future (default), current, local, "
                  "current-local")
      ->delimiter(',')
      ->check(CLI::IsMember({"future", "current", "local", "current-local"}))
      ->option_text("WHICH...");
  verb.add_option("--part", options.part, "what is skipped: layer (default), attention, mlp")
      ->check(CLI::IsMember({"layer", "attention", "mlp"}))
      ->option_text("PART");
  verb.add_option("--splits", options.skip.splits,
                  "most splits of a prompt, spread over positions 8, 16, ... (default 4)")
      ->check(CLI::Range(1, 1 << 20))
      ->option_text("N");
  verb.add_option("--split-at", options.skip.split_at,
                  "split at these positions instead (2 or more)")
      ->delimiter(',')
      ->check(CLI::Range(2, 1 << 30))
      ->option_text("T...");
  verb.add_flag("--split-at-answer", options.skip.split_at_answer,
                "split where the answer begins instead");
  verb.add_option(
          "--answer", options.answer,
          "label of the prompts that holds an answer, put behind the prompt (default answer)")
      ->option_text("NAME");
  verb.add_option("--statistic", options.statistic,
                  "printed: max (default), prompt-mean of maxima, or token-mean")
      ->check(CLI::IsMember({"max", "prompt-mean", "token-mean"}))
      ->option_text("WHICH");
  verb.add_flag("--no-skip", options.no_skip, "no effects of skipped layers");
  verb.add_option("--erase", options.erase,
                  "erase every token at every layer of the first N prompts (default 0)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb.add_option("--erase-read", options.read,
                  "read erasure at the answer (default), or at all later tokens")
      ->check(CLI::IsMember({"answer", "later"}))
      ->option_text("WHERE");
  verb.add_option(
          "--jacobian", options.jacobian,
          "pairs of random vectors for the Jacobian of every block; try 8 (default 0: none)")
      ->check(CLI::Range(0, 1 << 16))
      ->option_text("N");
  verb.add_option("--gradients", options.gradients,
                  "integrated gradients of the answer over --part's outputs in the first N prompts "
                  "(default 0)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb.add_option("--gradient-steps", options.gradient_steps,
                  "steps of the integrated gradients (default 256)")
      ->check(CLI::Range(1, 1 << 20))
      ->option_text("N");
  verb.add_option("--batch-tokens", options.batch_tokens, "rows computed at once (default 1024)")
      ->check(CLI::Range(1, 1 << 24))
      ->option_text("N");
}

std::vector<Prompt> with_answers(std::vector<Prompt> prompts, const std::string& label,
                                 const Tokenizer* tokenizer) {
  for (Prompt& prompt : prompts) {
    const auto found = prompt.labels.find(label);
    if (found == prompt.labels.end() || found->second.empty()) continue;
    if (tokenizer == nullptr) {
      fail("prompt '{}' has an answer as text, but the model has no tokenizer", prompt.id);
    }
    const std::vector<std::int32_t> ids = tokenizer->encode(found->second, Bos::never);
    prompt.given = static_cast<std::int64_t>(prompt.ids.size());
    prompt.ids.insert(prompt.ids.end(), ids.begin(), ids.end());
  }
  return prompts;
}

DepthEffects run_depth_effects(Forward& forward, std::span<const Prompt> prompts,
                               const DepthEffectsOptions& options, const Globals& globals) {
  DepthEffects out;
  const auto count = static_cast<std::int64_t>(prompts.size());
  const std::int64_t layers = forward.model().config().n_layers;
  const auto run = [](const char* what, const char* unit, std::int64_t total,
                      StepProgress& callback, const auto& measure) {
    ProgressLine line(what, unit, total);
    callback = [&line](std::int64_t done, std::int64_t) { line.update(done); };
    measure();
    callback = nullptr;
    line.finish();
  };
  LayerEffectsOptions& skip = out.skip_options;
  skip = options.skip;
  skip.variants.clear();
  for (const std::string& name : options.variants) {
    const EffectVariant variant = parse_effect_variant(name);
    if (std::ranges::find(skip.variants, variant) == skip.variants.end()) {
      skip.variants.push_back(variant);
    }
  }
  skip.part = parse_effect_part(options.part);
  skip.batch_tokens = options.batch_tokens;
  ErasureOptions& erasure = out.erasure_options;
  erasure.scope = parse_erasure_scope(options.read);
  erasure.prompts = options.erase;
  erasure.batch_tokens = options.batch_tokens;
  JacobianOptions& jacobian = out.jacobian_options;
  jacobian.probes = options.jacobian;
  jacobian.seed = globals.seed;
  jacobian.batch_tokens = options.batch_tokens;
  DepthGradientOptions& gradients = out.gradient_options;
  gradients.part = skip.part;
  gradients.steps = options.gradient_steps;
  gradients.prompts = options.gradients;
  gradients.batch_tokens = options.batch_tokens;
  if (options.no_skip && options.erase == 0 && options.jacobian == 0 && options.gradients == 0) {
    fail_usage("--no-skip leaves nothing to do without --erase, --jacobian or --gradients");
  }
  if (!options.no_skip) {
    run("skipping layers", "layers",
        count * layers * static_cast<std::int64_t>(skip.variants.size()), skip.progress,
        [&] { out.skip = measure_layer_effects(forward, prompts, skip); });
  }
  if (options.erase > 0) {
    run("erasing", "layers", std::min(count, options.erase) * layers, erasure.progress,
        [&] { out.erasure = measure_erasure(forward, prompts, erasure); });
  }
  if (options.jacobian > 0) {
    run("Jacobians", "layers", count * layers, jacobian.progress,
        [&] { out.jacobian = measure_block_jacobian(forward, prompts, jacobian); });
  }
  if (options.gradients > 0) {
    run("gradients", "layers", std::min(count, options.gradients) * layers, gradients.progress,
        [&] { out.gradients = measure_depth_gradients(forward, prompts, gradients); });
  }
  return out;
}

void write_depth_effects(ResultFile& file, const DepthEffects& effects,
                         std::span<const Prompt> prompts) {
  if (effects.skip) {
    file.group("layer_effects");
    write_layer_effects(file, *effects.skip, effects.skip_options);
  }
  if (effects.erasure) {
    file.group("residual_erasure");
    write_erasure(file, *effects.erasure, prompts, effects.erasure_options);
  }
  if (effects.jacobian) {
    file.group("block_jacobian");
    write_block_jacobian(file, *effects.jacobian, effects.jacobian_options);
  }
  if (effects.gradients) {
    file.group("depth_gradients");
    write_depth_gradients(file, *effects.gradients, prompts, effects.gradient_options);
  }
}

}  // namespace lamina::cli
