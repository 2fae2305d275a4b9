#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

// The greedy merge loop of byte-pair encoding, apart from where symbols and merges come from.
namespace lamina::tokenizer {

/// A run of the word's bytes that is one token so far.
struct Symbol {
  std::int32_t id = -1;  // -1: no token of its own (SentencePiece's unknown characters)
  std::uint32_t begin = 0, size = 0;
};

/// A possible merge of two neighbours: smaller keys first, the leftmost of equal keys.
struct Candidate {
  double key = std::numeric_limits<double>::infinity();  // infinity: no such merge
  std::int32_t id = -1;

  bool exists() const { return key < std::numeric_limits<double>::infinity(); }
};

/// A heap entry. It is stale once the pair at `left` no longer spans `size` bytes: merging only
/// ever lengthens symbols, so equal length means an unchanged pair.
struct QueuedMerge {
  double key = 0;
  std::uint32_t left = 0, size = 0;
  std::int32_t id = -1;

  bool after(const QueuedMerge& other) const {
    return key != other.key ? key > other.key : left > other.left;
  }
};

struct MergeBuffers {
  std::vector<QueuedMerge> heap;
  std::vector<std::uint32_t> next, previous;
};

/// For short words a scan over the candidates beats a heap.
constexpr std::size_t kScanLimit = 24;

template <class FindCandidate>
void merge_short(std::vector<Symbol>& symbols, const FindCandidate& candidate) {
  std::array<Candidate, kScanLimit> pairs;
  std::size_t count = symbols.size();
  for (std::size_t i = 0; i + 1 < count; ++i) pairs[i] = candidate(symbols[i], symbols[i + 1]);
  while (count > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < count; ++i) {
      if (pairs[i].key < pairs[best].key) best = i;
    }
    if (!pairs[best].exists()) break;
    symbols[best].id = pairs[best].id;
    symbols[best].size += symbols[best + 1].size;
    --count;
    for (std::size_t i = best + 1; i < count; ++i) {
      symbols[i] = symbols[i + 1];
      if (i + 1 < count) pairs[i] = pairs[i + 1];
    }
    if (best > 0) pairs[best - 1] = candidate(symbols[best - 1], symbols[best]);
    if (best + 1 < count) pairs[best] = candidate(symbols[best], symbols[best + 1]);
  }
  symbols.resize(count);
}

template <class FindCandidate>
void merge_long(std::vector<Symbol>& symbols, MergeBuffers& buffers,
                const FindCandidate& candidate) {
  constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();
  const auto count = static_cast<std::uint32_t>(symbols.size());
  std::vector<QueuedMerge>& heap = buffers.heap;
  std::vector<std::uint32_t>&next = buffers.next, &previous = buffers.previous;
  const auto order = [](const QueuedMerge& a, const QueuedMerge& b) { return a.after(b); };
  next.resize(count), previous.resize(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    next[i] = i + 1 < count ? i + 1 : kNone;
    previous[i] = i > 0 ? i - 1 : kNone;
  }
  const auto propose = [&](std::uint32_t left, bool push) {
    const Symbol &a = symbols[left], &b = symbols[next[left]];
    const Candidate found = candidate(a, b);
    if (!found.exists()) return;
    heap.push_back({found.key, left, a.size + b.size, found.id});
    if (push) std::push_heap(heap.begin(), heap.end(), order);
  };
  heap.clear();
  for (std::uint32_t i = 0; i + 1 < count; ++i) propose(i, false);
  std::make_heap(heap.begin(), heap.end(), order);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), order);
    const QueuedMerge top = heap.back();
    heap.pop_back();
    Symbol& left = symbols[top.left];
    const std::uint32_t right = next[top.left];
    // A symbol merged into its left neighbour has size 0.
    if (left.size == 0 || right == kNone || left.size + symbols[right].size != top.size) continue;
    left.id = top.id;
    left.size = top.size;
    symbols[right].size = 0;
    next[top.left] = next[right];
    if (next[right] != kNone) previous[next[right]] = top.left;
    if (previous[top.left] != kNone) propose(previous[top.left], true);
    if (next[top.left] != kNone) propose(top.left, true);
  }
  std::erase_if(symbols, [](const Symbol& symbol) { return symbol.size == 0; });
}

/// Merges `symbols` in place until no neighbours merge. `candidate(left, right)` returns the merge
/// of two neighbouring symbols. O(n log n) candidates and comparisons for n symbols.
template <class FindCandidate>
void merge_symbols(std::vector<Symbol>& symbols, MergeBuffers& buffers,
                   const FindCandidate& candidate) {
  if (symbols.size() <= kScanLimit) {
    merge_short(symbols, candidate);
  } else {
    merge_long(symbols, buffers, candidate);
  }
}

}  // namespace lamina::tokenizer
