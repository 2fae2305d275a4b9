#include "family/rope_config.h"

#include "lamina/core/error.h"

namespace lamina {

Rope read_rope_object(const nlohmann::json& object, const std::string& source, double theta,
                      std::int64_t max_positions, double* rotary_fraction) {
  ConfigReader reader(object, source);
  Rope rope;
  rope.theta = reader.number("rope_theta", theta);
  const std::string_view type_key = reader.has("rope_type") ? "rope_type" : "type";
  const std::string type = reader.text(type_key, "default");
  reader.ignore({"rope_type", "type"});
  if (type == "linear") {
    rope.scaling = RopeScaling::linear;
    rope.factor = reader.number("factor");
  } else if (type == "llama3") {
    rope.scaling = RopeScaling::llama3;
    rope.factor = reader.number("factor");
    rope.low_freq_factor = reader.number("low_freq_factor");
    rope.high_freq_factor = reader.number("high_freq_factor");
    rope.original_ctx = reader.integer("original_max_position_embeddings", max_positions);
  } else if (type != "default") {
    reader.refuse(type_key, "known kinds of rotary scaling: default, linear, llama3");
  }
  if (rotary_fraction != nullptr) {
    *rotary_fraction = reader.number("partial_rotary_factor", *rotary_fraction);
  } else {
    reader.only("partial_rotary_factor", 1.0);
  }
  // Nothing in this object is harmless: a number that the kind does not use is a sign of another
  // kind.
  for (const auto& [key, value] : object.items()) {
    const bool known =
        key == "rope_theta" || key == "rope_type" || key == "type" ||
        key == "partial_rotary_factor" || (type != "default" && key == "factor") ||
        key == "original_max_position_embeddings" ||
        (type == "llama3" && (key == "low_freq_factor" || key == "high_freq_factor"));
    if (!known && !value.is_null()) {
      reader.refuse(key, fmt::format("the rotary kind \"{}\" has no such setting", type));
    }
  }
  return rope;
}

Rope read_rope(ConfigReader& reader, std::string_view theta_key, double default_theta,
               std::int64_t max_positions, double* rotary_fraction) {
  const double theta = reader.number(theta_key, default_theta);
  const nlohmann::json* scaling = reader.object("rope_scaling");
  const nlohmann::json* parameters = reader.object("rope_parameters");
  if (scaling != nullptr && !scaling->empty()) {
    return read_rope_object(*scaling, reader.source() + ": rope_scaling", theta, max_positions,
                            rotary_fraction);
  }
  if (parameters != nullptr) {
    return read_rope_object(*parameters, reader.source() + ": rope_parameters", theta,
                            max_positions, rotary_fraction);
  }
  Rope rope;
  rope.theta = theta;
  return rope;
}

}  // namespace lamina
