#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lamina/probes/moments.h"
#include "lamina/probes/probe.h"
#include "lamina/probes/readout.h"

namespace lamina {

struct OutputStatsOptions {
  /// Every n-th position of a prompt is read (0, n, 2n, …): the unembedding is dear.
  std::int64_t every = 1;
  bool operator==(const OutputStatsOptions&) const = default;
};

/// Over the rows that were read.
struct OutputResults {
  std::int64_t tokens = 0, prompts = 0;
  Moments log_z;    // log Σ exp(logit), nats
  Moments entropy;  // of the softmax, nats
  Moments top;      // probability of the most probable id
  Moments logit;    // all logits
  bool operator==(const OutputResults&) const = default;
};

/// The size of the output logits: log Z, which grows in unstable training ("Small-scale proxies for
/// large-scale Transformer training instabilities", Wortsman et al. 2023), and the entropy of the
/// answer. Reads the residual stream that leaves the last block.
class OutputProbe : public Probe {
 public:
  /// `readout` must outlive the probe. UsageError for models without a language head.
  OutputProbe(const ModelConfig& config, const Readout& readout, OutputStatsOptions options = {});

  std::string name() const override { return "output"; }
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  /// Error for logits that are not finite.
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  void write(ResultFile& file) const override;

  const OutputResults& results() const { return results_; }
  const OutputStatsOptions& options() const { return options_; }

 private:
  ModelConfig config_;
  const Readout& readout_;
  OutputStatsOptions options_;
  OutputResults results_;
};

}  // namespace lamina
