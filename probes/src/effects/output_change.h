#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lamina/core/forward.h"

namespace lamina {

/// How far the model's answers in a pass are from those of the undisturbed pass of the same tokens.
class OutputChange {
 public:
  /// `state`: the undisturbed pass, which must outlive this. Its probabilities are kept if those of
  /// all its tokens fit into `memory` bytes, and computed again otherwise.
  OutputChange(Forward& forward, const RunState& state, std::uint64_t memory);

  /// ‖softmax z′ − softmax z‖ of rows of the forward's last pass, z of tokens of the state.
  void last_pass(std::span<const std::int64_t> rows, std::span<const std::int64_t> tokens,
                 std::span<double> out);
  /// The same of given residual rows behind the last block [tokens, d_model].
  void residual(std::span<const float> rows, std::span<const std::int64_t> tokens,
                std::span<double> out);

 private:
  std::int64_t chunk_rows() const;
  /// changed_ holds logits of the first rows: compares them with the state's.
  void compare(std::span<const std::int64_t> tokens, std::span<double> out);
  /// Probabilities of tokens of the state → out, row after row.
  void undisturbed(std::span<const std::int64_t> tokens, std::span<float> out);

  Forward& forward_;
  const RunState& state_;
  std::int64_t d_, v_;
  bool keep_;
  std::vector<float> kept_;         // [token, V] if keep_
  std::vector<std::uint8_t> have_;  // [token]
  std::vector<float> changed_, plain_, rows_;
};

}  // namespace lamina
