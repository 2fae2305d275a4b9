#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lamina/probes/probe.h"
#include "lamina/probes/streams.h"

namespace lamina {

/// The linear layers' outputs whose magnitudes are read: what attention adds (out projection), what
/// the MLP adds (down projection), and what enters the down projection.
inline constexpr std::array<const char*, 3> kMagnitudeOutputs = {"attn_out", "mlp_out", "mlp_post"};

/// Distributions of L1-normalised output magnitudes: u = |x_i| / ‖x‖₁ of a token, times the width,
/// so that 1 is the value of an even distribution.
struct MagnitudeResults {
  /// Bin 0: u·width < 2^first; then one bin an octave; the last: at least 2^(first + octaves).
  static constexpr std::int64_t kFirstOctave = -12, kOctaves = 20, kBins = kOctaves + 2;

  std::int64_t tokens = 0, layers = 0;
  std::int64_t outputs = 0;                 // 3; 1 without MLPs
  std::array<std::int64_t, 3> width{};      // [output]
  std::vector<std::int64_t> histogram;      // [output, layer, bin] (token, unit) pairs
  std::array<std::vector<double>, 3> mean;  // [output][layer, unit] of u·width over tokens
  std::vector<double> top_share;  // [output, layer] Σ of the largest tenth of units over Σ of all
  std::vector<double> half_share;  // [output, layer] smallest share of units with half of Σ
};

/// Magnitude distributions of linear layers. Source: Du et al., "Unlocking Continual Learning
/// Abilities in Language Models" (MIGU), which ranks units by the L1-normalised magnitude of
/// their output. Histogram, octave bins and the two shares are [ours].
class MagnitudeProbe : public Probe {
 public:
  explicit MagnitudeProbe(const ModelConfig& config, TokenChoice tokens = {});

  std::string name() const override { return "depth_magnitudes"; }
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  void write(ResultFile& file) const override;

  MagnitudeResults results() const;

 private:
  std::int64_t outputs() const { return config_.d_mlp > 0 ? 3 : 1; }
  std::int64_t width(std::int64_t output) const {
    return output == 2 ? config_.d_mlp : config_.d_model;
  }

  ModelConfig config_;
  TokenChoice choice_;
  std::int64_t tokens_ = 0;
  std::vector<std::int64_t> histogram_;   // [output, layer, bin]
  std::vector<std::vector<double>> sum_;  // [output · layers + layer][unit] of u
};

}  // namespace lamina
