#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace lamina::cli {

enum class LogLevel : std::uint8_t { error, warning, info, debug };

/// What every verb shares: the global options, the command line as typed, and the chosen action.
struct Globals {
  int threads = 0;  // 0: as many as the machine has
  std::uint64_t seed = 0;
  bool quiet = false;
  std::string color = "auto";
  std::string log_level = "info";
  std::string argv;  // for provenance
  /// Set by the verb that was typed; runs after all options are known. Returns the exit code.
  std::function<int()> action;
  /// Runs another command line ("record", "organism", …) with these global options.
  std::function<int(const std::vector<std::string>&)> run;
};

}  // namespace lamina::cli
