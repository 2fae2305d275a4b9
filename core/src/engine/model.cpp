#include "lamina/core/model.h"

#include <algorithm>
#include <array>
#include <utility>

#include "engine/weights.h"
#include "family/family.h"
#include "lamina/core/error.h"
#include "lamina/core/sha256.h"
#include "lamina/core/tensor_store.h"

namespace lamina {
namespace {

std::string display_name(const std::filesystem::path& path) {
  std::filesystem::path name = path.filename();
  if (name.empty() || name == ".")
    name = std::filesystem::absolute(path).lexically_normal().parent_path().filename();
  return name.string();
}

}  // namespace

Model::Model() = default;
Model::~Model() = default;
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;

Model Model::load(const std::filesystem::path& path) {
  Model model;
  OpenedModel opened = open_model(path);
  model.config_ = std::move(opened.config);
  model.id_ = display_name(path);
  model.weights_ = std::make_unique<const Weights>(load_weights(model.config_, *opened.weights));
  for (const CanonicalTensor& tensor : canonical_tensors(model.config_)) {
    model.parameters_ += static_cast<std::uint64_t>(tensor.rows * tensor.cols);
  }
  if (opened.has_tokenizer) {
    model.tokenizer_ = std::make_shared<const Tokenizer>(Tokenizer::load(path));
    if (model.tokenizer_->vocab_size() > model.config_.d_vocab) {
      fail("{}: the tokenizer has ids up to {}, the embedding has only {} rows", path.string(),
           model.tokenizer_->vocab_size() - 1, model.config_.d_vocab);
    }
  }
  // Paths only: the mappings themselves are dropped, the packed weights replace them.
  std::vector<std::filesystem::path> files;
  for (const auto& file : opened.files) files.push_back(file->path());
  model.fingerprint_ = [files, text = std::move(opened.config_text)] {
    Sha256 hash;
    hash.update(text);
    for (const std::filesystem::path& file : files) hash.update(MappedFile(file).bytes());
    return hash.hex();
  };
  return model;
}

const std::string& Model::sha256() const {
  if (sha256_.empty()) sha256_ = fingerprint_();
  return sha256_;
}

void Model::final_norm_weight(std::span<float> out) const {
  std::fill(out.begin(), out.end(), 1.0F);
  if (!config_.final_norm || config_.norm == NormKind::none) return;
  const auto offset = static_cast<float>(config_.norm_offset);
  const std::vector<float>& weight = weights_->ln_final.weight;
  for (std::size_t i = 0; i < weight.size(); ++i) out[i] = offset + weight[i];
}

namespace {

// The norm whose normalised site is `kind`; UsageError if the model has none there.
const NormWeights& norm_at(const ModelConfig& config, const Weights& weights, SiteKind kind,
                           std::int32_t layer) {
  const NormWeights* norm = nullptr;
  if (kind == SiteKind::ln_final_normalized) {
    norm = &weights.ln_final;
  } else if (kind == SiteKind::embed_ln_normalized) {
    norm = &weights.embed_norm;
  } else if (layer >= 0 && layer < config.n_layers) {
    const LayerWeights& w = weights.layers[static_cast<std::size_t>(layer)];
    if (kind == SiteKind::ln1_normalized) norm = &w.ln1;
    if (kind == SiteKind::ln1_post_normalized) norm = &w.ln1_post;
    if (kind == SiteKind::ln2_normalized) norm = &w.ln2;
    if (kind == SiteKind::ln2_post_normalized) norm = &w.ln2_post;
  }
  if (norm == nullptr || norm->weight.empty()) {
    fail_usage("this {} model has no norm at {}", config.family, site_name({kind, layer}));
  }
  return *norm;
}

}  // namespace

void Model::norm_weight(SiteKind kind, std::int32_t layer, std::span<float> out) const {
  const std::vector<float>& weight = norm_at(config_, *weights_, kind, layer).weight;
  const auto offset = static_cast<float>(config_.norm_offset);
  for (std::size_t i = 0; i < weight.size(); ++i) out[i] = offset + weight[i];
}

void Model::norm_bias(SiteKind kind, std::int32_t layer, std::span<float> out) const {
  const std::vector<float>& bias = norm_at(config_, *weights_, kind, layer).bias;
  std::fill(out.begin(), out.end(), 0.0F);
  std::copy(bias.begin(), bias.end(), out.begin());
}

void Model::unembedding_rows(std::int64_t first, std::int64_t count, std::span<float> out) const {
  if (first < 0 || count < 0 || first + count > config_.d_out()) {
    fail_usage("unembedding rows {} to {} were asked for, the head has {}", first, first + count,
               config_.d_out());
  }
  for (std::int64_t i = 0; i < count; ++i) {
    weights_->unembed.weight.copy_row(first + i, out.data() + i * config_.d_model);
  }
}

void Model::embedding_rows(std::int64_t first, std::int64_t count, std::span<float> out) const {
  if (first < 0 || count < 0 || first > config_.d_vocab - count) {
    fail_usage("embedding rows {} to {} were asked for, the vocabulary has {}", first,
               first + count, config_.d_vocab);
  }
  const std::int64_t d = config_.d_model;
  const auto factor = static_cast<float>(config_.embed_scale);
  for (std::int64_t i = 0; i < count; ++i) {
    float* row = out.data() + i * d;
    if (weights_->embed.empty()) {
      weights_->unembed.weight.copy_row(first + i, row);
    } else {
      std::copy_n(weights_->embed.data() + (first + i) * d, d, row);
    }
    if (config_.embed_scale != 1.0)
      for (std::int64_t j = 0; j < d; ++j) row[j] *= factor;
  }
}

namespace {

constexpr std::array<std::pair<const char*, Linear LayerWeights::*>, 7> kLayerMatrices = {
    {{"q", &LayerWeights::q},
     {"k", &LayerWeights::k},
     {"v", &LayerWeights::v},
     {"o", &LayerWeights::o},
     {"gate", &LayerWeights::gate},
     {"in", &LayerWeights::in},
     {"out", &LayerWeights::out}}};

}  // namespace

std::vector<MatrixInfo> Model::layer_matrices(std::int32_t layer) const {
  if (layer < 0 || layer >= config_.n_layers) {
    fail_usage("matrices of layer {} were asked for, the model has layers 0 to {}", layer,
               config_.n_layers - 1);
  }
  std::vector<MatrixInfo> matrices;
  for (const auto& [name, member] : kLayerMatrices) {
    const Linear& linear = weights_->layers[static_cast<std::size_t>(layer)].*member;
    if (linear.weight.empty()) continue;
    matrices.push_back(
        {fmt::format("{}.{}", layer, name), linear.weight.n_out(), linear.weight.n_in()});
  }
  return matrices;
}

namespace {

// One of the matrices of `weights` by its name; UsageError if there is none.
const Linear& matrix_at(const ModelConfig& config, const Weights& weights, std::string_view name) {
  for (std::int32_t layer = 0; layer < config.n_layers; ++layer) {
    const std::string prefix = fmt::format("{}.", layer);
    if (!name.starts_with(prefix)) continue;
    for (const auto& [stem, member] : kLayerMatrices) {
      const Linear& linear = weights.layers[static_cast<std::size_t>(layer)].*member;
      if (name.substr(prefix.size()) == stem && !linear.weight.empty()) return linear;
    }
  }
  fail_usage("there is no matrix '{}' in this model", name);
}

}  // namespace

void Model::matrix_rows(std::string_view name, std::int64_t first, std::int64_t count,
                        std::span<float> out) const {
  const Linear& linear = matrix_at(config_, *weights_, name);
  const std::int64_t rows = linear.weight.n_out(), columns = linear.weight.n_in();
  if (first < 0 || count < 0 || first > rows - count) {
    fail_usage("rows {} to {} of matrix {} were asked for, it has {}", first, first + count, name,
               rows);
  }
  if (out.size() != static_cast<std::size_t>(count * columns)) {
    fail_usage("{} rows of {} columns of matrix {} do not make {} values", count, columns, name,
               out.size());
  }
  for (std::int64_t i = 0; i < count; ++i)
    linear.weight.copy_row(first + i, out.data() + i * columns);
}

void Model::matrix_bias(std::string_view name, std::span<float> out) const {
  const Linear& linear = matrix_at(config_, *weights_, name);
  if (out.size() != static_cast<std::size_t>(linear.weight.n_out())) {
    fail_usage("the bias of matrix {} has {} values, {} were asked for", name,
               linear.weight.n_out(), out.size());
  }
  std::fill(out.begin(), out.end(), 0.0F);
  std::copy(linear.bias.begin(), linear.bias.end(), out.begin());
}

std::uint64_t Model::weight_bytes() const {
  const auto linear = [](const Linear& l) {
    return l.weight.bytes() + l.bias.size() * sizeof(float);
  };
  const auto norm = [](const NormWeights& n) {
    return (n.weight.size() + n.bias.size()) * sizeof(float);
  };
  const Weights& w = *weights_;
  std::uint64_t bytes =
      (w.embed.size() + w.type_embed.size() + w.pos_embed.size()) * sizeof(float) +
      norm(w.embed_norm) + linear(w.head) + norm(w.ln_final) + linear(w.unembed);
  for (const LayerWeights& layer : w.layers) {
    for (const Linear* l :
         {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.in, &layer.out}) {
      bytes += linear(*l);
    }
    for (const NormWeights* n :
         {&layer.ln1, &layer.ln1_post, &layer.ln2, &layer.ln2_post, &layer.mlp_ln}) {
      bytes += norm(*n);
    }
    bytes += (layer.q_norm.size() + layer.k_norm.size()) * sizeof(float);
  }
  return bytes;
}

}  // namespace lamina
