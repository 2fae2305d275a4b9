#pragma once

// Numerical kernels of the forward pass. All are deterministic: a result never depends on the
// number of rows handled together, on the number of threads, or on the instruction set that was
// chosen at run time. Sums run over the inner index in increasing order with fused multiply-add
// (dot products of `multiply`), or over 16 fixed lanes that are added in a fixed tree (reductions).

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "lamina/core/config.h"

namespace lamina::kernels {

/// "avx512" or "avx2" or "generic": chosen once, from the processor and, if set, the environment
/// variable LAMINA_ISA. Throws UsageError if that names none of them or one the processor lacks.
std::string_view isa();

/// A weight matrix W [n_out, n_in] packed for x·Wᵀ: panels of 32 outputs, inner index outermost,
/// zero-padded, 64-byte aligned. Copies share the values: fill a matrix before copying it.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  PackedMatrix(std::int64_t n_out, std::int64_t n_in);  // zeros
  /// Packs rows first … first + count − 1 from row-major `w` [count, n_in]; callable piecewise so
  /// that a weight never exists twice in full.
  void set_rows(std::int64_t first, std::int64_t count, const float* w);
  /// Copies row `row` out again, [n_in] (embedding look-up through a tied matrix).
  void copy_row(std::int64_t row, float* out) const;

  std::int64_t n_out() const { return n_out_; }
  std::int64_t n_in() const { return n_in_; }
  bool empty() const { return n_out_ == 0; }
  std::size_t bytes() const;
  const float* panel(std::int64_t index) const;
  static constexpr std::int64_t kPanel = 32;

 private:
  std::int64_t n_out_ = 0, n_in_ = 0;
  std::shared_ptr<float[]> data_;
};

/// y[r, :] = x[r, :]·Wᵀ (+ bias), x [rows, n_in] with row stride ldx, y [rows, n_out] with ldy.
/// bias may be nullptr. Parallel over panels and rows (OpenMP).
void multiply(const float* x, std::int64_t ldx, std::int64_t rows, const PackedMatrix& w,
              const float* bias, float* y, std::int64_t ldy);

/// Norms of rows x [rows, d] (row strides ldx). scale [rows] = sqrt(mean(x²) + ε) (RMS) or
/// sqrt(var + ε) (LayerNorm; x is centred first); normalized = x (or x − mean) / scale.
void norm_scale(NormKind kind, double eps, const float* x, std::int64_t ldx, std::int64_t rows,
                std::int64_t d, float* scale);
/// normalized [rows, d] from x and scale (as TransformerLens' hook_normalized: before the weight).
void norm_normalize(NormKind kind, const float* x, std::int64_t ldx, const float* scale,
                    std::int64_t rows, std::int64_t d, float* normalized, std::int64_t ldn);
/// y = normalized ∘ (offset + weight) + bias; bias nullptr if none; y may be normalized.
void norm_affine(const float* normalized, std::int64_t ldn, std::int64_t rows, std::int64_t d,
                 const float* weight, float offset, const float* bias, float* y, std::int64_t ldy);

/// y = act(x) elementwise over [rows, d]; for solu over each row. y may be x.
void activate(Activation act, const float* x, std::int64_t rows, std::int64_t d, float* y);
/// y = act(gate) ∘ up.
void activate_gated(Activation act, const float* gate, const float* up, std::int64_t rows,
                    std::int64_t d, float* y);

/// x += y over n values.
void add(float* x, const float* y, std::int64_t n);
/// x = cap·tanh(x / cap).
void softcap(float* x, std::int64_t n, float cap);
/// x = e^x, within 1 ulp; subnormal results included, NaN kept.
void exp_inplace(float* x, std::int64_t n);

/// Rotates the leading `rotary` values of every head: x [rows, heads, d_head] → y (may be x).
/// cos, sin: [positions, rotary / 2] tables, positions[r] the position of row r.
void rotate(RopeStyle style, const float* x, std::int64_t rows, std::int64_t heads,
            std::int64_t d_head, std::int64_t rotary, const float* cos, const float* sin,
            const std::int32_t* positions, float* y);

/// One prompt's attention for one layer.
struct AttentionArgs {
  const float* q;  // [queries, heads, d_head], after rotation
  const float* k;  // [keys, kv_heads, d_head], cached ones first
  const float* v;  // [keys, kv_heads, d_head]
  float* z;        // [queries, heads, d_head]
  std::int64_t queries, keys, heads, kv_heads, d_head;
  float scale;
  float softcap;  // 0 = off
  bool causal;
  std::int64_t window;  // 0 = all; otherwise key j is visible to query i iff i − j < window
};
/// z without storing the scores. Query row r has position keys − queries + r. Parallel over heads
/// and blocks of queries. Same bits as the three steps below.
void attention(const AttentionArgs& args);
/// The same for a whole batch in one parallel region: many single-token queries at once.
void attention_batch(std::span<const AttentionArgs> prompts);
/// The steps apart, for hooks: scores [heads, queries, keys] (masked: −inf), softmax in place
/// (a row without a visible key becomes zeros), z from the pattern.
void attention_scores(const AttentionArgs& args, float* scores);
void attention_softmax(std::int64_t rows, std::int64_t keys, float* scores);
/// (args.scale, softcap, causal and window as before; a weight ≠ 0 that a hook wrote at a masked
/// key counts, a zero there is skipped even if the value is not finite).
void attention_values(const AttentionArgs& args, const float* pattern);

/// Row statistics of logits: log Σ exp(x), for [rows, n] with stride ld; deterministic. Rows run in
/// parallel; lamina/core/math.h has the single row in double and what else a lens needs.
void log_sum_exp(const float* x, std::int64_t ld, std::int64_t rows, std::int64_t n, float* out);

/// The k ≤ n largest of x [n], largest first, ties by the smaller id, NaN below −∞.
void top_k(const float* x, std::int64_t n, std::int64_t k, std::int32_t* ids, float* values);

}  // namespace lamina::kernels
