#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

namespace lamina::cli {

/// Thrown when whoever reads standard output has closed it (`| head`): the command ends quietly.
struct OutputClosed {};

/// Where a verb's data goes: standard output, or with -o a file that appears under its name only
/// when it is complete.
class Output {
 public:
  /// Standard output.
  Output() = default;
  /// A file, or standard output if `path` is empty or "-". Error if it exists and not `force`.
  Output(const std::filesystem::path& path, bool force);
  ~Output();
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  void write(std::string_view text);
  template <class... Args>
  void print(fmt::format_string<Args...> format, Args&&... args) {
    write(fmt::format(format, std::forward<Args>(args)...));
  }
  /// Flushes, checks that everything was written, and gives a file its name. Must be called.
  void close();

 private:
  [[noreturn]] void failed() const;

  std::FILE* file_ = stdout;
  std::filesystem::path path_, part_;
};

/// Error unless `path` may be written: it does not exist, or `force`; its folder exists.
void check_writable(const std::filesystem::path& path, bool force);

}  // namespace lamina::cli
