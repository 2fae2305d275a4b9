#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lamina/probes/moments.h"
#include "lamina/probes/probe.h"

namespace lamina {

/// Massive activations as Sun et al. 2024 ("Massive Activations in Large Language Models") define
/// them: |a| > 100 and |a| > 1000 × median of |a|. Their released code takes the median over all
/// values of a layer's output for one sequence, here: one prompt.
struct MassiveOptions {
  double least = 100;            // |a| must be above this
  double ratio = 1000;           // and above this × the median
  std::int64_t strongest = 100;  // activations listed
  /// Any token site with one vector a token; none: stream_kind().
  std::optional<SiteKind> site;
  bool operator==(const MassiveOptions&) const = default;
};

/// One massive activation.
struct MassiveActivation {
  std::int32_t layer = 0, dimension = 0;
  std::string prompt_id;
  std::int64_t position = 0;
  std::int32_t token_id = 0;
  float value = 0;
  double ratio = 0;  // |value| over the median
  bool operator==(const MassiveActivation&) const = default;
};

/// The massive activations of one dimension of one layer.
struct MassiveDimension {
  Moments value;           // signed
  std::int64_t first = 0;  // of them at position 0
  bool operator==(const MassiveDimension&) const = default;
};

struct MassiveLayer {
  Moments median;            // of the prompts' medians of |a|
  double largest = 0;        // |a|, anywhere
  double largest_ratio = 0;  // |a| over its prompt's median
  std::int64_t count = 0;    // massive activations
  std::int64_t tokens = 0;   // tokens that hold one or more
  bool operator==(const MassiveLayer&) const = default;
};

struct MassiveResults {
  std::int64_t layers = 0, width = 0, tokens = 0, prompts = 0;
  std::vector<MassiveLayer> layer;          // [layer]
  std::vector<MassiveDimension> dimension;  // [layer, width]
  std::vector<MassiveActivation> listed;    // |value| falling; ties: the earlier prompt, layer, …
  bool operator==(const MassiveResults&) const = default;
};

/// What a layer hands to the next: hook_resid_post, or what its second norm makes of it in models
/// that normalise after each addition.
SiteKind stream_kind(const ModelConfig& config);

/// The median of |x|: of an even number the lower one, as torch.median. Exact, by counting. 0 for
/// no numbers; NaNs count as larger than all.
float median_magnitude(std::span<const float> x);

/// Finds massive activations. Memory does not depend on the number of tokens, results neither on
/// threads nor on how prompts are cut into blocks.
class MassiveProbe : public Probe {
 public:
  /// UsageError for thresholds that are not finite or below 0 and for a site of another kind.
  explicit MassiveProbe(const ModelConfig& config, MassiveOptions options = {});

  std::string name() const override { return "massive"; }
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  /// Error for activations that are not finite.
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  void write(ResultFile& file) const override;

  const MassiveResults& results() const { return results_; }
  const MassiveOptions& options() const { return options_; }

 private:
  struct Found;
  void observe_prompt(const ActivationBlock& block, std::int64_t prompt, std::int64_t layer,
                      Found& found) const;
  void add(const ActivationBlock& block, std::int64_t prompt, std::int64_t layer, Found& found);

  ModelConfig config_;
  MassiveOptions options_;
  MassiveResults results_;
};

}  // namespace lamina
