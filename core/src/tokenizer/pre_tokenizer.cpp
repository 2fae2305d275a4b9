#include "tokenizer/pre_tokenizer.h"

#include <utility>

#include "tokenizer/utf8.h"

namespace lamina::tokenizer {

const std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

using Ranges = std::vector<std::pair<std::size_t, std::size_t>>;

/// One part of a piece: a match of the pattern or the text between two matches.
struct Part {
  std::size_t begin = 0, end = 0;
  bool match = false;
};

void find_literal(std::string_view text, std::string_view literal, Ranges& out) {
  out.clear();
  if (literal.empty()) return;
  for (std::size_t at = text.find(literal); at != text.npos;
       at = text.find(literal, at + literal.size())) {
    out.emplace_back(at, at + literal.size());
  }
}

/// Appends the pieces of `text` that the parts make under `behavior`.
void join(std::string_view text, const std::vector<Part>& parts, SplitBehavior behavior,
          std::vector<std::string_view>& out) {
  const auto put = [&](std::size_t begin, std::size_t end) {
    if (end > begin) out.push_back(text.substr(begin, end - begin));
  };
  switch (behavior) {
    case SplitBehavior::removed:
      for (const Part& part : parts) {
        if (!part.match) put(part.begin, part.end);
      }
      return;
    case SplitBehavior::isolated:
      for (const Part& part : parts) put(part.begin, part.end);
      return;
    case SplitBehavior::contiguous:
      for (std::size_t i = 0, j = 0; i < parts.size(); i = j) {
        while (j < parts.size() && parts[j].match == parts[i].match) ++j;
        put(parts[i].begin, parts[j - 1].end);
      }
      return;
    case SplitBehavior::merged_with_previous:
      // A match joins the text before it, but not another match.
      for (std::size_t i = 0; i < parts.size(); ++i) {
        const bool joined = !parts[i].match && i + 1 < parts.size() && parts[i + 1].match;
        put(parts[i].begin, parts[i + joined].end);
        i += joined;
      }
      return;
    case SplitBehavior::merged_with_next:
      for (std::size_t i = 0; i < parts.size(); ++i) {
        const bool joined = parts[i].match && i + 1 < parts.size() && !parts[i + 1].match;
        put(parts[i].begin, parts[i + joined].end);
        i += joined;
      }
      return;
  }
}

class Steps {
 public:
  Steps(bool at_start, Pieces& pieces) : at_start_(at_start), pieces_(pieces) {}

  void operator()(const Split& step) {
    swap_out();
    for (std::string_view text : before_) {
      if (step.pattern) {
        step.pattern->find_all(text, matches_);
      } else {
        find_literal(text, step.literal, matches_);
      }
      split(text, step.behavior, step.invert);
    }
  }

  void operator()(const PrefixSpace&) {
    for (std::string_view& text : pieces_.views) {
      if (!text.starts_with(' ')) text = own(std::string(1, ' ').append(text));
    }
  }

  void operator()(const Metaspace& step) {
    swap_out();
    bool first = at_start_;
    for (std::string_view text : before_) {
      std::string changed = replace_all(text, " ", step.replacement);
      const bool prefix = step.prefix == Metaspace::Prefix::always ||
                          (step.prefix == Metaspace::Prefix::first && first);
      if (prefix && !changed.starts_with(step.replacement)) changed.insert(0, step.replacement);
      first = false;
      const std::string_view whole = own(std::move(changed));
      if (step.split) {
        find_literal(whole, step.replacement, matches_);
        split(whole, SplitBehavior::merged_with_next, false);
      } else {
        pieces_.views.push_back(whole);
      }
    }
  }

 private:
  void swap_out() {
    before_.clear();
    std::swap(before_, pieces_.views);
  }

  std::string_view own(std::string text) { return pieces_.owned.emplace_back(std::move(text)); }

  void split(std::string_view text, SplitBehavior behavior, bool invert) {
    parts_.clear();
    std::size_t at = 0;
    for (const auto& [begin, end] : matches_) {
      if (at < begin) parts_.push_back({at, begin, invert});
      parts_.push_back({begin, end, !invert});
      at = end;
    }
    if (at < text.size()) parts_.push_back({at, text.size(), invert});
    join(text, parts_, behavior, pieces_.views);
  }

  bool at_start_;
  Pieces& pieces_;
  std::vector<std::string_view> before_;
  Ranges matches_;
  std::vector<Part> parts_;
};

}  // namespace

void pre_tokenize(std::string_view section, bool at_start,
                  const std::vector<PreTokenizerStep>& steps, Pieces& out) {
  out.views.clear();
  out.owned.clear();
  if (section.empty()) return;
  out.views.push_back(section);
  Steps apply(at_start, out);
  for (const PreTokenizerStep& step : steps) std::visit(apply, step);
}

}  // namespace lamina::tokenizer
