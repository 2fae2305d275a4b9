#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "lamina/patching/pair_tasks.h"

namespace lamina {

/// Random choices that are the same on every machine (the distributions of the standard library are
/// not).
class Draw {
 public:
  explicit Draw(std::uint64_t seed) : engine_(seed) {}
  /// 0 … n − 1, n > 0, every value equally likely.
  std::size_t below(std::size_t n);
  bool coin() { return below(2) == 1; }
  /// `count` different numbers below n, in random order; count ≤ n.
  std::vector<std::size_t> distinct(std::size_t count, std::size_t n);
  template <class T>
  const T& of(const std::vector<T>& values) {
    return values[below(values.size())];
  }

 private:
  std::mt19937_64 engine_;
};

/// A pair as words, before any tokenizer has seen it.
struct Draft {
  std::string kind;  // for the pair's id: "abba", "plural" …
  std::string clean, corrupted;
  std::vector<std::string> correct, wrong;
  /// What the prompt is about; empty: none. `late`: its last occurrence is meant, where the prompts
  /// differ last.
  std::string subject;
  bool late = false;
  /// The answer goes on without a blank: behind a quote, or a digit behind a digit.
  bool glued = false;
  /// Tokens in which the prompts differ if they are aligned; 0: equal lengths say enough.
  std::size_t differing = 0;
};

/// How a tokenizer wants its text.
struct TextStyle {
  bool spaced = false;      // blanks around punctuation: words are known at blanks only
  bool two_digits = false;  // numbers below 100 are one token
};

Draft draw_pair(const TaskLists& lists, const PairTaskOptions& options, const TextStyle& style,
                Draw& draw);

}  // namespace lamina
