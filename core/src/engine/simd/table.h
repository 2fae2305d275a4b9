#pragma once

// What an instruction set provides: the per-row and per-tile functions, compiled once for each.
// Everything about threads, blocks and shapes is outside, in code compiled once.

#include <cstdint>

#include "lamina/core/config.h"

namespace lamina::kernels {

/// c [rows, 32] = (accumulate ? c : 0) + a·b, then + bias if given. b [k, 32] with row stride ldb.
/// a is packed in groups of 16 inner indices: a[((k / 16)·rows + r)·16 + k mod 16].
struct TileArgs {
  const float* a;
  const float* b;
  std::int64_t ldb, k;
  float* c;
  std::int64_t ldc;
  const float* bias;  // [32] or nullptr
  bool accumulate;
  /// Fetched into the cache meanwhile: 32 floats from here per inner index, moving on by
  /// ahead_step.
  const float* ahead;
  std::int64_t ahead_step;
};

struct KernelTable {
  const char* name;
  int tile_rows;  // most rows of one tile
  void (*tile)(int rows, const TileArgs& args);
  double (*sum)(const float* x, std::int64_t n);
  double (*sum_squares)(const float* x, std::int64_t n, float mean);  // of x − mean
  void (*normalize)(const float* x, std::int64_t n, float mean, float scale, float* y);
  void (*exp)(float* x, std::int64_t n);
  void (*softcap)(float* x, std::int64_t n, float cap);
  void (*scale)(float* x, std::int64_t n, float factor);
  void (*softmax)(float* x, std::int64_t n);
  void (*activate)(Activation act, const float* x, std::int64_t n, float* y);
  void (*activate_gated)(Activation act, const float* gate, const float* up, std::int64_t n,
                         float* y);
  /// Σ exp(x − maximum); the maximum goes to *maximum.
  double (*sum_exp)(const float* x, std::int64_t n, float* maximum);
  double (*entropy)(const float* x, std::int64_t n, double log_sum);
  double (*kl)(const float* x, double log_sum_x, const float* y, double log_sum_y, std::int64_t n);
  /// For tests.
  void (*tanh)(const float* x, std::int64_t n, float* y);
  void (*erf)(const float* x, std::int64_t n, float* y);
};

extern const KernelTable kGenericTable;
#if defined(LAMINA_X86_KERNELS)
extern const KernelTable kAvx2Table;
extern const KernelTable kAvx512Table;
#endif

/// The table in use; see isa().
const KernelTable& table();

/// Forces an instruction set by its name ("" = the best one) for the whole process: for tests and
/// benchmarks. Throws UsageError if the name is unknown or the processor lacks it.
void select_isa(const char* name);

}  // namespace lamina::kernels
