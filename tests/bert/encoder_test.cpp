// Encoders: the backward pass against autograd (tests/gradients/make_encoder_gradients.py), the
// heads, and what does not fit a classifier. The forward sites are golden_test's.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "lamina/core/backward.h"
#include "lamina/core/dtype.h"
#include "lamina/core/error.h"
#include "lamina/core/math.h"
#include "lamina/core/model.h"
#include "lamina/core/safetensors.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;

// Of the largest magnitude of the site; of the norm for norms.
constexpr double kTolerance = 1e-4;
const fs::path kTests = fs::path(LAMINA_SOURCE_DIR) / "tests";

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

class Golden {
 public:
  explicit Golden(const std::string& file)
      : store_(open_safetensors(kTests / "gradients" / (file + ".safetensors"))) {
    while (store_.find(fmt::format("p{}/ids", prompts))) {
      const TensorInfo* ids = store_.find(fmt::format("p{}/ids", prompts++));
      batch.add({reinterpret_cast<const std::int32_t*>(ids->bytes.data()), ids->elements()});
    }
  }
  const TensorStore& store() const { return store_; }
  std::vector<float> floats(const std::string& name) const {
    const TensorInfo* info = store_.find(name);
    if (info == nullptr) throw std::runtime_error("no " + name);
    std::vector<float> out(info->elements());
    expand_to_f32(info->dtype, info->bytes, out);
    return out;
  }
  std::vector<std::int64_t> rows(std::int64_t prompt) const {
    const TensorInfo* info = store_.find(fmt::format("p{}/rows", prompt));
    const auto* first = reinterpret_cast<const std::int32_t*>(info->bytes.data());
    std::vector<std::int64_t> out;
    for (std::size_t i = 0; i < info->elements(); ++i) {
      out.push_back(batch.offsets[size(prompt)] + first[i]);
    }
    return out;
  }

  std::int64_t prompts = 0;
  Batch batch;

 private:
  TensorStore store_;
};

/// Gradients of one backward run by site name, all prompts in a row (attention sites too).
std::map<std::string, std::vector<float>> run_back(Backward& backward, const Tape& tape,
                                                   const ModelConfig& config) {
  std::map<std::string, std::vector<float>> got;
  Hooks hooks;
  for (const Site site : all_sites(config)) {
    hooks.read(site, [&got, name = site_name(site)](SiteView& view) {
      std::vector<float>& all = got[name];
      all.insert(all.end(), view.values.begin(), view.values.end());
    });
  }
  backward.run(tape, {}, hooks);
  return got;
}

void expect_near(const std::string& what, const std::vector<float>& got,
                 const std::vector<float>& want, double unit) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double worst = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double difference = std::abs(static_cast<double>(got[i]) - want[i]);
    worst = std::max(worst, std::isfinite(difference) ? difference : INFINITY);
  }
  EXPECT_LE(worst, kTolerance * unit) << what;
}

class Encoders : public testing::TestWithParam<const char*> {};

TEST_P(Encoders, GradientsAtEverySiteAreAutograds) {
  const std::string name = GetParam();
  const bool classifier = name.ends_with("classifier");
  const Golden golden((classifier ? "encoders/" : "") + name);
  const Model model = Model::load(kTests / "goldens" / name);
  Forward forward(model);
  Tape tape;
  forward.run(golden.batch, {}, {.tape = &tape});
  Backward backward(model);
  for (std::int64_t p = 0; p < golden.prompts; ++p) {
    backward.seed(tape, golden.rows(p), golden.floats(fmt::format("p{}/c", p)));
  }
  const auto got = run_back(backward, tape, model.config());
  const std::vector<Site> sites = all_sites(model.config());
  // From the last to the first prompt: attention hooks may fire in any order of prompts, token
  // sites hold them in order; every prompt is compared at its place.
  for (const Site site : sites) {
    const SiteShape shape = site_shape(site, model.config());
    std::vector<float> want;
    for (std::int64_t p = 0; p < golden.prompts; ++p) {
      const auto part = golden.floats(fmt::format("p{}/{}", p, site_name(site)));
      want.insert(want.end(), part.begin(), part.end());
    }
    double largest = 0;
    for (const float v : want) largest = std::max(largest, std::abs(static_cast<double>(v)));
    // A denominator's gradient is a sum whose terms cancel: judged against a sum without signs.
    if (!shape.attention && shape.width == 1) {
      std::string normalized = site_name(site);
      normalized.replace(normalized.rfind("hook_scale"), 10, "hook_normalized");
      double squares = 0;
      for (const float v : got.at(normalized)) squares += static_cast<double>(v) * v;
      largest = std::max(largest, std::sqrt(squares));
    }
    expect_near(name + " " + site_name(site), got.at(site_name(site)), want, largest);
  }
}

TEST_P(Encoders, ParameterNormsAreAutograds) {
  const std::string name = GetParam();
  const bool classifier = name.ends_with("classifier");
  const Golden golden((classifier ? "encoders/" : "") + name);
  const Model model = Model::load(kTests / "goldens" / name);
  const std::int64_t width = model.config().d_out();
  Forward forward(model);
  Tape tape;
  forward.run(golden.batch, {}, {.tape = &tape});
  std::vector<std::int64_t> rows;
  std::vector<std::int32_t> answers;
  for (std::int64_t p = 0; p < golden.prompts; ++p) {
    const std::int64_t first = golden.batch.offsets[size(p)];
    if (classifier) {
      rows.push_back(first);
      answers.push_back(static_cast<std::int32_t>(p % width));
      continue;
    }
    for (std::int64_t t = first; t + 1 < golden.batch.offsets[size(p + 1)]; ++t) {
      rows.push_back(t);
      answers.push_back(golden.batch.ids[size(t + 1)]);
    }
  }
  std::vector<float> gradient(rows.size() * size(width));
  forward.run_logits(rows, gradient);
  double loss = 0;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const std::span<float> row = std::span(gradient).subspan(r * size(width), size(width));
    const double log_sum = math::log_sum_exp(row);
    loss += log_sum - row[size(answers[r])];
    for (float& g : row) g = static_cast<float>(std::exp(g - log_sum));
    row[size(answers[r])] -= 1.0f;
    for (float& g : row) g /= static_cast<float>(rows.size());
  }
  Backward backward(model);
  backward.want_parameter_norms(true);
  backward.seed(tape, rows, gradient);
  const auto got = run_back(backward, tape, model.config());
  std::size_t seen = 0;
  for (const ParameterNorm& norm : backward.parameter_norms()) {
    const double want = golden.floats("norm/" + norm.tensor)[0];
    // The key's bias shifts all scores of a query alike: its gradient is 0 up to rounding.
    const double unit = norm.tensor.ends_with(".k.b") ? 0.1 : want;
    EXPECT_NEAR(norm.norm, want, kTolerance * unit) << norm.tensor;
    ++seen;
  }
  std::size_t wanted = 0;
  for (const TensorInfo& info : golden.store().tensors()) wanted += info.name.starts_with("norm/");
  EXPECT_EQ(seen, wanted);
  if (!classifier) return;
  EXPECT_NEAR(loss / static_cast<double>(rows.size()), golden.floats("label/loss")[0], 1e-5);
  const std::string last =
      fmt::format("blocks.{}.hook_normalized_resid_post", model.config().n_layers - 1);
  for (const std::string& site : {std::string("blocks.0.hook_resid_pre"), last}) {
    std::vector<float> want;
    for (std::int64_t p = 0; p < golden.prompts; ++p) {
      const auto part = golden.floats(fmt::format("label/p{}/{}", p, site));
      want.insert(want.end(), part.begin(), part.end());
    }
    double largest = 0;
    for (const float v : want) largest = std::max(largest, std::abs(static_cast<double>(v)));
    expect_near(site, got.at(site), want, largest);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, Encoders,
                         testing::Values("bert", "bert_classifier", "roberta", "roberta_classifier",
                                         "distilbert", "distilbert_classifier"),
                         [](const auto& one) { return std::string(one.param); });

TEST(EncoderHeads, TheOwnFormatGivesTheSameBits) {
  const Model own = Model::load(kTests / "goldens" / "lamina_classifier");
  const Model bert = Model::load(kTests / "goldens" / "bert_classifier");
  EXPECT_EQ(own.config().labels, (std::vector<std::string>{"negative", "neutral", "positive"}));
  EXPECT_EQ(own.config().labels, bert.config().labels);
  EXPECT_EQ(own.parameters(), bert.parameters());
  Batch batch;
  batch.add(std::vector<std::int32_t>{3, 1, 4, 1, 5});
  batch.add(std::vector<std::int32_t>{9, 2});
  const std::vector<std::int64_t> rows = {0, 5};
  std::vector<float> a(6), b(6);
  Forward one(own), two(bert);
  one.run(batch);
  two.run(batch);
  one.run_logits(rows, a);
  two.run_logits(rows, b);
  EXPECT_EQ(a, b);
}

TEST(EncoderHeads, WithoutAHeadThereAreNoLogits) {
  const Model model = Model::load(kTests / "goldens" / "bert_headless");
  Batch batch;
  batch.add(std::vector<std::int32_t>{3, 1, 4});
  Forward forward(model);
  Tape tape;
  forward.run(batch, {}, {.tape = &tape});
  const std::vector<std::int64_t> rows = {0};
  std::vector<float> out;
  EXPECT_THROW(forward.run_logits(rows, out), UsageError);
  Backward backward(model);
  EXPECT_THROW(backward.seed(tape, rows, out), UsageError);
}

TEST(EncoderHeads, AClassifierIsNoLanguageModel) {
  const Model model = Model::load(kTests / "goldens" / "bert_classifier");
  Batch batch;
  batch.add(std::vector<std::int32_t>{3, 1, 4});
  Forward forward(model);
  forward.run(batch);
  const std::vector<std::int64_t> rows = {0};
  std::vector<float> words(static_cast<std::size_t>(model.config().d_vocab));
  EXPECT_THROW(forward.run_logits(rows, words), UsageError);
  KvCache cache(model.config(), 1);
  EXPECT_THROW(forward.run(batch, {}, &cache), UsageError);
}

TEST(EncoderHeads, HookedAndPlainRunsGiveTheSameLogits) {
  // Hooks at the final norm take another path through the head.
  const Model model = Model::load(kTests / "goldens" / "bert");
  Batch batch;
  batch.add(std::vector<std::int32_t>{3, 1, 4, 1, 5});
  const std::vector<std::int64_t> rows = {1, 4};
  std::vector<float> a(192), b(192);
  Forward forward(model);
  forward.run(batch);
  forward.run_logits(rows, a);
  Hooks hooks;
  hooks.read({SiteKind::ln_final_normalized, -1}, [](SiteView&) {});
  forward.run(batch, hooks);
  forward.run_logits(rows, b);
  EXPECT_EQ(a, b);
}

}  // namespace
}  // namespace lamina
