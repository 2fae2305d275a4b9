// Linear maps between the layers of two models.

#include <gtest/gtest.h>

#include <random>

#include "depth_support.h"
#include "lamina/core/threads.h"
#include "lamina/probes/linear_map.h"

namespace lamina {
namespace {

using testing::GoldenRun;
using testing::goldens;

ModelConfig shape(std::int64_t layers, std::int64_t width) {
  ModelConfig config;
  config.family = "made";
  config.n_layers = layers;
  config.d_model = width;
  return config;
}

// Two runs over the same prompts, in blocks of `prompts` at a time.
struct Two {
  ModelConfig source, target;
  std::vector<Prompt> prompts;
  std::vector<std::vector<float>> x, y;  // [stream] rows of all tokens
  std::size_t at_a_time = 2;

  static ActivationBlock part(const ModelConfig& config, std::span<const Prompt> prompts,
                              const std::vector<std::vector<float>>& rows, std::size_t first,
                              std::size_t count, std::int64_t token) {
    ActivationBlock block;
    block.first_prompt = static_cast<std::int64_t>(first);
    block.prompts = prompts.subspan(first, count);
    for (const Prompt& prompt : block.prompts) block.batch.add(prompt.ids);
    const std::vector<Site> sites = stream_sites(config);
    for (std::size_t s = 0; s < sites.size(); ++s) {
      const auto begin = rows[s].begin() + token * config.d_model;
      block.sites[ActivationBlock::site_key(sites[s])] = {
          {false, 0, config.d_model}, {begin, begin + block.batch.tokens() * config.d_model}, {}};
    }
    return block;
  }
  PairPass pass() const {
    return [this](std::span<const Site>, std::span<const Site>, const PairConsumer& consume) {
      std::int64_t token = 0;
      for (std::size_t first = 0; first < prompts.size(); first += at_a_time) {
        const std::size_t count = std::min(at_a_time, prompts.size() - first);
        const ActivationBlock a = part(source, prompts, x, first, count, token);
        const ActivationBlock b = part(target, prompts, y, first, count, token);
        consume(a, b);
        token += a.batch.tokens();
      }
    };
  }
};

// The target's streams are affine functions of the source's stream 1; its streams 0 and 2 are
// noise of their own.
Two planted() {
  Two two{shape(2, 5), shape(1, 7), {}, {}, {}};
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::int64_t tokens = 0;
  for (int p = 0; p < 12; ++p) {
    Prompt& prompt = two.prompts.emplace_back();
    prompt.id = std::to_string(p);
    prompt.ids.assign(static_cast<std::size_t>(40 + p), p);
    tokens += 40 + p;
  }
  two.x.assign(3, std::vector<float>(static_cast<std::size_t>(tokens * 5)));
  for (auto& rows : two.x) {
    for (float& value : rows) value = 100 + 10 * normal(random);  // far from 0
  }
  for (int s = 0; s < 2; ++s) {
    std::vector<float> map(5 * 7), bias(7), rows;
    for (float& value : map) value = normal(random);
    for (float& value : bias) value = 3 * normal(random);
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (int i = 0; i < 7; ++i) {
        double sum = bias[static_cast<std::size_t>(i)];
        for (int j = 0; j < 5; ++j) {
          sum += double{map[static_cast<std::size_t>(i * 5 + j)]} *
                 two.x[1][static_cast<std::size_t>(t * 5 + j)];
        }
        rows.push_back(static_cast<float>(sum));
      }
    }
    two.y.push_back(std::move(rows));
  }
  return two;
}

TEST(LinearMap, RecoversAPlantedMap) {
  const Two two = planted();
  LinearMapOptions options;
  options.ridge = 1e-12;
  const LinearMapResults r = fit_linear_maps(two.source, two.target, two.pass(), options);
  EXPECT_EQ(r.sources, 3);
  EXPECT_EQ(r.targets, 2);
  EXPECT_EQ(r.held_tokens, 44 + 49);
  EXPECT_EQ(r.fit_tokens, 12 * 40 + 66 - 93);
  EXPECT_EQ(r.best(), (std::vector<std::int32_t>{1, 1}));
  for (std::int64_t t = 0; t < 2; ++t) {
    EXPECT_LT(r.error[1 * 2 + t], 1e-6);  // the targets were rounded to float
    EXPECT_GT(r.error[0 * 2 + t], 0.5 * r.mean_error[t]);
    EXPECT_GT(r.error[2 * 2 + t], 0.5 * r.mean_error[t]);
  }
  options.ridge = 1e6;  // nothing but the mean is left
  const LinearMapResults flat = fit_linear_maps(two.source, two.target, two.pass(), options);
  for (std::size_t i = 0; i < 6; ++i) {
    EXPECT_NEAR(flat.error[i], flat.mean_error[i % 2], 1e-5 * flat.mean_error[i % 2]);
  }
}

TEST(LinearMap, ThreadsBlocksAndGroupsDoNotMatter) {
  Two two = planted();
  set_threads(1);
  const LinearMapResults one = fit_linear_maps(two.source, two.target, two.pass());
  EXPECT_EQ(one.passes, 2);
  set_threads(2);
  two.at_a_time = 5;
  LinearMapOptions options;
  options.memory = 1;  // a source at a time
  const LinearMapResults other = fit_linear_maps(two.source, two.target, two.pass(), options);
  EXPECT_EQ(other.passes, 6);
  EXPECT_EQ(other.error, one.error);
  EXPECT_EQ(other.mean_error, one.mean_error);
}

TEST(LinearMap, EqualsNumpy) {
  const GoldenRun a("llama3"), b("gpt2");
  const PairPass pass = [&](std::span<const Site>, std::span<const Site>,
                            const PairConsumer& consume) {
    const ActivationBlock x = a.block();
    ActivationBlock y = b.block();
    y.batch.ids = x.batch.ids;  // prompts of the same lengths
    consume(x, y);
  };
  LinearMapOptions options;
  options.ridge = 0.05;
  options.holdout = 3;
  options.skip = 1;
  const LinearMapResults r = fit_linear_maps(a.config(), b.config(), pass, options);
  const nlohmann::json& want = goldens()["maps"];
  EXPECT_EQ(r.fit_tokens, want["fit_tokens"]);
  EXPECT_EQ(r.held_tokens, want["held_tokens"]);
  for (std::int64_t s = 0; s < r.sources; ++s) {
    for (std::int64_t t = 0; t < r.targets; ++t) {
      EXPECT_NEAR(r.error[s * r.targets + t], want["error"][s][t], 1e-10) << s << " → " << t;
    }
  }
  for (std::int64_t t = 0; t < r.targets; ++t) {
    EXPECT_NEAR(r.mean_error[t], want["mean_error"][t], 1e-12);
  }
}

TEST(LinearMap, MistakesAreNamed) {
  Two two = planted();
  const auto message = [&](const LinearMapOptions& options) {
    try {
      fit_linear_maps(two.source, two.target, two.pass(), options);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_NE(message({.ridge = 0}).find("ridge must be"), std::string::npos);
  EXPECT_NE(message({.holdout = 1}).find("expected 2 or more"), std::string::npos);
  EXPECT_NE(message({.skip = 500}).find("no tokens are left to fit"), std::string::npos);
  EXPECT_NE(message({.holdout = 50}).find("no tokens are left to measure"), std::string::npos);
  two.x[1][8] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_NE(message({}).find("prompt \"0\", position 1"), std::string::npos) << message({});
}

}  // namespace
}  // namespace lamina
