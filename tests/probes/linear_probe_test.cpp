// Linear probes: against scikit-learn, on planted directions, on labels that mean nothing, and on
// inputs that cannot be fitted.

#include "lamina/probes/linear_probe.h"

#include <cmath>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "lamina/core/threads.h"
#include "support.h"

namespace lamina {
namespace {

using Json = nlohmann::json;

const Json& goldens() {
  static const Json json = [] {
    std::ifstream file(std::string(LAMINA_SOURCE_DIR) + "/tests/probes/probing.json");
    return Json::parse(file);
  }();
  return json;
}

double normal(std::mt19937_64& random) {
  const auto uniform = [&] { return (static_cast<double>(random() >> 11) + 0.5) * 0x1.0p-53; };
  const double radius = std::sqrt(-2 * std::log(uniform()));
  return radius * std::cos(2 * std::acos(-1.0) * uniform());
}

double cosine(std::span<const double> a, std::span<const double> b) {
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    ab += a[i] * b[i], aa += a[i] * a[i], bb += b[i] * b[i];
  return ab / std::sqrt(aa * bb);
}

// |got − want| ≤ tolerance · (largest |want| + 1e-3).
void expect_near(const std::vector<double>& got, const Json& want, double tolerance,
                 const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double largest = 1e-3;
  for (const auto& v : want) largest = std::max(largest, std::abs(v.get<double>()));
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(got[i], want[i].get<double>(), tolerance * largest) << what << " [" << i << "]";
  }
}

class AgainstScikitLearn : public ::testing::TestWithParam<const char*> {};

TEST_P(AgainstScikitLearn, EveryNumberAgrees) {
  const Json& g = goldens()[GetParam()];
  LinearProbeOptions options;
  options.kind = parse_probe_kind(g["kind"].get<std::string>());
  options.strengths = g["strengths"].get<std::vector<double>>();
  options.folds = g["folds"];
  options.shrinkage = g["shrinkage"];
  options.resamples = 50;
  const auto values = g["values"].get<std::vector<float>>();
  const auto fold = g["fold"].get<std::vector<std::int32_t>>();
  ProbeTargets targets;
  targets.units = static_cast<std::int32_t>(fold.size());
  for (std::int32_t r = 0; r < targets.units; ++r) targets.unit.push_back(r);
  const bool ridge = options.kind == ProbeKind::ridge;
  if (ridge) {
    targets.value = g["labels"].get<std::vector<double>>();
  } else {
    targets.label = g["labels"].get<std::vector<std::int32_t>>();
    for (int c = 0; c < g["classes"].get<int>(); ++c) targets.classes.push_back(std::to_string(c));
  }
  const SiteProbe probe = probe_site("golden", values, g["width"], targets, fold, options);

  // Both minimise a strictly convex function, to derivatives of about 1e-9 (here) and below.
  constexpr double kTolerance = 2e-7;
  EXPECT_EQ(probe.fold_strength, g["fold_strength"].get<std::vector<double>>());
  EXPECT_EQ(probe.strength, g["strength"].get<double>());
  expect_near(probe.path_loss, g["path_loss"], kTolerance, "path loss");
  expect_near(probe.path_score, g["path_score"], kTolerance, "path score");
  expect_near(probe.decision, g["decision"], kTolerance, "held-out scores");
  expect_near(probe.weight, g["weight"], kTolerance, "weights");
  expect_near(probe.bias, g["bias"], kTolerance, "biases");
  EXPECT_LT(probe.residual, 1e-9);
  if (ridge) {
    EXPECT_NEAR(probe.r2.value, g["r2"].get<double>(), kTolerance);
    EXPECT_TRUE(probe.direction.empty());
    return;
  }
  EXPECT_NEAR(probe.accuracy.value, g["accuracy"].get<double>(), 1e-15);
  EXPECT_NEAR(probe.balanced_accuracy.value, g["balanced_accuracy"].get<double>(), 1e-14);
  expect_near(probe.direction, g["direction"], 1e-12, "difference of means");
  for (std::size_t c = 0; c < probe.direction_auroc.size(); ++c) {
    EXPECT_NEAR(probe.direction_auroc[c].value, g["direction_auroc"][c].get<double>(), 1e-14);
  }
  if (g.contains("auroc")) {
    EXPECT_NEAR(probe.auroc.value, g["auroc"].get<double>(), 1e-14);
    expect_near(probe.whitened, g["whitened"], 1e-9, "whitened direction");
  } else {
    EXPECT_TRUE(std::isnan(probe.auroc.value));
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, AgainstScikitLearn,
                         ::testing::Values("binary", "binary_wide", "three", "three_wide", "ridge",
                                           "ridge_wide"));

// Rows of noise, with `shift`·v added where the label is 1.
struct Planted {
  static constexpr std::int64_t kRows = 400, kWidth = 48;
  std::vector<float> values;
  std::vector<double> direction;  // unit
  std::vector<FeatureRow> rows;

  Planted(double shift, std::uint64_t seed, double noise_scale = 1.0) {
    std::mt19937_64 random(seed);
    double norm = 0;
    for (std::int64_t i = 0; i < kWidth; ++i) direction.push_back(normal(random));
    for (double v : direction) norm += v * v;
    for (double& v : direction) v /= std::sqrt(norm);
    for (std::int64_t r = 0; r < kRows; ++r) {
      const bool one = random() % 2 == 1;
      for (double v : direction) {
        values.push_back(
            static_cast<float>(noise_scale * normal(random) + (one ? shift * v : 0.0)));
      }
      FeatureRow row;
      row.prompt = r;
      row.label = one ? "yes" : "no";
      row.prompt_id = row.group = std::to_string(r);
      rows.push_back(row);
    }
  }
  SiteProbe probe(const LinearProbeOptions& options) const {
    const ProbeTargets targets = probe_targets(rows, options.kind);
    return probe_site("planted", values, kWidth, targets, deal_folds(targets, options), options);
  }
};

TEST(LinearProbe, FindsAPlantedDirection) {
  const Planted planted(4.0, 7);
  const SiteProbe probe = planted.probe({});
  // Difference of means: noise of norm √D·2/√n against a length of 4 → cosine about 0.985.
  EXPECT_GT(cosine(probe.direction, planted.direction), 0.97);
  // Whitening by a covariance of D of n ranks costs a factor √(1 − D/n): about 0.92. Logistic
  // regression at 4σ has a third of its efficiency (Efron 1975): sin² three times as large.
  EXPECT_GT(cosine(probe.whitened, planted.direction), 0.90);
  EXPECT_GT(cosine(probe.weight, planted.direction), 0.80);
  // The classes lie 4σ apart: the best accuracy is Φ(2) = 0.977, the best AUROC Φ(4/√2) = 0.998.
  EXPECT_GT(probe.accuracy.value, 0.95);
  EXPECT_GT(probe.auroc.value, 0.985);
  EXPECT_GT(probe.direction_auroc[0].value, 0.985);
  EXPECT_LT(probe.accuracy.low, 0.977);
  EXPECT_GT(probe.accuracy.high, 0.95);
  EXPECT_NEAR(probe.selectivity, probe.accuracy.value - probe.control_mean, 1e-15);
  EXPECT_GT(probe.selectivity, 0.35);
}

TEST(LinearProbe, IsAtChanceWhereNothingIsToBeFound) {
  int inside = 0;
  std::vector<double> all;
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    const Planted nothing(0.0, 100 + seed);
    const SiteProbe probe = nothing.probe({.controls = 3, .resamples = 200, .seed = seed});
    // 400 tosses: 0.5 ± 4 standard deviations of 0.025.
    EXPECT_NEAR(probe.accuracy.value, 0.5, 0.1);
    EXPECT_NEAR(probe.auroc.value, 0.5, 0.12);
    inside += probe.auroc.low <= 0.5 && probe.auroc.high >= 0.5;
    for (double c : probe.control) all.push_back(c);
  }
  EXPECT_GE(inside, 6);  // of 8 95 % intervals
  const double mean =
      std::accumulate(all.begin(), all.end(), 0.0) / static_cast<double>(all.size());
  EXPECT_NEAR(mean, 0.5, 4 * 0.025 / std::sqrt(static_cast<double>(all.size())));
}

TEST(LinearProbe, ShuffledLabelsOfAPlantedDirectionAreAtChance) {
  const SiteProbe probe = Planted(4.0, 3).probe({.controls = 12, .resamples = 0});
  ASSERT_EQ(probe.control.size(), 12u);
  for (double c : probe.control) EXPECT_NEAR(c, 0.5, 0.1);
  EXPECT_NEAR(probe.control_mean, 0.5, 4 * 0.025 / std::sqrt(12.0));
}

void expect_same_bits(const SiteProbe& a, const SiteProbe& b) {
  EXPECT_EQ(a.weight, b.weight);
  EXPECT_EQ(a.bias, b.bias);
  EXPECT_EQ(a.decision, b.decision);
  EXPECT_EQ(a.path_loss, b.path_loss);
  EXPECT_EQ(a.control, b.control);
  EXPECT_EQ(a.whitened, b.whitened);
  EXPECT_EQ(a.balanced_accuracy.low, b.balanced_accuracy.low);
  EXPECT_EQ(a.auroc.high, b.auroc.high);
}

TEST(LinearProbe, SameBitsAtAnyNumberOfThreads) {
  const Planted planted(1.0, 5);
  const int before = threads();
  set_threads(1);
  const SiteProbe one = planted.probe({.seed = 9});
  set_threads(2);
  const SiteProbe two = planted.probe({.seed = 9});
  const SiteProbe again = planted.probe({.seed = 9});
  const SiteProbe other = planted.probe({.seed = 10});
  set_threads(before);
  expect_same_bits(one, two);
  expect_same_bits(two, again);
  EXPECT_NE(one.control, other.control);
  EXPECT_NE(one.decision, other.decision);
}

TEST(LinearProbe, RidgeReadsANumber) {
  Planted planted(0.0, 21);
  for (std::size_t r = 0; r < planted.rows.size(); ++r) {
    double y = 10;
    for (std::size_t i = 0; i < planted.direction.size(); ++i) {
      y += 3 * planted.direction[i] * planted.values[r * Planted::kWidth + i];
    }
    planted.rows[r].label = std::to_string(y);
  }
  const SiteProbe probe = planted.probe({.kind = ProbeKind::ridge});
  EXPECT_GT(probe.r2.value, 0.999);
  EXPECT_GT(cosine(probe.weight, planted.direction), 0.9999);
  EXPECT_NEAR(probe.bias[0], 10, 0.1);
  EXPECT_LT(probe.control_mean, 0.1);
}

// Rows of one prompt, and prompts of one group, are never parted; each fold has its share of each
// class.
TEST(Folds, KeepUnitsTogether) {
  std::vector<FeatureRow> rows;
  for (int p = 0; p < 30; ++p) {
    for (int t = 0; t <= p % 4; ++t) {
      FeatureRow row;
      row.prompt = p;
      row.label = p % 3 == 0 ? "a" : "b";
      row.group = std::to_string(p);
      rows.push_back(row);
    }
  }
  const ProbeTargets targets = probe_targets(rows, ProbeKind::logistic);
  const std::vector<std::int32_t> fold = deal_folds(targets, {.folds = 5, .seed = 4});
  std::vector<int> prompts_of_a(5, 0);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    if (r > 0 && rows[r].prompt == rows[r - 1].prompt) {
      EXPECT_EQ(fold[r], fold[r - 1]);
    } else if (rows[r].label == "a") {
      ++prompts_of_a[static_cast<std::size_t>(fold[r])];
    }
  }
  EXPECT_EQ(prompts_of_a, std::vector<int>(5, 2));
  EXPECT_NE(fold, deal_folds(targets, {.folds = 5, .seed = 5}));
}

std::string message(const std::function<void()>& what) {
  try {
    what();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  return "no error";
}

TEST(LinearProbe, RefusesWhatCannotBeFitted) {
  Planted planted(1.0, 11);
  const auto says = [&](const Planted& p, const LinearProbeOptions& options, const char* text) {
    const std::string found = message([&] { p.probe(options); });
    EXPECT_NE(found.find(text), std::string::npos) << found;
  };
  says(planted, {.folds = 401}, "400 prompts (or groups) with labels are fewer than 401 folds");
  says(planted, {.folds = 2}, "2 folds: at least 3 expected");
  says(planted, {.strengths = {}}, "no regularisation strength");
  says(planted, {.strengths = {0.0}}, "strength 0");
  says(planted, {.kind = ProbeKind::ridge}, "ridge regression needs a finite number");
  Planted bad = planted;
  bad.values[5 * Planted::kWidth + 3] = std::nanf("");
  says(bad, {}, "planted: row 5 of 400 holds nan at component 3");
  bad = planted;
  std::fill(bad.values.begin(), bad.values.end(), 2.5F);
  says(bad, {}, "all 48 features are the same in all 400 rows");
  bad = planted;
  for (FeatureRow& row : bad.rows) row.label = "no";
  says(bad, {}, "all 400 rows have the label 'no'");
  for (FeatureRow& row : bad.rows) row.label = "3";
  says(bad, {.kind = ProbeKind::ridge}, "all 400 labels are 3");
  bad.rows[0].label = "inf";
  says(bad, {.kind = ProbeKind::ridge}, "'inf', ridge regression needs a finite number");
  bad = planted;
  bad.rows[0].label = bad.rows[1].label = "rare";
  says(bad, {}, "label 'rare': its 2 rows all stand in 2 of 5 folds");
  for (std::size_t r = 0; r < bad.rows.size(); ++r) bad.rows[r].label = std::to_string(r);
  says(bad, {}, "more than 256 values");
  bad.rows.clear();
  says(bad, {}, "no prompt has the label");
}

// A constant feature among others gets no weight; a class apart by a gap stays finite.
TEST(LinearProbe, ConstantFeaturesAndSeparableClasses) {
  Planted planted(60.0, 12);
  for (std::int64_t r = 0; r < Planted::kRows; ++r) planted.values[r * Planted::kWidth + 7] = 1e4F;
  const SiteProbe probe = planted.probe({.strengths = {1e-6, 1}});
  EXPECT_EQ(probe.constant_features, 1);
  EXPECT_EQ(probe.weight[7], 0.0);
  EXPECT_EQ(probe.accuracy.value, 1.0);
  EXPECT_LT(probe.accuracy.low, 1.0);  // 400 right of 400 do not prove every next one right
  EXPECT_EQ(probe.auroc.value, 1.0);
  for (double w : probe.weight) EXPECT_TRUE(std::isfinite(w));
  EXPECT_LT(probe.residual, 1e-8);
}

}  // namespace
}  // namespace lamina
