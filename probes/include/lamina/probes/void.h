#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lamina/probes/probe.h"
#include "lamina/probes/void_rule.h"

namespace lamina {

struct VoidOptions {
  std::vector<double> alphas = {0.0, 0.2, 0.4, 0.6, 0.8, 1.0};  // the paper uses 0.8
  VoidRule rule = VoidRule::l2;
  /// Keep the norms and decisions of every token. Without them memory does not grow with tokens.
  bool keep_tokens = true;
};

/// Which part of a sequence a token is in: PP, prompt processing, the tokens that were given; RG,
/// response generation, those the model made.
enum class VoidPhase : std::uint8_t { prompt = 0, generated = 1 };
inline constexpr std::array<const char*, 2> kVoidPhases = {"PP", "RG"};

/// How often each layer was active. Sums of whole numbers, so that parts add up exactly.
struct VoidCounts {
  std::int64_t alphas = 0, layers = 0;
  std::array<std::int64_t, 2> tokens{};  // [phase]
  std::vector<std::int64_t> active;      // [alpha, phase, layer] tokens

  VoidCounts() = default;
  VoidCounts(std::int64_t alphas, std::int64_t layers);
  std::int64_t& at(std::int64_t alpha, std::int64_t phase, std::int64_t layer) {
    return active[static_cast<std::size_t>((alpha * 2 + phase) * layers + layer)];
  }
  void add(const VoidCounts& other);
  /// Share of the phase's tokens for which the layer was active; NaN without tokens.
  double usage(std::int64_t alpha, std::int64_t phase, std::int64_t layer) const;
  /// Mean of usage() over layers.
  double model_usage(std::int64_t alpha, std::int64_t phase) const;
  /// Both for writing: [alpha, phase, layer] and [alpha, phase].
  std::vector<double> usages() const;
  std::vector<double> model_usages() const;
  bool operator==(const VoidCounts&) const = default;
};

/// What was found. A alphas, L layers, T tokens; the token arrays are empty without keep_tokens.
struct VoidResults {
  VoidCounts counts;
  std::vector<std::string> prompt_ids;  // [prompts observed], as the arrays below: if kept
  std::vector<std::int32_t> prompt;     // [T] index into prompt_ids
  std::vector<std::int32_t> position;   // [T] within the prompt
  std::vector<std::int32_t> token_id;   // [T]
  std::vector<std::uint8_t> phase;      // [T]
  std::vector<double> norms;            // [T, L + 1]: entering block 0, then leaving every block
  std::vector<std::uint8_t> active;     // [T, A, L]

  std::int64_t tokens() const { return static_cast<std::int64_t>(position.size()); }
  bool operator==(const VoidResults&) const = default;
};

/// Detects voids, the layers that change the norm of a token's residual stream little: see
/// VoidRule. All α at once. Nothing is carried from one token to another, so a generated token is
/// judged as in a forward pass of its own.
class VoidProbe : public Probe {
 public:
  explicit VoidProbe(const ModelConfig& config, VoidOptions options = {});

  std::string name() const override { return "void"; }
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  void write(ResultFile& file) const override;

  const VoidResults& results() const { return results_; }
  const VoidOptions& options() const { return options_; }

 private:
  ModelConfig config_;
  VoidOptions options_;
  VoidResults results_;
};

/// The axes alpha, phase and layer, and the two usage datasets that void results share: usage
/// [alpha, phase, layer] and model_usage [alpha, phase].
void write_void_usage(ResultFile& file, std::span<const double> alphas, std::int64_t layers,
                      std::span<const double> usage, std::span<const double> model_usage);

}  // namespace lamina
