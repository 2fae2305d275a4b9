#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "lamina/core/block.h"
#include "lamina/core/dtype.h"
#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"
#include "lamina/probes/readout.h"

namespace lamina::testing {

/// One tensor of lens.safetensors (make_goldens.py) or tuned.safetensors (make_tuned_goldens.py).
inline std::vector<float> golden(const std::string& name,
                                 const std::string& file = "lens.safetensors") {
  static const auto open = [](const char* stem) {
    return open_safetensors(std::filesystem::path(LAMINA_SOURCE_DIR) / "tests/probes" / stem);
  };
  static const TensorStore lens = open("lens.safetensors"), tuned = open("tuned.safetensors");
  const TensorInfo* tensor = (file == "tuned.safetensors" ? tuned : lens).find(name);
  if (!tensor) throw Error("no golden " + name);
  std::vector<float> values(tensor->elements());
  expand_to_f32(tensor->dtype, tensor->bytes, values);
  return values;
}

/// A head given by its matrices: RMS norm and soft-capped logits, in double, the plain way.
class MatrixReadout : public Readout {
 public:
  MatrixReadout(std::vector<float> gamma, std::vector<float> unembed, double eps, double cap)
      : gamma_(std::move(gamma)), unembed_(std::move(unembed)), eps_(eps), cap_(cap) {}

  std::int64_t d_model() const override { return static_cast<std::int64_t>(gamma_.size()); }
  std::int64_t d_vocab() const override {
    return static_cast<std::int64_t>(unembed_.size() / gamma_.size());
  }
  void final_norm(std::span<const float> x, std::span<float> out) const override {
    const std::size_t d = gamma_.size();
    for (std::size_t row = 0; row < x.size(); row += d) {
      double squares = 0;
      for (std::size_t i = 0; i < d; ++i) squares += double{x[row + i]} * x[row + i];
      const double scale = std::sqrt(squares / static_cast<double>(d) + eps_);
      for (std::size_t i = 0; i < d; ++i) {
        out[row + i] = static_cast<float>(x[row + i] / scale * gamma_[i]);
      }
    }
    calls.push_back(static_cast<std::int64_t>(x.size() / d));
  }
  void unembed(std::span<const float> x, std::span<float> out) const override {
    const std::size_t d = gamma_.size(), v = unembed_.size() / d;
    for (std::size_t r = 0; r < x.size() / d; ++r) {
      for (std::size_t i = 0; i < v; ++i) {
        double sum = 0;
        for (std::size_t j = 0; j < d; ++j) sum += double{x[r * d + j]} * unembed_[i * d + j];
        out[r * v + i] = static_cast<float>(cap_ > 0 ? cap_ * std::tanh(sum / cap_) : sum);
      }
    }
  }
  void norm_weight(std::span<float> out) const override {
    std::copy(gamma_.begin(), gamma_.end(), out.begin());
  }
  void unembedding_rows(std::int64_t first, std::int64_t count,
                        std::span<float> out) const override {
    std::copy_n(unembed_.begin() + first * d_model(), count * d_model(), out.begin());
  }

  mutable std::vector<std::int64_t> calls;  // rows of every final_norm

 private:
  std::vector<float> gamma_, unembed_;
  double eps_, cap_;
};

/// The golden model: three blocks, d_model 16, 53 tokens, two prompts of 4 and 5 tokens.
struct GoldenModel {
  static constexpr std::int64_t kLayers = 3, kWidth = 16, kVocab = 53, kTokens = 9;

  ModelConfig config;
  MatrixReadout readout{golden("gamma"), golden("unembed"), 1e-5, 7.5};
  std::vector<Prompt> prompts{2};

  GoldenModel() {
    config.family = "golden";
    config.n_layers = kLayers;
    config.d_model = kWidth;
    config.d_vocab = kVocab;
    config.n_heads = config.n_kv_heads = 1;
    config.d_head = kWidth;
    config.layers.resize(kLayers);
    const std::vector<float> ids = golden("ids");
    prompts[0].id = "first";
    prompts[1].id = "second";
    for (std::size_t i = 0; i < ids.size(); ++i) {
      prompts[i < 4 ? 0 : 1].ids.push_back(static_cast<std::int32_t>(ids[i]));
    }
    prompts[0].given = 4;
    prompts[1].given = 5;
    prompts[0].target = 7;
  }

  /// A block with prompts first … first + count − 1.
  ActivationBlock block(std::int64_t first, std::int64_t count) const {
    const std::vector<float> resid = golden("resid");
    ActivationBlock b;
    b.first_prompt = first;
    b.prompts = std::span(prompts).subspan(first, count);
    for (const Prompt& p : b.prompts) b.batch.add(p.ids);
    const std::int64_t skip = first == 0 ? 0 : 4;
    for (std::int64_t s = 0; s <= kLayers; ++s) {
      const Site site = s == 0 ? Site{SiteKind::resid_pre, 0}
                               : Site{SiteKind::resid_post, static_cast<std::int32_t>(s) - 1};
      const auto from = resid.begin() + (s * kTokens + skip) * kWidth;
      b.sites[ActivationBlock::site_key(site)] = {
          {false, 0, kWidth}, {from, from + b.batch.tokens() * kWidth}, {}};
    }
    return b;
  }
};

/// Equal where both are NaN, and within `tolerance` elsewhere.
inline void expect_close(const std::vector<float>& got, const std::vector<float>& want,
                         double tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(want[i])) {
      EXPECT_TRUE(std::isnan(got[i])) << what << " [" << i << "]: got " << got[i];
    } else {
      EXPECT_NEAR(got[i], want[i], tolerance) << what << " [" << i << "]";
    }
  }
}

inline std::vector<float> as_floats(const std::vector<std::int32_t>& v) {
  return {v.begin(), v.end()};
}

}  // namespace lamina::testing
