#include "verbs/activation_source.h"

#include "lamina/core/error.h"
#include "ui/terminal.h"

namespace lamina::cli {

ActivationSource::ActivationSource(const std::string& model_name,
                                   const std::vector<std::string>& recording_paths,
                                   const PromptInputs& inputs) {
  if (recording_paths.empty() && model_name.empty()) {
    fail_usage("nothing to read; give a model and prompts, or recordings");
  }
  if (!recording_paths.empty() && has_prompts(inputs)) {
    fail_usage("recordings and prompts were both given; a recording has its own prompts");
  }
  for (const std::string& path : recording_paths) recordings.push_back(Recording::open(path));
  if (!model_name.empty()) {
    model = load_model(model_name);
    forward.emplace(*model);
    if (recordings.empty()) prompts = load_prompts(inputs, *model);
  }
  for (const Recording& recording : recordings) {
    const std::string& first = recordings.front().header().model_sha256;
    const std::string& expected = model ? model->sha256() : first;
    if (recording.header().model_sha256 != expected) {
      fail("{}: it was recorded from a model with SHA-256 {}, expected {}",
           recording.path().string(), recording.header().model_sha256, expected);
    }
    if (!model) continue;
    prompts.insert(prompts.end(), recording.prompts().begin(), recording.prompts().end());
  }
}

void ActivationSource::run(Probe& probe, const char* what) {
  Probe* const probes[] = {&probe};
  if (recordings.empty()) {
    LiveOptions options;
    ProgressLine progress(what, "tokens", total_tokens(prompts));
    options.progress = [&](std::int64_t, std::int64_t tokens) { progress.update(tokens); };
    run_probes(probes, *forward, prompts, options);
    progress.finish();
    return;
  }
  std::int64_t total = 0, before = 0;
  for (const Recording& recording : recordings) total += recording.tokens();
  ProgressLine progress(what, "tokens", total);
  for (const Recording& recording : recordings) {
    const std::unique_ptr<Probe> part = probe.fresh();
    Probe* const part_probes[] = {part.get()};
    run_probes(part_probes, recording, std::uint64_t{256} << 20,
               [&](std::int64_t, std::int64_t tokens) { progress.update(before + tokens); });
    probe.merge(*part);
    before += recording.tokens();
  }
  progress.finish();
}

const ModelConfig& ActivationSource::config() const {
  return model ? model->config() : recordings.front().header().config;
}

std::map<std::string, std::string> ActivationSource::provenance(const Globals& globals) const {
  auto attributes = cli::provenance(globals);
  if (model) {
    attributes["model_id"] = model->id();
    attributes["model_sha256"] = model->sha256();
  } else {
    attributes["model_id"] = recordings.front().header().model_id;
    attributes["model_sha256"] = recordings.front().header().model_sha256;
  }
  std::string inputs;
  for (const Recording& recording : recordings) {
    inputs += (inputs.empty() ? "" : "\n") + recording.path().string();
  }
  if (!inputs.empty()) attributes["recordings"] = inputs;
  return attributes;
}

}  // namespace lamina::cli
