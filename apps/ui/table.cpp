#include "ui/table.h"

#include <algorithm>

#include "ui/terminal.h"
#include "ui/text.h"

namespace lamina::cli {
namespace {

void append_line(std::string& out, std::string line) {
  while (!line.empty() && line.back() == ' ') line.pop_back();
  out += line + "\n";
}

std::string padded(const std::string& cell, std::size_t width, bool right) {
  const std::string blanks(width - std::min(width, display_width(cell)), ' ');
  return right ? blanks + cell : cell + blanks;
}

}  // namespace

Table::Table(std::vector<std::string> headings) : headings_(std::move(headings)) {
  for (std::string& heading : headings_) {
    right_.push_back(heading.starts_with(">"));
    if (right_.back()) heading.erase(0, 1);
  }
}

void Table::row(std::vector<std::string> cells) {
  cells.resize(headings_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::text(std::size_t indent) const {
  std::vector<std::size_t> widths;
  for (std::size_t c = 0; c < headings_.size(); ++c) {
    std::size_t width = display_width(headings_[c]);
    for (const auto& row : rows_) width = std::max(width, display_width(row[c]));
    widths.push_back(width);
  }
  std::string out;
  std::string line(indent, ' ');
  for (std::size_t c = 0; c < headings_.size(); ++c) {
    // Padded before it is styled: colour sequences take no columns, but blanks would be underlined.
    line += styled(Style::bold, padded(headings_[c], widths[c], right_[c])) + "  ";
  }
  append_line(out, line);
  for (const auto& row : rows_) {
    line.assign(indent, ' ');
    for (std::size_t c = 0; c < row.size(); ++c)
      line += padded(row[c], widths[c], right_[c]) + "  ";
    append_line(out, line);
  }
  return out;
}

void Facts::add(std::string_view name, std::string_view value) {
  facts_.emplace_back(name, value);
}

std::string Facts::text(std::size_t indent) const {
  std::size_t width = 0;
  for (const auto& [name, value] : facts_) width = std::max(width, display_width(name));
  std::string out;
  for (const auto& [name, value] : facts_) {
    append_line(out, std::string(indent, ' ') + styled(Style::dim, padded(name, width, false)) +
                         "  " + value);
  }
  return out;
}

}  // namespace lamina::cli
