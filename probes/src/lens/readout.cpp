#include "lamina/probes/readout.h"

#include <algorithm>

namespace lamina {
namespace {

class ModelReadout : public Readout {
 public:
  explicit ModelReadout(const Forward& forward) : forward_(forward) {}

  std::int64_t d_model() const override { return forward_.model().config().d_model; }
  std::int64_t d_vocab() const override { return forward_.model().config().d_vocab; }
  void final_norm(std::span<const float> x, std::span<float> out) const override {
    forward_.final_norm(x, out);
  }
  void unembed(std::span<const float> x, std::span<float> out) const override {
    forward_.unembed(x, out);
  }
  void norm_weight(std::span<float> out) const override { forward_.model().final_norm_weight(out); }
  void unembedding_rows(std::int64_t first, std::int64_t count,
                        std::span<float> out) const override {
    forward_.model().unembedding_rows(first, count, out);
  }

 private:
  const Forward& forward_;
};

}  // namespace

std::unique_ptr<Readout> model_readout(const Forward& forward) {
  return std::make_unique<ModelReadout>(forward);
}

}  // namespace lamina
