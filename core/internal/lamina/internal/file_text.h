#pragma once

#include <string>
#include <string_view>

namespace lamina::files {

/// Text from a file, fit for one line of an error message: in quotes, control bytes and ill-formed
/// UTF-8 as \xNN, long text shortened in the middle with its length.
std::string quote(std::string_view text);

/// Whether `text` is well-formed UTF-8 (no surrogates, no overlong forms, at most U+10FFFF).
bool valid_utf8(std::string_view text);

}  // namespace lamina::files
