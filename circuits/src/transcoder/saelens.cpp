// SAELens' folders: cfg.json and sae_weights.safetensors.
// Source: SAELens 6 (SAE.save_model, load_from_disk, handle_pre_6_0_config), read as a reference.

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"
#include "transcoder/file_config.h"
#include "transcoder/layouts.h"
#include "transcoder/tensor_reading.h"

namespace lamina {
namespace transcoder_files {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTensors[] = {"W_enc",     "b_enc",  "W_dec",          "b_dec",
                                         "threshold", "W_skip", "scaling_factor", "topk_threshold"};

void scale_rows(std::vector<float>& matrix, std::int64_t width, std::span<const double> factor) {
  for (std::size_t j = 0; j < factor.size(); ++j) {
    float* row = matrix.data() + j * static_cast<std::size_t>(width);
    for (std::int64_t i = 0; i < width; ++i) {
      row[i] = static_cast<float>(row[i] * factor[j]);
    }
  }
}

// TopK dictionaries that were trained with their decoder's norms folded into the choice: after
// folding, activations are those that SAELens reports.
void fold_decoder_norms(Transcoder& t) {
  const std::int64_t f = t.config.features, d = t.config.d_out;
  std::vector<double> norm(static_cast<std::size_t>(f)), inverse(norm.size());
  for (std::int64_t j = 0; j < f; ++j) {
    double sum = 0;
    for (std::int64_t i = 0; i < d; ++i) {
      const double w = t.decoder[static_cast<std::size_t>(j * d + i)];
      sum += w * w;
    }
    if (!(sum > 0)) {
      fail("{}: rescale_acts_by_decoder_norm, but the decoder row of feature {} has norm {}",
           t.config.name, j, std::sqrt(sum));
    }
    norm[static_cast<std::size_t>(j)] = std::sqrt(sum);
    inverse[static_cast<std::size_t>(j)] = 1 / std::sqrt(sum);
  }
  scale_rows(t.encoder, t.config.d_in, norm);
  scale_rows(t.encoder_bias, 1, norm);
  scale_rows(t.decoder, d, inverse);
}

// A factor that a finetuning multiplied each feature's contribution by.
void fold_scaling_factor(Transcoder& t, const TensorStore& store, bool finetuned) {
  const TensorInfo* tensor = store.find("scaling_factor");
  if (tensor == nullptr) return;
  const std::vector<float> factor = read_tensor(*tensor);
  if (std::all_of(factor.begin(), factor.end(), [](float v) { return std::abs(v - 1) < 1e-5F; })) {
    return;
  }
  if (!finetuned) {
    fail(
        "{}: scaling_factor holds values other than 1, but cfg.json says finetuning_scaling_factor "
        "false",
        store.name());
  }
  scale_rows(t.decoder, t.config.d_out, std::vector<double>(factor.begin(), factor.end()));
}

void fold_input_scale(Transcoder& t, double scale) {
  for (float& w : t.encoder) w = static_cast<float>(w * scale);
  for (float& w : t.decoder) w = static_cast<float>(w / scale);
  for (float& b : t.decoder_bias) b = static_cast<float>(b / scale);
}

std::vector<float> read_thresholds(const TensorStore& store, std::int64_t features) {
  if (const TensorInfo* one = store.find("topk_threshold"); one != nullptr) {
    const std::vector<float> value = read_tensor(*one);
    return std::vector<float>(static_cast<std::size_t>(features), value.at(0));
  }
  return read_tensor(require_tensor(store, "threshold"));
}

bool has_thresholds(FeatureActivation activation) {
  return activation == FeatureActivation::jump_relu || activation == FeatureActivation::batch_topk;
}

void check_shapes(const TensorStore& store, const TranscoderConfig& c) {
  refuse_others(store, kTensors);
  require_shape(store, require_tensor(store, "W_enc"), {c.d_in, c.features});
  require_shape(store, require_tensor(store, "b_enc"), {c.features});
  require_shape(store, require_tensor(store, "W_dec"), {c.features, c.d_out});
  require_shape(store, require_tensor(store, "b_dec"), {c.d_out});
  if (c.skip) require_shape(store, require_tensor(store, "W_skip"), {c.d_out, c.d_in});
  if (!c.skip && store.find("W_skip") != nullptr) {
    fail("{}: tensor W_skip in an architecture without a skip", store.name());
  }
  if (const TensorInfo* factor = store.find("scaling_factor"); factor != nullptr) {
    require_shape(store, *factor, {c.features});
  }
  const TensorInfo* one = store.find("topk_threshold");
  if (has_thresholds(c.activation) && one != nullptr) {
    require_shape(store, *one, {});
  } else if (has_thresholds(c.activation)) {
    require_shape(store, require_tensor(store, "threshold"), {c.features});
  } else if (store.find("threshold") != nullptr) {
    fail("{}: tensor threshold in a dictionary with activation {}", store.name(),
         feature_activation_name(c.activation));
  }
}

}  // namespace

TranscoderSet::Entry open_saelens(const fs::path& folder, const DictionaryReadOptions& options) {
  const fs::path config_path = folder / "cfg.json";
  const SaeLensConfig cfg =
      parse_saelens_config(read_small_text(config_path), config_path.string());
  const auto store =
      std::make_shared<const TensorStore>(open_safetensors(folder / "sae_weights.safetensors"));
  if (cfg.expected_average && options.input_scale == 0) {
    fail(
        "{}: normalize_activations expected_average_only_in: its inputs were multiplied by a "
        "factor that the file does not hold; give it (--input-scale)",
        config_path.string());
  }
  if (cfg.expected_average && cfg.transcoder) {
    fail("{}: normalize_activations: expected none in a transcoder, found expected_average_only_in",
         config_path.string());
  }

  TranscoderSet::Entry entry;
  TranscoderConfig& c = entry.config;
  c.name = fs::absolute(folder).lexically_normal().filename().string();
  if (c.name.empty())
    c.name = fs::absolute(folder).lexically_normal().parent_path().filename().string();
  c.model_id = cfg.model_name;
  c.d_in = cfg.d_in;
  c.d_out = cfg.d_out;
  const TensorInfo& encoder = require_tensor(*store, "W_enc");
  c.features = cfg.d_sae != 0              ? cfg.d_sae
               : encoder.shape.size() == 2 ? static_cast<std::int64_t>(encoder.shape[1])
                                           : 0;
  if (c.features < 1 || c.features > kMaxFeatures) {
    fail("{}: {} features, expected 1 to {}", config_path.string(), c.features, kMaxFeatures);
  }
  c.activation = cfg.activation;
  c.k = cfg.k;
  if (!options.activation.empty()) {
    c.activation = parse_feature_activation(options.activation);
    c.k = options.k;
  }
  c.subtract_decoder_bias = cfg.subtract_decoder_bias;
  c.skip = cfg.skip;
  const std::string in = options.input_hook.empty() ? cfg.hook_name : options.input_hook;
  std::string out = options.output_hook.empty() ? cfg.hook_name_out : options.output_hook;
  if (!cfg.transcoder && options.output_hook.empty()) out = in;
  c.input = place_of(config_path, "input", in, -1, options);
  c.output = out == in ? c.input : place_of(config_path, "output", out, c.input.site.layer, {});
  check_shapes(*store, c);

  entry.origin = {folder / "sae_weights.safetensors",
                  DictionaryFormat::saelens,
                  cfg.architecture,
                  in,
                  out,
                  cfg.notes};
  const double scale = cfg.expected_average ? options.input_scale : 1;
  entry.load = [store, scale, rescale = cfg.rescale_by_decoder_norm,
                finetuned = cfg.scaling_factor](const TranscoderConfig& config) {
    Transcoder t;
    t.config = config;
    t.encoder = read_transposed(*store->find("W_enc"));
    t.encoder_bias = read_tensor(*store->find("b_enc"));
    t.decoder = read_tensor(*store->find("W_dec"));
    t.decoder_bias = read_tensor(*store->find("b_dec"));
    if (has_thresholds(config.activation)) t.threshold = read_thresholds(*store, config.features);
    if (config.skip) t.skip = read_tensor(*store->find("W_skip"));
    t.check();
    if (rescale) fold_decoder_norms(t);
    fold_scaling_factor(t, *store, finetuned);
    if (scale != 1) fold_input_scale(t, scale);
    return t;
  };
  return entry;
}

namespace {

std::string saelens_architecture(const TranscoderConfig& c, bool autoencoder) {
  const bool thresholds = has_thresholds(c.activation),
             topk = c.activation == FeatureActivation::topk;
  if (autoencoder) return thresholds ? "jumprelu" : topk ? "topk" : "standard";
  return std::string(thresholds ? "jumprelu_"
                     : topk     ? "topk_"
                                : "") +
         (c.skip ? "skip_transcoder" : "transcoder");
}

// Names that other programs know.
std::string hook_of(const DictionaryPlace& place) {
  if (place.norm_weights && place.site.kind == SiteKind::ln2_normalized) {
    return fmt::format("blocks.{}.mlp.hook_in", place.site.layer);
  }
  if (place.norm_weights && place.site.kind == SiteKind::ln1_normalized) {
    return fmt::format("blocks.{}.attn.hook_in", place.site.layer);
  }
  return dictionary_place_name(place);
}

}  // namespace
}  // namespace transcoder_files

void write_saelens(const std::filesystem::path& folder, const Transcoder& transcoder,
                   const std::map<std::string, std::string>& metadata) {
  using namespace transcoder_files;
  transcoder.check();
  const bool autoencoder =
      transcoder.config.input == transcoder.config.output && !transcoder.config.skip;
  const Transcoder t = autoencoder || !transcoder.config.subtract_decoder_bias
                           ? Transcoder{}
                           : transcoder.without_subtraction();
  const Transcoder& from = t.encoder.empty() ? transcoder : t;
  const TranscoderConfig& c = from.config;

  nlohmann::ordered_json cfg;
  cfg["d_in"] = c.d_in;
  cfg["d_sae"] = c.features;
  cfg["dtype"] = "float32";
  cfg["device"] = "cpu";
  cfg["apply_b_dec_to_input"] = c.subtract_decoder_bias;
  cfg["normalize_activations"] = "none";
  cfg["reshape_activations"] = c.input.site.kind == SiteKind::z ? "hook_z" : "none";
  if (!autoencoder) cfg["d_out"] = c.d_out;
  if (c.activation == FeatureActivation::topk) {
    cfg["k"] = c.k;
    if (autoencoder) cfg["rescale_acts_by_decoder_norm"] = false;
  }
  nlohmann::ordered_json& about = cfg["metadata"];
  about["sae_lens_version"] = "6.0.0";
  about["sae_lens_training_version"] = nullptr;
  about["model_name"] = c.model_id;
  about["hook_name"] = hook_of(c.input);
  if (!autoencoder) about["hook_name_out"] = hook_of(c.output);
  if (c.activation == FeatureActivation::batch_topk) {
    about["lamina_activation"] = "batch_topk";
    about["lamina_k"] = c.k;
  }
  for (const auto& [key, value] : metadata) {
    if (!about.contains(key)) about[key] = value;
  }
  cfg["architecture"] = saelens_architecture(c, autoencoder);

  const auto f = static_cast<std::uint64_t>(c.features), in = static_cast<std::uint64_t>(c.d_in),
             out = static_cast<std::uint64_t>(c.d_out);
  std::vector<float> encoder(from.encoder.size());
  for (std::uint64_t j = 0; j < f; ++j) {
    for (std::uint64_t i = 0; i < in; ++i) encoder[i * f + j] = from.encoder[j * in + i];
  }
  std::vector<F32Tensor> tensors = {{"W_enc", {in, f}, encoder},
                                    {"b_enc", {f}, from.encoder_bias},
                                    {"W_dec", {f, out}, from.decoder},
                                    {"b_dec", {out}, from.decoder_bias}};
  if (!from.threshold.empty()) tensors.push_back({"threshold", {f}, from.threshold});
  if (!from.skip.empty()) tensors.push_back({"W_skip", {out, in}, from.skip});
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) fail("{}: cannot create the folder: {}", folder.string(), error.message());
  write_safetensors(folder / "sae_weights.safetensors", tensors);
  write_text(folder / "cfg.json", cfg.dump(2) + "\n");
}

}  // namespace lamina
