#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lamina::cli {

/// A table of text that lines up on a terminal, wide characters included.
class Table {
 public:
  /// Column headings; one that begins with '>' stands, with its column, to the right.
  explicit Table(std::vector<std::string> headings);
  void row(std::vector<std::string> cells);
  bool empty() const { return rows_.empty(); }
  /// The lines, each indented by `indent` columns and ended by a newline; no trailing blanks.
  std::string text(std::size_t indent = 0) const;

 private:
  std::vector<std::string> headings_;
  std::vector<bool> right_;
  std::vector<std::vector<std::string>> rows_;
};

/// "name  value" lines with the values under one another.
class Facts {
 public:
  void add(std::string_view name, std::string_view value);
  std::string text(std::size_t indent = 0) const;

 private:
  std::vector<std::pair<std::string, std::string>> facts_;
};

}  // namespace lamina::cli
