#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "lamina/probes/angular.h"
#include "lamina/probes/coding_rate.h"
#include "lamina/probes/contributions.h"
#include "lamina/probes/exit_layers.h"
#include "lamina/probes/growth.h"
#include "lamina/probes/linear_map.h"
#include "lamina/probes/magnitudes.h"
#include "lamina/probes/sparsity.h"

namespace lamina::cli {

/// The analyses of one run of `lamina depth`; those that were not asked for are null.
struct DepthProbes {
  std::unique_ptr<ContributionProbe> contributions;
  std::unique_ptr<GrowthProbe> growth;
  std::unique_ptr<AngularProbe> angular;
  std::unique_ptr<ExitProbe> exit;
  std::unique_ptr<SparsityProbe> sparsity;
  std::unique_ptr<MagnitudeProbe> magnitudes;
  std::unique_ptr<CodingRateProbe> coding_rate;
  /// Those there are.
  std::vector<Probe*> all() const;
};

struct DepthReport {
  std::string model;
  std::int64_t layers = 0, prompts = 0, tokens = 0;
  DepthProbes probes;
  std::string against;  // the target model of the maps
  std::optional<LinearMapResults> maps;
};

std::string depth_text(const DepthReport& report);
nlohmann::ordered_json depth_json(const DepthReport& report);

}  // namespace lamina::cli
