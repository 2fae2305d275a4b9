#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "lamina/core/block.h"
#include "lamina/probes/cka.h"

// The rows that similarities compare, one side or two: prompts cut to their rows, and what is left
// over from block to block, so that nothing depends on where blocks end.

namespace lamina::cka {

/// Hash of (seed, prompt, position): the rows with the smallest ones are the sample.
std::uint64_t row_key(std::uint64_t seed, std::string_view prompt, std::int64_t position);

/// The streams of one side: `count` of them, rows of `width` values.
struct Side {
  std::vector<Site> sites;
  std::int64_t width = 0;
  std::int64_t count() const { return static_cast<std::int64_t>(sites.size()); }
};
Side make_side(const ModelConfig& config, const CkaOptions& options);

class Rows {
 public:
  Rows(std::vector<Side> sides, const CkaOptions& options);

  std::int64_t streams() const { return streams_; }
  std::int64_t width(std::int64_t stream) const { return part(stream).side.width; }
  /// Rows that all sides have.
  std::int64_t rows() const;
  const float* row(std::int64_t stream, std::int64_t r) const;
  bool first(std::int64_t r) const {
    return parts_.front().meta[static_cast<std::size_t>(r)].first;
  }
  std::uint64_t key(std::int64_t r) const {
    return parts_.front().meta[static_cast<std::size_t>(r)].key;
  }

  /// Adds a block's rows; they are read in place until drop().
  void add(std::size_t side, const ActivationBlock& block);
  /// Forgets the first `count` rows and copies the others.
  void drop(std::int64_t count);
  /// Appends the rows that `other` kept.
  void append(const Rows& other);

 private:
  struct Meta {
    std::uint64_t key;
    bool first;
  };
  struct Part {
    Side side;
    std::vector<Meta> meta;                  // of all rows
    std::vector<std::vector<float>> kept;    // [stream][rows, width]: the first rows
    std::vector<std::vector<float>> pooled;  // [stream][rows, width], if rows are prompts
    std::vector<const float*> values;        // [stream] of the block
    std::vector<std::int64_t> picked;        // its rows
    std::int64_t kept_rows = 0;
  };
  const Part& part(std::int64_t stream) const {
    return stream < parts_.front().side.count() ? parts_.front() : parts_.back();
  }
  void pool(Part& part, const ActivationBlock& block);

  std::vector<Part> parts_;
  std::int64_t streams_ = 0, skip_ = 0;
  CkaPool pool_ = CkaPool::none;
  std::uint64_t seed_ = 0;
};

}  // namespace lamina::cka
