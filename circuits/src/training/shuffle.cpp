#include "shuffle.h"

#include <algorithm>
#include <numeric>

#include "rows.h"

namespace lamina::training {

ShuffleBuffer::ShuffleBuffer(std::vector<std::int64_t> widths, std::int64_t capacity,
                             std::uint64_t seed)
    : widths_(std::move(widths)), capacity_(capacity), random_(seed), data_(widths_.size()) {}

void ShuffleBuffer::push(std::span<const float* const> row) {
  auto slot = static_cast<std::int32_t>(order_.size());
  if (free_.empty()) {
    for (std::size_t c = 0; c < widths_.size(); ++c) {
      data_[c].insert(data_[c].end(), row[c], row[c] + widths_[c]);
    }
  } else {
    slot = free_.back();
    free_.pop_back();
    for (std::size_t c = 0; c < widths_.size(); ++c) {
      std::copy_n(row[c], widths_[c], data_[c].data() + slot * widths_[c]);
    }
  }
  order_.push_back(slot);
}

bool ShuffleBuffer::take(std::int64_t batch, bool flush, std::vector<std::vector<float>>& out) {
  if (!taking_) {
    if (!full() && !flush) return false;
    random_.shuffle(order_);
    taking_ = true;
  }
  const std::int64_t left = rows() - batch;
  if (left < (flush ? 0 : capacity_ / 2)) {
    taking_ = false;
    return false;
  }
  out.resize(widths_.size());
  const std::int32_t* slots = order_.data() + left;
  for (std::size_t c = 0; c < widths_.size(); ++c) {
    const std::int64_t width = widths_[c];
    out[c].resize(size(batch * width));
#pragma omp parallel for schedule(static)
    for (std::int64_t r = 0; r < batch; ++r) {
      std::copy_n(data_[c].data() + slots[r] * width, width, out[c].data() + r * width);
    }
  }
  free_.insert(free_.end(), order_.end() - batch, order_.end());
  order_.resize(size(left));
  return true;
}

std::span<const float> ShuffleBuffer::first_rows(std::size_t column) const {
  return data_[column];
}

ShuffleBuffer::State ShuffleBuffer::state() const {
  State s{random_.state(), taking_, std::vector<std::vector<float>>(widths_.size())};
  for (std::size_t c = 0; c < widths_.size(); ++c) {
    for (std::int32_t slot : order_) {
      const auto from = data_[c].begin() + slot * widths_[c];
      s.columns[c].insert(s.columns[c].end(), from, from + widths_[c]);
    }
  }
  return s;
}

void ShuffleBuffer::restore(const State& state) {
  random_.restore(state.random);
  taking_ = state.taking;
  data_ = state.columns;
  free_.clear();
  order_.resize(data_.empty() ? 0 : data_[0].size() / size(widths_[0]));
  std::iota(order_.begin(), order_.end(), 0);
}

}  // namespace lamina::training
