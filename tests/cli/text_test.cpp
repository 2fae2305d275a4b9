// Text as people read it: widths, escapes, numbers, tables.

#include "ui/text.h"

#include "gtest/gtest.h"
#include "ui/table.h"

namespace lamina::cli {
namespace {

TEST(Text, DisplayWidth) {
  EXPECT_EQ(display_width("abc"), 3U);
  EXPECT_EQ(display_width("é"), 1U);
  EXPECT_EQ(display_width("e\u0301"), 1U);  // combining acute
  EXPECT_EQ(display_width("日本"), 4U);
  EXPECT_EQ(display_width("한"), 2U);
  EXPECT_EQ(display_width("ｱ"), 1U);  // half-width katakana
  EXPECT_EQ(display_width("🙂"), 2U);
  EXPECT_EQ(display_width("…"), 1U);
  EXPECT_EQ(display_width("\xe6\x97"), 2U);  // cut short: one column a byte
  EXPECT_EQ(display_width("\x1b[1mab\x1b[0m"), 2U);
}

TEST(Text, ClipKeepsWholeCharacters) {
  EXPECT_EQ(clip("abc", 3), "abc");
  EXPECT_EQ(clip("abcd", 3), "ab…");
  EXPECT_EQ(clip("日本語", 4), "日…");
  EXPECT_EQ(clip("日本語", 5), "日本…");
  EXPECT_EQ(clip("x", 0), "");
}

TEST(Text, PiecesAreQuotedAndEscaped) {
  EXPECT_EQ(quoted_piece(" the"), "\" the\"");
  EXPECT_EQ(quoted_piece("\n\t"), "\"\\n\\t\"");
  EXPECT_EQ(quoted_piece("\xe4\xbd"), "\"\\xe4\\xbd\"");
  EXPECT_EQ(quoted_piece("a\"b\\"), "\"a\\\"b\\\\\"");
  EXPECT_EQ(quoted_piece("\xed\xa0\x80"), "\"\\xed\\xa0\\x80\"");  // a surrogate
  EXPECT_EQ(quoted_piece("\u202e"), "\"\\xe2\\x80\\xae\"");        // would turn the line round
  EXPECT_EQ(escape_controls("a\x1b[31m"), "a\\x1b[31m");
}

TEST(Text, Numbers) {
  EXPECT_EQ(grouped(0), "0");
  EXPECT_EQ(grouped(999), "999");
  EXPECT_EQ(grouped(1000), "1,000");
  EXPECT_EQ(grouped(-1234567), "-1,234,567");
  EXPECT_EQ(short_number(0.01234), "0.01");
  EXPECT_EQ(short_number(4.567), "4.57");
  EXPECT_EQ(short_number(12345), "12.3k");
  EXPECT_EQ(short_number(999.7), "1.00k");
  EXPECT_EQ(short_number(134515008), "135M");
  EXPECT_EQ(bytes_text(1023), "1023 bytes");
  EXPECT_EQ(bytes_text(1536), "1.5 kiB");
  EXPECT_EQ(bytes_text(std::uint64_t{3} << 40), "3.0 TiB");
  EXPECT_EQ(duration_text(0.44), "0.4 s");
  EXPECT_EQ(duration_text(59.4), "59 s");
  EXPECT_EQ(duration_text(200), "3 min 20 s");
  EXPECT_EQ(duration_text(7500), "2 h 5 min");
}

TEST(Text, ShellWords) {
  EXPECT_EQ(quoted_word("plain-1.0"), "plain-1.0");
  EXPECT_EQ(quoted_word("two words"), "'two words'");
  EXPECT_EQ(quoted_word("it's"), "'it'\\''s'");
  EXPECT_EQ(quoted_word(""), "''");
}

TEST(Table, LinesUpWideCharacters) {
  Table table({"token", ">n"});
  table.row({"日本", "1"});
  table.row({"a", "22"});
  EXPECT_EQ(table.text(), "token   n\n日本    1\na      22\n");
}

}  // namespace
}  // namespace lamina::cli
