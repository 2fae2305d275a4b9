#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <tuple>
#include <vector>

#include "engine/hook_table.h"
#include "engine/kernels.h"
#include "engine/kv_cache.h"
#include "engine/rope.h"
#include "engine/tape.h"
#include "engine/weights.h"
#include "lamina/core/forward.h"

namespace lamina {

/// The arithmetic of one pass and its buffers, which are used again by the next.
///
/// Letters of the shape comments: N tokens of the batch, D d_model, H heads, K kv heads, dh d_head,
/// M d_mlp, V vocabulary.
struct Forward::Impl {
  explicit Impl(const Model& m);

  const Model& model;
  const ModelConfig& config;
  const Weights& weights;
  std::vector<RopeTable> ropes;

  // State of the pass in progress.
  const Batch* batch = nullptr;
  const HookTable* hooks = nullptr;
  KvCache::Impl* cache = nullptr;
  const RunState* base = nullptr;  // the run that is continued in its middle
  RunState* keep = nullptr;
  Tape::Impl* tape = nullptr;
  Tape::Impl::Step* record = nullptr;   // the tape's entry for the step in progress
  Batch resumed;                        // the continuations' batch of resume()
  std::vector<std::int64_t> sequences;  // [prompt] → sequence of the cache or prompt of the base
  std::vector<std::int64_t> past;       // [prompt] tokens before its first row
  std::vector<std::int32_t> positions;  // [N]
  std::int64_t tokens = 0;
  std::vector<float> x;                   // [N, D] residual stream
  std::vector<float> normalized, input;   // [N, D] a norm's output before and after its weight
  std::vector<float> scale;               // [N]
  std::vector<float> q, k, v, z;          // [N, H·dh], [N, K·dh] twice, [N, H·dh]
  std::vector<float> out, mlp_out;        // [N, D] what a sublayer adds
  std::vector<float> gate, up;            // [N, M]
  std::vector<float> scores;              // [H, queries, keys] of one prompt, if hooked
  std::vector<float> result;              // [N, H, D], if hooked
  std::vector<float> final_out;           // [N, D] final norm's output, if its sites were hooked
  std::vector<float> joined_k, joined_v;  // keys and values of the base run with the new ones after

  // Weights cut into heads, made when first needed.
  using HeadKey = std::tuple<SiteKind, std::int32_t, std::int64_t>;         // site, layer, head
  std::map<std::int32_t, std::vector<kernels::PackedMatrix>> head_outputs;  // W_O per head
  std::map<HeadKey, Linear> head_inputs;  // W_Q, W_K, W_V per head
  std::mutex head_inputs_mutex;

  /// Checks the batch and sizes the buffers; `past` and `sequences` are set.
  void prepare(const Batch& b);
  void embed();
  void step(const Step& step);
  void final_sites();
  /// The head's dense layer and its activation: from, to [rows, D], which may be the same.
  /// `before`, if given, gets the values before the activation.
  void head_dense(const float* from, std::int64_t rows, float* to,
                  std::vector<float>* before = nullptr) const;
  void finish_tape();
  /// Forgets the pass; its residual stream and final norm stay for run_logits.
  void release();
  const Linear& head_input(SiteKind kind, std::int32_t layer, std::int64_t head);

  bool has_norms() const {
    return config.norm != NormKind::none && config.norm_place != NormPlace::none;
  }
  bool norm_before() const { return has_norms() && config.norm_place != NormPlace::post; }
  bool norm_after() const { return has_norms() && config.norm_place == NormPlace::post; }

 private:
  using NormTape = Tape::Impl::Norm;

  void attention(std::int32_t layer, const std::vector<float>& from);
  kernels::AttentionArgs attention_args(std::int32_t layer, std::int64_t prompt);
  void join_base(std::int32_t layer);
  void hooked_attention(std::int32_t layer, std::int64_t prompt);
  void head_results(std::int32_t layer);
  void mlp(std::int32_t layer, const std::vector<float>& from, std::vector<float>& to);
  void norm(const NormWeights& w, SiteKind scale_site, SiteKind normalized_site, std::int32_t layer,
            const std::vector<float>& from, std::vector<float>& to, NormTape* kept);
  void project(const Linear& linear, const std::vector<float>& from, std::vector<float>& to) const;
  void head_norm(std::vector<float>& values, std::int64_t heads, const std::vector<float>& weight,
                 NormTape* kept);

  void fire(SiteKind kind, std::int32_t layer, std::vector<float>& values) const {
    if (hooks->wanted(kind, layer)) hooks->fire(kind, layer, *batch, values);
  }
};

}  // namespace lamina
