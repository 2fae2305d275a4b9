#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/patching/graph.h"

namespace lamina {

/// Receives what one source adds to the residual stream in one prompt of the running batch: row t
/// at rows + t·stride, [d_model]. Called for many prompts at once from several threads; must not
/// throw.
using SourceSink = std::function<void(std::int64_t prompt, std::int64_t source, const float* rows,
                                      std::int64_t stride)>;

/// Adds hooks that hand every source of layers `from_layer` … L − 1 (and with 0 the input) to
/// `sink` as soon as it is known. A head's share counts as it is added to the stream, behind the
/// norm on attention's output if there is one. The graph must outlive the pass.
void read_sources(Hooks& hooks, const Model& model, const EdgeGraph& graph, std::int32_t from_layer,
                  SourceSink sink);

/// What every source adds in some prompts, kept from row first[p] on:
/// values of prompt p, source u at at(p, u), [rows(p), d_model].
class SourceRows {
 public:
  SourceRows() = default;
  SourceRows(std::int64_t sources, std::int64_t d_model, std::span<const std::int64_t> rows);
  float* at(std::int64_t prompt, std::int64_t source) {
    return values_.data() + offset(prompt, source);
  }
  const float* at(std::int64_t prompt, std::int64_t source) const {
    return values_.data() + offset(prompt, source);
  }
  std::int64_t rows(std::int64_t prompt) const {
    return first_row_[static_cast<std::size_t>(prompt) + 1] -
           first_row_[static_cast<std::size_t>(prompt)];
  }
  /// Row of all prompts' rows at which the prompt begins.
  std::int64_t row_at(std::int64_t prompt) const {
    return first_row_[static_cast<std::size_t>(prompt)];
  }
  std::int64_t all_rows() const { return first_row_.back(); }
  std::uint64_t bytes() const { return values_.size() * sizeof(float); }

 private:
  std::int64_t offset(std::int64_t prompt, std::int64_t source) const {
    return (row_at(prompt) * sources_ + source * rows(prompt)) * d_;
  }
  std::int64_t sources_ = 0, d_ = 0;
  std::vector<std::int64_t> first_row_ = {0};
  std::vector<float> values_;
};

}  // namespace lamina
