#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "lamina/core/error.h"
#include "lamina/internal/file_text.h"

// Typed access to somebody else's JSON: each function throws Error naming `where`, the key, the
// expected and the found type.
namespace lamina::tokenizer {

using Json = nlohmann::json;
using files::quote;

[[noreturn]] inline void fail_type(const Json& value, std::string_view key,
                                   std::string_view expected, std::string_view where) {
  fail("{}: {} must be {}, found {}", where, quote(key), expected, value.type_name());
}

/// The member `key`, or null if `object` has none.
inline const Json& member(const Json& object, std::string_view key, std::string_view where) {
  static const Json null;
  if (!object.is_object())
    fail("{}: expected an object with {}, found {}", where, quote(key), object.type_name());
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

inline const std::string& text_member(const Json& object, std::string_view key,
                                      std::string_view where) {
  const Json& value = member(object, key, where);
  if (!value.is_string()) fail_type(value, key, "a string", where);
  return value.get_ref<const std::string&>();
}

inline bool bool_member(const Json& object, std::string_view key, bool fallback,
                        std::string_view where) {
  const Json& value = member(object, key, where);
  if (value.is_null()) return fallback;
  if (!value.is_boolean()) fail_type(value, key, "true or false", where);
  return value.get<bool>();
}

inline std::uint64_t count_member(const Json& object, std::string_view key,
                                  std::string_view where) {
  const Json& value = member(object, key, where);
  if (!value.is_number_unsigned()) fail_type(value, key, "a whole number of at least 0", where);
  return value.get<std::uint64_t>();
}

inline const Json& list_member(const Json& object, std::string_view key, std::string_view where) {
  const Json& value = member(object, key, where);
  if (!value.is_array()) fail_type(value, key, "a list", where);
  return value;
}

/// The "type" of a part of a tokenizer.json.
inline const std::string& type_of(const Json& part, std::string_view where) {
  return text_member(part, "type", where);
}

}  // namespace lamina::tokenizer
