// circuit-tracer's per-layer files. Source: circuit-tracer (load_transcoder, TranscoderSet), read
// as a reference.

#include <algorithm>
#include <cstring>

#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"
#include "transcoder/file_config.h"
#include "transcoder/layouts.h"
#include "transcoder/tensor_reading.h"

namespace lamina {
namespace transcoder_files {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTensors[] = {"W_enc", "W_dec",    "b_enc",
                                         "b_dec", "W_skip",   "activation_function.threshold",
                                         "k",     "threshold"};

const TensorInfo* find_threshold(const TensorStore& store) {
  const TensorInfo* tensor = store.find("activation_function.threshold");
  return tensor != nullptr ? tensor : store.find("threshold");
}

std::int64_t stored_k(const TensorStore& store) {
  const TensorInfo* tensor = store.find("k");
  if (tensor == nullptr) return 0;
  std::int64_t k = 0;
  if (tensor->dtype != DType::i64 || tensor->bytes.size() != sizeof k) {
    fail("{}: tensor k: expected one i64, found {} {}", store.name(), dtype_name(tensor->dtype),
         shape_text(tensor->shape));
  }
  std::memcpy(&k, tensor->bytes.data(), sizeof k);
  if (k < 1 || k > kMaxFeatures)
    fail("{}: k: expected 1 to {}, found {}", store.name(), kMaxFeatures, k);
  return k;
}

void set_activation(TranscoderConfig& c, const TensorStore& store,
                    const CircuitTracerConfig* config, const DictionaryReadOptions& options) {
  const bool thresholds = find_threshold(store) != nullptr;
  std::string name = options.activation;
  if (name.empty() && config != nullptr) name = config->activation;
  c.k = options.k != 0                        ? options.k
        : config != nullptr && config->k != 0 ? config->k
                                              : stored_k(store);
  if (name.empty()) name = thresholds ? "jump_relu" : c.k != 0 ? "topk" : "relu";
  c.activation = parse_feature_activation(name);
  if (c.activation == FeatureActivation::topk && c.k == 0) {
    fail("{}: activation topk without k", store.name());
  }
  if (c.activation != FeatureActivation::topk) c.k = 0;
  if (thresholds != (c.activation == FeatureActivation::jump_relu)) {
    fail("{}: activation {}, but {} tensor activation_function.threshold", store.name(), name,
         thresholds ? "there is a" : "no");
  }
}

}  // namespace

TranscoderSet::Entry open_circuit_tracer_file(const fs::path& path, std::int32_t layer,
                                              const CircuitTracerConfig* config,
                                              const DictionaryReadOptions& options) {
  const auto store = std::make_shared<const TensorStore>(open_safetensors(path));
  refuse_others(*store, kTensors);
  const TensorInfo& encoder = require_tensor(*store, "W_enc");
  const TensorInfo& decoder = require_tensor(*store, "W_dec");
  for (const TensorInfo* matrix : {&encoder, &decoder}) {
    if (matrix->shape.size() != 2) {
      fail("{}: tensor {}: expected a matrix, found shape {}", store->name(), matrix->name,
           shape_text(matrix->shape));
    }
  }
  TranscoderSet::Entry entry;
  TranscoderConfig& c = entry.config;
  c.name = path.stem().string();
  if (config != nullptr) c.model_id = config->model_name;
  const auto capped = [&](std::uint64_t size, std::int64_t cap, const char* what) {
    if (size < 1 || size > static_cast<std::uint64_t>(cap)) {
      fail("{}: {}: expected 1 to {}, found {}", store->name(), what, cap, size);
    }
    return static_cast<std::int64_t>(size);
  };
  c.features = capped(encoder.shape[0], kMaxFeatures, "features");
  c.d_in = capped(encoder.shape[1], kMaxWidth, "input width");
  c.d_out = capped(decoder.shape[1], kMaxWidth, "output width");
  set_activation(c, *store, config, options);
  c.skip = store->find("W_skip") != nullptr;

  require_shape(*store, encoder, {c.features, c.d_in});
  require_shape(*store, decoder, {c.features, c.d_out});
  require_shape(*store, require_tensor(*store, "b_enc"), {c.features});
  require_shape(*store, require_tensor(*store, "b_dec"), {c.d_out});
  if (c.skip) require_shape(*store, *store->find("W_skip"), {c.d_out, c.d_in});
  if (const TensorInfo* threshold = find_threshold(*store); threshold != nullptr) {
    if (threshold->shape.size() == 2) {
      require_shape(*store, *threshold, {1, c.features});
    } else {
      require_shape(*store, *threshold, {c.features});
    }
  }

  const std::string said_in = config != nullptr ? config->feature_input_hook : "";
  const std::string said_out = config != nullptr ? config->feature_output_hook : "";
  const std::string in = options.input_hook.empty() ? said_in : options.input_hook;
  const std::string out = options.output_hook.empty() ? said_out : options.output_hook;
  c.input = place_of(path, "input", in, layer, options);
  c.output = out == in ? c.input : place_of(path, "output", out, layer, {});
  entry.origin = {path, DictionaryFormat::circuit_tracer,
                  "",   in,
                  out,  config != nullptr ? config->notes : std::vector<std::string>()};
  entry.load = [store](const TranscoderConfig& described) {
    Transcoder t;
    t.config = described;
    t.encoder = read_tensor(*store->find("W_enc"));
    t.encoder_bias = read_tensor(*store->find("b_enc"));
    t.decoder = read_tensor(*store->find("W_dec"));
    t.decoder_bias = read_tensor(*store->find("b_dec"));
    if (described.skip) t.skip = read_tensor(*store->find("W_skip"));
    if (const TensorInfo* threshold = find_threshold(*store); threshold != nullptr) {
      t.threshold = read_tensor(*threshold);
      const auto least = std::min_element(t.threshold.begin(), t.threshold.end());
      // circuit-tracer would let negative activations through there.
      if (*least < 0) {
        fail("{}: threshold of feature {}: expected 0 or more, found {}", store->name(),
             least - t.threshold.begin(), *least);
      }
    }
    t.check();
    return t;
  };
  return entry;
}

namespace {

// What circuit-tracer calls a place, without "blocks.l.".
std::string hook_within_block(const DictionaryPlace& place) {
  if (place.norm_weights && place.site.kind == SiteKind::ln2_normalized) return "mlp.hook_in";
  if (place.norm_weights && place.site.kind == SiteKind::ln1_normalized) return "attn.hook_in";
  const std::string name = dictionary_place_name(place);
  const std::string block = fmt::format("blocks.{}.", place.site.layer);
  return name.starts_with(block) ? name.substr(block.size()) : name;
}

void check_alike(std::span<const Transcoder* const> transcoders) {
  if (transcoders.empty()) fail_usage("no transcoder to write");
  const TranscoderConfig& first = transcoders.front()->config;
  for (std::size_t l = 0; l < transcoders.size(); ++l) {
    const TranscoderConfig& c = transcoders[l]->config;
    if (c.input.site.layer != static_cast<std::int32_t>(l)) {
      fail_usage("{}: it reads layer {}, a circuit-tracer folder needs layer {} there", c.name,
                 c.input.site.layer, l);
    }
    const auto differ = [&](const auto& a, const auto& b, std::string_view what) {
      if (a != b) {
        fail_usage("{}: {} {}, the folder's first transcoder has {}", c.name, what, b, a);
      }
    };
    differ(hook_within_block(first.input), hook_within_block(c.input), "reads");
    differ(hook_within_block(first.output), hook_within_block(c.output), "rebuilds");
    differ(feature_activation_name(first.activation), feature_activation_name(c.activation),
           "activation");
    differ(first.k, c.k, "k");
    differ(first.features, c.features, "features");
    differ(first.model_id, c.model_id, "model");
  }
}

// A YAML scalar in quotes; what those cannot hold becomes '_'.
std::string yaml_text(std::string_view text) {
  std::string out = "\"";
  for (char ch : text)
    out += ch == '"' || ch == '\\' || static_cast<unsigned char>(ch) < 32 ? '_' : ch;
  return out + "\"";
}

}  // namespace
}  // namespace transcoder_files

void write_circuit_tracer(const std::filesystem::path& folder,
                          std::span<const Transcoder* const> transcoders, std::string_view scan) {
  using namespace transcoder_files;
  check_alike(transcoders);
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) fail("{}: cannot create the folder: {}", folder.string(), error.message());
  for (std::size_t l = 0; l < transcoders.size(); ++l) {
    transcoders[l]->check();
    const Transcoder t = transcoders[l]->without_subtraction();
    const auto f = static_cast<std::uint64_t>(t.config.features),
               in = static_cast<std::uint64_t>(t.config.d_in),
               out = static_cast<std::uint64_t>(t.config.d_out);
    std::vector<F32Tensor> tensors = {{"W_enc", {f, in}, t.encoder},
                                      {"W_dec", {f, out}, t.decoder},
                                      {"b_enc", {f}, t.encoder_bias},
                                      {"b_dec", {out}, t.decoder_bias}};
    if (!t.threshold.empty()) {
      tensors.push_back({"activation_function.threshold", {f}, t.threshold});
    }
    if (!t.skip.empty()) tensors.push_back({"W_skip", {out, in}, t.skip});
    write_safetensors(folder / fmt::format("layer_{}.safetensors", l), tensors);
  }
  const TranscoderConfig& c = transcoders.front()->config;
  std::string text = fmt::format(
      "model_name: {}\nmodel_kind: transcoder_set\nfeature_input_hook: {}\n"
      "feature_output_hook: {}\nscan: {}\n",
      yaml_text(c.model_id), yaml_text(hook_within_block(c.input)),
      yaml_text(hook_within_block(c.output)), yaml_text(scan));
  if (c.activation == FeatureActivation::topk)
    text += fmt::format("activation: topk\nk: {}\n", c.k);
  if (c.activation == FeatureActivation::relu) text += "activation: relu\n";
  write_text(folder / "config.yaml", text);
}

}  // namespace lamina
