#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lamina/probes/probe.h"
#include "lamina/probes/streams.h"

namespace lamina {

/// Angular distances between the streams entering blocks.
struct AngularResults {
  std::int64_t tokens = 0, layers = 0;
  /// [layer i, n − 1]: arccos(cos(h_i, h_{i+n}))/π, 0 to 1, mean over tokens; n = 1 … layers; NaN
  /// where block i + n − 1 does not exist.
  std::vector<double> distance;
  /// [n − 1]: of all runs of n blocks the one over which the stream turns least, its first block
  /// (lowest of equals), and that distance: the best to prune. −1 and NaN without tokens.
  std::vector<std::int32_t> first;
  std::vector<double> least;
  bool operator==(const AngularResults&) const = default;
};

/// Source: Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers"; there at the
/// last token of every text, here the mean over the tokens chosen. The product of the
/// norms in the cosine is at least 1e-16.
class AngularProbe : public Probe {
 public:
  explicit AngularProbe(const ModelConfig& config, TokenChoice tokens = {});
  ~AngularProbe() override;

  std::string name() const override { return "depth_angular"; }
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  void write(ResultFile& file) const override;

  AngularResults results() const;

 private:
  ModelConfig config_;
  TokenChoice choice_;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lamina
