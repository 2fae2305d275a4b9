#pragma once

#include <lamina/probes/probe.h>

#include <vector>

/// Mean length of the residual stream after every block, over all tokens.
class ResidualNorm : public lamina::Probe {
 public:
  explicit ResidualNorm(const lamina::ModelConfig& config);

  std::string name() const override { return "residual_norm"; }
  std::vector<lamina::Site> sites(const lamina::ModelConfig& config) const override;
  std::unique_ptr<lamina::Probe> fresh() const override;
  void observe(const lamina::ActivationBlock& block) override;
  void merge(lamina::Probe& other) override;
  void write(lamina::ResultFile& file) const override;

  std::vector<double> means() const;  // [layer]

 private:
  lamina::ModelConfig config_;
  std::vector<double> sums_;  // [layer] of the norms
  std::int64_t tokens_ = 0;
};
