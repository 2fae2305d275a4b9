#include <omp.h>

#include <Eigen/Core>
#include <algorithm>
#include <cmath>

#include "engine/backward/steps.h"
#include "engine/kernels.h"

namespace lamina::backward {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Rows = Eigen::Map<RowMajor, 0, Eigen::OuterStride<>>;
using ConstRows = Eigen::Map<const RowMajor, 0, Eigen::OuterStride<>>;

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

/// One prompt: its attention computed again, then every head backwards.
void prompt_input(const AttentionBack& a, std::int64_t prompt) {
  const ModelConfig& c = a.config;
  const std::int64_t first = a.tape.batch.offsets[size(prompt)];
  const std::int64_t t = a.tape.batch.length(prompt);  // T
  const std::int64_t heads = c.n_heads, dh = c.d_head, group = heads / c.n_kv_heads;
  const std::int64_t wide = c.d_attn(), narrow = c.d_kv();

  kernels::AttentionArgs args{};
  args.q = a.step.q.data() + first * wide;
  args.k = a.step.k.data() + first * narrow;
  args.v = a.step.v.data() + first * narrow;
  args.queries = args.keys = t;
  args.heads = heads;
  args.kv_heads = c.n_kv_heads;
  args.d_head = dh;
  args.scale = static_cast<float>(c.attn_scale);
  args.softcap = static_cast<float>(c.attn_softcap);
  args.causal = c.causal;
  args.window = c.layers[size(a.step.step.layer)].window;

  // [H, T, T] each. Where hooks wrote, what was computed leads back, what was written leads on.
  std::vector<float> scores(size(heads * t * t)), pattern, used, gradient(scores.size());
  const bool written = !a.step.written.empty();
  kernels::attention_scores(args, scores.data());
  pattern = written ? a.step.written[size(prompt)].scores : scores;
  kernels::attention_softmax(heads * t, t, pattern.data());
  if (written) used = a.step.written[size(prompt)].pattern;

  const auto head_rows = [&](float* x, std::int64_t h) {  // [T, dh] of [N, H·dh]
    return Rows(x + first * wide + h * dh, t, dh, Eigen::OuterStride<>(wide));
  };
  const auto square = [&](std::vector<float>& x, std::int64_t h) {
    return Rows(x.data() + h * t * t, t, t, Eigen::OuterStride<>(t));
  };
  const auto kv_rows = [&](const float* x, std::int64_t h) {
    return ConstRows(x + h / group * dh, t, dh, Eigen::OuterStride<>(narrow));
  };
  const auto z_rows = [&](std::int64_t h) {
    return ConstRows(a.z_gradient + first * wide + h * dh, t, dh, Eigen::OuterStride<>(wide));
  };
  const bool fork = heads * t * t * dh > 100'000 && !omp_in_parallel();

  const bool flows = !a.rules.frozen_pattern;
#pragma omp parallel for if (fork)
  for (std::int64_t h = 0; h < heads; ++h) {
    head_rows(a.v, h).noalias() = square(written ? used : pattern, h).transpose() * z_rows(h);
    if (flows || a.attention_sites) {
      square(gradient, h).noalias() = z_rows(h) * kv_rows(args.v, h).transpose();
    }
  }
  if (a.attention_sites) a.attention_sites(SiteKind::pattern, prompt, gradient);
  if (!flows) std::fill(gradient.begin(), gradient.end(), 0.0f);

    // softmax: P ∘ (G − Σ_keys P ∘ G)
#pragma omp parallel for if (fork)
  for (std::int64_t row = 0; row < heads * t; ++row) {
    float* g = gradient.data() + row * t;
    const float* p = pattern.data() + row * t;
    const double mixed = dot(p, g, t);
    for (std::int64_t j = 0; j < t; ++j) {
      g[j] = p[j] == 0.0f ? 0.0f : static_cast<float>(p[j] * (g[j] - mixed));
    }
  }
  if (a.attention_sites) a.attention_sites(SiteKind::attn_scores, prompt, gradient);
  if (written) {  // a masked score that a hook wrote is still no function of q and k
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      if (std::isinf(scores[i])) gradient[i] = 0.0f;
    }
  }
  if (!flows) {
    // A hook may have seeded the scores all the same.
    const bool nothing = std::ranges::all_of(gradient, [](float g) { return g == 0.0f; });
    if (nothing) {
      for (std::int64_t h = 0; h < heads; ++h) {
        head_rows(a.q, h).setZero();
        head_rows(a.k, h).setZero();
      }
      return;
    }
  }
#pragma omp parallel for if (fork)
  for (std::int64_t h = 0; h < heads; ++h) {
    auto g = square(gradient, h);
    const auto s = square(scores, h);
    if (c.attn_softcap > 0) {
      const auto cap = static_cast<float>(c.attn_softcap);
      for (std::int64_t i = 0; i < t; ++i) {
        for (std::int64_t j = 0; j < t; ++j) {
          if (g(i, j) == 0.0f) continue;  // masked: the score is −∞
          const float part = s(i, j) / cap;
          g(i, j) *= 1.0f - part * part;
        }
      }
    }
    g *= args.scale;
    const ConstRows q(args.q + h * dh, t, dh, Eigen::OuterStride<>(wide));
    head_rows(a.q, h).noalias() = g * kv_rows(args.k, h);
    head_rows(a.k, h).noalias() = g.transpose() * q;
  }
}

}  // namespace

void attention_input(const AttentionBack& a) {
  const std::int64_t prompts = a.tape.batch.prompts();
  if (a.attention_sites || prompts < 2) {
    for (std::int64_t p = 0; p < prompts; ++p) prompt_input(a, p);
    return;
  }
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t p = 0; p < prompts; ++p) prompt_input(a, p);
}

}  // namespace lamina::backward
