#include "engine/backward/transposed.h"

#include <algorithm>

namespace lamina::backward {

using kernels::PackedMatrix;

PackedMatrix transpose(const PackedMatrix& w) {
  return transpose(w, 0, w.n_out());
}

PackedMatrix transpose(const PackedMatrix& w, std::int64_t first, std::int64_t count) {
  constexpr std::int64_t kPanel = PackedMatrix::kPanel;
  const std::int64_t n_in = w.n_in();
  PackedMatrix out(n_in, count);
  const std::int64_t blocks = (n_in + kPanel - 1) / kPanel;
#pragma omp parallel
  {
    std::vector<float> rows(static_cast<std::size_t>(kPanel * count));
#pragma omp for
    for (std::int64_t block = 0; block < blocks; ++block) {
      const std::int64_t begin = block * kPanel, height = std::min(kPanel, n_in - begin);
      for (std::int64_t o = first; o < first + count;) {
        // A panel holds its outputs side by side for every inner index.
        const std::int64_t column = o % kPanel;
        const std::int64_t some = std::min(kPanel - column, first + count - o);
        const float* panel = w.panel(o / kPanel);
        for (std::int64_t i = 0; i < height; ++i) {
          std::copy_n(panel + (begin + i) * kPanel + column, some,
                      rows.data() + i * count + (o - first));
        }
        o += some;
      }
      out.set_rows(begin, height, rows.data());
    }
  }
  return out;
}

const PackedMatrix& Transposed::of(const Linear& linear) {
  PackedMatrix& w = whole_[&linear];
  if (w.empty()) w = transpose(linear.weight);
  return w;
}

const PackedMatrix& Transposed::of_head(SiteKind kind, std::int32_t layer, std::int64_t head,
                                        std::int64_t d_head) {
  PackedMatrix& w = heads_[{kind, layer, head}];
  if (w.empty()) {
    const LayerWeights& l = weights_.layers[static_cast<std::size_t>(layer)];
    const Linear& linear = kind == SiteKind::q ? l.q : kind == SiteKind::k ? l.k : l.v;
    w = transpose(linear.weight, head * d_head, d_head);
  }
  return w;
}

}  // namespace lamina::backward
