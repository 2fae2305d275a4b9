#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace lamina {

/// How far a changed model's logits y lie from the whole model's logits x at one token.
///   angular  the angle between x and y, in radians (0 … π)
///   norm     ‖x − y‖₂
///   kl       KL(softmax x ‖ softmax y), nats
///   js       ½ KL(p ‖ m) + ½ KL(q ‖ m), m = (p + q)/2, nats (0 … ln 2)
/// Equal rows have distance 0 exactly under angular, norm and js.
/// Angular and norm are those of FinerCut's released code, except that it clamps angles beyond π/2
/// to π/2; its kl and js divide by the number of elements, its js has the arguments exchanged.
enum class DistanceKind : std::uint8_t { angular, norm, kl, js };

std::string_view distance_name(DistanceKind kind);
std::string_view distance_units(DistanceKind kind);
/// UsageError that lists the names.
DistanceKind parse_distance(std::string_view name);

/// Distance of one row, x and y of the same length. Sums in double; NaN if a logit is not finite.
double output_distance(DistanceKind kind, std::span<const float> x, std::span<const float> y);

/// Distance over prompts from that of their rows: the mean over rows; for norm the mean over
/// prompts of the root of the summed squares. Prompt i has the rows offsets[i] … offsets[i + 1]
/// − 1.
double total_distance(DistanceKind kind, std::span<const double> rows,
                      std::span<const std::int64_t> offsets);

}  // namespace lamina
