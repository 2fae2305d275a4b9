#include "lamina/probes/lens.h"

#include <gtest/gtest.h>

#include "probes/support.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

using testing::as_floats;
using testing::expect_close;
using testing::golden;
using testing::GoldenModel;

// Logits reach 7.5 and are rounded to float once from double sums: an error of 7.5·2⁻²⁴ ≈ 4.5e-7
// each. The normalised row is rounded too: 16 products of about 2 × 2·2⁻²⁴ add up to ≈ 1e-6 more.
// Log-probabilities and divergences move by at most about twice the sum of both; entropies, in bits
// and weighted by |log p|, a little more.
constexpr double kLogTolerance = 4e-6;
constexpr double kEntropyTolerance = 1e-5;

LensOptions all_positions() {
  LensOptions o;
  o.positions = LensPositions::all;
  o.top_k = 6;
  return o;
}

void expect_golden(const LensResults& r, const std::string& tag) {
  expect_close(as_floats(r.topk_ids), golden(tag + "topk_ids"), 0, "topk_ids");
  expect_close(r.topk_logprobs, golden(tag + "topk_logprobs"), kLogTolerance, "topk_logprobs");
  expect_close(as_floats(r.target), golden(tag + "target"), 0, "target");
  expect_close(as_floats(r.target_rank), golden(tag + "target_rank"), 0, "target_rank");
  expect_close(r.target_logprob, golden(tag + "target_logprob"), kLogTolerance, "target_logprob");
  expect_close(r.entropy, golden(tag + "entropy"), kEntropyTolerance, "entropy");
  expect_close(r.kl_to_final, golden(tag + "kl_to_final"), kEntropyTolerance, "kl_to_final");
  expect_close(r.kl_from_final, golden(tag + "kl_from_final"), kEntropyTolerance, "kl_from_final");
  expect_close(r.overlap, golden(tag + "overlap"), 1e-7, "overlap");
  expect_close(as_floats(r.exit_layer), golden(tag + "exit_layer"), 0, "exit_layer");
}

std::shared_ptr<LensTranslators> golden_translators() {
  auto translators = std::make_shared<LensTranslators>();
  translators->d_model = 16;
  const std::vector<float> a = golden("translator_a"), b = golden("translator_b");
  for (std::int32_t s = 0; s < 3; ++s) {
    const Site site = s == 0 ? Site{SiteKind::resid_pre, 0} : Site{SiteKind::resid_post, s - 1};
    translators->maps.push_back({site,
                                 {a.begin() + s * 256, a.begin() + (s + 1) * 256},
                                 {b.begin() + s * 16, b.begin() + (s + 1) * 16}});
  }
  return translators;
}

void expect_identical(const LensResults& a, const LensResults& b) {
  EXPECT_EQ(a.prompt_ids, b.prompt_ids);
  EXPECT_EQ(a.prompt, b.prompt);
  EXPECT_EQ(a.position, b.position);
  EXPECT_EQ(a.token_id, b.token_id);
  EXPECT_EQ(a.target, b.target);
  EXPECT_EQ(a.exit_layer, b.exit_layer);
  EXPECT_EQ(a.topk_ids, b.topk_ids);
  EXPECT_EQ(a.topk_logprobs, b.topk_logprobs);
  EXPECT_EQ(a.target_rank, b.target_rank);
  expect_close(a.target_logprob, b.target_logprob, 0, "target_logprob");
  EXPECT_EQ(a.entropy, b.entropy);
  EXPECT_EQ(a.kl_to_final, b.kl_to_final);
  EXPECT_EQ(a.kl_from_final, b.kl_from_final);
  EXPECT_EQ(a.overlap, b.overlap);
}

TEST(Lens, AgreesWithTorch) {
  GoldenModel m;
  LogitLens lens(m.config, m.readout, all_positions());
  lens.observe(m.block(0, 2));
  ASSERT_EQ(lens.results().tokens(), 9);
  expect_golden(lens.results(), "");
  // The model's own output against itself: zero, not nearly zero.
  for (std::int64_t t = 0; t < 9; ++t) EXPECT_EQ(lens.results().kl_to_final[t * 4 + 3], 0.0F);
}

TEST(Lens, TunedAgreesWithTorch) {
  GoldenModel m;
  LensOptions o = all_positions();
  o.translators = golden_translators();
  LogitLens lens(m.config, m.readout, o);
  EXPECT_EQ(lens.name(), "tuned_lens");
  lens.observe(m.block(0, 2));
  expect_golden(lens.results(), "tuned_");
}

TEST(Lens, ChunkingChangesNothing) {
  GoldenModel m;
  LogitLens roomy(m.config, m.readout, all_positions());
  roomy.observe(m.block(0, 2));
  const std::size_t roomy_calls = m.readout.calls.size();
  LensOptions o = all_positions();
  o.logit_bytes = 1;
  LogitLens tight(m.config, m.readout, o);
  m.readout.calls.clear();
  tight.observe(m.block(0, 2));
  EXPECT_GT(m.readout.calls.size(), roomy_calls);
  for (std::int64_t rows : m.readout.calls) EXPECT_EQ(rows, 1);  // as little as can be
  expect_identical(roomy.results(), tight.results());
}

TEST(Lens, MergedShardsAreTheWhole) {
  GoldenModel m;
  LogitLens whole(m.config, m.readout, all_positions());
  whole.observe(m.block(0, 2));
  LogitLens first(m.config, m.readout, all_positions());
  first.observe(m.block(0, 1));
  const std::unique_ptr<Probe> second = first.fresh();
  second->observe(m.block(1, 1));
  first.merge(*second);
  expect_identical(whole.results(), first.results());
  EXPECT_EQ(dynamic_cast<LogitLens&>(*second).results().tokens(), 0);
}

TEST(Lens, Positions) {
  GoldenModel m;
  m.prompts[1].given = 3;  // the last two tokens were generated
  LogitLens last(m.config, m.readout);
  last.observe(m.block(0, 2));
  EXPECT_EQ(last.results().position, (std::vector<std::int32_t>{3, 2}));
  // Prompt 0 has a target of its own; prompt 1 is followed by what was generated.
  EXPECT_EQ(last.results().target, (std::vector<std::int32_t>{7, m.prompts[1].ids[3]}));

  LensOptions o;
  parse_positions("0,-1", o);
  LogitLens listed(m.config, m.readout, o);
  listed.observe(m.block(0, 2));
  EXPECT_EQ(listed.results().position, (std::vector<std::int32_t>{0, 3, 0, 4}));
  EXPECT_EQ(listed.results().prompt, (std::vector<std::int32_t>{0, 0, 1, 1}));
  EXPECT_EQ(listed.results().target[3], -1);
  EXPECT_TRUE(std::isnan(listed.results().target_logprob.back()));

  parse_positions("4", o);
  LogitLens outside(m.config, m.readout, o);
  EXPECT_THROW(outside.observe(m.block(0, 2)), UsageError);  // the first prompt has four tokens
  for (const char* bad : {"", "1,", "one", "1 2", "99999999999999999999"}) {
    EXPECT_THROW(parse_positions(bad, o), UsageError) << bad;
  }
}

TEST(Lens, ReadsWhatSublayersAdd) {
  GoldenModel m;
  LensOptions o = all_positions();
  o.sites = {{SiteKind::attn_out, 1}, {SiteKind::resid_pre, 0}};
  LogitLens lens(m.config, m.readout, o);
  // The output is always read, and the order is that of the pass.
  EXPECT_EQ(lens.results().sites,
            (std::vector<Site>{
                {SiteKind::resid_pre, 0}, {SiteKind::attn_out, 1}, {SiteKind::resid_post, 2}}));
  EXPECT_EQ(lens_label({SiteKind::attn_out, 1}), "1.attn_out");
  EXPECT_EQ(lens_label({SiteKind::resid_pre, 0}), "embed");
  EXPECT_EQ(lens_label({SiteKind::resid_post, 2}), "2");
  ActivationBlock block = m.block(0, 2);
  EXPECT_THROW(lens.observe(block), Error);  // attn_out is not in the block
  // With the stream itself as a stand-in, the site reads like the stream.
  block.sites[ActivationBlock::site_key({SiteKind::attn_out, 1})] =
      block.at({SiteKind::resid_pre, 0});
  LogitLens again(m.config, m.readout, o);
  again.observe(block);
  const LensResults& r = again.results();
  for (std::int64_t t = 0; t < 9; ++t) EXPECT_EQ(r.entropy[t * 3], r.entropy[t * 3 + 1]);
}

TEST(Lens, AveragesAreMeans) {
  GoldenModel m;
  LogitLens lens(m.config, m.readout, all_positions());
  lens.observe(m.block(0, 2));
  const LensResults& r = lens.results();
  const LensAverages a = average(r);
  EXPECT_EQ(a.tokens, 9);
  EXPECT_EQ(a.targets, 8);
  for (std::int64_t s = 0; s < 4; ++s) {
    double agreement = 0, hits = 0, entropy = 0;
    for (std::int64_t t = 0; t < 9; ++t) {
      agreement += golden("topk_ids")[(t * 4 + s) * 6] == golden("topk_ids")[(t * 4 + 3) * 6];
      hits += golden("target_rank")[t * 4 + s] == 1;
      entropy += golden("entropy")[t * 4 + s];
    }
    EXPECT_DOUBLE_EQ(a.agreement[s], agreement / 9);
    EXPECT_DOUBLE_EQ(a.accuracy[s], hits / 8);
    EXPECT_NEAR(a.entropy[s], entropy / 9, kEntropyTolerance);
  }
  EXPECT_EQ(a.agreement[3], 1.0);
}

TEST(Lens, RefusesWhatCannotBe) {
  GoldenModel m;
  LensOptions o;
  o.sites = {{SiteKind::pattern, 0}};
  EXPECT_THROW(LogitLens(m.config, m.readout, o), UsageError);
  o.sites = {{SiteKind::resid_post, 3}};
  EXPECT_THROW(LogitLens(m.config, m.readout, o), UsageError);
  o = {};
  o.top_k = 0;
  EXPECT_THROW(LogitLens(m.config, m.readout, o), UsageError);
  ModelConfig wide = m.config;
  wide.d_model = 32;
  EXPECT_THROW(LogitLens(wide, m.readout), Error);

  LogitLens lens(m.config, m.readout);
  ActivationBlock block = m.block(0, 2);
  block.sites[ActivationBlock::site_key({SiteKind::resid_post, 1})].values[3 * 16] = NAN;
  try {
    lens.observe(block);
    FAIL() << "NaN was read";
  } catch (const Error& e) {
    EXPECT_EQ(
        std::string(e.what()),
        "prompt \"first\", position 3: the logits at blocks.1.hook_resid_post are not finite");
  }
  m.prompts[0].target = 53;
  LogitLens outside(m.config, m.readout);
  EXPECT_THROW(outside.observe(m.block(0, 1)), Error);
}

TEST(Lens, TranslatorsSurviveTheirFile) {
  GoldenModel m;
  const testing::TempDir folder;
  const auto path = folder.path() / "lens.safetensors";
  const auto translators = golden_translators();
  write_translators(path, *translators);
  const LensTranslators read = read_translators(path, m.config);
  ASSERT_EQ(read.maps.size(), 3U);
  for (const LensTranslators::Map& map : translators->maps) {
    ASSERT_NE(read.find(map.site), nullptr);
    EXPECT_EQ(read.find(map.site)->weight, map.weight);
    EXPECT_EQ(read.find(map.site)->bias, map.bias);
  }
  ModelConfig wide = m.config;
  wide.d_model = 8;
  EXPECT_THROW(read_translators(path, wide), Error);
  const std::vector<float> values(16);
  write_safetensors(path, std::vector<F32Tensor>{{"blocks.0.hook_resid_post.bias", {16}, values}});
  EXPECT_THROW(read_translators(path, m.config), Error);  // no weight
  write_safetensors(path, std::vector<F32Tensor>{{"elephant", {16}, values}});
  EXPECT_THROW(read_translators(path, m.config), Error);
}

}  // namespace
}  // namespace lamina
