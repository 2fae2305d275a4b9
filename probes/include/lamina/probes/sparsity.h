#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lamina/probes/probe.h"
#include "lamina/probes/streams.h"

namespace lamina {

struct SparsityOptions {
  /// A neuron is active for a token if |x| > threshold, x being what enters the down projection
  /// (mlp.hook_post); with `relative`, if |x| > threshold · RMS of the layer's x at the token.
  double threshold = 0.0;
  bool relative = false;
  TokenChoice tokens;
  bool operator==(const SparsityOptions&) const = default;
};
/// ReLU: |x| > 0, the source's definition. Other activations are hardly ever 0: [ours]
/// |x| > 0.1 · RMS.
SparsityOptions default_sparsity(const ModelConfig& config);

struct SparsityResults {
  std::int64_t tokens = 0, layers = 0, neurons = 0;
  std::vector<std::int64_t> counts;  // [layer, neuron] tokens for which it was active
  std::vector<double> active;        // [layer] share of (token, neuron) that is active
  std::vector<std::int64_t> never;   // [layer] neurons that were active for no token
  bool operator==(const SparsityResults&) const = default;
};

/// How few MLP neurons a token uses. Source: Li et al., "The Lazy Neuron Phenomenon". Counts are
/// whole numbers, so parts add up exactly. Memory 8 · layers · neurons bytes.
class SparsityProbe : public Probe {
 public:
  /// UsageError for a model without MLPs and for a threshold that is no number of 0 or more.
  SparsityProbe(const ModelConfig& config, SparsityOptions options);
  explicit SparsityProbe(const ModelConfig& config)
      : SparsityProbe(config, default_sparsity(config)) {}

  std::string name() const override { return "depth_sparsity"; }
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  void write(ResultFile& file) const override;

  SparsityResults results() const;
  const SparsityOptions& options() const { return options_; }

 private:
  ModelConfig config_;
  SparsityOptions options_;
  std::int64_t tokens_ = 0;
  std::vector<std::int64_t> counts_;  // [layer, neuron]
};

}  // namespace lamina
