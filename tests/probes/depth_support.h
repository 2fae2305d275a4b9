#pragma once

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "lamina/core/dtype.h"
#include "lamina/core/error.h"
#include "lamina/core/recording.h"
#include "lamina/core/safetensors.h"
#include "lamina/probes/probe.h"

namespace lamina::testing {

inline const nlohmann::json& goldens() {
  static const nlohmann::json json = [] {
    std::ifstream file(std::filesystem::path(LAMINA_SOURCE_DIR) / "tests/probes/depth.json");
    return nlohmann::json::parse(file);
  }();
  return json;
}

/// A golden model with its prompts and the values that the reference recorded.
class GoldenRun {
 public:
  explicit GoldenRun(const std::string& name)
      : folder_(std::filesystem::path(LAMINA_SOURCE_DIR) / "tests/goldens" / name),
        model_(Model::load(folder_)),
        golden_(open_safetensors(folder_ / "golden.safetensors")) {
    for (int p = 0; golden_.find("p" + std::to_string(p) + "/ids") != nullptr; ++p) {
      const TensorInfo* ids = golden_.find("p" + std::to_string(p) + "/ids");
      const auto* first = reinterpret_cast<const std::int32_t*>(ids->bytes.data());
      Prompt& prompt = prompts_.emplace_back();
      prompt.id = std::to_string(p);
      prompt.ids.assign(first, first + ids->elements());
      prompt.given = static_cast<std::int64_t>(prompt.ids.size());
    }
  }
  const Model& model() const { return model_; }
  const ModelConfig& config() const { return model_.config(); }
  const std::vector<Prompt>& prompts() const { return prompts_; }

  /// All prompts with every token site that the reference recorded.
  ActivationBlock block() const {
    ActivationBlock block;
    block.prompts = prompts_;
    for (const Prompt& prompt : prompts_) block.batch.add(prompt.ids);
    for (Site site : all_sites(config())) {
      const SiteShape shape = site_shape(site, config());
      if (shape.attention) continue;
      ActivationBlock::Values values{shape, {}, {}};
      for (std::size_t p = 0; p < prompts_.size(); ++p) {
        const TensorInfo* tensor = golden_.find("p" + std::to_string(p) + "/" + name_of(site));
        if (tensor == nullptr) break;
        std::vector<float> part(tensor->elements());
        expand_to_f32(tensor->dtype, tensor->bytes, part);
        values.values.insert(values.values.end(), part.begin(), part.end());
      }
      if (!values.values.empty()) block.sites[ActivationBlock::site_key(site)] = values;
    }
    return block;
  }
  void observe(Probe& probe) const { probe.observe(block()); }

 private:
  // What the reference calls it.
  static std::string name_of(Site site) { return site_name(site); }

  std::filesystem::path folder_;
  Model model_;
  TensorStore golden_;
  std::vector<Prompt> prompts_;
};

/// One prompt of random embeddings, and layers given as functions of one token's stream; half of
/// what a layer adds is attention's.
class MadeStream {
 public:
  MadeStream(std::int64_t layers, std::int64_t width, std::int64_t tokens) {
    config_.family = "made";
    config_.n_layers = layers;
    config_.d_model = config_.d_head = config_.d_mlp = width;
    config_.n_heads = config_.n_kv_heads = 1;
    config_.layers.resize(static_cast<std::size_t>(layers));
    prompts_.resize(1);
    prompts_[0].id = "made";
    prompts_[0].ids.assign(static_cast<std::size_t>(tokens), 0);
    prompts_[0].given = tokens;
    block_.prompts = prompts_;
    block_.batch.add(prompts_[0].ids);
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    std::vector<float>& h = at({SiteKind::resid_pre, 0});
    for (float& x : h) x = normal(random);
    layers_from(h, [](std::int64_t, const std::vector<float>& row) { return row; });
    mlp_post([](std::int64_t, std::int64_t) { return 1.0F; });
  }
  const ModelConfig& config() const { return config_; }
  using Layer = std::function<std::vector<float>(std::int64_t, const std::vector<float>&)>;
  void layers(const Layer& layer) { layers_from(at({SiteKind::resid_pre, 0}), layer); }
  std::int64_t token() const { return token_; }  // that the layer is called for
  void mlp_post(const std::function<float(std::int64_t, std::int64_t)>& value) {
    const std::int64_t m = config_.d_mlp;
    for (std::int32_t l = 0; l < config_.n_layers; ++l) {
      std::vector<float>& x = at({SiteKind::mlp_post, l});
      for (std::size_t i = 0; i < x.size(); ++i) {
        x[i] = value(static_cast<std::int64_t>(i) / m, static_cast<std::int64_t>(i) % m);
      }
    }
  }
  void observe(std::initializer_list<Probe*> probes) {
    for (Probe* probe : probes) probe->observe(block_);
  }

 private:
  std::vector<float>& at(Site site) {
    ActivationBlock::Values& values = block_.sites[ActivationBlock::site_key(site)];
    values.shape = {false, 0, config_.d_model};
    values.values.resize(static_cast<std::size_t>(block_.batch.tokens() * config_.d_model));
    return values.values;
  }
  void layers_from(std::vector<float> h, const Layer& layer) {
    const std::int64_t d = config_.d_model;
    for (std::int32_t l = 0; l < config_.n_layers; ++l) {
      std::vector<float> next;
      for (token_ = 0; token_ < block_.batch.tokens(); ++token_) {
        const auto first = h.begin() + token_ * d;
        const std::vector<float> row = layer(l, {first, first + d});
        next.insert(next.end(), row.begin(), row.end());
      }
      for (std::size_t i = 0; i < h.size(); ++i) {
        at({SiteKind::attn_out, l})[i] = (next[i] - h[i]) / 2;
        at({SiteKind::mlp_out, l})[i] = (next[i] - h[i]) / 2;
      }
      at({SiteKind::resid_post, l}) = next;
      h = next;
    }
  }

  ModelConfig config_;
  std::vector<Prompt> prompts_;
  ActivationBlock block_;
  std::int64_t token_ = 0;
};

inline void record(Forward& forward, const std::vector<Prompt>& prompts,
                   const std::filesystem::path& path, std::vector<Site> sites) {
  RecordingHeader header;
  header.tool_version = "test";
  header.created_utc = "2026-01-01T00:00:00Z";
  header.model_id = "tiny";
  header.model_sha256 = header.tokenizer_sha256 = header.prompts_sha256 = std::string(64, '0');
  header.config = forward.model().config();
  header.sites = std::move(sites);
  header.total_prompts = static_cast<std::int64_t>(prompts.size());
  RecordingWriter writer(path, header, prompts);
  run_live(forward, prompts, header.sites, {},
           [&](const ActivationBlock& block) { writer.append(block); });
  writer.finish();
}

}  // namespace lamina::testing
