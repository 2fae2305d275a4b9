#include "family/gguf_reader.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <type_traits>
#include <variant>

#include "lamina/core/error.h"

namespace lamina {
namespace {

std::string shown(const GgufValue& value) {
  return std::visit(
      [](const auto& v) -> std::string {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, std::string>) {
          return v.size() > 80 ? fmt::format("\"{}...\"", v.substr(0, 77))
                               : fmt::format("\"{}\"", v);
        } else if constexpr (std::is_arithmetic_v<T>) {
          return fmt::format("{}", v);
        } else {
          return fmt::format("a list of {}", v.size());
        }
      },
      value);
}

bool is_off(const GgufValue& value) {
  return std::visit(
      [](const auto& v) {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_arithmetic_v<T>) {
          return v == T{};
        } else {
          return v.empty();
        }
      },
      value);
}

}  // namespace

GgufReader::GgufReader(const GgufFile& file, std::string architecture)
    : file_(file), architecture_(std::move(architecture)) {}

std::int64_t GgufReader::integer(std::string_view key) {
  seen_.emplace(key);
  return file_.metadata.integer(full(key));
}
std::int64_t GgufReader::integer(std::string_view key, std::int64_t fallback) {
  seen_.emplace(key);
  return file_.metadata.find_integer(full(key)).value_or(fallback);
}
double GgufReader::number(std::string_view key) {
  seen_.emplace(key);
  return file_.metadata.number(full(key));
}
double GgufReader::number(std::string_view key, double fallback) {
  seen_.emplace(key);
  return file_.metadata.find_number(full(key)).value_or(fallback);
}
bool GgufReader::boolean(std::string_view key, bool fallback) {
  seen_.emplace(key);
  return file_.metadata.find_boolean(full(key)).value_or(fallback);
}
std::string GgufReader::text(std::string_view key, std::string_view fallback) {
  seen_.emplace(key);
  return file_.metadata.find_text(full(key)).value_or(std::string(fallback));
}
bool GgufReader::has(std::string_view key) const {
  return file_.metadata.has(full(key));
}
const std::vector<bool>* GgufReader::find_flags(std::string_view key) {
  seen_.emplace(key);
  const auto it = file_.metadata.values().find(full(key));
  return it == file_.metadata.values().end() ? nullptr
                                             : std::get_if<std::vector<bool>>(&it->second);
}
void GgufReader::ignore(std::string_view key) {
  seen_.emplace(key);
}

void GgufReader::refuse(std::string_view key, std::string_view reason) const {
  const auto it = file_.metadata.values().find(full(key));
  fail("{}: {} is {}; {}", source(), full(key),
       it == file_.metadata.values().end() ? "absent" : shown(it->second), reason);
}

void GgufReader::finish() const {
  const std::string prefix = architecture_ + ".";
  for (const auto& [name, value] : file_.metadata.values()) {
    if (name.rfind(prefix, 0) != 0) continue;
    const std::string_view key = std::string_view(name).substr(prefix.size());
    if (seen_.contains(key) || is_off(value)) continue;
    refuse(key, "lamina does not know this setting and will not guess that it is harmless");
  }
}

}  // namespace lamina
