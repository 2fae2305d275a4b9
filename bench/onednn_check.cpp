// Could oneDNN's products replace ours? Two questions in one run: does a row's result depend on the
// number of rows or of threads (it must not), and which is faster with weights packed beforehand.

#include <fmt/core.h>

#include <cstdint>
#include <cstring>
#include <dnnl.hpp>

#include "engine/kernels.h"
#include "measure.h"

using namespace lamina;  // NOLINT

namespace {

/// y = x·Wᵀ with oneDNN, weights in the layout that it likes best for this number of rows.
class OneDnn {
 public:
  OneDnn(std::int64_t rows, std::int64_t n_in, std::int64_t n_out, const std::vector<float>& w,
         bool inner_product)
      : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    using dnnl::memory;
    using Tag = memory::format_tag;
    const memory::desc x_desc({rows, n_in}, memory::data_type::f32, Tag::ab);
    const memory::desc y_desc({rows, n_out}, memory::data_type::f32, Tag::ab);
    x_ = memory(x_desc, engine_, nullptr);
    y_ = memory(y_desc, engine_, nullptr);
    memory::desc w_desc;
    memory plain;
    if (inner_product) {
      const memory::desc any({n_out, n_in}, memory::data_type::f32, Tag::any);
      const dnnl::inner_product_forward::primitive_desc pd(
          {dnnl::prop_kind::forward_inference, x_desc, any, y_desc}, engine_);
      w_desc = pd.weights_desc();
      primitive_ = dnnl::inner_product_forward(pd);
      plain = memory({{n_out, n_in}, memory::data_type::f32, Tag::ab}, engine_,
                     const_cast<float*>(w.data()));
    } else {
      const memory::desc any({n_in, n_out}, memory::data_type::f32, Tag::any);
      const dnnl::matmul::primitive_desc pd({x_desc, any, y_desc}, engine_);
      w_desc = pd.weights_desc();
      primitive_ = dnnl::matmul(pd);
      plain = memory({{n_in, n_out}, memory::data_type::f32, Tag::ba}, engine_,
                     const_cast<float*>(w.data()));
    }
    w_ = memory(w_desc, engine_);
    dnnl::reorder(plain, w_).execute(stream_, plain, w_);
    stream_.wait();
  }

  void run(const float* x, float* y) {
    x_.set_data_handle(const_cast<float*>(x));
    y_.set_data_handle(y);
    primitive_.execute(stream_, {{DNNL_ARG_SRC, x_}, {DNNL_ARG_WEIGHTS, w_}, {DNNL_ARG_DST, y_}});
    stream_.wait();
  }

  dnnl::memory::desc weights() const { return w_.get_desc(); }

 private:
  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::memory x_, w_, y_;
  dnnl::primitive primitive_;
};

std::size_t different_rows(const std::vector<float>& a, const std::vector<float>& b,
                           std::int64_t rows, std::int64_t n) {
  std::size_t count = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    count += std::memcmp(&a[r * n], &b[r * n], static_cast<std::size_t>(n) * 4) != 0;
  }
  return count;
}

}  // namespace

int main() {
  const int most = omp_get_max_threads();
  const auto* version = dnnl::version();
  fmt::print("oneDNN {}.{}.{}, ours: {}, {} threads\n", version->major, version->minor,
             version->patch, kernels::isa(), most);
  const std::int64_t all_rows = 256;
  const std::int64_t shapes[][2] = {{576, 576}, {576, 1536}, {1536, 576}, {640, 2048},
                                    {100, 70},  {8192, 640}, {576, 49152}};
  for (const auto& shape : shapes) {
    const std::int64_t n_in = shape[0], n_out = shape[1];
    const auto w = bench::random_floats(n_in * n_out, 1);
    const auto x = bench::random_floats(all_rows * n_in, 2);
    kernels::PackedMatrix packed(n_out, n_in);
    packed.set_rows(0, n_out, w.data());
    std::vector<float> ours(all_rows * n_out);
    kernels::multiply(x.data(), n_in, all_rows, packed, nullptr, ours.data(), n_out);
    std::vector<float> reference[2];
    dnnl::memory::desc layout[2];
    fmt::print("\n{} → {}: ", n_in, n_out);
    for (int kind : {0, 1}) {
      reference[kind].resize(all_rows * n_out);
      OneDnn product(all_rows, n_in, n_out, w, kind == 0);
      product.run(x.data(), reference[kind].data());
      layout[kind] = product.weights();
      fmt::print("{} rows of {} differ from ours in {}{}",
                 different_rows(reference[kind], ours, all_rows, n_out), all_rows,
                 kind == 0 ? "inner product" : "matmul", kind == 0 ? ", " : "\n");
    }
    fmt::print(
        "{:>5}   rows that differ: from the batch of {} / between thread counts; weights in "
        "another layout\n",
        "rows", all_rows);
    for (std::int64_t rows : {1, 2, 3, 5, 8, 16, 17, 64, 256}) {
      std::size_t batch[2], threads[2];
      bool other_layout[2];
      double seconds[3];
      for (int kind : {0, 1}) {
        omp_set_num_threads(most);
        OneDnn product(rows, n_in, n_out, w, kind == 0);
        other_layout[kind] = product.weights() != layout[kind];
        std::vector<float> y(rows * n_out), y1(rows * n_out);
        product.run(x.data(), y.data());
        batch[kind] = different_rows(y, reference[kind], rows, n_out);
        seconds[kind] = bench::best_seconds([&] { product.run(x.data(), y.data()); }, 0.15);
        omp_set_num_threads(1);
        OneDnn(rows, n_in, n_out, w, kind == 0).run(x.data(), y1.data());
        threads[kind] = different_rows(y, y1, rows, n_out);
      }
      omp_set_num_threads(most);
      std::vector<float> y(rows * n_out);
      seconds[2] = bench::best_seconds(
          [&] { kernels::multiply(x.data(), n_in, rows, packed, nullptr, y.data(), n_out); }, 0.15);
      fmt::print(
          "{:>5}   inner product {} / {}{:<7} matmul {} / {}{:<7} µs: {:.1f}, {:.1f}, ours "
          "{:.1f}\n",
          rows, batch[0], threads[0], other_layout[0] ? " layout" : "", batch[1], threads[1],
          other_layout[1] ? " layout" : "", seconds[0] * 1e6, seconds[1] * 1e6, seconds[2] * 1e6);
    }
  }
}
