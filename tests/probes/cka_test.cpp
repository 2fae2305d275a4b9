// Similarities against kernel-matrix formulas in numpy (make_cka_goldens.py), and their properties.

#include "lamina/probes/cka.h"

#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "lamina/core/dtype.h"
#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"
#include "lamina/core/threads.h"
#include "similarity/cka_engine.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Streams = std::vector<std::vector<float>>;  // [stream][token, width]

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

const Json& golden() {
  static const Json json =
      Json::parse(std::ifstream(fs::path(LAMINA_SOURCE_DIR) / "tests/probes/cka.json"));
  return json;
}

// A model of which only the streams exist.
struct Made {
  ModelConfig config;
  std::vector<Prompt> prompts;
  Streams streams;

  Made(Streams rows, const std::vector<std::int64_t>& lengths, std::int64_t width)
      : streams(std::move(rows)) {
    config.family = "made";
    config.n_layers = static_cast<std::int64_t>(streams.size()) - 1;
    config.d_model = width;
    config.n_heads = config.n_kv_heads = 1;
    config.d_head = width;
    config.layers.resize(size(config.n_layers));
    for (std::size_t p = 0; p < lengths.size(); ++p) {
      Prompt prompt;
      prompt.id = "p" + std::to_string(p);
      prompt.ids.assign(size(lengths[p]), 0);
      prompt.given = lengths[p];
      prompts.push_back(std::move(prompt));
    }
  }

  ActivationBlock block(std::size_t first, std::size_t last) const {
    ActivationBlock b;
    b.first_prompt = static_cast<std::int64_t>(first);
    b.prompts = std::span(prompts).subspan(first, last - first);
    std::size_t before = 0;
    for (std::size_t p = 0; p < first; ++p) before += prompts[p].ids.size();
    for (const Prompt& p : b.prompts) b.batch.add(p.ids);
    const std::int64_t d = config.d_model;
    for (std::size_t s = 0; s < streams.size(); ++s) {
      const Site site = s == 0 ? Site{SiteKind::resid_pre, 0}
                               : Site{SiteKind::resid_post, static_cast<std::int32_t>(s) - 1};
      const auto from = streams[s].begin() + static_cast<std::ptrdiff_t>(before * size(d));
      b.sites[ActivationBlock::site_key(site)] = {
          {false, 0, d}, {from, from + b.batch.tokens() * d}, {}};
    }
    return b;
  }
};

Made golden_model(const std::string& name, std::int64_t width) {
  const TensorStore store =
      open_safetensors(fs::path(LAMINA_SOURCE_DIR) / "tests/probes/cka.safetensors");
  const TensorInfo* tensor = store.find(name);
  if (tensor == nullptr) throw Error("no golden " + name);
  std::vector<float> values(tensor->elements());
  expand_to_f32(tensor->dtype, tensor->bytes, values);
  const auto lengths = golden()["lengths"].get<std::vector<std::int64_t>>();
  std::int64_t tokens = 0;
  for (std::int64_t n : lengths) tokens += n;
  Streams streams;
  for (auto at = values.begin(); at != values.end(); at += tokens * width) {
    streams.emplace_back(at, at + tokens * width);
  }
  return {streams, lengths, width};
}
const Made& model_a() {
  static const Made made = golden_model("a", 12);
  return made;
}
const Made& model_b() {
  static const Made made = golden_model("b", 7);
  return made;
}

CkaOptions options() {
  CkaOptions o;
  o.measures = {true, true, true, true, true};
  o.bandwidth = golden()["bandwidth"];
  o.variance = golden()["variance"];
  o.floor = golden()["floor"];
  o.minibatch = golden()["minibatch"];
  return o;
}

CkaOptions minibatch_options() {
  CkaOptions o = options();
  o.mode = CkaMode::minibatch;
  o.measures = {};
  return o;
}

// Blocks end before these prompts.
CkaResults run(const Made& made, const CkaOptions& o, const std::vector<std::size_t>& ends = {}) {
  CkaProbe probe(made.config, o);
  std::size_t first = 0;
  for (std::size_t end : ends) {
    probe.observe(made.block(first, end));
    first = end;
  }
  probe.observe(made.block(first, made.prompts.size()));
  return probe.results();
}

// Two sides, prompt by prompt, in as many passes as the memory asks for.
CkaResults run_pair(const Made& a, const Made& b, const CkaOptions& o) {
  const std::vector<cka::Side> sides = {cka::make_side(a.config, o), cka::make_side(b.config, o)};
  if (o.mode == CkaMode::minibatch) {
    cka::Engine engine(sides, o);
    for (std::size_t p = 0; p < a.prompts.size(); ++p) {
      engine.add(0, a.block(p, p + 1));
      engine.add(1, b.block(p, p + 1));
    }
    engine.finish();
    return engine.results(nullptr);
  }
  cka::Tables tables(static_cast<std::int64_t>(a.streams.size() + b.streams.size()));
  CkaResults out;
  for (const auto& pass : cka::Engine::plan(sides, o)) {
    cka::Engine engine(sides, o, pass);
    for (std::size_t p = 0; p < a.prompts.size(); ++p) {
      engine.add(0, a.block(p, p + 1));
      engine.add(1, b.block(p, p + 1));
    }
    engine.finish();
    engine.reduce(tables);
    out = engine.results(&tables);
  }
  return out;
}

void expect_near(const std::vector<double>& got, const Json& want, double tolerance,
                 const std::string& what) {
  std::vector<double> flat;
  for (const Json& row : want) {
    if (row.is_array()) {
      for (const Json& value : row) flat.push_back(value);
    } else {
      flat.push_back(row);
    }
  }
  ASSERT_EQ(got.size(), flat.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(got[i], flat[i], tolerance) << what << " [" << i << "]";
  }
}

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0);
}

void expect_same(const CkaResults& a, const CkaResults& b) {
  EXPECT_EQ(a.rows, b.rows);
  EXPECT_TRUE(same_bits(a.linear, b.linear));
  EXPECT_TRUE(same_bits(a.debiased, b.debiased));
  EXPECT_TRUE(same_bits(a.debiased_error, b.debiased_error));
  EXPECT_TRUE(same_bits(a.rbf, b.rbf));
  EXPECT_TRUE(same_bits(a.rbf_debiased, b.rbf_debiased));
  EXPECT_TRUE(same_bits(a.svcca, b.svcca));
  EXPECT_TRUE(same_bits(a.pwcca, b.pwcca));
  EXPECT_TRUE(same_bits(a.first_token, b.first_token));
}

double farthest(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(a[i] - b[i]));
  return most;
}

// Products of a slab are chains of at most 1024 float FMAs. Of these small sums (98 rows) the error
// is within 98·2⁻²⁴ of Σ|u||v|, in practice its root: 1e-6 leaves little room.
constexpr double kFloatSums = 1e-6;

TEST(CkaGolden, WithinOneModel) {
  const CkaResults r = run(model_a(), options());
  const Json& want = golden()["self"];
  EXPECT_EQ(r.rows, 98);
  EXPECT_EQ(r.layers, (std::vector<std::string>{"embed", "0", "1", "2"}));
  expect_near(r.linear, want["linear"], kFloatSums, "linear");
  expect_near(r.debiased, want["debiased"], kFloatSums, "debiased");
  expect_near(r.rbf, want["rbf"], 1e-12, "rbf");
  expect_near(r.rbf_debiased, want["rbf_debiased"], 1e-12, "rbf_debiased");
  expect_near(r.sigma, want["sigma"], 1e-10, "sigma");
  expect_near(r.svcca, want["svcca"], kFloatSums, "svcca");
  expect_near(r.pwcca, want["pwcca"], kFloatSums, "pwcca");
  expect_near(r.first_token, golden()["first_token"], kFloatSums, "first_token");
  EXPECT_EQ(r.components, want["components"].get<std::vector<std::int32_t>>());
  EXPECT_TRUE(r.notes.empty());
}

TEST(CkaGolden, BetweenTwoModels) {
  const CkaResults r = run_pair(model_a(), model_b(), options());
  const Json& want = golden()["cross"];
  EXPECT_FALSE(r.self);
  EXPECT_EQ(r.layers_other, (std::vector<std::string>{"embed", "0", "1"}));
  expect_near(r.linear, want["linear"], kFloatSums, "linear");
  expect_near(r.debiased, want["debiased"], kFloatSums, "debiased");
  expect_near(r.rbf, want["rbf"], 1e-12, "rbf");
  expect_near(r.rbf_debiased, want["rbf_debiased"], 1e-12, "rbf_debiased");
  expect_near(r.svcca, want["svcca"], kFloatSums, "svcca");
  expect_near(r.pwcca, want["pwcca"], kFloatSums, "pwcca");
}

TEST(CkaGolden, Minibatches) {
  const CkaResults self = run(model_a(), minibatch_options());
  EXPECT_EQ(self.minibatches, 6);
  EXPECT_EQ(self.rows, 96);
  EXPECT_EQ(self.rows_left_out, 2);
  expect_near(self.debiased, golden()["self"]["minibatch"], kFloatSums, "self");
  expect_near(self.debiased_error, golden()["self"]["minibatch_error"], kFloatSums, "self error");
  const CkaResults cross = run_pair(model_a(), model_b(), minibatch_options());
  expect_near(cross.debiased, golden()["cross"]["minibatch"], kFloatSums, "cross");
  expect_near(cross.debiased_error, golden()["cross"]["minibatch_error"], kFloatSums,
              "cross error");
}

TEST(CkaGolden, SkippedTokensAndPooledPrompts) {
  CkaOptions o = options();
  o.measures = {};
  o.skip = golden()["skip"];
  const CkaResults skipped = run(model_a(), o);
  expect_near(skipped.linear, golden()["skipped"]["linear"], kFloatSums, "skipped");
  expect_near(skipped.debiased, golden()["skipped"]["debiased"], kFloatSums, "skipped");
  o.skip = 0;
  for (const char* pool : {"mean", "last"}) {
    o.pool = parse_cka_pool(pool);
    const CkaResults r = run_pair(model_a(), model_b(), o);
    EXPECT_EQ(r.rows, 7);
    expect_near(r.linear, golden()[pool]["linear"], kFloatSums, pool);
    expect_near(r.debiased, golden()[pool]["debiased"], kFloatSums, pool);
  }
  o.skip = 1;
  EXPECT_THROW(run(model_a(), o), Error);  // prompt 4 has one token
}

// Random streams: more rows than a slab, massive offsets if asked for.
Made random_model(std::int64_t tokens, std::int64_t width, std::int64_t streams, std::uint64_t seed,
                  double offset = 0) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal;
  Streams rows(size(streams));
  for (std::int64_t s = 0; s < streams; ++s) {
    std::vector<float>& x = rows[size(s)];
    for (std::int64_t i = 0; i < tokens * width; ++i) {
      const double fresh = normal(engine) + offset;
      x.push_back(static_cast<float>(s == 0 ? fresh : 0.8 * rows[size(s - 1)][size(i)] + fresh));
    }
  }
  std::vector<std::int64_t> lengths;
  for (std::int64_t left = tokens; left > 0; left -= lengths.back()) {
    lengths.push_back(std::min<std::int64_t>(left, 1 + static_cast<std::int64_t>(engine() % 60)));
  }
  return {rows, lengths, width};
}

TEST(CkaProperties, BlocksAndThreadsDoNotShow) {
  const Made made = random_model(2500, 20, 4, 1);
  for (CkaMode mode : {CkaMode::exact, CkaMode::minibatch}) {
    CkaOptions o = mode == CkaMode::exact ? options() : minibatch_options();
    o.measures.rbf = true;
    o.sample = 200;
    const CkaResults whole = run(made, o);
    const std::size_t n = made.prompts.size();
    expect_same(run(made, o, {1, 2, n / 3, n / 2, n - 1}), whole);
    const int before = threads();
    set_threads(1);
    const CkaResults one = run(made, o);
    set_threads(2);
    const CkaResults two = run(made, o);
    set_threads(before);
    expect_same(one, two);
    expect_same(one, whole);
  }
}

TEST(CkaProperties, MergedPartsAreTheWhole) {
  // Offsets far from zero: the parts' shifts differ from the whole's.
  const Made made = random_model(3000, 16, 4, 2, 5);
  CkaOptions o = options();
  o.sample = 150;
  const CkaResults whole = run(made, o);
  CkaProbe all(made.config, o);
  const std::size_t n = made.prompts.size();
  for (const auto& [first, last] :
       {std::pair<std::size_t, std::size_t>{0, n / 4}, {n / 4, n / 2}, {n / 2, n}}) {
    const std::unique_ptr<Probe> part = all.fresh();
    part->observe(made.block(first, last));
    all.merge(*part);
  }
  const CkaResults& merged = all.results();
  EXPECT_EQ(merged.rows, whole.rows);
  EXPECT_LT(farthest(merged.linear, whole.linear), kFloatSums);
  EXPECT_LT(farthest(merged.debiased, whole.debiased), kFloatSums);
  EXPECT_LT(farthest(merged.svcca, whole.svcca), kFloatSums);
  EXPECT_LT(farthest(merged.pwcca, whole.pwcca), kFloatSums);
  EXPECT_LT(farthest(merged.first_token, whole.first_token), kFloatSums);
  EXPECT_TRUE(same_bits(merged.rbf, whole.rbf));  // the same sample
  EXPECT_TRUE(same_bits(merged.rbf_debiased, whole.rbf_debiased));
  EXPECT_THROW(all.observe(made.block(0, 1)), Error);
  CkaProbe other(made.config, minibatch_options());
  CkaProbe exact(made.config, o);
  EXPECT_THROW(exact.merge(other), Error);
}

TEST(CkaProperties, MergedMinibatches) {
  const Made made = random_model(3000, 16, 3, 3);
  CkaOptions o = minibatch_options();
  o.minibatch = 50;
  const CkaResults whole = run(made, o);
  // Cut where a minibatch ends: the parts' minibatches are the whole's.
  std::size_t p = 0;
  std::size_t tokens = 0;
  Made cut = made;
  cut.prompts.clear();
  for (std::size_t rows = 0; rows < 3000; rows += 25) {
    Prompt prompt;
    prompt.id = std::to_string(p++);
    prompt.ids.assign(25, 0);
    cut.prompts.push_back(prompt);
    tokens += 25;
  }
  ASSERT_EQ(tokens, 3000U);
  CkaProbe first(cut.config, o), second(cut.config, o);
  first.observe(cut.block(0, 40));
  second.observe(cut.block(40, cut.prompts.size()));
  first.merge(second);
  EXPECT_LT(farthest(first.results().debiased, whole.debiased), 1e-12);
  EXPECT_LT(farthest(first.results().debiased_error, whole.debiased_error), 1e-9);
  // Cut elsewhere: other minibatches of as many rows, so the same up to the standard error.
  CkaProbe third(cut.config, o), fourth(cut.config, o);
  third.observe(cut.block(0, 41));
  fourth.observe(cut.block(41, cut.prompts.size()));
  third.merge(fourth);
  EXPECT_EQ(third.results().minibatches, whole.minibatches);
  for (std::size_t i = 0; i < whole.debiased.size(); ++i) {
    EXPECT_LE(std::abs(third.results().debiased[i] - whole.debiased[i]),
              4 * whole.debiased_error[i]);
  }
}

// A rotation, a scale and an offset of every stream change nothing.
TEST(CkaProperties, RotationScaleAndOffset) {
  const Made made = random_model(1500, 16, 3, 4);
  Made turned = made;
  std::mt19937_64 engine(5);
  std::normal_distribution<double> normal;
  for (std::size_t s = 0; s < made.streams.size(); ++s) {
    const Eigen::MatrixXd random =
        Eigen::MatrixXd::NullaryExpr(16, 16, [&] { return normal(engine); });
    const Eigen::MatrixXd q = Eigen::HouseholderQR<Eigen::MatrixXd>(random).householderQ();
    Eigen::Map<Eigen::Matrix<float, Eigen::Dynamic, 16, Eigen::RowMajor>> x(
        turned.streams[s].data(), 1500, 16);
    x = ((x.cast<double>() * q * (7.0 + static_cast<double>(s))).array() + 3).cast<float>();
  }
  CkaOptions o = options();
  o.sample = 300;
  o.floor = 1e-4;
  const CkaResults before = run(made, o), after = run(turned, o);
  EXPECT_LT(farthest(before.linear, after.linear), 2e-6);
  EXPECT_LT(farthest(before.debiased, after.debiased), 2e-6);
  EXPECT_LT(farthest(before.rbf, after.rbf), 2e-6);
  EXPECT_LT(farthest(before.svcca, after.svcca), 2e-5);
  EXPECT_LT(
      farthest(run(made, minibatch_options()).debiased, run(turned, minibatch_options()).debiased),
      2e-6);
  for (std::size_t i = 0; i < 9; i += 4) {  // with itself
    EXPECT_EQ(before.linear[i], 1);
    EXPECT_EQ(before.debiased[i], 1);
    EXPECT_EQ(before.rbf[i], 1);
    EXPECT_EQ(before.svcca[i], 1);
    EXPECT_EQ(before.pwcca[i], 1);
  }
  // The original beside what was turned: the same rows in another basis.
  const CkaResults both = run_pair(made, turned, o);
  for (std::size_t i = 0; i < 9; i += 4) {
    EXPECT_NEAR(both.linear[i], 1, 2e-6);
    EXPECT_NEAR(both.debiased[i], 1, 2e-6);
    EXPECT_NEAR(both.svcca[i], 1, 2e-5);
    EXPECT_NEAR(both.pwcca[i], 1, 2e-5);
  }
}

// Fewer rows than columns: every linear CKA of noise is high, the debiased one is not.
TEST(CkaProperties, IndependentNoise) {
  const Made a = random_model(200, 100, 2, 6), b = random_model(200, 100, 2, 7);
  Made other = b;
  other.prompts = a.prompts;
  CkaOptions o = options();
  o.measures = {};
  const CkaResults r = run_pair(a, other, o);
  EXPECT_GT(r.linear[0], 0.3);
  EXPECT_LT(std::abs(r.debiased[0]), 0.02);
  CkaOptions m = minibatch_options();
  m.minibatch = 50;
  const CkaResults noisy = run_pair(a, other, m);
  EXPECT_LT(std::abs(noisy.debiased[0]), 5 * noisy.debiased_error[0]);
  EXPECT_LT(std::abs(noisy.debiased[0]), 0.1);
}

TEST(CkaProperties, PassesDoNotShow) {
  const CkaOptions o = options();
  const std::vector<cka::Side> sides = {cka::make_side(model_a().config, o),
                                        cka::make_side(model_b().config, o)};
  CkaOptions tight = o;
  tight.measures.svcca = tight.measures.pwcca = tight.measures.rbf = false;
  const cka::Rows rows(sides, tight);
  tight.memory = cka::Sums::fixed_bytes(rows, true) + 3 * 12 * 12 * 8;
  ASSERT_GT(cka::Engine::plan(sides, tight).size(), 3U);
  const CkaResults one = run_pair(model_a(), model_b(), o),
                   many = run_pair(model_a(), model_b(), tight);
  EXPECT_TRUE(same_bits(one.linear, many.linear));
  EXPECT_TRUE(same_bits(one.debiased, many.debiased));
  EXPECT_TRUE(same_bits(one.first_token_other, many.first_token_other));
  tight.measures.svcca = true;
  EXPECT_THROW(cka::Engine::plan(sides, tight), UsageError);
  tight.measures.svcca = false;
  const cka::Rows alone(std::vector<cka::Side>{sides[0]}, tight);
  tight.memory = cka::Sums::fixed_bytes(alone, true) + 5 * 12 * 12 * 8;
  EXPECT_THROW(CkaProbe(model_a().config, tight), UsageError);
  tight.memory = 100;
  EXPECT_THROW(cka::Engine::plan(sides, tight), UsageError);
}

TEST(CkaHostile, WhatHasNoSimilaritySaysWhy) {
  Made made = random_model(60, 8, 3, 8);
  std::fill(made.streams[1].begin(), made.streams[1].end(), 1.1F);
  CkaOptions o = options();
  CkaResults r = run(made, o);
  ASSERT_EQ(r.notes.size(), 1U);
  EXPECT_NE(r.notes[0].find("layer 0 does not vary"), std::string::npos) << r.notes[0];
  for (const auto* matrix : {&r.linear, &r.debiased, &r.rbf, &r.rbf_debiased, &r.svcca, &r.pwcca}) {
    for (std::size_t i = 0; i < 9; ++i) {
      EXPECT_EQ(std::isnan((*matrix)[i]), i / 3 == 1 || i % 3 == 1) << i;
    }
  }
  r = run(made, minibatch_options());
  EXPECT_TRUE(std::isnan(r.debiased[4]) && std::isnan(r.debiased[1]));
  EXPECT_FALSE(r.notes.empty());

  made.streams[2][17] = std::numeric_limits<float>::infinity();
  r = run(made, o);
  EXPECT_TRUE(std::isnan(r.linear[8]) && std::isnan(r.svcca[8]) && std::isnan(r.rbf[8]));
  EXPECT_EQ(r.notes.size(), 2U);

  for (std::int64_t rows : {1, 2, 3}) {
    const Made few = random_model(rows, 8, 2, 9);
    for (const CkaOptions& each : {options(), minibatch_options()}) {
      const CkaResults f = run(few, each);
      EXPECT_FALSE(f.notes.empty()) << rows;
      EXPECT_TRUE(std::isnan(f.debiased[1])) << rows;
      if (!f.linear.empty()) {
        EXPECT_EQ(std::isnan(f.linear[1]), rows == 1);
      }
    }
  }
  CkaProbe nothing(made.config, o);
  EXPECT_TRUE(std::isnan(nothing.results().linear[0]));
}

TEST(CkaHostile, Settings) {
  const ModelConfig& config = model_a().config;
  const auto bad = [&](auto change) {
    CkaOptions o;
    change(o);
    EXPECT_THROW(CkaProbe(config, o), UsageError);
  };
  bad([](CkaOptions& o) { o.skip = -1; });
  bad([](CkaOptions& o) { o.mode = CkaMode::minibatch, o.minibatch = 3; });
  bad([](CkaOptions& o) { o.measures.rbf = true, o.sample = 1; });
  bad([](CkaOptions& o) { o.bandwidth = 0; });
  bad([](CkaOptions& o) { o.variance = 1.5; });
  bad([](CkaOptions& o) { o.floor = -1; });
  bad([](CkaOptions& o) { o.site = "pattern"; });
  bad([](CkaOptions& o) { o.site = "*resid*"; });
  bad([](CkaOptions& o) { o.mode = CkaMode::minibatch, o.measures.svcca = true; });
  EXPECT_THROW(parse_cka_mode("both"), UsageError);
  EXPECT_THROW(parse_cka_pool("first"), UsageError);
  EXPECT_THROW(parse_cka_measures(std::vector<std::string>{"cca"}), UsageError);
  EXPECT_EQ(cka_sites(config, "resid_post:1-2").size(), 2U);
  EXPECT_EQ(cka_sites(config, "attn_out").size(), 3U);
}

TEST(CkaBlocks, NeighboursThatAreAllAlike) {
  const std::vector<double> m = {1, .9, .5, 0, .9, 1, .9, 0, .5, .9, 1, .85, 0, 0, .85, 1};
  using Blocks = std::vector<std::pair<std::int64_t, std::int64_t>>;
  EXPECT_EQ(cka_blocks(m, 4, 0.8), (Blocks{{0, 1}, {2, 3}}));
  EXPECT_EQ(cka_blocks(m, 4, 0.95), (Blocks{{0, 0}, {1, 1}, {2, 2}, {3, 3}}));
  EXPECT_EQ(cka_blocks(m, 4, 0), (Blocks{{0, 3}}));
}

}  // namespace
}  // namespace lamina
