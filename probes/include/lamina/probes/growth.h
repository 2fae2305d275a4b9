#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lamina/probes/probe.h"
#include "lamina/probes/streams.h"

namespace lamina {

/// Size of the residual stream, [stream] each: h_0, then what leaves every block.
struct GrowthResults {
  std::int64_t tokens = 0;
  std::vector<double> norm, norm_max;   // ‖h‖: mean over tokens, largest
  std::vector<double> rms;              // ‖h‖/√D: mean over tokens
  std::vector<double> variance;         // of a token's D coordinates about their mean; mean
  std::vector<double> pooled_variance;  // of the coordinates of all tokens about their one mean
  std::vector<double> growth;           // variance over that of h_0
  bool operator==(const GrowthResults&) const = default;
};

/// How the residual stream grows with depth. Source: Sun et al., "The Curse of Depth in Large
/// Language Models" (variance of a layer's output). Variances divide by the number of values.
class GrowthProbe : public Probe {
 public:
  explicit GrowthProbe(const ModelConfig& config, TokenChoice tokens = {});
  ~GrowthProbe() override;

  std::string name() const override { return "depth_growth"; }
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  void write(ResultFile& file) const override;

  GrowthResults results() const;

 private:
  ModelConfig config_;
  TokenChoice choice_;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lamina
