#pragma once

#include <CLI/App.hpp>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "inputs.h"
#include "lamina/core/forward.h"
#include "lamina/core/model.h"
#include "lamina/core/recording.h"
#include "lamina/probes/probe.h"

// Where the reading verbs get activations from: recordings, or a model that runs now.
namespace lamina::cli {

struct ProbeSource {
  std::vector<std::string> recordings;
  std::string model;
};
void add_source_options(CLI::App& verb, ProbeSource& source);

/// An opened source: the model (its unembedding is needed either way) and the recordings.
class OpenedSource {
 public:
  /// The model is --model, or the shipped model that the first recording names. Error if a
  /// recording was made from another model.
  explicit OpenedSource(const ProbeSource& source);

  const Model& model() const { return *model_; }
  Forward& forward() { return *forward_; }
  bool live() const { return recordings_.empty(); }
  const std::vector<Recording>& recordings() const { return recordings_; }

  /// Runs a probe over all recordings in the order given or, live, over `prompts`.
  void run(Probe& probe, std::span<const Prompt> prompts, const char* what);
  /// The same for several probes in one pass.
  void run(std::span<Probe* const> probes, std::span<const Prompt> prompts, const char* what);

  /// Root attributes of the result file.
  std::map<std::string, std::string> provenance(const Globals& globals) const;

 private:
  std::vector<Recording> recordings_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Forward> forward_;
};

}  // namespace lamina::cli
