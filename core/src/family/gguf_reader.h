#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/config.h"
#include "lamina/core/gguf.h"

namespace lamina {

/// Reads a GGUF file's keys "<architecture>.…", remembers which were understood, and refuses the
/// others unless they are off (false, 0, empty). Keys are given without the architecture.
class GgufReader {
 public:
  GgufReader(const GgufFile& file, std::string architecture);

  const std::string& source() const { return file_.store.name(); }
  const GgufFile& file() const { return file_; }

  std::int64_t integer(std::string_view key);
  std::int64_t integer(std::string_view key, std::int64_t fallback);
  double number(std::string_view key);
  double number(std::string_view key, double fallback);
  bool boolean(std::string_view key, bool fallback);
  std::string text(std::string_view key, std::string_view fallback);
  bool has(std::string_view key) const;
  /// A list of flags; nullptr if the key is absent or no such list.
  const std::vector<bool>* find_flags(std::string_view key);
  void ignore(std::string_view key);

  bool has_tensor(std::string_view name) const { return file_.store.find(name) != nullptr; }

  /// Refuses keys of the architecture that nobody asked for.
  void finish() const;
  [[noreturn]] void refuse(std::string_view key, std::string_view reason) const;

 private:
  std::string full(std::string_view key) const { return architecture_ + "." + std::string(key); }
  const GgufFile& file_;
  std::string architecture_;
  std::set<std::string, std::less<>> seen_;
};

}  // namespace lamina
