#include <fmt/format.h>

#include "family/family.h"

namespace lamina {

std::vector<CanonicalTensor> canonical_tensors(const ModelConfig& c) {
  std::vector<CanonicalTensor> out;
  const auto matrix = [&](std::string name, std::int64_t rows, std::int64_t cols) {
    out.push_back({std::move(name), rows, cols});
  };
  const auto vector = [&](std::string name, std::int64_t size) {
    out.push_back({std::move(name), 1, size});
  };
  const auto norm = [&](const std::string& name, std::int64_t size) {
    vector(name + ".w", size);
    if (c.norm == NormKind::layer) vector(name + ".b", size);
  };
  const bool normed = c.norm != NormKind::none && c.norm_place != NormPlace::none;
  const bool sandwich = normed && c.norm_place == NormPlace::sandwich;

  matrix("embed", c.d_vocab, c.d_model);
  if (c.n_types > 0) matrix("type_embed", c.n_types, c.d_model);
  if (c.positions == Positions::learned) matrix("pos_embed", c.n_ctx, c.d_model);
  if (c.embed_norm) norm("embed_norm", c.d_model);
  for (std::int64_t l = 0; l < c.n_layers; ++l) {
    const std::string p = fmt::format("{}.", l);
    if (normed) norm(p + "ln1", c.d_model);
    matrix(p + "q", c.d_attn(), c.d_model);
    matrix(p + "k", c.d_kv(), c.d_model);
    matrix(p + "v", c.d_kv(), c.d_model);
    if (c.qkv_bias) {
      vector(p + "q.b", c.d_attn());
      vector(p + "k.b", c.d_kv());
      vector(p + "v.b", c.d_kv());
    }
    if (c.qk_norm) {
      vector(p + "q_norm", c.d_head);
      vector(p + "k_norm", c.d_head);
    }
    matrix(p + "o", c.d_model, c.d_attn());
    if (c.out_bias) vector(p + "o.b", c.d_model);
    if (sandwich) norm(p + "ln1_post", c.d_model);
    if (c.d_mlp == 0) continue;
    if (normed && !(c.parallel && c.shared_parallel_norm)) norm(p + "ln2", c.d_model);
    if (c.gated) {
      matrix(p + "gate", c.d_mlp, c.d_model);
      if (c.mlp_bias) vector(p + "gate.b", c.d_mlp);
    }
    matrix(p + "in", c.d_mlp, c.d_model);
    if (c.mlp_bias) vector(p + "in.b", c.d_mlp);
    if (c.act == Activation::solu_ln) {
      vector(p + "mlp_ln.w", c.d_mlp);
      vector(p + "mlp_ln.b", c.d_mlp);
    }
    matrix(p + "out", c.d_model, c.d_mlp);
    if (c.mlp_bias) vector(p + "out.b", c.d_model);
    if (sandwich) norm(p + "ln2_post", c.d_model);
  }
  if (c.head_dense) {
    matrix("head", c.d_model, c.d_model);
    vector("head.b", c.d_model);
  }
  if (c.final_norm && c.norm != NormKind::none) norm("ln_final", c.d_model);
  if (c.head == Head::none) return out;
  if (!c.tied) matrix("unembed", c.d_out(), c.d_model);
  if (c.head_bias) vector("unembed.b", c.d_out());
  return out;
}

}  // namespace lamina
