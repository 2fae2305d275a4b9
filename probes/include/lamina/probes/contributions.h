#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lamina/probes/probe.h"
#include "lamina/probes/streams.h"

namespace lamina {

/// What every layer adds to the residual stream. Means over tokens and maxima, [layer] each; NaN
/// without tokens, and for the MLP of an attention-only model.
struct ContributionResults {
  std::int64_t tokens = 0;
  std::vector<double> attn_norm, mlp_norm, block_norm;     // ‖a‖, ‖m‖, ‖Δ‖
  std::vector<double> attn_ratio, mlp_ratio, block_ratio;  // over the stream each is added to
  std::vector<double> attn_cos, mlp_cos, block_cos;        // with that stream
  std::vector<double> stream_cos;                          // cos(h_{l+1}, h_l)
  std::vector<double> attn_norm_max, mlp_norm_max, block_norm_max;
  std::vector<double> attn_ratio_max, mlp_ratio_max, block_ratio_max;
  bool operator==(const ContributionResults&) const = default;
};

/// Relative contributions and cosines of the sublayers and of the whole block. Source: Csordás et
/// al., "Do Language Models Use Their Depth Efficiently?".
///
/// a = attn_out, m = mlp_out, the vectors that are added; Δ_l = h_{l+1} − h_l. a and Δ are compared
/// with h_l; m with the stream that it is added to and that the MLP reads: h_l + a_l in sequential
/// blocks, h_l in parallel blocks, norm1(h_l + a_l) in post-norm blocks, where Δ contains what the
/// norms do. As in the authors' code denominators are at least 1e-6, norms in cosines 1e-8.
class ContributionProbe : public Probe {
 public:
  explicit ContributionProbe(const ModelConfig& config, TokenChoice tokens = {});
  ~ContributionProbe() override;

  std::string name() const override { return "depth_contributions"; }
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  void write(ResultFile& file) const override;

  ContributionResults results() const;

 private:
  ModelConfig config_;
  TokenChoice choice_;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lamina
