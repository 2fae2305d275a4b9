// Residual erasure: against the authors' released code, and full passes bit for bit.

#include "lamina/probes/residual_erasure.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "effects_support.h"
#include "lamina/core/error.h"
#include "lamina/core/threads.h"
#include "lens/row_stats.h"

namespace lamina {
namespace {

using testing::as_prompts;
using testing::effects_golden;
using testing::golden_model;
using testing::random_prompts;

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

std::vector<Prompt> golden_prompts() {
  std::vector<Prompt> prompts = as_prompts(effects_golden()["prompts"]);
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    prompts[p].given -= effects_golden()["answers"][p].get<std::int64_t>();
  }
  return prompts;
}

TEST(Erasure, EqualsTheAuthorsCode) {
  const Model model = golden_model();
  Forward forward(model);
  const std::vector<Prompt> prompts = golden_prompts();
  ErasureOptions options;
  options.prompts = 3;
  const Erasure r = measure_erasure(forward, prompts, options);
  EXPECT_EQ(r.mean_tokens, 95);
  ASSERT_EQ(r.maps.size(), 3u);
  for (std::size_t p = 0; p < 3; ++p) {
    const auto& want = effects_golden()["erasure"][p];
    const std::size_t n = prompts[p].ids.size();
    ASSERT_EQ(want.size(), 4u);
    for (std::size_t l = 0; l < 4; ++l) {
      ASSERT_EQ(want[l].size(), n);
      for (std::size_t t = 0; t < n; ++t) {
        // Probabilities in float, logits of size ~10: 3.1e-6 off at most, as measured.
        EXPECT_NEAR(r.maps[p].effect[l * n + t], want[l][t].get<double>(), 1e-5)
            << "prompt " << p << ", stream " << l << ", token " << t;
      }
    }
  }
}

// Both scopes, by a full pass per erased token.
TEST(Erasure, IsThatOfFullPassesBitForBit) {
  const Model model = golden_model();
  const ModelConfig& config = model.config();
  const std::int64_t d = config.d_model, v = config.d_vocab;
  Forward forward(model);
  std::vector<Prompt> prompts = as_prompts(random_prompts({9, 11}, 90, 5));
  prompts[0].given = 6;
  for (const ErasureScope scope : {ErasureScope::answer, ErasureScope::later}) {
    ErasureOptions options;
    options.scope = scope;
    options.batch_tokens = 14;
    options.prompts = 5;
    const Erasure r = measure_erasure(forward, prompts, options);
    ASSERT_EQ(r.maps.size(), 2u);
    options.memory = 0;
    options.batch_tokens = 1000;
    const Erasure other = measure_erasure(forward, prompts, options);
    for (std::size_t m = 0; m < 2; ++m) {
      EXPECT_EQ(r.maps[m].effect, other.maps[m].effect);
      const Prompt& prompt = prompts[m];
      const auto n = static_cast<std::int64_t>(prompt.ids.size());
      Batch batch;
      batch.add(prompt.ids);
      std::vector<std::int64_t> every(size(n));
      for (std::int64_t p = 0; p < n; ++p) every[size(p)] = p;
      const auto probabilities = [&](const Hooks& hooks) {
        forward.run(batch, hooks);
        std::vector<float> out(size(n * v));
        forward.run_logits(every, out);
        for (std::int64_t p = 0; p < n; ++p) {
          rows::to_probabilities(std::span(out).subspan(size(p * v), size(v)));
        }
        return out;
      };
      const std::vector<float> clean = probabilities({});
      for (std::int32_t l = 0; l <= config.n_layers; ++l) {
        for (std::int64_t t = 0; t < n; ++t) {
          const Site site = l < config.n_layers ? Site{SiteKind::resid_pre, l}
                                                : Site{SiteKind::resid_post, l - 1};
          Hooks hooks;
          hooks.write(site, [&](SiteView& view) {
            std::copy_n(r.mean.begin() + l * d, d, view.values.begin() + t * d);
          });
          const std::vector<float> changed = probabilities(hooks);
          double most = 0;
          for (std::int64_t p = 0; p < n; ++p) {
            const bool read = scope == ErasureScope::later ? p > t
                              : m == 0                     ? p >= 5 && p < 8
                                                           : p == n - 1;
            if (!read) continue;
            most = std::max(most, rows::distance(std::span(clean).subspan(size(p * v), size(v)),
                                                 std::span(changed).subspan(size(p * v), size(v))));
          }
          EXPECT_EQ(r.maps[m].effect[size(l * n + t)], most) << l << " " << t;
        }
      }
    }
  }
}

TEST(Erasure, DoesNotDependOnThreads) {
  const Model model = golden_model();
  Forward forward(model);
  const std::vector<Prompt> prompts = golden_prompts();
  const int before = threads();
  set_threads(1);
  const Erasure one = measure_erasure(forward, prompts);
  set_threads(2);
  const Erasure two = measure_erasure(forward, prompts);
  set_threads(before);
  EXPECT_EQ(one.mean, two.mean);
  ASSERT_EQ(one.maps.size(), 1u);
  EXPECT_EQ(one.maps[0].effect, two.maps[0].effect);
  EXPECT_THROW(parse_erasure_scope("all"), UsageError);
}

}  // namespace
}  // namespace lamina
