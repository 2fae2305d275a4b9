#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "family/family.h"
#include "lamina/core/config.h"
#include "lamina/core/tensor_store.h"

namespace lamina {

/// How a file keeps a canonical tensor [R, C] (a vector is R values, C left out of the shape).
/// H heads of d values; "fused" tensors hold q, k and v of a layer in one.
enum class Form : std::uint8_t {
  rows,           // [R, C]
  columns,        // [C, R]: stored as [in, out]
  fused_rows,     // [Rq + Rk + Rv, C]: q, then k, then v
  fused_columns,  // [C, Rq + Rk + Rv]
  fused_heads,    // [H·3·d, C]: q, k, v of head 0, then of head 1, …
  head_columns,   // [H, C, d]: one [in, out] matrix a head; vectors [H, d]
  head_inputs,    // [H, d, R]: the output projection, columns C = (head, d)
  rows_from_2,    // [2 + R, C]: the first two rows are not used
  rope_rows,  // [R, C], rows of each head interleaved: file row 2i + s is canonical row s·d/2 + i
};

/// One line of a family's table. `canonical` is a name of family.h, layer tensors as "L.name".
/// In `file`, "{p}" stands for the prefix and "{l}" for the layer number. Several lines for one
/// canonical tensor are spellings of different versions: the first that the file has counts.
struct TensorRule {
  std::string_view canonical;
  std::string_view file;
  Form form = Form::rows;
};

struct TensorTable {
  std::span<const TensorRule> rules;
  /// Prefixes that checkpoints of this family are found with; the one under which the embedding
  /// stands is used for all names.
  std::span<const std::string_view> prefixes;
  /// Tensors that may be there and carry nothing (mask buffers, RoPE tables). "{l}" matches a
  /// number, a final "*" anything.
  std::span<const std::string_view> ignored;
};

/// Finds every canonical tensor of `config` in `store` and checks its shape. Errors name the file,
/// the tensor, the expected and the found shape: missing, mis-shaped, unknown and superfluous
/// tensors, tied heads whose copy differs, quantised tensors that would have to be transposed.
std::unique_ptr<WeightSource> bind_tensors(TensorStore store, const ModelConfig& config,
                                           const TensorTable& table);

/// Name of a canonical tensor without its layer: "3.q.b" → "L.q.b" (layer 3), "embed" → "embed".
std::string canonical_key(std::string_view canonical, std::int64_t* layer);

/// Whether `name` matches `pattern` ("{l}": digits; a final "*": anything). "{p}" must be replaced.
bool matches_tensor_pattern(std::string_view name, std::string_view pattern);

}  // namespace lamina
