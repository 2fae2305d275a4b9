#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "random.h"

namespace lamina::training {

/// Mixes the rows of a stream: when it is full, its rows are put in random order and batches are
/// taken until half of them are left. A row has a value in each of several columns.
class ShuffleBuffer {
 public:
  ShuffleBuffer(std::vector<std::int64_t> widths, std::int64_t capacity, std::uint64_t seed);

  bool full() const { return rows() == capacity_; }
  std::int64_t rows() const { return static_cast<std::int64_t>(order_.size()); }
  /// row[c] points at the value of column c. Not when full.
  void push(std::span<const float* const> row);
  /// The next batch, column by column [batch, width]; false if the buffer has to be filled first.
  /// `flush`: nothing will follow, take what is there.
  bool take(std::int64_t batch, bool flush, std::vector<std::vector<float>>& out);
  /// Rows in the order they came, while none were taken yet.
  std::span<const float> first_rows(std::size_t column) const;

  /// What later calls depend on; saved rows are in their present order.
  struct State {
    std::uint64_t random = 0;
    bool taking = false;
    std::vector<std::vector<float>> columns;
  };
  State state() const;
  /// Rows and widths must fit.
  void restore(const State& state);

 private:
  std::vector<std::int64_t> widths_;
  std::int64_t capacity_;
  Random random_;
  bool taking_ = false;
  std::vector<std::vector<float>> data_;    // [capacity, width], grown as needed
  std::vector<std::int32_t> order_, free_;  // slots
};

}  // namespace lamina::training
