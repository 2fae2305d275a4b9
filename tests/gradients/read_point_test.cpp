// The gradients at read points: what each head's q, k and v and each MLP would get if it had its
// own copy of the residual stream.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "lamina/core/dtype.h"
#include "lamina/core/safetensors.h"
#include "support.h"

namespace lamina {
namespace {

using testing::SiteValues;
using testing::size;
using testing::TinyConfig;
using Kind = ReadPoint::Kind;
using Points = std::map<std::tuple<Kind, std::int32_t, std::int64_t>, std::vector<float>>;

struct Pass {
  Points points;
  SiteValues sites;
};

Pass pass(const Model& model, const Batch& batch, const testing::Metric& metric,
          const BackwardRules& rules = {}) {
  Forward forward(model);
  Backward backward(model);
  Tape tape;
  forward.run(batch, {}, {.tape = &tape});
  backward.seed(tape, metric.rows, metric.c);
  Pass out;
  Hooks hooks;
  testing::read_all(model.config(), hooks, out.sites);
  backward.run(tape, rules, hooks, [&](ReadPoint point, std::span<const float> gradient) {
    const bool fresh =
        out.points
            .try_emplace({point.kind, point.layer, point.head}, gradient.begin(), gradient.end())
            .second;
    EXPECT_TRUE(fresh) << "a read point was reported twice";
  });
  return out;
}

std::vector<float> joined(const std::vector<std::vector<float>>& prompts) {
  std::vector<float> all;
  for (const auto& prompt : prompts) all.insert(all.end(), prompt.begin(), prompt.end());
  return all;
}

void add(std::vector<float>& sum, const std::vector<float>& values) {
  ASSERT_EQ(sum.size(), values.size());
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += values[i];
}

class ReadPoints : public ::testing::TestWithParam<TinyConfig> {
 protected:
  // No ReLU: at its kink differences find neither derivative, and read points do not depend on it.
  static TinyConfig smooth() {
    TinyConfig config = GetParam();
    if (config.act == "relu") config.act = "gelu";
    return config;
  }

  Model model_ = testing::tiny_model(smooth(), 6);
  const ModelConfig& config_ = model_.config();
  Batch batch_ = testing::pack(testing::random_prompts({1, 9, 5}, GetParam().d_vocab, 5));
  testing::Metric metric_ = testing::random_metric(batch_, config_, 2);
};

// What reads the stream, and what passes it on, together make its gradient.
TEST_P(ReadPoints, AddUpToTheGradientOfTheStream) {
  for (const BackwardRules& rules : {BackwardRules{}, BackwardRules::relp(),
                                     BackwardRules{.frozen_norm = true, .frozen_pattern = true}}) {
    const Pass r = pass(model_, batch_, metric_, rules);
    const bool post = config_.norm_place == NormPlace::post, has_mlp = config_.d_mlp > 0;
    for (std::int32_t l = 0; l < config_.n_layers; ++l) {
      const auto at = [&](SiteKind kind) { return joined(r.sites.at({kind, l})); };
      const auto mlp = [&](std::vector<float>& sum) {
        if (has_mlp) add(sum, r.points.at({Kind::mlp, l, -1}));
      };
      const bool sequential = has_mlp && !config_.parallel;
      // Post-norm: the gradient of the stream between its norms is at resid_mid, behind the
      // addition.
      std::vector<float> sum = at(sequential ? SiteKind::resid_mid : SiteKind::resid_post);
      if (!sequential) mlp(sum);
      for (std::int64_t h = 0; h < config_.n_heads; ++h) {
        for (Kind kind : {Kind::q, Kind::k, Kind::v}) add(sum, r.points.at({kind, l, h}));
      }
      EXPECT_LE(testing::relative_error({at(SiteKind::resid_pre)}, {sum}), 1e-5) << "layer " << l;
      if (!sequential || post) continue;
      std::vector<float> middle = at(SiteKind::resid_post);
      mlp(middle);
      EXPECT_LE(testing::relative_error({at(SiteKind::resid_mid)}, {middle}), 1e-5)
          << "layer " << l;
    }
    if (!post) {
      EXPECT_LE(testing::relative_error(
                    {joined(r.sites.at(
                        {SiteKind::resid_post, static_cast<std::int32_t>(config_.n_layers - 1)}))},
                    {r.points.at({Kind::logits, -1, -1})}),
                1e-6);
    }
  }
}

// Rewrites a model so that every query head has its own copy of its key and value head.
Model ungrouped(const TinyConfig& config, std::uint64_t seed) {
  const testing::TempDir grouped, own;
  testing::write_tiny_model(grouped.path(), config, seed);
  const TensorStore store = open_safetensors(grouped.path() / "model.safetensors");
  const auto copies = size(config.n_heads / config.n_kv_heads);
  std::vector<std::vector<float>> values;
  std::vector<F32Tensor> tensors;
  values.reserve(store.tensors().size());
  for (const TensorInfo& tensor : store.tensors()) {
    std::vector<float> one(tensor.elements());
    expand_to_f32(tensor.dtype, tensor.bytes, one);
    std::vector<std::uint64_t> shape(tensor.shape.begin(), tensor.shape.end());
    const std::string part = tensor.name.substr(tensor.name.rfind('.') + 1);
    if (part == "W_K" || part == "W_V" || part == "b_K" || part == "b_V") {
      std::vector<float> all;
      const std::size_t head = one.size() / shape[0];
      for (std::size_t h = 0; h < shape[0]; ++h) {
        for (std::size_t c = 0; c < copies; ++c) {
          const auto at = one.begin() + static_cast<std::ptrdiff_t>(h * head);
          all.insert(all.end(), at, at + static_cast<std::ptrdiff_t>(head));
        }
      }
      shape[0] *= copies;
      one = std::move(all);
    }
    values.push_back(std::move(one));
    tensors.push_back({tensor.name, shape, values.back()});
  }
  TinyConfig each = config;
  each.n_kv_heads = config.n_heads;
  testing::write_tiny_model(own.path(), each, seed);  // its config.json
  write_safetensors(own.path() / "model.safetensors", tensors);
  return Model::load(own.path());
}

// Keys and values are counted as if every query head had its own.
TEST_P(ReadPoints, GroupedHeadsAreThoseOfTheUngroupedModel) {
  if (config_.n_heads == config_.n_kv_heads) GTEST_SKIP();
  const Model own = ungrouped(smooth(), 6);
  const Pass grouped = pass(model_, batch_, metric_), want = pass(own, batch_, metric_);
  ASSERT_EQ(grouped.points.size(), want.points.size());
  for (const auto& [point, gradient] : want.points) {
    const auto& [kind, layer, head] = point;
    EXPECT_LE(testing::relative_error({gradient}, {grouped.points.at(point)}), 1e-5)
        << "kind " << static_cast<int>(kind) << ", layer " << layer << ", head " << head;
  }
}

// One head's q read through a stream of its own: differences of the pass in which only it moves.
TEST_P(ReadPoints, QueriesAgainstDifferences) {
  const Pass r = pass(model_, batch_, metric_);
  Forward forward(model_);
  const std::int64_t d = config_.d_model, dh = config_.d_head;
  for (std::int32_t l = 0; l < config_.n_layers; ++l) {
    std::vector<float> stream;
    Hooks reading;
    reading.read({SiteKind::resid_pre, l},
                 [&](SiteView& v) { stream.assign(v.values.begin(), v.values.end()); });
    forward.run(batch_, reading);
    for (std::int64_t head : {std::int64_t{0}, config_.n_heads - 1}) {
      const std::vector<float>& gradient = r.points.at({Kind::q, l, head});
      double error = 0, norm = 0;
      for (std::uint64_t k = 0; k < 6; ++k) {
        const std::vector<float> u = testing::normal_values(stream.size(), 10 * k + 1);
        const double h = 4e-3;
        double m[2], got = 0;
        for (std::size_t i = 0; i < u.size(); ++i) got += static_cast<double>(u[i]) * gradient[i];
        for (int sign : {0, 1}) {
          std::vector<float> moved = stream;
          for (std::size_t i = 0; i < u.size(); ++i) {
            moved[i] += static_cast<float>(sign == 0 ? h : -h) * u[i];
          }
          std::vector<float> q(stream.size() / size(d) * size(dh));
          forward.read_head(SiteKind::q, l, head, moved, q);
          Hooks hooks;
          hooks.write({SiteKind::q, l}, [&](SiteView& v) {
            for (std::int64_t t = 0; t < batch_.tokens(); ++t) {
              std::copy_n(q.begin() + t * dh, dh,
                          v.values.begin() + (t * config_.n_heads + head) * dh);
            }
          });
          forward.run(batch_, hooks);
          m[sign] = metric_.of(forward);
        }
        const double want = (m[0] - m[1]) / (2 * h);
        error += (want - got) * (want - got);
        norm += want * want;
      }
      EXPECT_LE(std::sqrt(error), 1e-2 * std::sqrt(norm)) << "layer " << l << ", head " << head;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Blocks, ReadPoints, ::testing::ValuesIn(testing::gradient_configs()),
                         [](const auto& test) { return testing::name_of(test.param); });

}  // namespace
}  // namespace lamina
