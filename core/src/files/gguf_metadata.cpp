#include <limits>
#include <type_traits>

#include "lamina/core/error.h"
#include "lamina/core/gguf.h"
#include "lamina/internal/file_text.h"

namespace lamina {
namespace {

using files::quote;

template <class... Parts>
struct Overloaded : Parts... {
  using Parts::operator()...;
};
template <class... Parts>
Overloaded(Parts...) -> Overloaded<Parts...>;

std::string_view kind(const GgufValue& value) {
  return std::visit(
      Overloaded{[](bool) { return "a boolean"; }, [](std::int64_t) { return "an integer"; },
                 [](std::uint64_t) { return "an integer"; },
                 [](double) { return "a floating-point number"; },
                 [](const std::string&) { return "a string"; },
                 [](const std::vector<bool>&) { return "an array of booleans"; },
                 [](const std::vector<std::int64_t>&) { return "an array of integers"; },
                 [](const std::vector<std::uint64_t>&) { return "an array of integers"; },
                 [](const std::vector<double>&) { return "an array of floating-point numbers"; },
                 [](const std::vector<std::string>&) { return "an array of strings"; }},
      value);
}

/// The look-ups of one key, with the file and the key at hand for messages.
struct Lookup {
  const std::string& file;
  std::string_view key;
  const GgufValue& value;

  [[noreturn]] void wrong(std::string_view expected) const {
    fail("{}: metadata key {}: expected {}, found {}", file, quote(key), expected, kind(value));
  }

  std::int64_t to_signed(std::uint64_t number) const {
    constexpr auto most = std::numeric_limits<std::int64_t>::max();
    if (number > static_cast<std::uint64_t>(most)) {
      fail("{}: metadata key {}: {} is more than {}", file, quote(key), number, most);
    }
    return static_cast<std::int64_t>(number);
  }

  std::int64_t integer() const {
    if (const auto* number = std::get_if<std::int64_t>(&value)) return *number;
    if (const auto* number = std::get_if<std::uint64_t>(&value)) return to_signed(*number);
    wrong("an integer");
  }
  double number() const {
    if (const auto* real = std::get_if<double>(&value)) return *real;
    if (const auto* whole = std::get_if<std::int64_t>(&value)) return static_cast<double>(*whole);
    if (const auto* whole = std::get_if<std::uint64_t>(&value)) return static_cast<double>(*whole);
    wrong("a number");
  }
  template <class T>
  const T& exactly(std::string_view expected) const {
    if (const T* held = std::get_if<T>(&value)) return *held;
    wrong(expected);
  }
};

using Values = std::map<std::string, GgufValue, std::less<>>;

Lookup require(const std::string& file, const Values& values, std::string_view key) {
  const auto found = values.find(key);
  if (found == values.end()) {
    fail("{}: metadata key {} is missing ({} keys present)", file, quote(key), values.size());
  }
  return {file, found->first, found->second};
}

}  // namespace

std::int64_t GgufMetadata::integer(std::string_view key) const {
  return require(file_, values_, key).integer();
}
double GgufMetadata::number(std::string_view key) const {
  return require(file_, values_, key).number();
}
bool GgufMetadata::boolean(std::string_view key) const {
  return require(file_, values_, key).exactly<bool>("a boolean");
}
const std::string& GgufMetadata::text(std::string_view key) const {
  return require(file_, values_, key).exactly<std::string>("a string");
}
const std::vector<std::string>& GgufMetadata::texts(std::string_view key) const {
  return require(file_, values_, key).exactly<std::vector<std::string>>("an array of strings");
}

std::vector<double> GgufMetadata::numbers(std::string_view key) const {
  const Lookup found = require(file_, values_, key);
  return std::visit(
      [&](const auto& held) -> std::vector<double> {
        using Held = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<Held, std::vector<double>> ||
                      std::is_same_v<Held, std::vector<std::int64_t>> ||
                      std::is_same_v<Held, std::vector<std::uint64_t>>) {
          return {held.begin(), held.end()};
        } else {
          found.wrong("an array of numbers");
        }
      },
      found.value);
}

std::vector<std::int64_t> GgufMetadata::integers(std::string_view key) const {
  const Lookup found = require(file_, values_, key);
  if (const auto* held = std::get_if<std::vector<std::int64_t>>(&found.value)) return *held;
  if (const auto* held = std::get_if<std::vector<std::uint64_t>>(&found.value)) {
    std::vector<std::int64_t> result;
    result.reserve(held->size());
    for (std::uint64_t number : *held) result.push_back(found.to_signed(number));
    return result;
  }
  found.wrong("an array of integers");
}

std::optional<std::int64_t> GgufMetadata::find_integer(std::string_view key) const {
  return has(key) ? std::optional(integer(key)) : std::nullopt;
}
std::optional<double> GgufMetadata::find_number(std::string_view key) const {
  return has(key) ? std::optional(number(key)) : std::nullopt;
}
std::optional<bool> GgufMetadata::find_boolean(std::string_view key) const {
  return has(key) ? std::optional(boolean(key)) : std::nullopt;
}
std::optional<std::string> GgufMetadata::find_text(std::string_view key) const {
  return has(key) ? std::optional(text(key)) : std::nullopt;
}

}  // namespace lamina
