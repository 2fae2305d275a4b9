#pragma once

#include <fmt/format.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "globals.h"

namespace lamina::cli {

/// Applies --quiet, --color and --log-level to the messages and colours below.
void setup_terminal(const Globals& globals);

enum class Style : std::uint8_t { plain, bold, dim, good, bad, note };
/// `text` in a style if standard output takes colours (--color, NO_COLOR, a terminal); else as it
/// is.
std::string styled(Style style, std::string_view text);

/// One line on standard error, if --log-level and --quiet let it through.
void message(LogLevel level, std::string_view text);
template <class... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  message(LogLevel::info, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void warn(fmt::format_string<Args...> format, Args&&... args) {
  message(LogLevel::warning, fmt::format(format, std::forward<Args>(args)...));
}
/// The one line of a failed command: "lamina: error: …".
void error_line(std::string_view text);

/// Progress on standard error: one line rewritten in place on a terminal, a plain line every few
/// seconds otherwise, nothing with --quiet. Counts are in `unit`s ("tokens").
class ProgressLine {
 public:
  ProgressLine(std::string what, std::string unit, std::int64_t total);
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void update(std::int64_t done);
  /// Replaces the line by a summary with the mean rate.
  void finish();

 private:
  std::string text(std::int64_t done, double seconds) const;

  std::string what_, unit_;
  std::int64_t total_, done_ = 0;
  bool terminal_, active_, drawn_ = false;
  std::chrono::steady_clock::time_point start_, last_;
};

}  // namespace lamina::cli
