#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lamina/probes/probe.h"
#include "lamina/probes/readout.h"
#include "lamina/probes/streams.h"

namespace lamina {

struct ExitOptions {
  TokenChoice tokens = {0,
                        8};  // [ours] one token in 8: a layer's logits cost as much as the model's
  std::uint64_t logit_bytes = std::uint64_t{64} << 20;  // bound of the logits held at a time
};

/// Counts over the tokens read; [stream] each. Whole numbers: parts add up exactly.
struct ExitResults {
  std::int64_t tokens = 0, targets = 0;
  std::vector<std::int64_t> agree;    // most probable token is that of the model
  std::vector<std::int64_t> correct;  // of tokens with a target: it is the target
  std::vector<std::int64_t> exits;  // first stream from which the most probable token never changes
  /// Shares; NaN without tokens or targets.
  std::vector<double> agreement() const;
  std::vector<double> accuracy() const;
  std::vector<double> exit_share() const;
  /// Mean number of the stream at which tokens exit: 0 = embedding … layers.
  double mean_exit() const;
  bool operator==(const ExitResults&) const = default;
};

/// Early-exit statistics: what the model would say if it ended after every layer, through its own
/// final norm and unembedding (the logit lens). Ties go to the smaller id.
class ExitProbe : public Probe {
 public:
  /// `readout` must outlive the probe. UsageError for post-norm models and models without logits
  /// over a vocabulary.
  ExitProbe(const ModelConfig& config, const Readout& readout, ExitOptions options = {});

  std::string name() const override { return "depth_exit"; }
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  void write(ResultFile& file) const override;

  const ExitResults& results() const { return results_; }

 private:
  void clear();

  ModelConfig config_;
  const Readout* readout_;
  ExitOptions options_;
  ExitResults results_;
};

}  // namespace lamina
