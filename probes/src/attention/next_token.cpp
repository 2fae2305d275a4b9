#include "lamina/probes/next_token.h"

#include <cmath>

#include "lamina/core/error.h"

namespace lamina {

std::vector<Site> NextTokenProbe::sites(const ModelConfig&) const {
  return {};
}

std::unique_ptr<Probe> NextTokenProbe::fresh() const {
  return std::make_unique<NextTokenProbe>();
}

void NextTokenProbe::observe(const ActivationBlock& block) {
  const LogitSummary& logits = block.logits;
  const auto tokens = static_cast<std::size_t>(block.batch.tokens());
  if (logits.k == 0) fail("next_token: the blocks hold no logits; run or record with --topk");
  tokens_ += static_cast<std::int64_t>(tokens);
  std::size_t t = 0;
  for (const Prompt& prompt : block.prompts) {
    for (std::size_t i = 0; i < prompt.ids.size(); ++i, ++t) {
      const float logprob = logits.target_logprob[t];
      if (std::isnan(logprob)) continue;  // nothing follows
      const std::int32_t next =
          i + 1 < prompt.ids.size() ? prompt.ids[i + 1] : prompt.target.value_or(-1);
      ++predicted_;
      loss_ -= double{logprob};
      right_ += logits.topk_ids[t * static_cast<std::size_t>(logits.k)] == next ? 1 : 0;
    }
  }
  if (logits.log_z.empty()) return;
  measured_ += static_cast<std::int64_t>(tokens);
  for (t = 0; t < tokens; ++t) {
    const double z = logits.log_z[t];
    log_z_ += z;
    log_z_squares_ += z * z;
    entropy_ += double{logits.entropy[t]};
  }
}

void NextTokenProbe::merge(Probe& other) {
  auto& more = dynamic_cast<NextTokenProbe&>(other);
  tokens_ += more.tokens_;
  predicted_ += more.predicted_;
  right_ += more.right_;
  measured_ += more.measured_;
  loss_ += more.loss_;
  log_z_ += more.log_z_;
  log_z_squares_ += more.log_z_squares_;
  entropy_ += more.entropy_;
  more = NextTokenProbe();
}

NextTokenResults NextTokenProbe::results() const {
  NextTokenResults out;
  out.tokens = tokens_;
  out.predicted = predicted_;
  const auto predicted = static_cast<double>(predicted_), measured = static_cast<double>(measured_);
  out.loss = loss_ / predicted;  // 0/0 is NaN: nothing was predicted
  out.accuracy = static_cast<double>(right_) / predicted;
  out.log_z = log_z_ / measured;
  out.log_z_deviation = std::sqrt(std::max(0.0, log_z_squares_ / measured - out.log_z * out.log_z));
  if (measured_ == 0) out.log_z_deviation = out.log_z;
  out.entropy = entropy_ / measured;
  return out;
}

void NextTokenProbe::write(ResultFile& file) const {
  const NextTokenResults r = results();
  file.setting("tokens", r.tokens);
  file.setting("predicted", r.predicted);
  const auto scalar = [&](std::string_view name, double value, std::string_view what,
                          std::string_view units) {
    file.dataset(name, {}, std::span(&value, 1), what, units);
  };
  scalar("loss", r.loss, "mean of -log p of the following token", "nats");
  scalar("accuracy", r.accuracy, "share of following tokens that are the most probable one", "1");
  scalar("log_z", r.log_z, "mean over tokens of log sum exp(logit)", "nats");
  scalar("log_z_deviation", r.log_z_deviation, "its standard deviation over tokens", "nats");
  scalar("entropy", r.entropy, "mean entropy of the distribution over the vocabulary", "nats");
}

}  // namespace lamina
