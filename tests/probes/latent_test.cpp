#include "lamina/probes/latent.h"

#include <gtest/gtest.h>

#include "probes/support.h"

namespace lamina {
namespace {

using testing::expect_close;
using testing::golden;
using testing::GoldenModel;

// A task that was not made from words: the golden model has no tokenizer.
std::shared_ptr<LatentTask> golden_task(const GoldenModel& m) {
  auto task = std::make_shared<LatentTask>();
  task->languages = {"xx", "en"};
  const std::vector<std::vector<std::vector<std::int32_t>>> sets = {{{3, 17, 40}, {5}},
                                                                    {{0, 1, 52}, {8, 9}}};
  for (std::size_t i = 0; i < 2; ++i) {
    LatentItem item;
    item.prompt = m.prompts[i];
    item.words = {"word", "word"};
    item.tokens = sets[i];
    task->items.push_back(item);
  }
  return task;
}

TEST(Latent, AgreesWithTorch) {
  GoldenModel m;
  LatentLanguage latent(m.config, m.readout, golden_task(m));
  latent.observe(m.block(0, 2));
  const LatentResults& r = latent.results();
  // Probabilities are below 1 and their logarithms good to 4e-6 (lens_test.cpp).
  expect_close(r.probability, golden("latent"), 4e-6, "probability");
  expect_close(r.energy, golden("energy"), 1e-6, "energy");
  const std::vector<float> entropy = golden("entropy");  // [token, site]
  for (std::int64_t s = 0; s < 4; ++s) {
    EXPECT_NEAR(r.entropy[s], entropy[3 * 4 + s], 1e-5);
    EXPECT_NEAR(r.entropy[4 + s], entropy[8 * 4 + s], 1e-5);
  }
  for (std::int64_t c = 0; c < 8; ++c) {
    const bool second = r.probability[c * 2 + 1] > r.probability[c * 2];
    EXPECT_EQ(r.winner[c], second ? 1 : 0);
  }
  const Curve c = curve(r.probability, 8);
  const std::vector<float> mean = golden("latent_mean"), half = golden("latent_half_width");
  for (std::size_t i = 0; i < 8; ++i) {
    EXPECT_NEAR(c.mean[i], mean[i], 4e-6);
    EXPECT_NEAR(c.half_width[i], half[i], 1e-5);
  }
}

TEST(Latent, CurveOfOneItemHasNoWidth) {
  const std::vector<float> one = {0.25F, 0.5F};
  const Curve c = curve(one, 2);
  EXPECT_EQ(c.mean, (std::vector<double>{0.25, 0.5}));
  EXPECT_TRUE(std::isnan(c.half_width[0]));
}

TEST(Latent, ChunksAndShardsChangeNothing) {
  GoldenModel m;
  LatentLanguage whole(m.config, m.readout, golden_task(m));
  whole.observe(m.block(0, 2));
  LatentOptions tight;
  tight.logit_bytes = 3 * 53 * 4;  // three rows: pieces that cross sites
  LatentLanguage first(m.config, m.readout, golden_task(m), tight);
  const std::unique_ptr<Probe> second = first.fresh();
  first.observe(m.block(0, 1));
  second->observe(m.block(1, 1));
  first.merge(*second);
  LatentLanguage chunked(m.config, m.readout, golden_task(m), tight);
  chunked.observe(m.block(0, 2));
  for (const LatentResults* r : {&first.results(), &chunked.results()}) {
    EXPECT_EQ(r->item_ids, whole.results().item_ids);
    EXPECT_EQ(r->probability, whole.results().probability);
    EXPECT_EQ(r->entropy, whole.results().entropy);
    EXPECT_EQ(r->energy, whole.results().energy);
    EXPECT_EQ(r->winner, whole.results().winner);
  }
}

TEST(Latent, RefusesOtherPrompts) {
  GoldenModel m;
  auto task = golden_task(m);
  task->items[0].prompt.ids[1] ^= 1;
  LatentLanguage latent(m.config, m.readout, task);
  EXPECT_THROW(latent.observe(m.block(0, 2)), Error);
  task->items[0].prompt.id = "elsewhere";
  LatentLanguage partial(m.config, m.readout, task);
  partial.observe(m.block(0, 2));
  EXPECT_EQ(partial.results().unknown_prompts, 1);
  EXPECT_EQ(partial.results().item_ids, (std::vector<std::string>{"second"}));
  task->items[1].tokens[0].push_back(53);
  EXPECT_THROW(LatentLanguage(m.config, m.readout, task), Error);
}

// The product of the lens' own target probabilities along the word.
TEST(Latent, WordProbabilityIsTheProduct) {
  GoldenModel m;
  auto task = golden_task(m);
  task->items.resize(1);
  Prompt& prompt = task->items[0].prompt;
  prompt.id = "item";
  prompt.ids.resize(2);
  prompt.given = 2;
  m.prompts[0].id = "item/en";  // two tokens continue the item's prompt
  m.prompts[0].given = 2;
  m.prompts[0].target.reset();
  WordProbability words(m.config, m.readout, task);
  words.observe(m.block(0, 1));
  EXPECT_EQ(words.lengths(), (std::vector<std::int32_t>{0, 2}));
  const std::vector<float> score = golden("target_logprob");  // [token, site]
  for (std::int64_t s = 0; s < 4; ++s) {
    EXPECT_TRUE(std::isnan(words.logprob()[s * 2]));
    EXPECT_NEAR(words.logprob()[s * 2 + 1], score[4 + s] + score[8 + s], 8e-6);
  }
}

TEST(Latent, EnergyIgnoresLengthAndEmptyRows) {
  GoldenModel m;
  const EnergyBasis basis(m.readout);
  std::vector<float> h(16);
  EXPECT_EQ(basis.energy(h), 0.0);
  for (std::size_t i = 0; i < 16; ++i) h[i] = 0.5F + static_cast<float>(i % 3);
  const double energy = basis.energy(h);
  for (float& x : h) x *= 8;  // a power of two: exactly the same directions
  EXPECT_DOUBLE_EQ(basis.energy(h), energy);
}

}  // namespace
}  // namespace lamina
