#include "pairs/task_template.h"

#include "lamina/core/error.h"
#include "lamina/internal/file_text.h"

namespace lamina {

std::vector<std::string> template_slots(std::string_view text, std::string_view source) {
  std::vector<std::string> slots;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t open = text.find_first_of("{}", at);
    if (open == text.npos) break;
    const std::size_t close = text.find_first_of("{}", open + 1);
    if (text[open] == '}' || close == text.npos || text[close] == '{' || close == open + 1) {
      fail("{}: template {}: braces that are no slot at byte {}", source, files::quote(text), open);
    }
    slots.emplace_back(text.substr(open + 1, close - open - 1));
    at = close + 1;
  }
  return slots;
}

std::string fill_template(std::string_view text, const std::map<std::string, std::string>& values,
                          std::string_view until) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t open = std::min(text.find('{', at), text.size());
    out += text.substr(at, open - at);
    if (open == text.size()) break;
    const std::size_t close = text.find('}', open);
    const std::string_view slot = text.substr(open + 1, close - open - 1);
    if (!until.empty() && slot == until) break;
    out += values.at(std::string(slot));
    at = close + 1;
  }
  return out;
}

}  // namespace lamina
