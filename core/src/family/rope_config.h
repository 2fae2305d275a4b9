#pragma once

#include "family/config_reader.h"

namespace lamina {

/// Reads one rotary setting from transformers' nested object (`rope_scaling` of older files,
/// `rope_parameters` of newer ones): its kind ("rope_type" or "type": default, linear, llama3) and
/// numbers. `theta` is used unless the object has its own. Refuses every other kind by name.
/// `rotary_fraction`, if not nullptr, receives partial_rotary_factor when the object has one;
/// otherwise such a key other than 1 is refused.
Rope read_rope_object(const nlohmann::json& object, const std::string& source, double theta,
                      std::int64_t max_positions, double* rotary_fraction = nullptr);

/// The one rotary setting of a model: keys `theta_key`, rope_scaling, rope_parameters.
Rope read_rope(ConfigReader& reader, std::string_view theta_key, double default_theta,
               std::int64_t max_positions, double* rotary_fraction = nullptr);

}  // namespace lamina
