#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "inputs.h"
#include "lamina/core/forward.h"
#include "lamina/core/model.h"
#include "lamina/core/recording.h"
#include "lamina/probes/probe.h"

namespace lamina::cli {

/// Where dictionaries get activations from: recordings, with or without their model, or a model
/// that runs now.
struct ActivationSource {
  std::vector<Recording> recordings;
  std::optional<Model> model;
  std::optional<Forward> forward;
  std::vector<Prompt> prompts;  // to be run, or the recordings' own if there is a model

  /// UsageError for neither model nor recordings, and for prompts beside recordings; Error for
  /// recordings of different models.
  ActivationSource(const std::string& model, const std::vector<std::string>& recordings,
                   const PromptInputs& inputs);
  ActivationSource(const ActivationSource&) = delete;

  /// Runs a probe over all recordings in the order given or, live, over the prompts.
  void run(Probe& probe, const char* what);
  /// The model's configuration; of a recording alone, its sizes.
  const ModelConfig& config() const;
  const Tokenizer* tokenizer() const { return model ? model->tokenizer() : nullptr; }
  /// Root attributes of the result file.
  std::map<std::string, std::string> provenance(const Globals& globals) const;
};

}  // namespace lamina::cli
