#pragma once

#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "lamina/probes/skip.h"
#include "lamina/probes/void.h"

// What `lamina void` prints.
namespace lamina::cli {

/// One void_skip row: the model run with skipping at one α.
struct SkipEffect {
  double alpha = 0;
  VoidCounts counts;        // one α
  double loss = 0;          // mean −log p of the next id under skipping, nats
  double plain_loss = 0;    // of the same tokens without
  double agreement = 0;     // share of tokens whose likeliest next id is the same
  std::int64_t tokens = 0;  // that have a next id
};

std::string void_text(std::span<const double> alphas, VoidRule rule, const VoidCounts& counts,
                      std::int64_t prompts);
nlohmann::ordered_json void_json(std::span<const double> alphas, VoidRule rule,
                                 const VoidCounts& counts, std::int64_t prompts);
std::string skip_text(SkipMode mode, std::span<const SkipEffect> effects);
nlohmann::ordered_json skip_json(SkipMode mode, std::span<const SkipEffect> effects);

}  // namespace lamina::cli
