#pragma once

#include <map>
#include <string>

#include "lamina/probes/linear_map.h"
#include "verbs/probe_source.h"

namespace lamina::cli {

/// Maps from the streams of `source` to those of `against`, a recording of the same prompts or a
/// model (path or shipped name) that reads them now.
struct AgainstResult {
  LinearMapResults maps;
  ModelConfig config;  // of the target
  std::string id, sha256;
};
AgainstResult map_against(OpenedSource& source, std::span<const Prompt> prompts,
                          const std::string& against, const LinearMapOptions& options);

}  // namespace lamina::cli
