#pragma once

#include <CLI/App.hpp>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "inputs.h"
#include "lamina/core/recording.h"
#include "lamina/probes/features.h"
#include "verbs/probe_source.h"

// Features for the verbs that fit something to them: from recordings, without their model, or from
// a model that runs now.
namespace lamina::cli {

/// What these verbs share on the command line.
struct FeatureInputs {
  ProbeSource source;
  PromptInputs prompts;
  Sampling sampling;
  std::vector<std::string> sites;
  std::string group;
  bool skip_unlabelled = false;
  std::string memory = "1G";
};
/// RECORDING…, --model, --prompts, --text, --bos, --generate, --sites, --group, --skip-unlabelled
/// and --memory. No --group if `group_help` is nullptr.
void add_feature_options(CLI::App& verb, FeatureInputs& inputs, const char* group_help);

class FeatureSource {
 public:
  /// Opens the recordings, or the model and the prompts (and continues them, with --generate).
  FeatureSource(const FeatureInputs& inputs, const Globals& globals);

  const ModelConfig& config() const;
  const std::string& model_sha256() const;
  /// The --sites that were typed, or resid_post of all layers.
  std::vector<Site> sites() const;
  /// The rows of all prompts, before anything is read: wrong labels cost no forward pass.
  std::vector<FeatureRow> rows(const FeatureOptions& options) const;

  /// Names of all labels of all prompts.
  std::set<std::string> label_names() const;

  /// Reads `options.sites`, as many at a time as --memory holds (a recording or a model is gone
  /// through several times if it must be), and hands each over, in order. Error if one alone is
  /// too large, or a recording lacks a site.
  void read(const FeatureOptions& options,
            const std::function<void(const Features& features, std::size_t site)>& use);

  /// Root attributes of the result file.
  std::map<std::string, std::string> provenance(const Globals& globals) const;

 private:
  std::vector<std::vector<Site>> groups(const FeatureOptions& options) const;

  const FeatureInputs& inputs_;
  std::vector<Recording> recordings_;
  std::unique_ptr<OpenedSource> live_;
  std::vector<Prompt> prompts_;
};

}  // namespace lamina::cli
