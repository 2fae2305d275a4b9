// A row's values never depend on what else is in the batch, on the number of threads, on which
// sites are read, or on whether earlier tokens came from a cache: bit for bit.

#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "lamina/core/error.h"
#include "lamina/core/forward.h"
#include "lamina/core/threads.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

using testing::random_prompts;
using testing::tiny_model;
using testing::TinyConfig;

using Prompts = std::vector<std::vector<std::int32_t>>;
/// Every site's values, one array per prompt; "logits" and the site names are the keys.
using Values = std::map<std::string, std::vector<std::vector<float>>>;

Batch pack(const Prompts& prompts) {
  Batch batch;
  for (const auto& prompt : prompts) batch.add(prompt);
  return batch;
}

// Runs a batch and takes every site apart by prompt.
Values run_all(Forward& forward, const Prompts& prompts, bool hook_sites) {
  const ModelConfig& config = forward.model().config();
  const Batch batch = pack(prompts);
  Values values;
  Hooks hooks;
  if (hook_sites) {
    for (Site site : all_sites(config)) {
      auto& out = values[site_name(site)];
      out.resize(prompts.size());
      hooks.read(site, [&out](SiteView& view) {
        if (view.shape.attention) {
          out[static_cast<std::size_t>(view.prompt)].assign(view.values.begin(), view.values.end());
          return;
        }
        const std::int64_t row = view.shape.row();
        for (std::size_t p = 0; p < out.size(); ++p) {
          out[p].assign(view.values.begin() + view.batch.offsets[p] * row,
                        view.values.begin() + view.batch.offsets[p + 1] * row);
        }
      });
    }
  }
  forward.run(batch, hooks);
  auto& logits = values["logits"];
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    std::vector<std::int64_t> rows;
    for (std::int64_t r = batch.offsets[p]; r < batch.offsets[p + 1]; ++r) rows.push_back(r);
    logits.emplace_back(rows.size() * static_cast<std::size_t>(config.d_vocab));
    forward.run_logits(rows, logits.back());
  }
  return values;
}

::testing::AssertionResult same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) {
    return ::testing::AssertionFailure() << a.size() << " values against " << b.size();
  }
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0) {
      return ::testing::AssertionFailure() << "value " << i << ": " << a[i] << " against " << b[i];
    }
  }
  return ::testing::AssertionSuccess();
}

class Invariance : public ::testing::TestWithParam<TinyConfig> {
 protected:
  Model model_ = tiny_model(GetParam());
  Forward forward_{model_};
  Prompts prompts_ = random_prompts({1, 7, 23, 40, 2, 70, 16}, GetParam().d_vocab, 5);
};

TEST_P(Invariance, AloneEqualsBatched) {
  const Values batched = run_all(forward_, prompts_, true);
  for (std::size_t p = 0; p < prompts_.size(); ++p) {
    const Values alone = run_all(forward_, {prompts_[p]}, true);
    for (const auto& [site, values] : alone) {
      EXPECT_TRUE(same_bits(values[0], batched.at(site)[p])) << site << ", prompt " << p;
    }
  }
}

TEST_P(Invariance, OrderOfPromptsDoesNotMatter) {
  const Values forwards = run_all(forward_, prompts_, true);
  const Values backwards = run_all(forward_, Prompts(prompts_.rbegin(), prompts_.rend()), true);
  for (const auto& [site, values] : forwards) {
    for (std::size_t p = 0; p < prompts_.size(); ++p) {
      EXPECT_TRUE(same_bits(values[p], backwards.at(site)[prompts_.size() - 1 - p])) << site;
    }
  }
}

TEST_P(Invariance, ThreadsDoNotMatter) {
  const int before = threads();
  set_threads(1);
  const Values one = run_all(forward_, prompts_, true);
  for (int n : {2, 3}) {
    set_threads(n);
    const Values many = run_all(forward_, prompts_, true);
    for (const auto& [site, values] : one) {
      for (std::size_t p = 0; p < prompts_.size(); ++p) {
        EXPECT_TRUE(same_bits(values[p], many.at(site)[p])) << site << ", " << n << " threads";
      }
    }
  }
  set_threads(before);
}

TEST_P(Invariance, ReadingSitesDoesNotMatter) {
  const Values watched = run_all(forward_, prompts_, true);
  const Values unwatched = run_all(forward_, prompts_, false);
  for (std::size_t p = 0; p < prompts_.size(); ++p) {
    EXPECT_TRUE(same_bits(watched.at("logits")[p], unwatched.at("logits")[p])) << "prompt " << p;
  }
}

TEST_P(Invariance, CachedEqualsWhole) {
  const ModelConfig& config = model_.config();
  if (!config.causal) {  // later tokens change earlier ones: nothing could be reused
    KvCache cache(config, static_cast<std::int64_t>(prompts_.size()));
    EXPECT_THROW(forward_.run(pack(prompts_), {}, &cache), UsageError);
    return;
  }
  const std::vector<float> whole = [&] {
    const std::span<const float> x = forward_.run(pack(prompts_));
    return std::vector<float>(x.begin(), x.end());
  }();
  const Batch batch = pack(prompts_);
  for (std::int64_t step : {1, 3, 64}) {
    KvCache cache(config, static_cast<std::int64_t>(prompts_.size()));
    std::vector<float> pieces(whole.size());
    for (std::int64_t from = 0;; from += step) {
      Batch part;
      std::vector<std::int64_t> sequences;
      for (std::size_t p = 0; p < prompts_.size(); ++p) {
        const auto length = static_cast<std::int64_t>(prompts_[p].size());
        if (from >= length) continue;
        part.add(std::span(prompts_[p])
                     .subspan(static_cast<std::size_t>(from),
                              static_cast<std::size_t>(std::min(step, length - from))));
        sequences.push_back(static_cast<std::int64_t>(p));
      }
      if (sequences.empty()) break;
      const std::span<const float> x = forward_.run(part, {}, &cache, sequences);
      for (std::size_t i = 0; i < sequences.size(); ++i) {
        const auto p = static_cast<std::size_t>(sequences[i]);
        std::copy(x.begin() + part.offsets[i] * config.d_model,
                  x.begin() + part.offsets[i + 1] * config.d_model,
                  pieces.begin() + (batch.offsets[p] + from) * config.d_model);
      }
    }
    EXPECT_TRUE(same_bits(whole, pieces)) << "steps of " << step;
  }
}

INSTANTIATE_TEST_SUITE_P(Blocks, Invariance, ::testing::ValuesIn(testing::varied_configs()),
                         [](const auto& test) {
                           std::string name = test.param.label;
                           std::erase_if(name, [](char c) { return !std::isalnum(c); });
                           return name;
                         });

}  // namespace
}  // namespace lamina
