#include "effects/output_change.h"

#include <algorithm>

#include "lens/row_stats.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

void to_probabilities(std::span<float> rows, std::int64_t v) {
  const auto count = static_cast<std::int64_t>(rows.size()) / v;
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < count; ++r) {
    rows::to_probabilities(rows.subspan(size(r * v), size(v)));
  }
}

}  // namespace

OutputChange::OutputChange(Forward& forward, const RunState& state, std::uint64_t memory)
    : forward_(forward),
      state_(state),
      d_(forward.model().config().d_model),
      v_(forward.model().config().d_out()),
      keep_(static_cast<std::uint64_t>(state.batch.tokens() * v_) * sizeof(float) <= memory) {
  if (keep_) {
    kept_.resize(size(state.batch.tokens() * v_));
    have_.assign(size(state.batch.tokens()), 0);
  }
}

std::int64_t OutputChange::chunk_rows() const {
  constexpr std::int64_t kFloats = std::int64_t{8} << 20;
  return std::clamp<std::int64_t>(kFloats / v_, 1, 256);
}

void OutputChange::undisturbed(std::span<const std::int64_t> tokens, std::span<float> out) {
  const auto final_stream = [&](std::span<const std::int64_t> which) {
    rows_.resize(which.size() * size(d_));
    for (std::size_t i = 0; i < which.size(); ++i) {
      std::copy_n(state_.resid.back().begin() + which[i] * d_, d_, rows_.begin() + size(d_) * i);
    }
  };
  if (!keep_) {
    final_stream(tokens);
    forward_.logits(rows_, out);
    to_probabilities(out, v_);
    return;
  }
  std::vector<std::int64_t> missing;
  for (const std::int64_t t : tokens) {
    if (!have_[size(t)]) missing.push_back(t);
    have_[size(t)] = 1;
  }
  if (!missing.empty()) {
    final_stream(missing);
    const auto fresh = out.first(missing.size() * size(v_));
    forward_.logits(rows_, fresh);
    to_probabilities(fresh, v_);
    for (std::size_t i = 0; i < missing.size(); ++i) {
      std::copy_n(fresh.begin() + static_cast<std::ptrdiff_t>(i) * v_, v_,
                  kept_.begin() + missing[i] * v_);
    }
  }
}

void OutputChange::compare(std::span<const std::int64_t> tokens, std::span<double> out) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  to_probabilities(changed_, v_);
  plain_.resize(changed_.size());
  undisturbed(tokens, plain_);
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < count; ++i) {
    const float* plain = keep_ ? kept_.data() + tokens[size(i)] * v_ : plain_.data() + i * v_;
    out[size(i)] =
        rows::distance({plain, size(v_)}, std::span(changed_).subspan(size(i * v_), size(v_)));
  }
}

void OutputChange::last_pass(std::span<const std::int64_t> rows,
                             std::span<const std::int64_t> tokens, std::span<double> out) {
  for (std::size_t at = 0; at < rows.size();) {
    const std::size_t n = std::min(rows.size() - at, size(chunk_rows()));
    changed_.resize(n * size(v_));
    forward_.run_logits(rows.subspan(at, n), changed_);
    compare(tokens.subspan(at, n), out.subspan(at, n));
    at += n;
  }
}

void OutputChange::residual(std::span<const float> rows, std::span<const std::int64_t> tokens,
                            std::span<double> out) {
  for (std::size_t at = 0; at < tokens.size();) {
    const std::size_t n = std::min(tokens.size() - at, size(chunk_rows()));
    changed_.resize(n * size(v_));
    forward_.logits(rows.subspan(at * size(d_), n * size(d_)), changed_);
    compare(tokens.subspan(at, n), out.subspan(at, n));
    at += n;
  }
}

}  // namespace lamina
