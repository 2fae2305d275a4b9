#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "lamina/probes/cka.h"

// What `lamina cka` prints.
namespace lamina::cli {

/// Rows and measures, a heat map of every layer pair, and per layer what it resembles most.
/// `block`: least similarity within a block of neighbouring layers.
std::string cka_text(const CkaResults& results, const CkaOptions& options, double block);

void add_cka_json(nlohmann::ordered_json& json, const CkaResults& results,
                  const CkaOptions& options);

}  // namespace lamina::cli
