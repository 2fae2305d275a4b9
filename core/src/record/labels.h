#pragma once

#include <string>
#include <string_view>

namespace lamina::record {

/// A label's name as an HDF5 link name: '/', '%' and a lone "." cannot stand in one and become
/// %2F, %25, %2E; the empty name becomes "%". The dataset's attribute `label` has the name itself.
inline std::string label_link(std::string_view label) {
  if (label.empty()) return "%";
  if (label == ".") return "%2E";
  std::string out;
  for (char c : label) {
    if (c == '/') {
      out += "%2F";
    } else if (c == '%') {
      out += "%25";
    } else {
      out += c;
    }
  }
  return out;
}

}  // namespace lamina::record
