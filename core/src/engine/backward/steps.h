#pragma once

// The single steps of the way back: each takes the gradient at what a step of the forward pass gave
// and returns the gradient at what it read. Every row (every prompt, for attention) is computed for
// itself, in a fixed order of sums.

#include <cstdint>
#include <span>
#include <vector>

#include "engine/tape.h"
#include "lamina/core/backward.h"
#include "lamina/core/config.h"

namespace lamina::backward {

/// Σ a_i b_i over 8 fixed lanes, in double.
double dot(const float* a, const float* b, std::int64_t n);

/// Gradient at the denominators: out [rows] = −Σ gradient ∘ normalized / scale.
void scale_gradient(const Tape::Impl::Norm& kept, const float* gradient, std::int64_t rows,
                    std::int64_t d, float* out);

/// Way back through x → normalized = (x − mean)/scale; `at_scale` [rows] is the gradient at the
/// denominators, nullptr if they are constants. gradient, out [rows, d]; may be the same.
void norm_input(NormKind kind, const Tape::Impl::Norm& kept, const float* gradient,
                const float* at_scale, std::int64_t rows, std::int64_t d, float* out);

/// g ∘ (offset + weight) in place: back through a norm's weight. [rows, d]
void norm_weight(float* gradient, std::int64_t rows, std::int64_t d, const float* weight,
                 float offset);

/// The factor that takes the gradient at act(x) to the one at x: act′(x), or with the ratio rule
/// act(x)/x′, x′ = x + stabiliser·(sign x + [x = 0]): 0 at exact zero. Not for solu. [n]
void activation_factor(Activation act, const float* x, std::int64_t n, const BackwardRules& rules,
                       float* factor);

/// x·softmax(x) by rows: gradient [rows, d] at the product → at x, in place. With the ratio rule
/// the softmax is a constant.
void solu_input(const float* x, std::int64_t rows, std::int64_t d, const BackwardRules& rules,
                float* gradient);

/// One layer's attention over a batch.
struct AttentionBack {
  const ModelConfig& config;
  const Tape::Impl& tape;
  const Tape::Impl::Step& step;
  const BackwardRules& rules;
  const float* z_gradient;  // [N, H·dh]
  /// Called with the gradient at the patterns (scores) of a prompt, [H, T, T]; empty: not wanted.
  std::function<void(SiteKind, std::int64_t prompt, std::span<float>)> attention_sites;
  /// Results, [N, H·dh] each: k and v per query head, before they are added over a group.
  float *q, *k, *v;
};
void attention_input(const AttentionBack& a);

}  // namespace lamina::backward
