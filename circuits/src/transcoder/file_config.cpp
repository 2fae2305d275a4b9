#include "transcoder/file_config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "lamina/core/error.h"
#include "lamina/internal/file_text.h"
#include "lamina/internal/strict_json.h"

namespace lamina::transcoder_files {
namespace {

using Json = nlohmann::json;

// Checked values of one JSON object; a missing key or null is the fallback.
class Reader {
 public:
  Reader(const Json& object, std::string_view name) : object_(object), name_(name) {
    if (!object.is_object()) bad("the text", "an object", object);
  }

  std::string text(const char* key, std::string fallback = {}) const {
    const Json* value = find(key);
    if (value == nullptr) return fallback;
    if (!value->is_string()) bad(key, "a string", *value);
    return value->get<std::string>();
  }
  bool boolean(const char* key, bool fallback) const {
    const Json* value = find(key);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) bad(key, "true or false", *value);
    return value->get<bool>();
  }
  std::int64_t integer(const char* key, std::int64_t fallback, std::int64_t low,
                       std::int64_t high) const {
    const Json* value = find(key);
    if (value == nullptr) return fallback;
    const std::string expected = fmt::format("a whole number from {} to {}", low, high);
    double number = 0;
    if (value->is_number()) number = value->get<double>();
    if (!value->is_number() || number != std::floor(number) ||
        !(number >= static_cast<double>(low) && number <= static_cast<double>(high))) {
      bad(key, expected, *value);
    }
    return static_cast<std::int64_t>(number);
  }
  const Json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  [[noreturn]] void bad(std::string_view key, std::string_view expected, const Json& found) const {
    fail("{}: {}: expected {}, found {}", name_, key, expected,
         files::quote(found.dump(-1, ' ', false, Json::error_handler_t::replace)));
  }

 private:
  const Json& object_;
  std::string_view name_;
};

struct Architecture {
  std::string_view name;
  FeatureActivation activation;
  bool transcoder, skip;
};
constexpr Architecture kArchitectures[] = {
    {"standard", FeatureActivation::relu, false, false},
    {"topk", FeatureActivation::topk, false, false},
    {"batchtopk", FeatureActivation::batch_topk, false, false},
    {"jumprelu", FeatureActivation::jump_relu, false, false},
    {"transcoder", FeatureActivation::relu, true, false},
    {"skip_transcoder", FeatureActivation::relu, true, true},
    {"jumprelu_transcoder", FeatureActivation::jump_relu, true, false},
    {"jumprelu_skip_transcoder", FeatureActivation::jump_relu, true, true},
    {"topk_transcoder", FeatureActivation::topk, true, false},
    {"topk_skip_transcoder", FeatureActivation::topk, true, true},
};

// Version 6 keeps what concerns the model under "metadata", older ones beside the rest.
std::string described(const Reader& top, const Reader* metadata, const char* key,
                      const char* old_key = nullptr) {
  std::string value = metadata != nullptr ? metadata->text(key) : std::string();
  if (value.empty()) value = top.text(key);
  if (value.empty() && old_key != nullptr) value = top.text(old_key);
  return value;
}

void read_activation(const Reader& top, const Reader* metadata, SaeLensConfig& c,
                     std::string_view name) {
  std::string function = top.text("activation_fn", top.text("activation_fn_str", ""));
  c.k = top.integer("k", 0, 1, kMaxFeatures);
  if (const Json* kwargs = top.find("activation_fn_kwargs"); kwargs != nullptr) {
    const Reader inner(*kwargs, name);
    c.k = inner.integer("k", c.k, 1, kMaxFeatures);
  }
  if (function == "topk" && c.activation == FeatureActivation::relu) {
    c.activation = FeatureActivation::topk;
  } else if (!function.empty() && function != "relu" && function != "topk") {
    fail("{}: activation_fn: expected relu or topk, found {}", name, files::quote(function));
  }
  if (metadata != nullptr && metadata->text("lamina_activation") == "batch_topk" &&
      c.activation == FeatureActivation::jump_relu) {
    c.activation = FeatureActivation::batch_topk;
    c.k = metadata->integer("lamina_k", 0, 1, kMaxFeatures);
  }
  const bool chooses =
      c.activation == FeatureActivation::topk || c.activation == FeatureActivation::batch_topk;
  if (c.activation == FeatureActivation::topk && c.k == 0) {
    fail("{}: architecture {} without k", name, c.architecture);
  }
  if (!chooses) c.k = 0;
  c.rescale_by_decoder_norm = top.boolean("rescale_acts_by_decoder_norm", false) && chooses;
}

void read_normalisation(const Reader& top, SaeLensConfig& c, std::string_view name) {
  const Json* value = top.find("normalize_activations");
  std::string kind = "none";
  if (value != nullptr && value->is_boolean()) {
    kind = value->get<bool>() ? "expected_average_only_in" : "none";
  } else if (value != nullptr) {
    kind = top.text("normalize_activations");
  }
  if (kind == "expected_average_only_in") {
    c.expected_average = true;
  } else if (kind != "none") {
    fail(
        "{}: normalize_activations: expected none or expected_average_only_in, found {}: features "
        "of an input that is normalised row by row are not computed",
        name, files::quote(kind));
  }
}

}  // namespace

SaeLensConfig parse_saelens_config(std::string_view text, std::string_view name) {
  const Json json = files::parse_strict_json(text, name);
  const Reader top(json, name);
  const Json* inner = top.find("metadata");
  const std::optional<Reader> inner_reader =
      inner != nullptr ? std::optional<Reader>(Reader(*inner, name)) : std::nullopt;
  const Reader* metadata = inner_reader ? &*inner_reader : nullptr;

  SaeLensConfig c;
  c.architecture = top.text("architecture", "standard");
  const auto* known = std::find_if(std::begin(kArchitectures), std::end(kArchitectures),
                                   [&](const Architecture& a) { return a.name == c.architecture; });
  if (known == std::end(kArchitectures)) {
    std::string names;
    for (const Architecture& a : kArchitectures) names += fmt::format("{}, ", a.name);
    names.resize(names.size() - 2);
    fail("{}: architecture: expected one of {}, found {}", name, names,
         files::quote(c.architecture));
  }
  c.activation = known->activation;
  c.transcoder = known->transcoder;
  c.skip = known->skip;
  c.d_in = top.integer("d_in", 0, 1, kMaxWidth);
  if (c.d_in == 0) fail("{}: no d_in", name);
  c.d_sae = top.integer("d_sae", 0, 1, kMaxFeatures);
  c.d_out = c.transcoder ? top.integer("d_out", 0, 1, kMaxWidth) : c.d_in;
  if (c.d_out == 0) fail("{}: architecture {} without d_out", name, c.architecture);
  c.subtract_decoder_bias = top.boolean("apply_b_dec_to_input", !c.transcoder);
  if (c.transcoder && c.subtract_decoder_bias && c.d_in != c.d_out) {
    fail("{}: apply_b_dec_to_input with d_in {} and d_out {}, which must be equal", name, c.d_in,
         c.d_out);
  }
  c.scaling_factor = top.boolean("finetuning_scaling_factor", false);
  read_activation(top, metadata, c, name);
  read_normalisation(top, c, name);

  c.model_name = described(top, metadata, "model_name");
  c.hook_name = described(top, metadata, "hook_name", "hook_point");
  c.hook_name_out = described(top, metadata, "hook_name_out");
  const std::string reshape = top.text("reshape_activations", "none");
  if (reshape != "none" && reshape != "hook_z") {
    fail("{}: reshape_activations: expected none or hook_z, found {}", name, files::quote(reshape));
  }
  // Versions before 3 wrote the layer apart: "blocks.{layer}.hook_resid_pre".
  if (const std::size_t at = c.hook_name.find("{layer}"); at != std::string::npos) {
    const std::int64_t layer = top.integer("hook_point_layer", -1, 0, 1 << 20);
    if (layer < 0) fail("{}: hook_point {} without hook_point_layer", name, c.hook_name);
    c.hook_name.replace(at, 7, std::to_string(layer));
  }
  for (const Reader* reader : {&top, metadata}) {
    if (reader == nullptr) continue;
    for (const char* key : {"hook_head_index", "hook_point_head_index", "hook_head_index_out"}) {
      if (const Json* head = reader->find(key); head != nullptr) {
        reader->bad(key, "null: dictionaries of one head are not read", *head);
      }
    }
    if (const Json* kwargs = reader->find("model_from_pretrained_kwargs");
        kwargs != nullptr && kwargs->is_object()) {
      for (const char* key : {"fold_ln", "center_writing_weights"}) {
        const auto value = kwargs->find(key);
        if (value != kwargs->end() && value->is_boolean() && value->get<bool>()) {
          c.notes.push_back(fmt::format(
              "it was trained on a model loaded with {}, lamina's activations are those of the "
              "weights as the file has them",
              key));
        }
      }
    }
  }
  return c;
}

CircuitTracerConfig parse_circuit_tracer_config(std::string_view text, std::string_view name) {
  CircuitTracerConfig c;
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  const auto known = [](std::string_view key) {
    constexpr std::string_view kKeys[] = {"model_name",          "model_kind", "feature_input_hook",
                                          "feature_output_hook", "activation", "k",
                                          "transcoders",         "scan"};
    return std::find(std::begin(kKeys), std::end(kKeys), key) != std::end(kKeys);
  };
  // JSON becomes the same keys with scalars or lists of scalars.
  std::map<std::string, YamlValue> values;
  if (first != text.npos && text[first] == '{') {
    const Json json = files::parse_strict_json(text, name);
    const Reader top(json, name);
    const auto scalar = [&](const std::string& key, const Json& value) {
      if (value.is_string()) return value.get<std::string>();
      if (value.is_primitive()) return value.dump();
      top.bad(files::quote(key), "a string, a number or a list of them", value);
    };
    for (const auto& [key, value] : json.items()) {
      if (!known(key) || value.is_null()) {
        values[key];
        continue;
      }
      YamlValue& out = values[key];
      out.list = value.is_array();
      if (!out.list) out.items.push_back(scalar(key, value));
      if (out.list) {
        for (const Json& item : value) out.items.push_back(scalar(key, item));
      }
    }
  } else {
    values = parse_flat_yaml(text, name);
  }
  const auto scalar = [&](const char* key) {
    const auto found = values.find(key);
    if (found == values.end() || found->second.items.empty()) return std::string();
    if (found->second.list) fail("{}: {}: expected one value, found a list", name, key);
    const std::string& value = found->second.items.front();
    return value == "null" || value == "~" ? std::string() : value;
  };
  c.model_name = scalar("model_name");
  c.model_kind = scalar("model_kind");
  if (c.model_kind != "transcoder_set" && c.model_kind != "cross_layer_transcoder") {
    fail("{}: model_kind: expected transcoder_set or cross_layer_transcoder, found {}", name,
         files::quote(c.model_kind));
  }
  c.feature_input_hook = scalar("feature_input_hook");
  c.feature_output_hook = scalar("feature_output_hook");
  c.activation = scalar("activation");
  if (!c.activation.empty() && c.activation != "relu" && c.activation != "topk" &&
      c.activation != "jump_relu") {
    fail("{}: activation: expected relu, topk or jump_relu, found {}", name,
         files::quote(c.activation));
  }
  if (const std::string k = scalar("k"); !k.empty()) {
    const auto [end, error] = std::from_chars(k.data(), k.data() + k.size(), c.k);
    if (error != std::errc() || end != k.data() + k.size() || c.k < 1 || c.k > kMaxFeatures) {
      fail("{}: k: expected a whole number from 1 to {}, found {}", name, kMaxFeatures,
           files::quote(k));
    }
  }
  if (c.activation == "topk" && c.k == 0) fail("{}: activation topk without k", name);
  if (const auto found = values.find("transcoders"); found != values.end()) {
    c.transcoders = found->second.items;
  }
  std::string ignored;
  for (const auto& [key, value] : values) {
    if (!known(key)) ignored += (ignored.empty() ? "" : ", ") + files::quote(key);
  }
  if (!ignored.empty()) c.notes.push_back("keys that lamina does not read: " + ignored);
  return c;
}

}  // namespace lamina::transcoder_files
