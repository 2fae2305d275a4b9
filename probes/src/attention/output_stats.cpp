#include "lamina/probes/output_stats.h"

#include <algorithm>
#include <cmath>

#include "lamina/core/error.h"
#include "lamina/core/math.h"
#include "lamina/probes/massive.h"
#include "lens/decode.h"

namespace lamina {
namespace {

struct RowStats {
  double log_z = 0, entropy = 0, top = 0;
  Moments logits;
};

RowStats describe_row(std::span<const float> logits) {
  RowStats row;
  row.log_z = math::log_sum_exp(logits);
  row.entropy = math::entropy(logits, row.log_z);
  // Lanes of plain sums; Moments::add would wait for its own last addition.
  constexpr std::size_t kLanes = 8;
  double sum[kLanes] = {}, squares[kLanes] = {};
  float low[kLanes], high[kLanes];
  std::fill_n(low, kLanes, logits[0]);
  std::fill_n(high, kLanes, logits[0]);
  const auto add = [&](std::size_t lane, float v) {
    sum[lane] += double{v};
    squares[lane] += double{v} * v;
    low[lane] = std::min(low[lane], v);
    high[lane] = std::max(high[lane], v);
  };
  std::size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) add(j, logits[i + j]);
  }
  for (; i < logits.size(); ++i) add(0, logits[i]);
  row.logits.count = static_cast<std::int64_t>(logits.size());
  for (std::size_t j = 0; j < kLanes; ++j) {
    row.logits.sum += sum[j];
    row.logits.squares += squares[j];
    row.logits.min = std::min(row.logits.min, double{low[j]});
    row.logits.max = std::max(row.logits.max, double{high[j]});
  }
  row.top = std::exp(row.logits.max - row.log_z);
  return row;
}

}  // namespace

OutputProbe::OutputProbe(const ModelConfig& config, const Readout& readout,
                         OutputStatsOptions options)
    : config_(config), readout_(readout), options_(options) {
  if (config_.head != Head::language) {
    fail_usage("output: this {} model has no language head", config_.family);
  }
  if (options_.every < 1) {
    fail_usage("output: every {}th position is to be read, 1 or more expected", options_.every);
  }
}

std::vector<Site> OutputProbe::sites(const ModelConfig& config) const {
  return {{stream_kind(config), static_cast<std::int32_t>(config.n_layers) - 1}};
}

std::unique_ptr<Probe> OutputProbe::fresh() const {
  return std::make_unique<OutputProbe>(config_, readout_, options_);
}

void OutputProbe::observe(const ActivationBlock& block) {
  const Site site = sites(config_).front();
  std::vector<std::int64_t> rows, owner;
  for (std::int64_t p = 0; p < block.batch.prompts(); ++p) {
    for (std::int64_t i = 0; i < block.batch.length(p); i += options_.every) {
      rows.push_back(block.batch.offsets[static_cast<std::size_t>(p)] + i);
      owner.push_back(p);
    }
  }
  // A vocabulary can be 262,144 wide: 32 MiB of logits at a time.
  const std::size_t vocab = static_cast<std::size_t>(readout_.d_vocab());
  const std::size_t chunk = std::clamp<std::size_t>((std::size_t{1} << 23) / vocab, 1, 256);
  RowDecoder decoder(readout_, nullptr);
  std::vector<float> logits;
  for (std::size_t first = 0; first < rows.size(); first += chunk) {
    const std::size_t count = std::min(chunk, rows.size() - first);
    decoder.gather(block, site, std::span(rows).subspan(first, count));
    const std::span<const float> all = decoder.decode(logits);
    std::vector<RowStats> stats(count);
#pragma omp parallel for schedule(static)
    for (std::size_t r = 0; r < count; ++r) stats[r] = describe_row(all.subspan(r * vocab, vocab));
    for (std::size_t r = 0; r < count; ++r) {
      const RowStats& row = stats[r];
      if (!std::isfinite(row.logits.squares) || !std::isfinite(row.log_z)) {
        const auto p = static_cast<std::size_t>(owner[first + r]);
        fail("output: prompt '{}', position {}: a logit is not finite", block.prompts[p].id,
             rows[first + r] - block.batch.offsets[p]);
      }
      results_.log_z.add(row.log_z);
      results_.entropy.add(row.entropy);
      results_.top.add(row.top);
      results_.logit.add(row.logits);
    }
  }
  results_.tokens += static_cast<std::int64_t>(rows.size());
  results_.prompts += block.batch.prompts();
}

void OutputProbe::merge(Probe& other) {
  auto* from = dynamic_cast<OutputProbe*>(&other);
  if (from == nullptr || !(from->options_ == options_)) {
    fail("output: cannot be merged with a {} of other settings", other.name());
  }
  results_.log_z.add(from->results_.log_z);
  results_.entropy.add(from->results_.entropy);
  results_.top.add(from->results_.top);
  results_.logit.add(from->results_.logit);
  results_.tokens += from->results_.tokens;
  results_.prompts += from->results_.prompts;
  from->results_ = {};
}

void OutputProbe::write(ResultFile& file) const {
  using Names = std::vector<std::string>;
  const OutputResults& r = results_;
  file.setting("every", options_.every);
  file.setting("tokens_read", r.tokens);
  file.setting("prompts", r.prompts);
  file.axis("statistic", Names{"mean", "sd", "min", "max"});
  const auto write = [&](std::string_view name, const Moments& m, std::string_view text,
                         std::string_view units) {
    file.dataset(name, Names{"statistic"},
                 std::vector<double>{m.mean(), std::sqrt(m.variance()), m.lowest(), m.highest()},
                 text, units);
  };
  write("log_z", r.log_z, "log of the sum of exp(logit), over tokens", "nats");
  write("entropy", r.entropy, "entropy of the softmax of the logits, over tokens", "nats");
  write("top_probability", r.top, "probability of the most probable id, over tokens", "");
  write("logit", r.logit, "all logits of all tokens read", "");
}

}  // namespace lamina
