#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace lamina {

/// The slots "{name}" of a template, in order, repeats included. Error (naming `source`) for braces
/// that do not pair up.
std::vector<std::string> template_slots(std::string_view text, std::string_view source);

/// The template with its slots filled; all of them must be in `values`. `until`: stop in front of
/// this slot.
std::string fill_template(std::string_view text, const std::map<std::string, std::string>& values,
                          std::string_view until = {});

}  // namespace lamina
