#include "engine/weights.h"

#include <algorithm>
#include <charconv>
#include <exception>
#include <mutex>
#include <string_view>

#include "lamina/core/error.h"

namespace lamina {
namespace {

// Where a canonical tensor goes: a packed matrix or a plain array.
struct Slot {
  kernels::PackedMatrix* matrix = nullptr;
  std::vector<float>* values = nullptr;
};

Slot norm_slot(NormWeights& norm, std::string_view part) {
  return {nullptr, part == "w" ? &norm.weight : &norm.bias};
}

Slot linear_slot(Linear& linear, std::string_view part) {
  if (part == "b") return {nullptr, &linear.bias};
  return {&linear.weight, nullptr};
}

Slot layer_slot(LayerWeights& w, std::string_view name) {
  const std::size_t dot = name.find('.');
  const std::string_view stem = name.substr(0, dot);
  const std::string_view part = dot == std::string_view::npos ? "" : name.substr(dot + 1);
  if (stem == "ln1") return norm_slot(w.ln1, part);
  if (stem == "ln1_post") return norm_slot(w.ln1_post, part);
  if (stem == "ln2") return norm_slot(w.ln2, part);
  if (stem == "ln2_post") return norm_slot(w.ln2_post, part);
  if (stem == "mlp_ln") return norm_slot(w.mlp_ln, part);
  if (stem == "q_norm") return {nullptr, &w.q_norm};
  if (stem == "k_norm") return {nullptr, &w.k_norm};
  if (stem == "q") return linear_slot(w.q, part);
  if (stem == "k") return linear_slot(w.k, part);
  if (stem == "v") return linear_slot(w.v, part);
  if (stem == "o") return linear_slot(w.o, part);
  if (stem == "gate") return linear_slot(w.gate, part);
  if (stem == "in") return linear_slot(w.in, part);
  if (stem == "out") return linear_slot(w.out, part);
  throw std::logic_error("canonical tensor without a place: " + std::string(name));
}

Slot slot(Weights& w, std::string_view name) {
  if (name == "embed") return {nullptr, &w.embed};
  if (name == "pos_embed") return {nullptr, &w.pos_embed};
  if (name == "type_embed") return {nullptr, &w.type_embed};
  if (name == "embed_norm.w") return {nullptr, &w.embed_norm.weight};
  if (name == "embed_norm.b") return {nullptr, &w.embed_norm.bias};
  if (name == "head") return {&w.head.weight, nullptr};
  if (name == "head.b") return {nullptr, &w.head.bias};
  if (name == "unembed") return {&w.unembed.weight, nullptr};
  if (name == "unembed.b") return {nullptr, &w.unembed.bias};
  if (name == "ln_final.w") return {nullptr, &w.ln_final.weight};
  if (name == "ln_final.b") return {nullptr, &w.ln_final.bias};
  std::size_t layer = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  if (error != std::errc{} || layer >= w.layers.size() || *end != '.') {
    throw std::logic_error("canonical tensor without a place: " + std::string(name));
  }
  return layer_slot(w.layers[layer], name.substr(static_cast<std::size_t>(end - name.data()) + 1));
}

// A piece of work: some rows of one tensor, small enough that its fp32 copy stays in cache.
struct Piece {
  const CanonicalTensor* tensor;
  Slot slot;
  std::int64_t first, count;
};

}  // namespace

Weights load_weights(const ModelConfig& config, const WeightSource& source) {
  Weights weights;
  weights.layers.resize(static_cast<std::size_t>(config.n_layers));
  const std::vector<CanonicalTensor> tensors = canonical_tensors(config);

  constexpr std::int64_t kPieceValues = std::int64_t{1} << 19;  // 2 MiB of fp32
  std::vector<Piece> pieces;
  for (const CanonicalTensor& tensor : tensors) {
    // A tied embedding lives once, packed; its rows are copied out of the panels.
    Slot place = config.tied && tensor.name == "embed" ? Slot{&weights.unembed.weight, nullptr}
                                                       : slot(weights, tensor.name);
    if (place.matrix != nullptr) {
      *place.matrix = kernels::PackedMatrix(tensor.rows, tensor.cols);
    } else {
      place.values->resize(static_cast<std::size_t>(tensor.rows * tensor.cols));
    }
    // Whole panels, so that two pieces never write the same cache line.
    constexpr std::int64_t kPanel = kernels::PackedMatrix::kPanel;
    const std::int64_t step =
        std::max<std::int64_t>(kPieceValues / tensor.cols / kPanel, 1) * kPanel;
    for (std::int64_t first = 0; first < tensor.rows; first += step) {
      pieces.push_back({&tensor, place, first, std::min(step, tensor.rows - first)});
    }
  }

  std::exception_ptr failure;
  std::mutex failure_mutex;
#pragma omp parallel
  {
    std::vector<float> buffer;
#pragma omp for schedule(dynamic)
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      try {
        const Piece& piece = pieces[i];
        const auto values = static_cast<std::size_t>(piece.count * piece.tensor->cols);
        if (piece.slot.matrix == nullptr) {
          const auto at = static_cast<std::size_t>(piece.first * piece.tensor->cols);
          source.read_rows(piece.tensor->name, piece.first, piece.count,
                           std::span(*piece.slot.values).subspan(at, values));
        } else {
          buffer.resize(values);
          source.read_rows(piece.tensor->name, piece.first, piece.count, buffer);
          piece.slot.matrix->set_rows(piece.first, piece.count, buffer.data());
        }
      } catch (...) {  // no exception may leave the parallel region
        const std::lock_guard lock(failure_mutex);
        if (!failure) failure = std::current_exception();
      }
    }
  }
  if (failure) std::rethrow_exception(failure);
  return weights;
}

}  // namespace lamina
