// The backward pass against torch's autograd (make_gradient_goldens.py): every site of every golden
// model, the backward rules, and the norms of parameter gradients. All prompts of a file run as one
// ragged batch here, each was computed alone there.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "lamina/core/backward.h"
#include "lamina/core/dtype.h"
#include "lamina/core/forward.h"
#include "lamina/core/model.h"
#include "lamina/core/safetensors.h"
#include "lamina/core/site.h"
#include "support.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using testing::size;

// Of the largest magnitude of the site over all prompts.
constexpr double kTolerance = 3e-5;

const fs::path kTests = fs::path(LAMINA_SOURCE_DIR) / "tests";

std::vector<std::string> files(bool rules) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kTests / "gradients")) {
    const fs::path path = entry.path();
    if (path.extension() != ".safetensors") continue;
    if ((path.stem().string().find('.') != std::string::npos) == rules)
      names.push_back(path.stem());
  }
  std::sort(names.begin(), names.end());
  return names;
}

struct Golden {
  explicit Golden(const std::string& name)
      : store(open_safetensors(kTests / "gradients" / (name + ".safetensors"))) {
    std::map<std::string, std::size_t> index;  // "p3" → prompt of the batch
    for (const TensorInfo& tensor : store.tensors()) {
      const std::string prompt = tensor.name.substr(0, tensor.name.find('/'));
      if (tensor.name == prompt + "/ids") index.emplace(prompt, 0);
    }
    std::size_t count = 0;
    for (auto& [prompt, at] : index) at = count++;
    ids.resize(count), rows.resize(count), c.resize(count), metric.resize(count);
    for (const TensorInfo& tensor : store.tensors()) {
      const std::size_t slash = tensor.name.find('/');
      const std::string prompt = tensor.name.substr(0, slash), what = tensor.name.substr(slash + 1);
      if (prompt == "norm") {
        norms[what] = floats(tensor)[0];
        continue;
      }
      const std::size_t p = index.at(prompt);
      if (what == "ids") {
        ids[p] = integers(tensor);
      } else if (what == "rows") {
        rows[p] = integers(tensor);
      } else if (what == "c") {
        c[p] = floats(tensor);
      } else if (what == "metric") {
        metric[p] = floats(tensor)[0];
      } else {
        auto& site = sites[what];
        site.resize(count);
        site[p] = floats(tensor);
      }
    }
  }

  static std::vector<float> floats(const TensorInfo& tensor) {
    std::vector<float> out(tensor.elements());
    expand_to_f32(tensor.dtype, tensor.bytes, out);
    return out;
  }
  static std::vector<std::int32_t> integers(const TensorInfo& tensor) {
    const auto* first = reinterpret_cast<const std::int32_t*>(tensor.bytes.data());
    return {first, first + tensor.elements()};
  }

  Batch batch() const { return testing::pack(ids); }
  testing::Metric seeds(const Batch& batch) const {
    testing::Metric out;
    for (std::size_t p = 0; p < ids.size(); ++p) {
      for (std::int32_t row : rows[p]) out.rows.push_back(batch.offsets[p] + row);
      out.c.insert(out.c.end(), c[p].begin(), c[p].end());
    }
    return out;
  }

  TensorStore store;
  std::vector<std::vector<std::int32_t>> ids, rows;              // [prompt]
  std::vector<std::vector<float>> c;                             // [prompt][rows · vocabulary]
  std::vector<double> metric;                                    // [prompt]
  std::map<std::string, std::vector<std::vector<float>>> sites;  // [site][prompt]
  std::map<std::string, double> norms;                           // [canonical tensor]
};

void report(const std::string& folder, const std::string& what, double error) {
  const char* path = std::getenv("LAMINA_GRADIENT_REPORT");
  if (path == nullptr) return;
  std::ofstream(path, std::ios::app) << fmt::format("{}\t{}\t{:.3e}\n", folder, what, error);
}

// The denominators of the forward pass.
using Scales = testing::SiteValues;

Scales read_scales(Forward& forward, const Batch& batch) {
  testing::SiteValues all;
  Hooks hooks;
  testing::read_all(forward.model().config(), hooks, all);
  forward.run(batch, hooks);
  std::erase_if(all,
                [](const auto& site) { return !site_name(site.first).ends_with("hook_scale"); });
  return all;
}

// The most that the terms of a denominator's gradient can add up to in one row: the length of the
// gradient at the normalised values times theirs, over the denominator.
double largest_terms(const Golden& golden, Site site,
                     const std::vector<std::vector<float>>& scale) {
  std::string name = site_name(site);
  name.replace(name.rfind("hook_scale"), 10, "hook_normalized");
  const auto& gradient = golden.sites.at(name);
  double most = 0;
  for (std::size_t p = 0; p < scale.size(); ++p) {
    const std::size_t d = gradient[p].size() / scale[p].size();
    for (std::size_t r = 0; r < scale[p].size(); ++r) {
      double squares = 0;
      for (std::size_t i = 0; i < d; ++i) {
        squares += static_cast<double>(gradient[p][r * d + i]) * gradient[p][r * d + i];
      }
      most = std::max(most, std::sqrt(squares * static_cast<double>(d)) / scale[p][r]);
    }
  }
  return most;
}

// Every site of the golden file and of the model; returns the largest error.
double compare_sites(const std::string& name, const Golden& golden, const ModelConfig& config,
                     const testing::SiteValues& got, const Scales& scales) {
  double worst = 0;
  std::set<std::string> known;
  for (const auto& [site, values] : got) {
    known.insert(site_name(site));
    const auto want = golden.sites.find(site_name(site));
    if (want == golden.sites.end()) {
      ADD_FAILURE() << name << ": " << site_name(site) << " is not in the golden file";
      continue;
    }
    if (testing::all_zero(want->second)) {
      EXPECT_TRUE(testing::all_zero(values)) << name << ": " << site_name(site) << " must be zero";
      continue;
    }
    double error = testing::relative_error(want->second, values);
    const auto scale = scales.find(site);
    if (scale != scales.end()) {
      // −Σ gradient·normalized/scale over a row. In a block whose output does not feel its input's
      // length (a norm behind it) the terms cancel, and rounding is relative to them.
      const double terms = largest_terms(golden, site, scale->second);
      const double unit = testing::largest(want->second);
      if (unit < 1e-2 * terms) error *= unit / (1e-2 * terms);
    }
    EXPECT_LE(error, kTolerance) << name << ": " << site_name(site);
    report(name, site_name(site), error);
    worst = std::max(worst, error);
  }
  for (const auto& [site, values] : golden.sites) {
    EXPECT_TRUE(known.contains(site)) << name << ": " << site << " never fired";
  }
  EXPECT_EQ(known.size(), all_sites(config).size());
  return worst;
}

void expect_metric(Forward& forward, const Golden& golden, const testing::Metric& seeds) {
  double want = 0, size_of_terms = 0;
  for (double m : golden.metric) want += m;
  for (float value : seeds.c) size_of_terms += std::abs(value);
  EXPECT_NEAR(seeds.of(forward), want, 1e-5 * size_of_terms);
}

class GradientGolden : public ::testing::TestWithParam<std::string> {};

TEST_P(GradientGolden, EverySite) {
  const Model model = Model::load(kTests / "goldens" / GetParam());
  const Golden golden(GetParam());
  ASSERT_EQ(golden.ids.size(), 4u);
  Forward forward(model);
  Backward backward(model);
  const Batch batch = golden.batch();
  const testing::Metric seeds = golden.seeds(batch);
  const testing::SiteValues got = testing::gradients(forward, backward, batch, seeds);
  expect_metric(forward, golden, seeds);
  const Scales scales = read_scales(forward, batch);
  const double worst = compare_sites(GetParam(), golden, model.config(), got, scales);
  RecordProperty("largest_relative_error", fmt::format("{:.2e}", worst));
}

// Of the mean negative log-likelihood over every position with a next token.
TEST_P(GradientGolden, ParameterNorms) {
  const Model model = Model::load(kTests / "goldens" / GetParam());
  const Golden golden(GetParam());
  Forward forward(model);
  Backward backward(model);
  const Batch batch = golden.batch();
  const std::int64_t v = model.config().d_vocab;
  Tape tape;
  forward.run(batch, {}, {.tape = &tape});
  std::vector<std::int64_t> rows;
  for (std::int64_t p = 0; p < batch.prompts(); ++p) {
    for (std::int64_t r = batch.offsets[size(p)]; r + 1 < batch.offsets[size(p) + 1]; ++r) {
      rows.push_back(r);
    }
  }
  std::vector<float> gradient(rows.size() * size(v));
  forward.run_logits(rows, gradient);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const auto row = std::span(gradient).subspan(r * size(v), size(v));
    double sum = 0;
    const double most = *std::max_element(row.begin(), row.end());
    for (float x : row) sum += std::exp(x - most);
    const auto next = size(batch.ids[size(rows[r] + 1)]);
    for (std::size_t i = 0; i < row.size(); ++i) {
      const double p = std::exp(row[i] - most) / sum;
      row[i] = static_cast<float>((p - (i == next ? 1 : 0)) / static_cast<double>(rows.size()));
    }
  }
  backward.want_parameter_norms(true);
  backward.seed(tape, rows, gradient);
  backward.run(tape);

  double largest = 0, worst = 0;
  for (const auto& [tensor, norm] : golden.norms) largest = std::max(largest, norm);
  std::set<std::string> seen;
  for (const ParameterNorm& got : backward.parameter_norms()) {
    EXPECT_TRUE(seen.insert(got.tensor).second) << got.tensor << " twice";
    const bool in_layer = std::isdigit(static_cast<unsigned char>(got.tensor[0])) != 0;
    EXPECT_EQ(got.layer, in_layer ? std::stoi(got.tensor) : -1) << got.tensor;
    const auto want = golden.norms.find(got.tensor);
    if (want == golden.norms.end()) {
      ADD_FAILURE() << GetParam() << ": no tensor " << got.tensor << " in the reference";
      continue;
    }
    // Zero in exact arithmetic: a bias of keys moves every score of a query alike.
    if (want->second < 1e-6 * largest) {
      EXPECT_LT(got.norm, 1e-6 * largest) << GetParam() << ": " << got.tensor;
      continue;
    }
    const double error = std::abs(got.norm - want->second) / want->second;
    EXPECT_LE(error, kTolerance) << GetParam() << ": " << got.tensor << ": " << got.norm
                                 << ", in the reference " << want->second;
    report(GetParam(), "norm of " + got.tensor, error);
    worst = std::max(worst, error);
  }
  EXPECT_EQ(seen.size(), golden.norms.size());
  RecordProperty("largest_relative_error", fmt::format("{:.2e}", worst));
}

INSTANTIATE_TEST_SUITE_P(Models, GradientGolden, ::testing::ValuesIn(files(false)),
                         [](const auto& test) { return test.param; });

class RuleGolden : public ::testing::TestWithParam<std::string> {};

TEST_P(RuleGolden, EverySite) {
  const std::string& name = GetParam();
  const std::string folder = name.substr(0, name.find('.')), rule = name.substr(name.find('.') + 1);
  const std::map<std::string, BackwardRules> known = {{"norm", {.frozen_norm = true}},
                                                      {"pattern", {.frozen_pattern = true}},
                                                      {"activation", {.activation_ratio = true}},
                                                      {"gate", {.half_gate = true}},
                                                      {"relp", BackwardRules::relp()}};
  ASSERT_TRUE(known.contains(rule));
  const Model model = Model::load(kTests / "goldens" / folder);
  const Golden golden(name);
  Forward forward(model);
  Backward backward(model);
  const Batch batch = golden.batch();
  const testing::Metric seeds = golden.seeds(batch);
  const BackwardRules& rules = known.at(rule);
  const testing::SiteValues got = testing::gradients(forward, backward, batch, seeds, rules);
  expect_metric(forward, golden, seeds);
  const Scales scales = read_scales(forward, batch);
  const double worst = compare_sites(name, golden, model.config(), got, scales);
  RecordProperty("largest_relative_error", fmt::format("{:.2e}", worst));
}

INSTANTIATE_TEST_SUITE_P(Models, RuleGolden, ::testing::ValuesIn(files(true)),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '.', '_');
                           return name;
                         });

TEST(GradientGoldens, AllFilesAreThere) {
  // A file that disappears must not drop out of the suite unnoticed.
  EXPECT_EQ(files(false).size(), 19u);
  EXPECT_EQ(files(true).size(), 23u);
}

}  // namespace
}  // namespace lamina
