#include <charconv>
#include <string>

#include "lamina/core/error.h"
#include "lamina/patching/path_patching.h"

namespace lamina {
namespace {

bool number(std::string_view text, std::int64_t& value) {
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, value);
  return parsed.ec == std::errc() && parsed.ptr == end && value >= 0;
}

}  // namespace

Receiver parse_receiver(std::string_view text, const ModelConfig& config) {
  using Kind = Receiver::Kind;
  if (text == "logits") return {};
  const auto bad = [&]() {
    fail_usage(
        "receiver '{}': expected q:LAYER.HEAD, k:LAYER.HEAD, v:LAYER.HEAD, mlp:LAYER or logits",
        text);
  };
  const std::size_t colon = text.find(':');
  if (colon == text.npos) bad();
  const std::string_view name = text.substr(0, colon), place = text.substr(colon + 1);
  Receiver receiver;
  if (name == "q") {
    receiver.kind = Kind::q;
  } else if (name == "k") {
    receiver.kind = Kind::k;
  } else if (name == "v") {
    receiver.kind = Kind::v;
  } else if (name == "mlp") {
    receiver.kind = Kind::mlp;
  } else {
    bad();
  }
  const bool mlp = receiver.kind == Kind::mlp;
  const std::size_t dot = place.find('.');
  std::int64_t layer = 0;
  if ((dot == place.npos) != mlp || !number(place.substr(0, dot), layer)) bad();
  if (layer >= config.n_layers) {
    fail_usage("receiver '{}': the model has layers 0 … {}", text, config.n_layers - 1);
  }
  receiver.layer = static_cast<std::int32_t>(layer);
  if (mlp) {
    if (config.d_mlp == 0) fail_usage("receiver '{}': the model has no MLPs", text);
    return receiver;
  }
  if (!number(place.substr(dot + 1), receiver.head)) bad();
  const std::int64_t heads = receiver.kind == Kind::q ? config.n_heads : config.n_kv_heads;
  if (receiver.head >= heads) {
    fail_usage("receiver '{}': the model has {} heads 0 … {}", text,
               receiver.kind == Kind::q ? "query" : "key/value", heads - 1);
  }
  return receiver;
}

std::string receiver_name(const Receiver& receiver) {
  switch (receiver.kind) {
    case Receiver::Kind::q:
      return fmt::format("q:{}.{}", receiver.layer, receiver.head);
    case Receiver::Kind::k:
      return fmt::format("k:{}.{}", receiver.layer, receiver.head);
    case Receiver::Kind::v:
      return fmt::format("v:{}.{}", receiver.layer, receiver.head);
    case Receiver::Kind::mlp:
      return fmt::format("mlp:{}", receiver.layer);
    case Receiver::Kind::logits:
      return "logits";
  }
  return {};
}

}  // namespace lamina
