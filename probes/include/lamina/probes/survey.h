#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lamina/probes/angular.h"
#include "lamina/probes/attention_stats.h"
#include "lamina/probes/cka.h"
#include "lamina/probes/coding_rate.h"
#include "lamina/probes/contributions.h"
#include "lamina/probes/exit_layers.h"
#include "lamina/probes/growth.h"
#include "lamina/probes/massive.h"
#include "lamina/probes/next_token.h"
#include "lamina/probes/readout.h"
#include "lamina/probes/sparsity.h"
#include "lamina/probes/void.h"

namespace lamina {

/// Settings where the survey departs from the analyses' own defaults.
struct SurveyOptions {
  /// First tokens of every prompt that contributions, angles, coding rate and CKA leave out: in
  /// most decoders the first one is hundreds of times larger than any other and drowns them. [ours]
  std::int64_t skip = 1;
  /// One token in so many is decoded at every layer, which costs a model's logits per layer; 0:
  /// none. The command takes so many that about kExitTokens are decoded. [ours]
  std::int64_t exit_every = 64;
  static constexpr std::int64_t kExitTokens = 250;
  /// One token in so many enters the coding rate, whose sums are dear. [ours]
  std::int64_t coding_every = 4;
  /// Rows of a minibatch of the CKA, which is the debiased estimate. [ours]
  std::int64_t minibatch = 256;
};

/// Every analysis without gradients that applies to a model, in one forward pass with nothing
/// stored. Memory does not depend on the number of tokens; results neither on threads nor on how
/// prompts are packed.
class Survey {
 public:
  /// `forward` must outlive the survey.
  explicit Survey(Forward& forward, SurveyOptions options = {});

  /// May be called several times: the prompts follow those before.
  void run(std::span<const Prompt> prompts, const LiveOptions& options = {});
  /// Each analysis into a group of its own name.
  void write(ResultFile& file) const;

  /// "name: why" of those that this model has no place for.
  const std::vector<std::string>& left_out() const { return left_out_; }
  const SurveyOptions& options() const { return options_; }

  // nullptr: left out.
  const NextTokenProbe* text = nullptr;
  const VoidProbe* voids = nullptr;
  const AttentionProbe* attention = nullptr;
  const MassiveProbe* massive = nullptr;
  const ContributionProbe* contributions = nullptr;
  const GrowthProbe* growth = nullptr;
  const AngularProbe* angular = nullptr;
  const SparsityProbe* sparsity = nullptr;
  const CodingRateProbe* coding_rate = nullptr;
  const ExitProbe* exits = nullptr;
  const CkaProbe* cka = nullptr;

 private:
  template <class P, class... Args>
  const P* add(std::string_view name, Args&&... args);

  Forward& forward_;
  SurveyOptions options_;
  std::unique_ptr<Readout> readout_;
  std::vector<std::unique_ptr<Probe>> probes_;
  std::vector<std::string> left_out_;
};

}  // namespace lamina
