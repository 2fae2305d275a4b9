// A sweep that computes only what can change gives the bits of whole runs.

#include <cmath>

#include "lamina/core/error.h"
#include "lamina/core/threads.h"
#include "patching/exact_support.h"

namespace lamina {
namespace {

using namespace testing;

class ExactSweep : public ::testing::TestWithParam<std::tuple<TinyConfig, int>> {
 protected:
  const TinyConfig& tiny() const { return std::get<0>(GetParam()); }
  std::uint64_t seed() const { return static_cast<std::uint64_t>(std::get<1>(GetParam())); }

  Model model_ = tiny_model(tiny(), seed());
  Forward forward_{model_};
  std::vector<Pair> pairs_ = random_pairs({9, 1, 12, 9, 5, 7}, tiny().d_vocab, seed());
  Metric metric_{MetricKind::logit_diff, pairs_, tiny().d_vocab};
  std::vector<Node> nodes_ = random_nodes(model_.config(), 12, 4, seed());

  const Ids& base(std::size_t p, Direction d) const {
    return d == Direction::denoise ? pairs_[p].corrupted : pairs_[p].clean;
  }
  const Ids& other(std::size_t p, Direction d) const {
    return d == Direction::denoise ? pairs_[p].clean : pairs_[p].corrupted;
  }
  /// Compares every entry of a sweep with whole runs whose source values `source_of` gives.
  void expect_whole_runs(const PatchResult& result, Direction direction,
                         const std::function<AllSites(std::size_t pair)>& source_of) {
    std::int64_t compared = 0;
    for (std::size_t p = 0; p < pairs_.size(); ++p) {
      const AllSites source = source_of(p);
      for (std::size_t n = 0; n < nodes_.size(); ++n) {
        const double got = result.patched[n * pairs_.size() + p];
        if (nodes_[n].position >= pairs_[p].tokens()) {
          EXPECT_TRUE(std::isnan(got)) << node_name(nodes_[n]);
          continue;
        }
        ++compared;
        EXPECT_EQ(got, patched_slowly(forward_, metric_, static_cast<std::int64_t>(p),
                                      base(p, direction), nodes_[n], source.at(nodes_[n].site)))
            << node_name(nodes_[n]) << ", pair " << p;
      }
    }
    EXPECT_EQ(result.runs + result.skipped, compared);
  }
};

INSTANTIATE_TEST_SUITE_P(Blocks, ExactSweep,
                         ::testing::Combine(::testing::ValuesIn(patch_configs()),
                                            ::testing::Values(1, 2, 3)),
                         [](const auto& test) {
                           return plain_name(std::get<0>(test.param).label) +
                                  std::to_string(std::get<1>(test.param));
                         });

TEST_P(ExactSweep, EqualsWholeRunsBitForBit) {
  for (const Direction direction : {Direction::denoise, Direction::noise}) {
    const PatchResult result =
        patch_exactly(forward_, pairs_, metric_, nodes_, {.direction = direction});
    for (std::size_t p = 0; p < pairs_.size(); ++p) {
      const auto pair = static_cast<std::int64_t>(p);
      EXPECT_EQ(result.clean[p], metric_.value(pair, last_logits(forward_, pairs_[p].clean)));
      EXPECT_EQ(result.corrupted[p],
                metric_.value(pair, last_logits(forward_, pairs_[p].corrupted)));
    }
    EXPECT_GT(result.runs, 0);
    EXPECT_GT(result.skipped, 0);  // the last pair's prompts are equal
    expect_whole_runs(result, direction,
                      [&](std::size_t p) { return record_all(forward_, other(p, direction)); });
  }
}

// Without denominators, which cannot be 0.
TEST_P(ExactSweep, ZeroAblationEqualsWholeRuns) {
  std::erase_if(nodes_,
                [](const Node& n) { return site_name(n.site).find("scale") != std::string::npos; });
  const PatchResult result =
      patch_exactly(forward_, pairs_, metric_, nodes_,
                    {.direction = Direction::noise, .replacement = Replacement::zero});
  expect_whole_runs(result, Direction::noise, [&](std::size_t p) {
    AllSites zeros = record_all(forward_, pairs_[p].clean);
    for (auto& [site, values] : zeros) std::fill(values.begin(), values.end(), 0.0f);
    return zeros;
  });
}

TEST_P(ExactSweep, PooledMeanAblationEqualsWholeRuns) {
  std::erase_if(nodes_,
                [&](const Node& n) { return site_shape(n.site, model_.config()).attention; });
  const PatchResult result =
      patch_exactly(forward_, pairs_, metric_, nodes_,
                    {.direction = Direction::noise, .replacement = Replacement::mean});
  std::map<Site, std::vector<double>> sums;
  std::int64_t tokens = 0;
  for (const Pair& pair : pairs_) {
    for (const auto& [site, values] : record_all(forward_, pair.corrupted)) {
      if (site_shape(site, model_.config()).attention) continue;
      std::vector<double>& sum = sums[site];
      sum.resize(values.size() / pair.corrupted.size());
      for (std::size_t i = 0; i < values.size(); ++i) {
        sum[i % sum.size()] += static_cast<double>(values[i]);
      }
    }
    tokens += pair.tokens();
  }
  expect_whole_runs(result, Direction::noise, [&](std::size_t p) {
    AllSites means;
    for (const auto& [site, sum] : sums) {
      for (std::int64_t t = 0; t < pairs_[p].tokens(); ++t) {
        for (const double s : sum) {
          means[site].push_back(static_cast<float>(s / static_cast<double>(tokens)));
        }
      }
    }
    return means;
  });
}

TEST_P(ExactSweep, ResamplingTakesTheValuesOfOneOtherPairOfEqualLength) {
  // Only the two pairs of 9 tokens have a partner: each other.
  std::vector<Pair> same = {pairs_[0], pairs_[3]};
  const Metric metric(MetricKind::logit_diff, same, tiny().d_vocab);
  std::erase_if(nodes_, [](const Node& n) { return n.position >= 9; });
  const PatchResult result =
      patch_exactly(forward_, same, metric, nodes_,
                    {.direction = Direction::noise, .replacement = Replacement::resample});
  for (std::size_t p = 0; p < 2; ++p) {
    const AllSites source = record_all(forward_, same[1 - p].clean);
    for (std::size_t n = 0; n < nodes_.size(); ++n) {
      EXPECT_EQ(result.patched[n * 2 + p],
                patched_slowly(forward_, metric, static_cast<std::int64_t>(p), same[p].clean,
                               nodes_[n], source.at(nodes_[n].site)))
          << node_name(nodes_[n]);
    }
  }
}

// Corrupted prompts with one token more in front: position p stands for p + 1.
TEST_P(ExactSweep, MappedPositionsEqualWholeRuns) {
  std::erase_if(nodes_,
                [&](const Node& n) { return site_shape(n.site, model_.config()).attention; });
  for (Pair& pair : pairs_) {
    pair.corrupted.insert(pair.corrupted.begin(), 3);
    for (std::int64_t t = 0; t < pair.tokens(); ++t) {
      pair.token_map.push_back(static_cast<std::int32_t>(t + 1));
    }
  }
  const Metric metric(MetricKind::logit_diff, pairs_, tiny().d_vocab);
  for (const Direction direction : {Direction::denoise, Direction::noise}) {
    const PatchResult result =
        patch_exactly(forward_, pairs_, metric, nodes_, {.direction = direction});
    for (std::size_t p = 0; p < pairs_.size(); ++p) {
      const AllSites source = record_all(forward_, other(p, direction));
      for (std::size_t n = 0; n < nodes_.size(); ++n) {
        if (nodes_[n].position >= pairs_[p].tokens()) continue;
        const std::int64_t row = site_shape(nodes_[n].site, model_.config()).row();
        Hooks hooks;
        hooks.write(nodes_[n].site, [&](SiteView& view) {
          const std::int64_t shift = direction == Direction::denoise ? row : -row;
          const std::vector<float>& values = source.at(nodes_[n].site);
          for_values(nodes_[n], model_.config(), pairs_[p].tokens(), [&](std::size_t clean) {
            const auto corrupted = clean + static_cast<std::size_t>(row);
            shift > 0 ? view.values[corrupted] = values[clean]
                      : view.values[clean] = values[corrupted];
          });
        });
        EXPECT_EQ(result.patched[n * pairs_.size() + p],
                  metric.value(static_cast<std::int64_t>(p),
                               last_logits(forward_, base(p, direction), hooks)))
            << node_name(nodes_[n]) << ", pair " << p;
      }
    }
  }
}

TEST_P(ExactSweep, NoOpPatchesAreTheUnpatchedRun) {
  for (Pair& pair : pairs_) pair.corrupted = pair.clean;
  const PatchResult result = patch_exactly(forward_, pairs_, metric_, nodes_);
  EXPECT_EQ(result.runs, 0);
  for (std::size_t i = 0; i < result.patched.size(); ++i) {
    if (std::isnan(result.patched[i])) continue;
    EXPECT_EQ(result.patched[i], result.clean[i % pairs_.size()]);
  }
  // The same without skipping: noise of deviation 0 adds +0, which changes no value but −0.
  std::erase_if(nodes_, [](const Node& n) { return n.site.kind == SiteKind::pattern; });
  const PatchResult noised =
      patch_exactly(forward_, pairs_, metric_, nodes_, {.replacement = Replacement::noise});
  for (std::size_t i = 0; i < noised.patched.size(); ++i) {
    if (!std::isnan(noised.patched[i])) {
      EXPECT_EQ(noised.patched[i], result.clean[i % pairs_.size()]);
    }
  }
}

TEST_P(ExactSweep, MemoryAndThreadsChangeNoBit) {
  for (const Replacement replacement : {Replacement::other, Replacement::noise}) {
    PatchOptions options{.replacement = replacement, .noise_sigma = 0.5, .seed = 4};
    const int before = threads();
    set_threads(1);
    const PatchResult one = patch_exactly(forward_, pairs_, metric_, nodes_, options);
    set_threads(2);
    for (const std::uint64_t memory :
         {std::uint64_t{1}, std::uint64_t{100'000}, std::uint64_t{1} << 30}) {
      options.memory = memory;
      const PatchResult two = patch_exactly(forward_, pairs_, metric_, nodes_, options);
      EXPECT_EQ(two.runs, one.runs);
      EXPECT_EQ(two.skipped, one.skipped);
      EXPECT_EQ(two.clean, one.clean);
      ASSERT_EQ(two.patched.size(), one.patched.size());
      for (std::size_t i = 0; i < one.patched.size(); ++i) {
        EXPECT_TRUE(two.patched[i] == one.patched[i] ||
                    (std::isnan(two.patched[i]) && std::isnan(one.patched[i])))
            << node_name(nodes_[i / pairs_.size()]) << ", memory " << memory;
      }
    }
    set_threads(before);
  }
}

TEST_P(ExactSweep, NoiseDependsOnSeedPairAndNodeAlone) {
  PatchOptions options{.direction = Direction::noise,
                       .replacement = Replacement::noise,
                       .noise_sigma = 0.7,
                       .seed = 11};
  const PatchResult all = patch_exactly(forward_, pairs_, metric_, nodes_, options);
  // One pair and every second node in reverse: the same numbers.
  const std::vector<Pair> one = {pairs_[2]};
  const Metric metric(MetricKind::logit_diff, one, tiny().d_vocab);
  std::vector<Node> some;
  std::vector<std::size_t> index;
  for (std::size_t n = nodes_.size(); n-- > 0;) {
    if (n % 2 == 0) some.push_back(nodes_[n]), index.push_back(n);
  }
  const PatchResult few = patch_exactly(forward_, one, metric, some, options);
  for (std::size_t i = 0; i < some.size(); ++i) {
    EXPECT_EQ(few.patched[i], all.patched[index[i] * pairs_.size() + 2]) << node_name(some[i]);
  }
  options.seed = 12;
  const PatchResult another = patch_exactly(forward_, one, metric, some, options);
  EXPECT_NE(another.patched, few.patched);
}

}  // namespace
}  // namespace lamina
