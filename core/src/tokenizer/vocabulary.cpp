#include "tokenizer/vocabulary.h"

#include <algorithm>

#include "lamina/core/error.h"
#include "lamina/internal/file_text.h"
#include "tokenizer/utf8.h"

namespace lamina::tokenizer {

Vocabulary::Vocabulary(std::vector<std::string> names, std::vector<bool> in_model,
                       std::string_view where)
    : names_(std::move(names)), in_model_(std::move(in_model)) {
  ids_.reserve(names_.size());
  for (std::int32_t id = 0; id < size(); ++id) {
    const std::string& text = name(id);
    if (const std::size_t bad = first_invalid_utf8(text); bad < text.size()) {
      fail("{}: the name of token {} is not UTF-8 at byte {}", where, id, bad);
    }
    const auto [entry, fresh] = ids_.emplace(text, id);
    if (!fresh) {
      if (this->in_model(entry->second) && this->in_model(id)) {
        fail("{}: tokens {} and {} have the same name {}", where, entry->second, id,
             files::quote(text));
      }
      if (this->in_model(id)) entry->second = id;
    }
    if (this->in_model(id)) longest_ = std::max(longest_, text.size());
  }
}

std::optional<std::uint8_t> byte_fallback_value(std::string_view name) {
  if (name.size() != 6 || !name.starts_with("<0x") || name[5] != '>') return std::nullopt;
  int value = 0;
  for (char c : name.substr(3, 2)) {
    const bool digit = c >= '0' && c <= '9';
    if (!digit && (c < 'A' || c > 'F')) return std::nullopt;
    value = value * 16 + (digit ? c - '0' : c - 'A' + 10);
  }
  return static_cast<std::uint8_t>(value);
}

std::string byte_fallback_name(std::uint8_t byte) {
  return fmt::format("<0x{:02X}>", byte);
}

}  // namespace lamina::tokenizer
