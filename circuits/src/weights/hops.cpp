#include <charconv>

#include "lamina/circuits/feature_weights.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

// A whole number that takes all of `text`; −1 otherwise.
std::int64_t number(std::string_view text) {
  std::int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && value < (1 << 30) ? value : -1;
}

}  // namespace

Hop parse_hop(std::string_view text) {
  Hop hop;
  std::string_view left = text.substr(0, text.find('.'));
  std::string_view right = left.size() < text.size() ? text.substr(left.size() + 1) : "";
  hop.is_head = left.starts_with('a') && right.starts_with('h');
  if (hop.is_head) {
    left.remove_prefix(1);
    right.remove_prefix(1);
  }
  hop.layer = static_cast<std::int32_t>(number(left));
  hop.index = number(right);
  if (hop.layer < 0 || hop.index < 0) {
    fail_usage("'{}': expected LAYER.FEATURE (3.57) or a head (a3.h2)", text);
  }
  return hop;
}

std::string hop_name(const Hop& hop) {
  return hop.is_head ? fmt::format("a{}.h{}", hop.layer, hop.index)
                     : fmt::format("{}.{}", hop.layer, hop.index);
}

}  // namespace lamina
