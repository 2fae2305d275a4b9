#include "support/tiny_model.h"

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <fstream>
#include <random>

#include "lamina/core/safetensors.h"

namespace lamina::testing {
namespace {

// Collects random tensors by name and keeps their values alive until they are written.
class TensorMaker {
 public:
  explicit TensorMaker(std::uint64_t seed) : random_(seed) {}

  void matrix(const std::string& name, std::vector<std::uint64_t> shape, double deviation) {
    add(name, std::move(shape), 0.0, deviation);
  }
  void norm(const std::string& name, std::int64_t d, bool bias) {
    add(name + ".w", {static_cast<std::uint64_t>(d)}, 1.0, 0.2);
    if (bias) add(name + ".b", {static_cast<std::uint64_t>(d)}, 0.0, 0.2);
  }
  void write(const std::filesystem::path& path) const {
    std::vector<F32Tensor> views;
    for (const Made& t : tensors_) views.push_back({t.name, t.shape, t.values});
    write_safetensors(path, views);
  }

 private:
  struct Made {
    std::string name;
    std::vector<std::uint64_t> shape;
    std::vector<float> values;
  };
  void add(const std::string& name, std::vector<std::uint64_t> shape, double mean,
           double deviation) {
    std::size_t count = 1;
    for (std::uint64_t n : shape) count *= n;
    std::normal_distribution<double> normal(mean, deviation);
    std::vector<float> values(count);
    for (float& v : values) v = static_cast<float>(normal(random_));
    tensors_.push_back({name, std::move(shape), std::move(values)});
  }
  std::mt19937_64 random_;
  std::vector<Made> tensors_;
};

std::string config_json(const TinyConfig& c) {
  auto flag = [](bool value) { return value ? "true" : "false"; };
  std::string out = "{\"model_type\": \"lamina\"";
  auto number = [&](const char* key, auto value) {
    out += fmt::format(", \"{}\": {}", key, value);
  };
  auto text = [&](const char* key, const std::string& value) {
    out += fmt::format(", \"{}\": \"{}\"", key, value);
  };
  number("n_layers", c.n_layers), number("d_model", c.d_model), number("n_heads", c.n_heads);
  number("n_kv_heads", c.n_kv_heads), number("d_head", c.d_head), number("d_mlp", c.d_mlp);
  number("d_vocab", c.d_vocab), number("n_ctx", c.n_ctx), number("norm_eps", 1e-5);
  text("norm", c.norm), text("norm_place", c.norm_place), text("positions", c.positions);
  text("rope_style", c.rope_style), text("act", c.act);
  number("rope_theta", 10000), number("rotary_dim", c.rotary_dim), number("window", c.window);
  number("attn_scale", "null"), number("attn_softcap", c.attn_softcap);
  number("final_softcap", c.final_softcap), number("embed_scale", c.embed_scale);
  number("causal", flag(c.causal)), number("qk_norm", flag(c.qk_norm));
  number("qkv_bias", flag(c.qkv_bias)), number("out_bias", flag(c.out_bias));
  number("mlp_bias", flag(c.mlp_bias)), number("gated", flag(c.gated));
  number("parallel", flag(c.parallel)), number("tied", flag(c.tied));
  number("head_bias", flag(c.head_bias)), number("final_norm", flag(c.final_norm));
  return out + "}\n";
}

}  // namespace

TempDir::TempDir() {
  static std::atomic<int> counter{0};
  path_ = std::filesystem::temp_directory_path() /
          fmt::format("lamina-test-{}-{}", ::getpid(), counter++);
  std::filesystem::create_directories(path_);
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::vector<TinyConfig> varied_configs() {
  std::vector<TinyConfig> all;
  all.push_back({.label = "gated rotary grouped"});
  all.push_back({.label = "learned LayerNorm biases",
                 .n_kv_heads = 4,
                 .norm = "layer",
                 .positions = "learned",
                 .act = "gelu_tanh",
                 .rotary_dim = 0,
                 .qkv_bias = true,
                 .out_bias = true,
                 .mlp_bias = true,
                 .gated = false,
                 .tied = true});
  all.push_back({.label = "parallel interleaved partial rotary",
                 .norm = "layer",
                 .rope_style = "interleaved",
                 .act = "gelu",
                 .rotary_dim = 4,
                 .mlp_bias = true,
                 .gated = false,
                 .parallel = true});
  all.push_back({.label = "sandwich window soft-caps query norm",
                 .norm_place = "sandwich",
                 .act = "gelu_tanh",
                 .window = 5,
                 .qk_norm = true,
                 .tied = true,
                 .attn_softcap = 3,
                 .final_softcap = 5,
                 .embed_scale = 4.5});
  all.push_back({.label = "post-norm bidirectional",
                 .norm = "layer",
                 .norm_place = "post",
                 .positions = "learned",
                 .act = "relu",
                 .rotary_dim = 0,
                 .causal = false,
                 .mlp_bias = true,
                 .gated = false,
                 .final_norm = false});
  all.push_back({.label = "attention only, no norm",
                 .d_mlp = 0,
                 .norm = "none",
                 .norm_place = "none",
                 .positions = "none",
                 .rotary_dim = 0,
                 .gated = false,
                 .head_bias = true,
                 .final_norm = false});
  return all;
}

void write_tiny_model(const std::filesystem::path& folder, const TinyConfig& c,
                      std::uint64_t seed) {
  const auto D = static_cast<std::uint64_t>(c.d_model), V = static_cast<std::uint64_t>(c.d_vocab);
  const auto H = static_cast<std::uint64_t>(c.n_heads),
             K = static_cast<std::uint64_t>(c.n_kv_heads);
  const auto dh = static_cast<std::uint64_t>(c.d_head), M = static_cast<std::uint64_t>(c.d_mlp);
  const double into_d = 1.0 / std::sqrt(static_cast<double>(D));
  const bool layer_norm = c.norm == "layer";
  const bool norms = c.norm != "none" && c.norm_place != "none";
  TensorMaker make(seed);
  make.matrix("embed.W_E", {V, D}, 1.0);
  if (c.positions == "learned") {
    make.matrix("pos_embed.W_pos", {static_cast<std::uint64_t>(c.n_ctx), D}, 0.5);
  }
  for (std::int64_t l = 0; l < c.n_layers; ++l) {
    const std::string b = fmt::format("blocks.{}.", l);
    if (norms) make.norm(b + "ln1", c.d_model, layer_norm);
    make.matrix(b + "attn.W_Q", {H, D, dh}, 1.5 * into_d);
    make.matrix(b + "attn.W_K", {K, D, dh}, 1.5 * into_d);
    make.matrix(b + "attn.W_V", {K, D, dh}, into_d);
    make.matrix(b + "attn.W_O", {H, dh, D}, into_d);
    if (c.qkv_bias) {
      make.matrix(b + "attn.b_Q", {H, dh}, 0.3);
      make.matrix(b + "attn.b_K", {K, dh}, 0.3);
      make.matrix(b + "attn.b_V", {K, dh}, 0.3);
    }
    if (c.out_bias) make.matrix(b + "attn.b_O", {D}, 0.3);
    if (c.qk_norm) {
      make.matrix(b + "attn.q_norm.w", {dh}, 1.0);
      make.matrix(b + "attn.k_norm.w", {dh}, 1.0);
    }
    if (norms && c.norm_place == "sandwich") make.norm(b + "ln1_post", c.d_model, layer_norm);
    if (c.d_mlp == 0) continue;
    if (norms) make.norm(b + "ln2", c.d_model, layer_norm);
    if (norms && c.norm_place == "sandwich") make.norm(b + "ln2_post", c.d_model, layer_norm);
    make.matrix(b + "mlp.W_in", {D, M}, into_d);
    if (c.gated) make.matrix(b + "mlp.W_gate", {D, M}, into_d);
    make.matrix(b + "mlp.W_out", {M, D}, into_d);
    if (c.mlp_bias) {
      make.matrix(b + "mlp.b_in", {M}, 0.3);
      make.matrix(b + "mlp.b_out", {D}, 0.3);
    }
  }
  if (c.final_norm && c.norm != "none") make.norm("ln_final", c.d_model, layer_norm);
  if (!c.tied) make.matrix("unembed.W_U", {D, V}, into_d);
  if (c.head_bias) make.matrix("unembed.b_U", {V}, 0.3);
  make.write(folder / "model.safetensors");
  std::ofstream(folder / "config.json") << config_json(c);
}

Model tiny_model(const TinyConfig& config, std::uint64_t seed) {
  const TempDir folder;
  write_tiny_model(folder.path(), config, seed);
  return Model::load(folder.path());
}

std::vector<std::vector<std::int32_t>> random_prompts(const std::vector<std::int64_t>& lengths,
                                                      std::int64_t d_vocab, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::vector<std::int32_t>> prompts;
  for (std::int64_t length : lengths) {
    std::vector<std::int32_t>& ids = prompts.emplace_back();
    for (std::int64_t t = 0; t < length; ++t) {
      ids.push_back(static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(d_vocab)));
    }
  }
  return prompts;
}

}  // namespace lamina::testing
