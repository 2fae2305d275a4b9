#include "ui/terminal.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "ui/text.h"

namespace lamina::cli {
namespace {

struct Settings {
  bool quiet = false;
  bool color = false;
  LogLevel level = LogLevel::info;
};
Settings settings;

bool is_set(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && *value != '\0';
}

void write_line(std::string_view text) {
  // One write, so that lines of several processes do not mix. There is nowhere to report a failure.
  const std::string line = fmt::format("{}\n", text);
  std::fwrite(line.data(), 1, line.size(), stderr);
}

}  // namespace

void setup_terminal(const Globals& globals) {
  settings.quiet = globals.quiet;
  const bool dumb =
      std::getenv("TERM") != nullptr && std::string_view(std::getenv("TERM")) == "dumb";
  settings.color = globals.color == "always" || (globals.color == "auto" && !is_set("NO_COLOR") &&
                                                 !dumb && isatty(STDOUT_FILENO));
  settings.level = globals.log_level == "error"     ? LogLevel::error
                   : globals.log_level == "warning" ? LogLevel::warning
                   : globals.log_level == "debug"   ? LogLevel::debug
                                                    : LogLevel::info;
}

std::string styled(Style style, std::string_view text) {
  if (!settings.color || style == Style::plain || text.empty()) return std::string(text);
  const char* code = style == Style::bold   ? "1"
                     : style == Style::dim  ? "2"
                     : style == Style::good ? "32"
                     : style == Style::bad  ? "1;31"
                                            : "36";
  return fmt::format("\x1b[{}m{}\x1b[0m", code, text);
}

void message(LogLevel level, std::string_view text) {
  if (level > settings.level) return;
  if (settings.quiet && level >= LogLevel::info) return;
  write_line(fmt::format("lamina: {}{}", level == LogLevel::warning ? "warning: " : "", text));
}

void error_line(std::string_view text) {
  // An error is one line, whatever file names and file contents it quotes.
  write_line(fmt::format("lamina: error: {}", escape_controls(text)));
}

ProgressLine::ProgressLine(std::string what, std::string unit, std::int64_t total)
    : what_(std::move(what)),
      unit_(std::move(unit)),
      total_(total),
      terminal_(isatty(STDERR_FILENO) != 0),
      active_(!settings.quiet && settings.level >= LogLevel::info),
      start_(std::chrono::steady_clock::now()),
      last_(start_) {}

ProgressLine::~ProgressLine() {
  if (drawn_) std::fputs("\r\x1b[K", stderr);
}

std::string ProgressLine::text(std::int64_t done, double seconds) const {
  const double rate = seconds > 0 ? static_cast<double>(done) / seconds : 0.0;
  std::string line = fmt::format("{}: {} of {} {}", what_, grouped(done), grouped(total_), unit_);
  if (rate > 0) {
    line += fmt::format(", {}/s, {} left", short_number(rate),
                        duration_text(static_cast<double>(total_ - done) / rate));
  }
  return line;
}

void ProgressLine::update(std::int64_t done) {
  done_ = done;
  if (!active_) return;
  const auto now = std::chrono::steady_clock::now();
  const double since_last = std::chrono::duration<double>(now - last_).count();
  if (since_last < (terminal_ ? 0.1 : 5.0)) return;
  last_ = now;
  const std::string line = text(done, std::chrono::duration<double>(now - start_).count());
  if (terminal_) {
    const std::string redraw = fmt::format("\r\x1b[K{}", line);
    std::fwrite(redraw.data(), 1, redraw.size(), stderr);
    std::fflush(stderr);
    drawn_ = true;
  } else {
    info("{}", line);
  }
}

void ProgressLine::finish() {
  if (!active_) return;
  if (drawn_) std::fputs("\r\x1b[K", stderr);
  drawn_ = false;
  active_ = false;
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  info("{}: {} {} in {}{}", what_, grouped(done_), unit_, duration_text(seconds),
       seconds > 0 ? fmt::format(" ({}/s)", short_number(static_cast<double>(done_) / seconds))
                   : std::string());
}

}  // namespace lamina::cli
