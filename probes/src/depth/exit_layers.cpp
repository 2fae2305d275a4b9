#include "lamina/probes/exit_layers.h"

#include <Eigen/Dense>
#include <limits>

#include "depth/depth_write.h"
#include "depth/token_fold.h"
#include "lamina/core/error.h"
#include "lens/decode.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// −1 if a logit is NaN or the largest is not finite.
std::int32_t argmax(std::span<const float> logits) {
  const Eigen::Map<const Eigen::ArrayXf> x(logits.data(), static_cast<Eigen::Index>(logits.size()));
  const float largest = x.maxCoeff<Eigen::PropagateNaN>();
  if (!std::isfinite(largest)) return -1;
  return static_cast<std::int32_t>(std::find(logits.begin(), logits.end(), largest) -
                                   logits.begin());
}

std::vector<double> shares(const std::vector<std::int64_t>& counts, std::int64_t all) {
  std::vector<double> out;
  for (std::int64_t count : counts) {
    out.push_back(static_cast<double>(count) / static_cast<double>(all));
  }
  return out;
}

}  // namespace

std::vector<double> ExitResults::agreement() const {
  return shares(agree, tokens);
}
std::vector<double> ExitResults::accuracy() const {
  return shares(correct, targets);
}
std::vector<double> ExitResults::exit_share() const {
  return shares(exits, tokens);
}
double ExitResults::mean_exit() const {
  double sum = 0;
  for (std::size_t s = 0; s < exits.size(); ++s) {
    sum += static_cast<double>(s) * static_cast<double>(exits[s]);
  }
  return sum / static_cast<double>(tokens);
}

ExitProbe::ExitProbe(const ModelConfig& config, const Readout& readout, ExitOptions options)
    : config_(config), readout_(&readout), options_(options) {
  check_choice(options_.tokens);
  if (config_.head != Head::language) {
    fail_usage("{}: this model has no logits over a vocabulary", name());
  }
  check_lens_sites(stream_sites(config_), config_);
  if (readout.d_model() != config_.d_model || readout.d_vocab() != config_.d_vocab) {
    fail("{}: the activations are {} wide with {} tokens, the model that decodes them {} with {}",
         name(), config_.d_model, config_.d_vocab, readout.d_model(), readout.d_vocab());
  }
  clear();
}

void ExitProbe::clear() {
  results_ = {};
  for (auto* counts : {&results_.agree, &results_.correct, &results_.exits}) {
    counts->assign(size(config_.n_layers + 1), 0);
  }
}

std::vector<Site> ExitProbe::sites(const ModelConfig&) const {
  return stream_sites(config_);
}

std::unique_ptr<Probe> ExitProbe::fresh() const {
  return std::make_unique<ExitProbe>(config_, *readout_, options_);
}

void ExitProbe::observe(const ActivationBlock& block) {
  const std::int64_t v = config_.d_vocab, streams = config_.n_layers + 1;
  const std::vector<Site> wanted = stream_sites(config_);
  const std::vector<std::int64_t> rows = chosen_rows(block, options_.tokens);
  const auto count = static_cast<std::int64_t>(rows.size());
  std::vector<std::int32_t> targets;  // [chosen row]
  std::size_t next = 0;
  for (std::int64_t p = 0; p < block.batch.prompts(); ++p) {
    const Prompt& prompt = block.prompts[size(p)];
    for (; next < rows.size() && rows[next] < block.batch.offsets[size(p) + 1]; ++next) {
      targets.push_back(expected_next(prompt, rows[next] - block.batch.offsets[size(p)]));
      if (targets.back() < config_.d_vocab) continue;
      fail("prompt \"{}\": target id {} is outside the vocabulary of {} tokens", prompt.id,
           targets.back(), config_.d_vocab);
    }
  }
  const auto row_bytes = static_cast<std::uint64_t>(v) * sizeof(float);
  const std::int64_t budget =  // rows of logits held at a time
      std::max<std::int64_t>(1, static_cast<std::int64_t>(options_.logit_bytes / row_bytes));
  const std::int64_t step = std::clamp<std::int64_t>(count, 1, budget);  // tokens
  const std::int64_t group = std::max<std::int64_t>(1, budget / step);   // streams
  RowDecoder decoder(*readout_, nullptr);
  std::vector<float> logits;
  for (std::int64_t first = 0; first < count; first += step) {
    const std::int64_t n = std::min(step, count - first);
    const auto part = std::span(rows).subspan(size(first), size(n));
    std::vector<std::int32_t> best(size(streams * n));  // [stream, token]
    for (std::int64_t s = 0; s < streams; s += group) {
      const std::int64_t g = std::min(group, streams - s);
      for (std::int64_t k = 0; k < g; ++k) decoder.gather(block, wanted[size(s + k)], part);
      decoder.decode(logits);
#pragma omp parallel for schedule(static)
      for (std::int64_t i = 0; i < g * n; ++i) {
        best[size(s * n + i)] = argmax(std::span(logits).subspan(size(i * v), size(v)));
      }
    }
    for (std::int64_t i = 0; i < n; ++i) {
      const auto said = [&](std::int64_t s) { return best[size(s * n + i)]; };
      const std::int32_t target = targets[size(first + i)];
      results_.targets += target >= 0;
      for (std::int64_t s = 0; s < streams; ++s) {
        if (said(s) < 0) {
          fail("{}: {}: the logits at {} are not finite", name(), token_place(block, part[size(i)]),
               site_name(wanted[size(s)]));
        }
        results_.agree[size(s)] += said(s) == said(streams - 1);
        results_.correct[size(s)] += target >= 0 && said(s) == target;
      }
      std::int64_t exit = streams - 1;
      while (exit > 0 && said(exit - 1) == said(streams - 1)) --exit;
      ++results_.exits[size(exit)];
    }
  }
  results_.tokens += count;
}

void ExitProbe::merge(Probe& other) {
  auto* from = dynamic_cast<ExitProbe*>(&other);
  if (from == nullptr || !(from->options_.tokens == options_.tokens) ||
      from->results_.agree.size() != results_.agree.size()) {
    fail("{}: cannot be merged with a {} of other settings", name(), other.name());
  }
  ExitResults& a = results_;
  const ExitResults& b = from->results_;
  a.tokens += b.tokens;
  a.targets += b.targets;
  for (std::size_t s = 0; s < a.agree.size(); ++s) {
    a.agree[s] += b.agree[s];
    a.correct[s] += b.correct[s];
    a.exits[s] += b.exits[s];
  }
  from->clear();
}

void ExitProbe::write(ResultFile& file) const {
  write_choice(file, options_.tokens, results_.tokens);
  file.setting("targets", results_.targets);
  file.setting("mean_exit", results_.mean_exit());
  write_streams(file, config_);
  const auto put = [&](const char* name, const std::vector<double>& values, const char* what) {
    file.dataset(name, std::vector<std::string>{"stream"}, values, what, "1");
  };
  put("agreement", results_.agreement(),
      "share of tokens whose most probable next token, decoded here, is that of the model");
  put("accuracy", results_.accuracy(),
      "share of tokens with a target for which it is the target; NaN without targets");
  put("exit_share", results_.exit_share(),
      "share of tokens whose most probable next token never changes from here on, but did before");
}

}  // namespace lamina
