#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lamina/probes/probe.h"

namespace lamina {

/// How well a language model predicts the text, and how large its logits are. Means over tokens;
/// NaN without any.
struct NextTokenResults {
  std::int64_t tokens = 0;     // all
  std::int64_t predicted = 0;  // tokens of which the following one is known
  double loss = 0;             // −log p of the following token, nats
  double accuracy = 0;         // share of them that are the most probable one
  // Over all tokens; of live passes only, NaN from a recording (it does not keep them).
  double log_z = 0, log_z_deviation = 0;  // log Σ exp(logit): mean, standard deviation
  double entropy = 0;                     // of the distribution, nats
};

/// Reads the logit summary of the blocks, no site: run it with LiveOptions::topk of at least 1, or
/// over a recording that has one. Error otherwise.
///
/// log Z grows in unstable training: Wortsman et al. 2023, "Small-scale proxies for large-scale
/// Transformer training instabilities".
class NextTokenProbe : public Probe {
 public:
  std::string name() const override { return "next_token"; }
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  void write(ResultFile& file) const override;

  NextTokenResults results() const;

 private:
  std::int64_t tokens_ = 0, predicted_ = 0, right_ = 0, measured_ = 0;
  double loss_ = 0, log_z_ = 0, log_z_squares_ = 0, entropy_ = 0;
};

}  // namespace lamina
