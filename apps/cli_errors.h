#pragma once

#include <CLI/App.hpp>
#include <string>

namespace lamina::cli {

/// One line for a command line that cannot be parsed: what is wrong, the nearest verb or option if
/// one was mistyped, and where to look.
std::string parse_error_text(const CLI::App& app, const CLI::ParseError& error);

}  // namespace lamina::cli
