#include "family/config_reader.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <iterator>

#include "lamina/core/error.h"

namespace lamina {
namespace {

using nlohmann::json;

// Parts of key names that speak of the forward pass. A key nobody knows is refused if it contains
// one of them; "use_cache" or "license" pass.
constexpr std::string_view kArithmeticWords[] = {
    "attn",         "attention", "rope",   "rotary",     "norm",   "eps",     "scal",  "multiplier",
    "expert",       "moe",       "router", "activation", "_act",   "act_",    "bias",  "window",
    "cap",          "head",      "layer",  "position",   "resid",  "quantiz", "clip",  "sparse",
    "alibi",        "mup",       "logit",  "embed",      "hidden", "gate",    "mlp",   "ffn",
    "intermediate", "tie_",      "tied",   "causal",     "cross_", "encoder", "share", "mixer",
    "recurren",     "conv_",     "_conv",  "latent",     "loop",   "depth"};

// Keys of transformers' base configuration and of common tools, none of which reaches the forward
// pass (names only; values do not matter).
// clang-format off
constexpr std::string_view kHarmless[] = {
    "_attn_implementation", "_attn_implementation_autoset", "_flash_attn_2_enabled",
    "_name_or_path", "architectures", "attention_probs_dropout_prob", "attn_implementation",
    "attn_pdrop", "auto_map", "bad_words_ids", "begin_suppress_tokens", "bos_token_id",
    "cache_implementation", "chunk_size_feed_forward", "decoder_start_token_id",
    "diversity_penalty", "do_sample", "dtype", "early_stopping", "embd_pdrop",
    "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty",
    "finetuning_task", "flash_attention", "forced_bos_token_id", "forced_eos_token_id",
    "id2label", "initializer_range", "is_decoder", "is_encoder_decoder", "is_llama_config",
    "keys_to_ignore_at_inference", "label2id", "length_penalty", "max_length", "min_length",
    "model_type", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_logits_to_keep",
    "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores",
    "pad_token_id", "prefix", "pretraining_tp", "problem_type",
    "remove_invalid_values", "repetition_penalty", "resid_pdrop", "return_dict",
    "return_dict_in_generate", "sep_token_id", "summary_activation", "summary_first_dropout",
    "summary_proj_to_labels", "summary_type", "summary_use_proj", "suppress_tokens",
    "task_specific_params", "temperature", "tie_encoder_decoder", "tokenizer_class",
    "tokenizer_type", "top_k", "top_p", "torch_dtype", "torchscript", "transformers.js_config",
    "transformers_version", "typical_p", "unsloth_fixed", "unsloth_version", "use_bfloat16",
    "use_cache", "use_flash_attention", "use_flash_attn", "use_return_dict"};
// clang-format on

// null, false, 0, "" , [] and {} switch nothing on.
bool is_off(const json& value) {
  if (value.is_null()) return true;
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value.get<double>() == 0.0;
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  return value.empty();
}

}  // namespace

std::string shown(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > 80) {
    std::size_t end = 77;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
    text = text.substr(0, end) + "...";
  }
  return text;
}

ConfigReader::ConfigReader(const json& object, std::string source)
    : object_(object), source_(std::move(source)) {
  if (!object_.is_object()) {
    fail("{}: expected a JSON object, found {}", source_, shown(object_));
  }
}

const json* ConfigReader::find(std::string_view key) {
  seen_.emplace(key);
  const auto it = object_.find(key);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

const json& ConfigReader::require(std::string_view key, std::string_view type) {
  const json* value = find(key);
  if (value == nullptr) fail("{}: no \"{}\"; expected {}", source_, key, type);
  return *value;
}

bool ConfigReader::has(std::string_view key) {
  return find(key) != nullptr;
}

bool ConfigReader::stated_null(std::string_view key) const {
  const auto it = object_.find(key);
  return it != object_.end() && it->is_null();
}

std::int64_t ConfigReader::integer(std::string_view key) {
  const json& value = require(key, "an integer");
  if (value.is_number_unsigned()) {
    const auto u = value.get<std::uint64_t>();
    if (u <= static_cast<std::uint64_t>(INT64_MAX)) return static_cast<std::int64_t>(u);
  } else if (value.is_number_integer()) {
    return value.get<std::int64_t>();
  } else if (value.is_number_float()) {
    const double d = value.get<double>();
    if (std::trunc(d) == d && std::abs(d) < 9.0e15) return static_cast<std::int64_t>(d);
  }
  fail("{}: {} is {}; expected a 64-bit integer", source_, key, shown(value));
}

double ConfigReader::number(std::string_view key) {
  const json& value = require(key, "a number");
  if (!value.is_number()) fail("{}: {} is {}; expected a number", source_, key, shown(value));
  const double d = value.get<double>();
  if (!std::isfinite(d)) fail("{}: {} is {}; expected a finite number", source_, key, shown(value));
  return d;
}

std::string ConfigReader::text(std::string_view key) {
  const json& value = require(key, "a text");
  if (!value.is_string()) fail("{}: {} is {}; expected a text", source_, key, shown(value));
  return value.get<std::string>();
}

std::int64_t ConfigReader::integer(std::string_view key, std::int64_t fallback) {
  return has(key) ? integer(key) : fallback;
}

double ConfigReader::number(std::string_view key, double fallback) {
  return has(key) ? number(key) : fallback;
}

bool ConfigReader::boolean(std::string_view key, bool fallback) {
  const json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) {
    fail("{}: {} is {}; expected true or false", source_, key, shown(*value));
  }
  return value->get<bool>();
}

std::string ConfigReader::text(std::string_view key, std::string_view fallback) {
  return has(key) ? text(key) : std::string(fallback);
}

std::vector<std::string> ConfigReader::texts(std::string_view key) {
  const json* value = find(key);
  std::vector<std::string> out;
  if (value == nullptr) return out;
  const bool fits = value->is_array() && std::all_of(value->begin(), value->end(),
                                                     [](const json& e) { return e.is_string(); });
  if (!fits) fail("{}: {} is {}; expected a list of texts", source_, key, shown(*value));
  for (const json& element : *value) out.push_back(element.get<std::string>());
  return out;
}

const json* ConfigReader::object(std::string_view key) {
  const json* value = find(key);
  if (value != nullptr && !value->is_object()) {
    fail("{}: {} is {}; expected an object", source_, key, shown(*value));
  }
  return value;
}

void ConfigReader::only(std::string_view key, bool value) {
  if (boolean(key, value) != value) {
    refuse(key, value ? "only true is supported" : "only false is supported");
  }
}

void ConfigReader::only(std::string_view key, double value) {
  if (number(key, value) != value) refuse(key, fmt::format("only {} is supported", value));
}

void ConfigReader::ignore(std::initializer_list<std::string_view> keys) {
  for (std::string_view key : keys) seen_.emplace(key);
}

void ConfigReader::finish() const {
  for (const auto& [key, value] : object_.items()) {
    if (seen_.contains(key) || is_off(value)) continue;
    if (std::find(std::begin(kHarmless), std::end(kHarmless), key) != std::end(kHarmless)) continue;
    if (key.find("dropout") != std::string::npos) continue;  // training only
    std::string lower = key;
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    for (std::string_view word : kArithmeticWords) {
      if (lower.find(word) != std::string::npos) {
        refuse(key, "lamina does not know this setting and will not guess that it is harmless");
      }
    }
  }
}

void ConfigReader::refuse(std::string_view key, std::string_view reason) const {
  const auto it = object_.find(key);
  fail("{}: {} is {}; {}", source_, key, it == object_.end() ? "absent" : shown(*it), reason);
}

Activation read_activation(ConfigReader& reader, std::string_view key, std::string_view fallback) {
  const std::string name = reader.text(key, fallback);
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_fast") {
    return Activation::gelu_tanh;
  }
  if (name == "silu" || name == "swish") return Activation::silu;
  if (name == "relu") return Activation::relu;
  if (name == "quick_gelu") return Activation::quick_gelu;
  reader.refuse(
      key,
      "known activations: gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, silu, swish, relu, "
      "quick_gelu");
}

}  // namespace lamina
