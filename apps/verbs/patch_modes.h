#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lamina/patching/causal_trace.h"
#include "lamina/patching/knockout.h"
#include "lamina/patching/path_patching.h"
#include "verbs/patch_methods.h"
#include "verbs/patch_sweep.h"

// What `patch` can do beside putting single values in: causal tracing, attention knock-out, path
// patching.
namespace lamina::cli {

struct ModeArgs {
  bool trace = false;
  double noise_sigmas = 3.0;
  std::int64_t samples = 10;
  std::int64_t window = 0;  // 0: the mode's own
  std::string knockout;     // FROM:TO
  std::vector<std::string> receivers;
  std::string through = "none";

  bool any() const { return trace || !knockout.empty() || !receivers.empty(); }
};
void add_mode_options(CLI::App& verb, ModeArgs& args);

/// A mode as a method over nodes: PatchResult::corrupted is the base run of a trace, `clean` that
/// of the others; a knock-out has no other run.
struct PatchMode {
  PatchMethod method;
  std::string title;
  std::string base_name, other_name;  // other_name empty: there is none
  Direction direction = Direction::denoise;
  std::vector<std::string> sites, by;  // where nothing was typed
  bool by_position = true;             // as NodeChoice::by_position
  std::vector<std::pair<std::string, std::string>> settings;
};

/// nullopt if no mode was asked for. `direction`: as typed, empty if not. UsageError for modes that
/// exclude each other and what they cannot do.
std::optional<PatchMode> patch_mode(const ModeArgs& args, const std::string& direction,
                                    Forward& forward, std::span<const Pair> pairs);

}  // namespace lamina::cli
