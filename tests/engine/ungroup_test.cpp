#include <gtest/gtest.h>

#include <bit>

#include "lamina/core/forward.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
    return std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(y);
  });
}

class Ungrouped : public ::testing::TestWithParam<testing::TinyConfig> {};

TEST_P(Ungrouped, EveryValueIsTheSameBitForBit) {
  const Model model = testing::tiny_model(GetParam());
  const Model apart = model.ungrouped();
  const ModelConfig& config = model.config();
  ASSERT_EQ(apart.config().n_kv_heads, config.n_heads);
  Batch batch;
  for (const auto& prompt : testing::random_prompts({7, 1, 4}, config.d_vocab, 3))
    batch.add(prompt);

  std::vector<std::vector<float>> seen;
  Hooks hooks;
  for (std::int32_t l = 0; l < config.n_layers; ++l) {
    for (const SiteKind kind : {SiteKind::z, SiteKind::attn_out, SiteKind::resid_post}) {
      hooks.read({kind, l},
                 [&](SiteView& v) { seen.emplace_back(v.values.begin(), v.values.end()); });
    }
  }
  Forward one(model), two(apart);
  const std::span<const float> x = one.run(batch, hooks);
  const std::span<const float> y = two.run(batch, hooks);
  ASSERT_TRUE(same_bits(x, y));
  ASSERT_EQ(seen.size(), static_cast<std::size_t>(6 * config.n_layers));
  for (std::size_t i = 0; i < seen.size() / 2; ++i)
    EXPECT_TRUE(same_bits(seen[i], seen[i + seen.size() / 2])) << i;
}

TEST(UngroupedHead, AQueryHeadHasAKeyOfItsOwn) {
  const Model model = testing::tiny_model({.n_heads = 4, .n_kv_heads = 2});
  const Model apart = model.ungrouped();
  Batch batch;
  batch.add(testing::random_prompts({5}, model.config().d_vocab, 3)[0]);
  Forward forward(apart);
  std::vector<float> plain, changed;
  const auto z_into = [](std::vector<float>& to) {
    return [&to](SiteView& v) { to.assign(v.values.begin(), v.values.end()); };
  };
  Hooks read;
  read.read({SiteKind::z, 0}, z_into(plain));
  forward.run(batch, read);
  Hooks write;
  write.write({SiteKind::v, 0}, [](SiteView& v) {
    ASSERT_EQ(v.shape.heads, 4);
    for (std::int64_t t = 0; t < 5; ++t) v.values[static_cast<std::size_t>(t * 24 + 6)] += 1;
  });
  write.read({SiteKind::z, 0}, z_into(changed));
  forward.run(batch, write);
  for (std::size_t i = 0; i < plain.size(); ++i) {
    if (i % 24 == 6) {
      EXPECT_NE(plain[i], changed[i]) << i;  // head 1
    } else {
      EXPECT_EQ(plain[i], changed[i]) << i;  // the others, head 0 of the same group included
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Ungrouped, ::testing::ValuesIn(testing::varied_configs()));

}  // namespace
}  // namespace lamina
