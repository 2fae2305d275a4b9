// The void rule and its probe against the transcription of the authors' code (void_reference.py,
// make_void_goldens.py), and the probe's bookkeeping.

#include "lamina/probes/void.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "lamina/core/dtype.h"
#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"
#include "lamina/core/threads.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using testing::TempDir;

const TensorStore& goldens() {
  static const TensorStore store =
      open_safetensors(fs::path(LAMINA_SOURCE_DIR) / "tests/probes/void.safetensors");
  return store;
}

std::vector<float> floats(const TensorStore& store, const std::string& name) {
  const TensorInfo* tensor = store.find(name);
  if (tensor == nullptr) throw Error("no golden " + name);
  std::vector<float> values(tensor->elements());
  expand_to_f32(tensor->dtype, tensor->bytes, values);
  return values;
}

std::vector<std::uint8_t> bytes(const std::string& name) {
  const TensorInfo* tensor = goldens().find(name);
  if (tensor == nullptr || tensor->dtype != DType::u8) throw Error("no golden " + name);
  const auto* first = reinterpret_cast<const std::uint8_t*>(tensor->bytes.data());
  return {first, first + tensor->elements()};
}

const std::vector<double> kAlphas = {0.0, 0.2, 0.4, 0.6, 0.8, 1.0};

std::vector<int> decide(const std::vector<double>& deltas, double alpha, VoidRule rule) {
  VoidDetector detector(alpha, rule);
  std::vector<int> out;
  for (double delta : deltas) out.push_back(detector.active(delta) ? 1 : 0);
  return out;
}

TEST(VoidRuleTest, HandMadeNorms) {
  // λ: 0, 0, 0.5·(5 − 2), 0.5·(5 − 1), 0.5·(5 − −3), 0.5·8
  const std::vector<double> deltas = {5, 2, 1, -3, 4, 3.999};
  EXPECT_EQ(decide(deltas, 0.5, VoidRule::l2), (std::vector<int>{1, 1, 0, 0, 1, 0}));
  // α = 0: void is what shrinks.
  EXPECT_EQ(decide({1, -1, 0, 2, -0.001}, 0, VoidRule::l2), (std::vector<int>{1, 0, 1, 1, 0}));
  // A first layer that shrinks is void, one that changes nothing is not; nor is a tie.
  EXPECT_EQ(decide({-1e-9, 0}, 1, VoidRule::l2), (std::vector<int>{0, 1}));
  EXPECT_EQ(decide({0, 4, 4, 3.9}, 1, VoidRule::l2), (std::vector<int>{1, 1, 1, 0}));
}

TEST(VoidRuleTest, ThresholdIsOfEarlierLayersOnly) {
  VoidDetector detector(0.8);
  EXPECT_EQ(detector.threshold(), 0);
  detector.active(3);
  EXPECT_EQ(detector.threshold(), 0);
  detector.active(-2);
  EXPECT_DOUBLE_EQ(detector.threshold(), 0.8 * 5);
  detector.active(10);
  EXPECT_DOUBLE_EQ(detector.threshold(), 0.8 * 12);
}

TEST(VoidRuleTest, HaltingIsForGood) {
  // λ: 0, 0, 2, 2.5: the third layer is within, and everything after it stays halted.
  EXPECT_EQ(decide({5, 1, 1.5, 9, 100}, 0.5, VoidRule::lac), (std::vector<int>{1, 1, 0, 0, 0}));
  // A large fall is a large change.
  EXPECT_EQ(decide({5, 1, -7, 6.1}, 0.5, VoidRule::lac), (std::vector<int>{1, 1, 1, 1}));
  EXPECT_EQ(decide({1, -1, 0, 2}, 0, VoidRule::lac), (std::vector<int>{1, 1, 1, 1}));
}

TEST(VoidRuleTest, Settings) {
  EXPECT_NO_THROW(check_alphas(kAlphas));
  EXPECT_THROW(check_alphas({}), UsageError);
  for (const std::vector<double>& bad : {std::vector<double>{-0.1}, {NAN}, {INFINITY}, {1, 0, 1}}) {
    EXPECT_THROW(check_alphas(bad), UsageError);
  }
  EXPECT_EQ(parse_void_rule("lac"), VoidRule::lac);
  EXPECT_THROW(parse_void_rule("L2"), UsageError);
}

TEST(VoidRuleTest, RowNorm) {
  EXPECT_EQ(row_norm(std::vector<float>{}), 0);
  EXPECT_EQ(row_norm(std::vector<float>{3, 4}), 5);
  std::vector<float> x(1003);
  double squares = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(std::sin(static_cast<double>(i)) * 1e20);
    squares += double{x[i]} * x[i];
  }
  EXPECT_NEAR(row_norm(x) / std::sqrt(squares), 1, 1e-15 * 1003);
}

// A block of one prompt whose stream is given: states [L + 1, T, D].
struct MadeUp {
  ModelConfig config;
  std::vector<Prompt> prompts{1};
  ActivationBlock block;

  MadeUp(const std::vector<float>& states, std::int64_t layers, std::int64_t tokens,
         std::int64_t given) {
    const std::int64_t width = static_cast<std::int64_t>(states.size()) / (layers + 1) / tokens;
    config.family = "made up";
    config.n_layers = layers;
    config.d_model = width;
    config.n_heads = config.n_kv_heads = 1;
    config.d_head = width;
    config.d_vocab = tokens;
    config.layers.resize(static_cast<std::size_t>(layers));
    prompts[0].id = "only";
    for (std::int64_t t = 0; t < tokens; ++t) {
      prompts[0].ids.push_back(static_cast<std::int32_t>(t));
    }
    prompts[0].given = given;
    block.prompts = prompts;
    block.batch.add(prompts[0].ids);
    const std::int64_t values = tokens * width;
    for (std::int64_t s = 0; s <= layers; ++s) {
      const Site site = s == 0 ? Site{SiteKind::resid_pre, 0}
                               : Site{SiteKind::resid_post, static_cast<std::int32_t>(s) - 1};
      block.sites[ActivationBlock::site_key(site)] = {
          {false, 0, width}, {states.begin() + s * values, states.begin() + (s + 1) * values}, {}};
    }
  }
};

TEST(VoidProbeTest, DecidesAsTheRelease) {
  constexpr std::int64_t kLayers = 12, kTokens = 40;
  MadeUp made(floats(goldens(), "deep.states"), kLayers, kTokens, 25);
  for (VoidRule rule : {VoidRule::l2, VoidRule::lac}) {
    VoidProbe probe(made.config, {kAlphas, rule, true});
    probe.observe(made.block);
    const VoidResults& r = probe.results();
    const std::vector<std::uint8_t> want =
        bytes(rule == VoidRule::l2 ? "deep.active" : "deep.halting");  // [A, L, T]
    ASSERT_EQ(want.size(), r.active.size());
    for (std::int64_t a = 0; a < 6; ++a) {
      std::int64_t used[2] = {0, 0};
      for (std::int64_t t = 0; t < kTokens; ++t) {
        for (std::int64_t l = 0; l < kLayers; ++l) {
          const int expected = want[(a * kLayers + l) * kTokens + t];
          EXPECT_EQ(r.active[(t * 6 + a) * kLayers + l], expected)
              << "alpha " << kAlphas[a] << " token " << t << " layer " << l;
          used[t < 25 ? 0 : 1] += expected;
        }
      }
      EXPECT_DOUBLE_EQ(r.counts.model_usage(a, 0), used[0] / (25.0 * kLayers));
      EXPECT_DOUBLE_EQ(r.counts.model_usage(a, 1), used[1] / (15.0 * kLayers));
    }
  }
}

// Hidden states computed here, decisions from those that transformers computed. No decision of
// these models is close enough for rounding to turn it.
TEST(VoidProbeTest, DecidesAsTheReleaseOnGoldenModels) {
  for (const char* name : {"gemma3", "gpt2", "llama3", "mistral", "qwen2", "qwen3"}) {
    SCOPED_TRACE(name);
    const fs::path folder = fs::path(LAMINA_SOURCE_DIR) / "tests/goldens" / name;
    const TensorStore golden = open_safetensors(folder / "golden.safetensors");
    const Model model = Model::load(folder);
    Forward forward(model);
    std::vector<Prompt> prompts;
    for (int p = 0; golden.find("p" + std::to_string(p) + "/ids") != nullptr; ++p) {
      const TensorInfo* ids = golden.find("p" + std::to_string(p) + "/ids");
      const auto* first = reinterpret_cast<const std::int32_t*>(ids->bytes.data());
      Prompt& prompt = prompts.emplace_back();
      prompt.id = std::to_string(p);
      prompt.ids.assign(first, first + ids->elements());
      prompt.given = static_cast<std::int64_t>(prompt.ids.size());
    }
    VoidProbe probe(model.config(), {kAlphas, VoidRule::l2, true});
    Probe* const probes[] = {&probe};
    run_probes(probes, forward, prompts);
    const VoidResults& r = probe.results();
    const auto want = bytes(std::string(name) + ".active");
    const std::vector<float> margin = floats(goldens(), std::string(name) + ".margin");
    const std::int64_t layers = model.config().n_layers, tokens = r.tokens();
    ASSERT_EQ(want.size(), r.active.size());
    for (std::int64_t a = 0; a < 6; ++a) {
      for (std::int64_t t = 0; t < tokens; ++t) {
        for (std::int64_t l = 0; l < layers; ++l) {
          const std::int64_t at = (a * layers + l) * tokens + t;
          EXPECT_GT(margin[at], l < 2 ? 0 : 2e-5);
          EXPECT_EQ(r.active[(t * 6 + a) * layers + l], want[at])
              << "alpha " << kAlphas[a] << " token " << t << " layer " << l;
        }
      }
    }
  }
}

std::vector<Prompt> made_prompts(std::int64_t d_vocab) {
  std::vector<Prompt> prompts;
  for (const auto& ids : testing::random_prompts({5, 1, 9, 4, 2, 7}, d_vocab, 11)) {
    Prompt& p = prompts.emplace_back();
    p.id = "p" + std::to_string(prompts.size());
    p.ids = ids;
    p.given = (static_cast<std::int64_t>(ids.size()) + 1) / 2;
  }
  return prompts;
}

void record(Forward& forward, const std::vector<Prompt>& prompts, const fs::path& path,
            std::vector<Site> sites) {
  RecordingHeader header;
  header.tool_version = "test";
  header.created_utc = "2026-01-01T00:00:00Z";
  header.model_id = "tiny";
  header.model_sha256 = header.tokenizer_sha256 = header.prompts_sha256 = std::string(64, '0');
  header.config = forward.model().config();
  header.sites = std::move(sites);
  header.total_prompts = static_cast<std::int64_t>(prompts.size());
  RecordingWriter writer(path, header, prompts);
  run_live(forward, prompts, header.sites, {},
           [&](const ActivationBlock& block) { writer.append(block); });
  writer.finish();
}

TEST(VoidProbeTest, LiveRecordedAndShardedAreEqual) {
  for (const testing::TinyConfig& config : testing::varied_configs()) {
    SCOPED_TRACE(config.label);
    if (config.norm_place == "post") continue;  // refused: see skip_test
    const Model model = testing::tiny_model(config, 3);
    Forward forward(model);
    const std::vector<Prompt> prompts = made_prompts(model.config().d_vocab);
    const auto run = [&](const LiveOptions& options) {
      VoidProbe probe(model.config());
      Probe* const probes[] = {&probe};
      run_probes(probes, forward, prompts, options);
      return probe.results();
    };
    set_threads(1);
    const VoidResults live = run({});
    EXPECT_EQ(live.counts.tokens[0], 3 + 1 + 5 + 2 + 1 + 4);
    EXPECT_EQ(live.counts.tokens[1], 2 + 0 + 4 + 2 + 1 + 3);
    EXPECT_EQ(live.tokens(), 28);
    EXPECT_EQ(live.phase[2], 0);
    EXPECT_EQ(live.phase[3], 1);
    set_threads(2);
    LiveOptions small;
    small.batch_tokens = 1;
    EXPECT_TRUE(run(small) == live);

    VoidProbe merged(model.config());
    for (std::int64_t first : {0, 2, 3}) {
      LiveOptions part;
      part.first_prompt = first;
      part.last_prompt = first == 0 ? 2 : first == 2 ? 3 : 6;
      const std::unique_ptr<Probe> shard = merged.fresh();
      Probe* const probes[] = {shard.get()};
      run_probes(probes, forward, prompts, part);
      merged.merge(*shard);
    }
    EXPECT_TRUE(merged.results() == live);

    const TempDir folder;
    record(forward, prompts, folder.path() / "run.h5", merged.sites(model.config()));
    const Recording recording = Recording::open(folder.path() / "run.h5");
    VoidProbe recorded(recording.header().config);
    Probe* const probes[] = {&recorded};
    run_probes(probes, recording, 1);
    EXPECT_TRUE(recorded.results() == live);

    VoidOptions lean;
    lean.keep_tokens = false;
    VoidProbe counting(model.config(), lean);
    Probe* const counted[] = {&counting};
    run_probes(counted, forward, prompts);
    EXPECT_TRUE(counting.results().counts == live.counts);
    EXPECT_EQ(counting.results().tokens(), 0);
    EXPECT_THROW(merged.merge(counting), Error);
  }
}

TEST(VoidProbeTest, UsageWithoutTokensIsNaN) {
  VoidCounts counts(1, 2);
  counts.tokens = {4, 0};
  counts.at(0, 0, 0) = 4;
  counts.at(0, 0, 1) = 1;
  EXPECT_EQ(counts.usage(0, 0, 1), 0.25);
  EXPECT_EQ(counts.model_usage(0, 0), 0.625);
  EXPECT_TRUE(std::isnan(counts.usage(0, 1, 0)));
  EXPECT_TRUE(std::isnan(counts.model_usage(0, 1)));
}

}  // namespace
}  // namespace lamina
