#include "lamina/probes/survey.h"

#include <algorithm>

#include "lamina/core/error.h"

namespace lamina {

template <class P, class... Args>
const P* Survey::add(std::string_view name, Args&&... args) {
  try {
    auto probe = std::make_unique<P>(std::forward<Args>(args)...);
    const P* out = probe.get();
    probes_.push_back(std::move(probe));
    return out;
  } catch (const UsageError& error) {  // how a probe says that the model has no place for it
    left_out_.push_back(fmt::format("{}: {}", name, error.what()));
    return nullptr;
  }
}

Survey::Survey(Forward& forward, SurveyOptions options)
    : forward_(forward), options_(options), readout_(model_readout(forward)) {
  if (options.skip < 0 || options.exit_every < 0 || options.coding_every < 1 ||
      options.minibatch < 4) {
    fail_usage(
        "survey: skip {}, exit_every {}, coding_every {} and minibatch {} were asked for, at least "
        "0, 0, 1 and 4 expected",
        options.skip, options.exit_every, options.coding_every, options.minibatch);
  }
  const ModelConfig& config = forward.model().config();
  const TokenChoice tokens{options.skip, 1};
  if (config.causal && config.head == Head::language) {
    text = add<NextTokenProbe>("next_token");
  } else {
    left_out_.emplace_back("next_token: the model predicts no next token");
  }
  VoidOptions void_options;
  void_options.keep_tokens = false;
  voids = add<VoidProbe>("void", config, void_options);
  AttentionOptions attention_options;
  attention_options.source = live_attention_source(config);
  attention = add<AttentionProbe>("entropy", config, attention_options);
  massive = add<MassiveProbe>("massive", config);
  contributions = add<ContributionProbe>("depth_contributions", config, tokens);
  growth = add<GrowthProbe>("depth_growth", config, tokens);
  angular = add<AngularProbe>("depth_angular", config, tokens);
  if (config.d_mlp > 0) sparsity = add<SparsityProbe>("depth_sparsity", config);
  CodingRateOptions coding_options;
  coding_options.tokens = {options.skip, options.coding_every};
  coding_rate = add<CodingRateProbe>("depth_coding_rate", config, coding_options);
  if (options.exit_every > 0) {
    ExitOptions exit_options;
    exit_options.tokens = {0, options.exit_every};
    exits = add<ExitProbe>("depth_exit", config, *readout_, exit_options);
  }
  CkaOptions cka_options;
  cka_options.mode = CkaMode::minibatch;
  cka_options.measures = {.linear = false, .debiased = true};
  cka_options.minibatch = options.minibatch;
  cka_options.skip = options.skip;
  cka = add<CkaProbe>("cka", config, cka_options);
}

void Survey::run(std::span<const Prompt> prompts, const LiveOptions& options) {
  LiveOptions live = options;
  if (text != nullptr) live.topk = std::max<std::int64_t>(live.topk, 1);
  std::vector<Probe*> probes;
  for (const auto& probe : probes_) probes.push_back(probe.get());
  run_probes(probes, forward_, prompts, live);
}

void Survey::write(ResultFile& file) const {
  for (const auto& probe : probes_) {
    file.group(probe->name());
    probe->write(file);
  }
}

}  // namespace lamina
