#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/config.h"

namespace lamina {

/// Reads one JSON object key by key and remembers which keys were understood. finish() refuses what
/// is left if it could change the arithmetic, so that no setting is silently ignored. A key whose
/// value is null counts as absent, as in transformers.
class ConfigReader {
 public:
  /// `object` must outlive the reader. `source` names the file (and the path to a nested object).
  ConfigReader(const nlohmann::json& object, std::string source);

  const std::string& source() const { return source_; }
  bool has(std::string_view key);
  /// The key is there with the value null (which differs from absent where the default is a value).
  bool stated_null(std::string_view key) const;

  // Required: Error if absent or of another type. A number with zero fraction is an integer.
  std::int64_t integer(std::string_view key);
  double number(std::string_view key);
  std::string text(std::string_view key);

  // Optional: the default if absent.
  std::int64_t integer(std::string_view key, std::int64_t fallback);
  double number(std::string_view key, double fallback);
  bool boolean(std::string_view key, bool fallback);
  std::string text(std::string_view key, std::string_view fallback);
  std::vector<std::string> texts(std::string_view key);  // empty if absent

  /// A nested object; nullptr if absent.
  const nlohmann::json* object(std::string_view key);

  /// The key, if present, must have this value: lamina knows no other.
  void only(std::string_view key, bool value);
  void only(std::string_view key, double value);

  /// Keys that say nothing about the arithmetic of a forward pass.
  void ignore(std::initializer_list<std::string_view> keys);

  /// Refuses, by name and value, keys nobody asked for if they may matter: those whose name speaks
  /// of the block's parts (attention, rope, norm, bias, expert, …) and whose value is not null,
  /// false, zero or empty.
  void finish() const;

  /// Error "<source>: <key> is <value>; <reason>".
  [[noreturn]] void refuse(std::string_view key, std::string_view reason) const;

 private:
  const nlohmann::json* find(std::string_view key);
  const nlohmann::json& require(std::string_view key, std::string_view type);

  const nlohmann::json& object_;
  std::string source_;
  std::set<std::string, std::less<>> seen_;
};

/// A short rendering of a JSON value for messages.
std::string shown(const nlohmann::json& value);

/// transformers' activation names; refuses others.
Activation read_activation(ConfigReader& reader, std::string_view key, std::string_view fallback);

}  // namespace lamina
