#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lamina::cli {

/// Columns that UTF-8 `text` takes on a terminal: combining marks 0, East Asian wide characters and
/// emoji 2. Escape sequences of styled() take none. Bytes that are no UTF-8 count 1 each.
std::size_t display_width(std::string_view text);

/// `text` cut to `width` columns, the last one "…" if something was cut.
std::string clip(std::string_view text, std::size_t width);

/// Control characters as \n, \t, \xNN; everything else unchanged.
std::string escape_controls(std::string_view text);

/// A token's bytes as a reader sees them: in quotes, control characters and bytes that are no
/// UTF-8 escaped: " the", "\n", "\xe4\xbd".
std::string quoted_piece(std::string_view bytes);

/// A word as one would type it for a POSIX shell, in quotes if it needs them.
std::string quoted_word(std::string_view word);

/// 1234567 → "1,234,567".
std::string grouped(std::int64_t value);
/// Three significant digits: 0.0123, 4.56, 789, 12.3k, 4.56M.
std::string short_number(double value);
/// "1.5 GiB", "340 kiB", "12 bytes".
std::string bytes_text(std::uint64_t bytes);
/// "0.4 s", "12 s", "3 min 20 s", "2 h 5 min".
std::string duration_text(double seconds);

}  // namespace lamina::cli
