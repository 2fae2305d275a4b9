#include "ui/glyphs.h"

#include <algorithm>
#include <cmath>

namespace lamina::cli {

const char* shade(double value) {
  if (std::isnan(value)) return "?";
  return value >= 0.8    ? "█"
         : value >= 0.6  ? "▓"
         : value >= 0.4  ? "▒"
         : value >= 0.2  ? "░"
         : value >= 0.05 ? "·"
                         : " ";
}

std::string heights(std::span<const double> values) {
  static constexpr const char* kLevels[] = {"·", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  std::string out;
  for (double v : values) {
    out += std::isnan(v) ? "?" : kLevels[std::llround(8 * std::clamp(v, 0.0, 1.0))];
  }
  return out;
}

std::string curve(std::span<const double> values, double low, double high) {
  static constexpr const char* kBlocks[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  std::string out;
  for (double v : values) {
    const double share = high > low ? (v - low) / (high - low) : 0.0;
    out += std::isnan(v) ? " " : kBlocks[std::clamp(static_cast<int>(share * 8), 0, 7)];
  }
  return out;
}

std::string bar(double value, double most) {
  if (std::isnan(value)) return {};
  static constexpr const char* kEighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const auto eighths = static_cast<int>(std::lround(std::clamp(value, 0.0, most) * 80));
  std::string out;
  for (int i = 0; i < eighths / 8; ++i) out += "█";
  return out + kEighths[eighths % 8];
}

}  // namespace lamina::cli
