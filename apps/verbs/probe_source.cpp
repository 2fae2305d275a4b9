#include "verbs/probe_source.h"

#include <algorithm>

#include "lamina/core/error.h"
#include "paths.h"
#include "ui/terminal.h"

namespace lamina::cli {
namespace {

// A recording names its model; if that ships with lamina, nobody has to type it.
std::string model_of(const Recording& recording) {
  const std::string& id = recording.header().model_id;
  for (const std::string& shipped : shipped_models()) {
    const std::size_t slash = shipped.rfind('/');
    if (shipped.substr(slash == std::string::npos ? 0 : slash + 1) == id) return shipped;
  }
  fail("{}: reading it needs the norm and unembedding of its model '{}'; give --model",
       recording.path().string(), id);
}

}  // namespace

void add_source_options(CLI::App& verb, ProbeSource& source) {
  verb.add_option("recordings", source.recordings, "recordings to read")
      ->option_text("RECORDING...");
  verb.add_option("--model", source.model,
                  "the recordings' model, or the one to run now over --prompts")
      ->option_text("MODEL");
}

OpenedSource::OpenedSource(const ProbeSource& source) {
  for (const std::string& path : source.recordings) recordings_.push_back(Recording::open(path));
  if (recordings_.empty() && source.model.empty()) {
    fail_usage("nothing to read; give recordings, or --model and prompts");
  }
  const std::string model = source.model.empty() ? model_of(recordings_.front()) : source.model;
  model_ = std::make_unique<Model>(load_model(model));
  for (const Recording& recording : recordings_) {
    if (recording.header().model_sha256 != model_->sha256()) {
      fail("{}: it was recorded from a model with SHA-256 {}, '{}' has {}",
           recording.path().string(), recording.header().model_sha256, model, model_->sha256());
    }
  }
  forward_ = std::make_unique<Forward>(*model_);
}

void OpenedSource::run(Probe& probe, std::span<const Prompt> prompts, const char* what) {
  Probe* const probes[] = {&probe};
  run(probes, prompts, what);
}

void OpenedSource::run(std::span<Probe* const> probes, std::span<const Prompt> prompts,
                       const char* what) {
  if (live()) {
    LiveOptions options;
    ProgressLine progress(what, "tokens", total_tokens(prompts));
    options.progress = [&](std::int64_t, std::int64_t tokens) { progress.update(tokens); };
    run_probes(probes, *forward_, prompts, options);
    progress.finish();
    return;
  }
  std::int64_t total = 0, before = 0;
  for (const Recording& recording : recordings_) total += recording.tokens();
  ProgressLine progress(what, "tokens", total);
  for (const Recording& recording : recordings_) {
    std::vector<std::unique_ptr<Probe>> parts;
    std::vector<Probe*> part_probes;
    for (const Probe* probe : probes)
      part_probes.push_back(parts.emplace_back(probe->fresh()).get());
    run_probes(part_probes, recording, std::uint64_t{256} << 20,
               [&](std::int64_t, std::int64_t tokens) { progress.update(before + tokens); });
    for (std::size_t i = 0; i < probes.size(); ++i) probes[i]->merge(*parts[i]);
    before += recording.tokens();
  }
  progress.finish();
}

std::map<std::string, std::string> OpenedSource::provenance(const Globals& globals) const {
  auto attributes = cli::provenance(globals);
  attributes["model_id"] = model_->id();
  attributes["model_sha256"] = model_->sha256();
  std::string inputs;
  for (const Recording& recording : recordings_) {
    inputs += (inputs.empty() ? "" : "\n") + recording.path().string();
  }
  if (!inputs.empty()) attributes["recordings"] = inputs;
  return attributes;
}

}  // namespace lamina::cli
