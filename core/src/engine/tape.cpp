#include "engine/tape.h"

namespace lamina {
namespace {

std::uint64_t floats(const Tape::Impl::Norm& norm) {
  return norm.normalized.size() + norm.scale.size() + norm.computed.size() +
         norm.computed_scale.size();
}

}  // namespace

Tape::Tape() : impl_(std::make_unique<Impl>()) {}
Tape::~Tape() = default;
Tape::Tape(Tape&&) noexcept = default;
Tape& Tape::operator=(Tape&&) noexcept = default;

const Batch& Tape::batch() const {
  return impl_->batch;
}

std::uint64_t Tape::bytes() const {
  std::uint64_t count = floats(impl_->final_norm) + impl_->resid.size();
  for (const Impl::Step& s : impl_->steps) {
    for (const Impl::Norm* norm :
         {&s.ln1, &s.ln1_post, &s.ln2, &s.ln2_post, &s.mlp_ln, &s.q_norm, &s.k_norm}) {
      count += floats(*norm);
    }
    for (const auto* values :
         {&s.attn_in, &s.mlp_in, &s.q, &s.k, &s.v, &s.z, &s.gate, &s.up, &s.post}) {
      count += values->size();
    }
    for (const Impl::Written& w : s.written) count += w.scores.size() + w.pattern.size();
  }
  return count * sizeof(float);
}

std::uint64_t Tape::bytes_per_token(const ModelConfig& config) {
  const std::int64_t norms = config.norm_place == NormPlace::sandwich ? 4 : 2;
  const std::int64_t heads = config.d_attn() + config.d_kv();
  const std::int64_t layer = norms * (config.d_model + 1) + heads * (config.qk_norm ? 3 : 2) +
                             config.d_mlp * (config.gated ? 2 : 1);
  return static_cast<std::uint64_t>(config.n_layers * layer + 2 * config.d_model) * sizeof(float);
}

}  // namespace lamina
