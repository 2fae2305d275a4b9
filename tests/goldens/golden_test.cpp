// Every site of every golden model against the reference implementation (see make_goldens.py,
// make_canonical.py, make_post_norm.py, make_encoders.py, make_gguf.py). All prompts of a folder
// run as one ragged batch here, each was computed alone there.

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

#include "lamina/core/dtype.h"
#include "lamina/core/forward.h"
#include "lamina/core/model.h"
#include "lamina/core/safetensors.h"
#include "lamina/core/site.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;

// Differences are measured against the largest magnitude that the site has over all prompts: fp32
// sums in another order differ by about that times 1e-7 times the square root of their length.
constexpr double kTolerance = 2e-5;

fs::path goldens() {
  return fs::path(LAMINA_SOURCE_DIR) / "tests" / "goldens";
}

std::vector<std::string> folders() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(goldens())) {
    if (fs::exists(entry.path() / "golden.safetensors")) names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// golden.safetensors, by prompt and name.
struct Golden {
  explicit Golden(const fs::path& file) : store(open_safetensors(file)) {
    for (const TensorInfo& tensor : store.tensors()) {
      const std::size_t slash = tensor.name.find('/');
      const auto prompt = static_cast<std::size_t>(std::stoul(tensor.name.substr(1, slash - 1)));
      const std::string name = tensor.name.substr(slash + 1);
      if (name == "ids") {
        ids.resize(std::max(ids.size(), prompt + 1));
        const auto* first = reinterpret_cast<const std::int32_t*>(tensor.bytes.data());
        ids[prompt].assign(first, first + tensor.elements());
      } else {
        std::vector<float>& out = values[name][prompt];
        out.resize(tensor.elements());
        expand_to_f32(tensor.dtype, tensor.bytes, out);
      }
    }
  }
  TensorStore store;
  std::vector<std::vector<std::int32_t>> ids;
  std::map<std::string, std::map<std::size_t, std::vector<float>>> values;  // [name][prompt]
};

// Collects the values of one pass, prompt by prompt.
using Values = std::map<std::string, std::map<std::size_t, std::vector<float>>>;

Values run_model(const Model& model, const Golden& golden, std::vector<std::string>* names) {
  Batch batch;
  for (const auto& ids : golden.ids) batch.add(ids);
  Values got;
  Hooks hooks;
  for (const Site site : all_sites(model.config())) {
    names->push_back(site_name(site));
    hooks.read(site, [&got, name = names->back()](SiteView& view) {
      if (view.prompt >= 0) {
        got[name][static_cast<std::size_t>(view.prompt)].assign(view.values.begin(),
                                                                view.values.end());
        return;
      }
      const auto row = static_cast<std::size_t>(view.shape.row());
      for (std::int64_t p = 0; p < view.batch.prompts(); ++p) {
        const auto first =
            static_cast<std::size_t>(view.batch.offsets[static_cast<std::size_t>(p)]);
        const auto last =
            static_cast<std::size_t>(view.batch.offsets[static_cast<std::size_t>(p) + 1]);
        got[name][static_cast<std::size_t>(p)].assign(
            view.values.begin() + static_cast<std::ptrdiff_t>(first * row),
            view.values.begin() + static_cast<std::ptrdiff_t>(last * row));
      }
    });
  }
  Forward forward(model);
  const std::span<const float> residual = forward.run(batch, hooks);
  const auto vocabulary = static_cast<std::size_t>(model.config().d_out());
  std::vector<float> logits(static_cast<std::size_t>(batch.tokens()) * vocabulary);
  if (vocabulary > 0) forward.logits(residual, logits);
  for (std::size_t p = 0; p < golden.ids.size() && vocabulary > 0; ++p) {
    const auto first = static_cast<std::size_t>(batch.offsets[p]) * vocabulary;
    got["logits"][p].assign(
        logits.begin() + static_cast<std::ptrdiff_t>(first),
        logits.begin() + static_cast<std::ptrdiff_t>(first + golden.ids[p].size() * vocabulary));
  }
  return got;
}

// Largest difference of a site relative to its largest magnitude; infinities must agree exactly.
double compare(const std::string& folder, const std::string& site,
               const std::map<std::size_t, std::vector<float>>& want,
               const std::map<std::size_t, std::vector<float>>& got) {
  double largest = 0;
  for (const auto& [prompt, values] : want) {
    for (float v : values) {
      if (std::isfinite(v)) largest = std::max(largest, static_cast<double>(std::abs(v)));
    }
  }
  const double unit = largest > 0 ? largest : 1.0;
  double worst = 0;
  for (const auto& [prompt, values] : want) {
    const auto found = got.find(prompt);
    if (found == got.end() || found->second.size() != values.size()) {
      ADD_FAILURE() << fmt::format("{}: {}: prompt {}: {} values, expected {}", folder, site,
                                   prompt, found == got.end() ? 0 : found->second.size(),
                                   values.size());
      return INFINITY;
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float a = values[i], b = found->second[i];
      if (a == b) continue;  // also −inf = −inf
      const double difference = std::abs(static_cast<double>(a) - static_cast<double>(b)) / unit;
      // Written so that a NaN fails.
      if (!(difference <= kTolerance)) {
        ADD_FAILURE() << fmt::format(
            "{}: {}: prompt {}, index {}: {} here, {} in the reference; difference {:.2e} of the "
            "site's largest magnitude {}, allowed {:.0e}",
            folder, site, prompt, i, b, a, difference, largest, kTolerance);
        return difference;
      }
      worst = std::max(worst, difference);
    }
  }
  return worst;
}

// The site without its layer, for the report.
std::string kind_of(const std::string& site) {
  if (site.rfind("blocks.", 0) != 0) return site;
  return "blocks.*" + site.substr(site.find('.', 7));
}

class GoldenTest : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenTest, EverySiteMatchesTheReference) {
  const fs::path folder = goldens() / GetParam();
  const bool gguf = fs::exists(folder / "model.gguf");
  const Model model = Model::load(gguf ? folder / "model.gguf" : folder);
  const Golden golden(folder / "golden.safetensors");
  ASSERT_GE(golden.ids.size(), 3u);

  std::vector<std::string> names;
  const Values got = run_model(model, golden, &names);
  std::map<std::string, double> report;
  for (const auto& [site, want] : golden.values) {
    const auto found = got.find(site);
    if (found == got.end()) {
      ADD_FAILURE() << fmt::format("{}: {}: in the reference, but no site of this model",
                                   GetParam(), site);
      continue;
    }
    double& worst = report[kind_of(site)];
    worst = std::max(worst, compare(GetParam(), site, want, found->second));
  }
  // The other way round: no site goes unchecked. GGUF folders keep only a few sites.
  if (!gguf) {
    for (const std::string& name : names) {
      EXPECT_TRUE(golden.values.contains(name)) << name << " has no reference value";
    }
  }
  // LAMINA_GOLDEN_REPORT=FILE appends "folder<TAB>site<TAB>error" lines (see docs/fidelity.md).
  if (const char* path = std::getenv("LAMINA_GOLDEN_REPORT")) {
    std::ofstream out(path, std::ios::app);
    for (const auto& [site, worst] : report)
      out << fmt::format("{}\t{}\t{:.3e}\n", GetParam(), site, worst);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenTest, ::testing::ValuesIn(folders()),
                         [](const auto& name) { return name.param; });

TEST(Goldens, AreAllThere) {
  // A folder that lost its file would otherwise drop out of the suite unnoticed.
  EXPECT_EQ(folders().size(), 36u);
}

}  // namespace
}  // namespace lamina
