#pragma once

#include <span>
#include <string>

// Numbers as marks on a terminal.
namespace lamina::cli {

/// One cell of a heat map: blank below 0.05, · ░ ▒ ▓ up to 0.2, 0.4, 0.6, 0.8, then █; ? for NaN.
const char* shade(double value);
inline constexpr const char* kShadeLegend = "· from 0.05  ░ 0.2  ▒ 0.4  ▓ 0.6  █ from 0.8";

/// `values` of 0 to 1 in a row of columns of eight heights; · for 0, ? for NaN.
std::string heights(std::span<const double> values);
/// A curve between `low` and `high` in columns of eight heights; blank for NaN.
std::string curve(std::span<const double> values, double low, double high);
/// A bar of ten columns per 1, in eighths, for a value of 0 to `most`; nothing for NaN.
std::string bar(double value, double most = 1.0);

}  // namespace lamina::cli
