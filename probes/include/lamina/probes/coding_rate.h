#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lamina/probes/probe.h"
#include "lamina/probes/streams.h"

namespace lamina {

struct CodingRateOptions {
  double epsilon = 0.5;   // [ours] the allowed distortion; 0.5 in most of the authors' experiments
  bool unit_rows = true;  // [ours] every token's stream scaled to norm 1, as features in MCR²
  TokenChoice tokens;
  bool operator==(const CodingRateOptions&) const = default;
};

struct CodingRateResults {
  std::int64_t tokens = 0;
  std::vector<double> rate;  // [stream] nats; NaN without tokens
};

/// Coding rate R(Z) = ½ log det(I + D/(Nε²) ZᵀZ) of the N rows of the residual stream [N, D], not
/// centred. Source: Yu et al., "White-Box Transformers via Sparse Rate Reduction" (CRATE), after
/// MCR². Sums of products: 256 rows at a time in float for unit rows, in double for others, added
/// up in double. Memory (8·D² + 1024·D)·streams bytes, whatever the number of tokens.
class CodingRateProbe : public Probe {
 public:
  /// UsageError unless epsilon is a number above 0.
  explicit CodingRateProbe(const ModelConfig& config, CodingRateOptions options = {});
  ~CodingRateProbe() override;

  std::string name() const override { return "depth_coding_rate"; }
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  void write(ResultFile& file) const override;

  CodingRateResults results() const;

 private:
  ModelConfig config_;
  CodingRateOptions options_;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lamina
