// The subset of YAML that circuit-tracer's configurations use, and nothing else.

#include <algorithm>
#include <string>

#include "lamina/core/error.h"
#include "lamina/internal/file_text.h"
#include "transcoder/file_config.h"

namespace lamina::transcoder_files {
namespace {

constexpr std::size_t kMaxItems = 100000;

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t' || text.back() == '\r')) {
    text.remove_suffix(1);
  }
  return text;
}

// One line with its place, for messages.
struct Line {
  std::string_view name;
  std::size_t number;
  [[noreturn]] void bad(std::string_view expected, std::string_view found) const {
    fail("{}: line {}: expected {}, found {}", name, number, expected, files::quote(found));
  }
};

// Takes a scalar from the front of `text`: quoted, or plain up to one of `ends` (or a comment).
std::string take_scalar(std::string_view& text, std::string_view ends, const Line& line) {
  text = trimmed(text);
  std::string value;
  if (!text.empty() && (text.front() == '"' || text.front() == '\'')) {
    const char mark = text.front();
    std::size_t i = 1;
    for (; i < text.size() && text[i] != mark; ++i) {
      if (text[i] == '\\' && mark == '"') line.bad("a quoted value without escapes", text);
      value += text[i];
    }
    if (i == text.size()) line.bad("a closing quote", text);
    text.remove_prefix(i + 1);
    text = trimmed(text);
    if (!text.empty() && text.front() == '\'') line.bad("a quoted value without escapes", text);
    return value;
  }
  std::size_t end = text.find_first_of(ends);
  if (end == text.npos) end = text.size();
  const std::size_t comment = text.find(" #");
  if (comment < end) end = comment;
  value = std::string(trimmed(text.substr(0, end)));
  text.remove_prefix(end);
  if (!value.empty() &&
      std::string_view("&*!|>%@`{}[],?#").find(value.front()) != std::string::npos) {
    line.bad("a plain or quoted value", value);
  }
  if (value.find(": ") != value.npos || value.ends_with(':')) {
    line.bad("a value without a mapping", value);
  }
  return value;
}

void expect_end(std::string_view rest, const Line& line) {
  rest = trimmed(rest);
  if (!rest.empty() && rest.front() != '#') line.bad("the end of the line", rest);
}

// [a, b, c] on one line.
void take_flow_list(std::string_view text, YamlValue& value, const Line& line) {
  value.list = true;
  text.remove_prefix(1);
  for (;;) {
    text = trimmed(text);
    if (text.empty()) line.bad("a closing ]", "the end of the line");
    if (text.front() == ']') break;
    value.items.push_back(take_scalar(text, ",]", line));
    text = trimmed(text);
    if (!text.empty() && text.front() == ',') {
      text.remove_prefix(1);
    } else if (text.empty() || text.front() != ']') {
      line.bad("',' or ']'", text);
    }
  }
  expect_end(text.substr(1), line);
}

}  // namespace

std::map<std::string, YamlValue> parse_flat_yaml(std::string_view text, std::string_view name) {
  std::map<std::string, YamlValue> values;
  YamlValue* open = nullptr;  // the key whose list items may follow
  std::size_t items = 0;
  if (!files::valid_utf8(text)) fail("{}: it is no UTF-8 text", name);
  for (std::size_t at = 0, number = 1; at < text.size(); ++number) {
    const std::size_t newline = std::min(text.find('\n', at), text.size());
    const std::string_view raw = text.substr(at, newline - at);
    at = newline + 1;
    const Line line{name, number};
    std::string_view rest = trimmed(raw);
    if (rest.empty() || rest.front() == '#' || (rest == "---" && values.empty())) continue;
    if (rest.find('\0') != rest.npos) line.bad("text", raw);
    if (rest == "-" || rest.starts_with("- ")) {
      if (open == nullptr) line.bad("a key before list items", raw);
      rest.remove_prefix(1);
      open->list = true;
      open->items.push_back(take_scalar(rest, "", line));
      expect_end(rest, line);
      if (++items > kMaxItems) line.bad(fmt::format("at most {} list items", kMaxItems), raw);
      continue;
    }
    if (raw.front() == ' ' || raw.front() == '\t') line.bad("a key at the line's beginning", raw);
    const std::size_t colon = rest.find(':');
    if (colon == rest.npos || colon == 0 ||
        (colon + 1 < rest.size() && rest[colon + 1] != ' ' && rest[colon + 1] != '\t')) {
      line.bad("key: value", raw);
    }
    std::string_view key_text = rest.substr(0, colon);
    const std::string key = take_scalar(key_text, "", line);
    const auto [entry, added] = values.try_emplace(key);
    if (!added) fail("{}: line {}: key {} appears twice", name, number, files::quote(key));
    YamlValue& value = entry->second;
    rest = trimmed(rest.substr(colon + 1));
    open = nullptr;
    if (rest.empty() || rest.front() == '#') {
      open = &value;
    } else if (rest.front() == '[') {
      take_flow_list(rest, value, line);
    } else {
      value.items.push_back(take_scalar(rest, "", line));
      expect_end(rest, line);
    }
  }
  return values;
}

}  // namespace lamina::transcoder_files
