#pragma once

#include <CLI/App.hpp>

#include "globals.h"

// One function per verb: adds its options to the program and, when the verb is typed, sets
// Globals::action.
namespace lamina::cli {

void register_info(CLI::App& app, Globals& globals);

}  // namespace lamina::cli
