#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace lamina::tokenizer {

/// Entries and their ids, dense from 0. Immutable once made; may be moved, not copied (the look-up
/// table refers to the names).
class Vocabulary {
 public:
  Vocabulary() = default;
  /// `names[id]`; `in_model[id]` says whether the model may produce the entry (added tokens that
  /// are only recognised in the text do not count). Throws Error naming `where` if a name of the
  /// model occurs twice or is not UTF-8.
  Vocabulary(std::vector<std::string> names, std::vector<bool> in_model, std::string_view where);
  Vocabulary(Vocabulary&&) noexcept = default;
  Vocabulary& operator=(Vocabulary&&) noexcept = default;
  Vocabulary(const Vocabulary&) = delete;
  Vocabulary& operator=(const Vocabulary&) = delete;

  std::int32_t size() const { return static_cast<std::int32_t>(names_.size()); }
  const std::string& name(std::int32_t id) const { return names_[static_cast<std::size_t>(id)]; }
  bool in_model(std::int32_t id) const { return in_model_[static_cast<std::size_t>(id)]; }
  /// Any entry of this name (one of the model, if there is one); -1 if there is none.
  std::int32_t find(std::string_view name) const {
    const auto hit = ids_.find(name);
    return hit == ids_.end() ? -1 : hit->second;
  }
  /// The model's entry of this name; -1 if there is none.
  std::int32_t find_in_model(std::string_view name) const {
    const std::int32_t id = find(name);
    return id >= 0 && in_model(id) ? id : -1;
  }
  /// Length in bytes of the longest name of the model.
  std::size_t longest() const { return longest_; }

 private:
  std::vector<std::string> names_;
  std::vector<bool> in_model_;
  std::unordered_map<std::string_view, std::int32_t> ids_;
  std::size_t longest_ = 0;
};

/// The byte value of a byte-fallback name "<0x0A>" (two upper-case digits); nullopt otherwise.
std::optional<std::uint8_t> byte_fallback_value(std::string_view name);
/// The byte-fallback name of `byte`.
std::string byte_fallback_name(std::uint8_t byte);

}  // namespace lamina::tokenizer
