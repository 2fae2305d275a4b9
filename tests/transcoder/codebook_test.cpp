// Codebooks against scikit-learn's k-means and the source's rule (make_codebook_goldens.py).

#include "lamina/circuits/codebook.h"

#include <gtest/gtest.h>

#include "lamina/core/forward.h"
#include "lamina/core/threads.h"
#include "support/tiny_model.h"
#include "transcoder/support.h"

namespace lamina {
namespace {

using testing::error_of;
using testing::expect_message;
using testing::random_values;

std::vector<float> golden(const std::string& name) {
  static const TensorStore store = open_safetensors(std::filesystem::path(LAMINA_SOURCE_DIR) /
                                                    "tests/transcoder/codebook.safetensors");
  const TensorInfo* tensor = store.find(name);
  if (tensor == nullptr) throw Error("no golden " + name);
  std::vector<float> values(tensor->elements());
  expand_to_f32(tensor->dtype, tensor->bytes, values);
  return values;
}

constexpr std::int64_t kWidth = 10, kCodes = 24;

TEST(KMeans, EndsWhereScikitLearnEnds) {
  KMeansOptions options;
  options.codes = kCodes;
  options.max_iterations = 300;
  options.tolerance = 0;
  const KMeansResult result = k_means_from(golden("first"), golden("x"), kWidth, options);
  EXPECT_TRUE(result.converged);
  const std::vector<float> expected = golden("centres");
  ASSERT_EQ(result.centres.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(result.centres[i], expected[i], 2e-6) << i;
  }
  // The golden is fp64, ours the sum over rows in fp32.
  EXPECT_NEAR(result.inertia.back() / golden("inertia")[0], 1, 1e-6);
  for (std::size_t i = 1; i < result.inertia.size(); ++i) {
    EXPECT_LE(result.inertia[i], result.inertia[i - 1] * (1 + 1e-12));
  }
}

TEST(KMeans, IsTheSameAtAnyThreadCountAndDependsOnTheSeed) {
  const std::vector<float> x = random_values(3000 * 7, 3);
  KMeansOptions options;
  options.codes = 300;  // more than a block of centres
  options.max_iterations = 5;
  const int before = threads();
  set_threads(1);
  const KMeansResult one = k_means(x, 7, options);
  set_threads(2);
  const KMeansResult two = k_means(x, 7, options);
  set_threads(before);
  EXPECT_EQ(one.centres, two.centres);
  EXPECT_EQ(one.inertia, two.inertia);
  options.seed = 1;
  EXPECT_NE(k_means(x, 7, options).centres, one.centres);
}

TEST(KMeans, FindsClustersThatAreThere) {
  // Eight far-apart clusters: k-means++ puts one centre in each, whatever the seed.
  std::vector<float> x = random_values(800 * 3, 5, 0.01F);
  for (std::int64_t r = 0; r < 800; ++r) {
    for (std::int64_t i = 0; i < 3; ++i) x[r * 3 + i] += (r >> i & 1) != 0 ? 10.0F : -10.0F;
  }
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    KMeansOptions options;
    options.codes = 8;
    options.seed = seed;
    EXPECT_LT(k_means(x, 3, options).inertia.back(), 800 * 3 * 0.0002) << seed;
  }
}

TEST(KMeans, AnEmptyCentreTakesTheFarthestRow) {
  const std::vector<float> x = {0, 1, 2, 100};
  KMeansOptions options;
  options.codes = 2;
  const KMeansResult result = k_means_from({1, -1000}, x, 1, options);
  EXPECT_EQ(result.centres, (std::vector<float>{1, 100}));
}

TEST(KMeans, RefusesWhatCannotBe) {
  const std::vector<float> same(50, 3.0F);
  KMeansOptions options;
  options.codes = 4;
  expect_message(error_of([&] { k_means(same, 5, options); }),
                 "4 codes asked for, but only 1 rows are different");
  options.codes = 11;
  expect_message(error_of([&] { k_means(same, 5, options); }),
                 "11 codes asked for, expected 1 to the number of rows, 10");
  options.codes = 1;
  std::vector<float> bad = same;
  bad[3] = NAN;
  expect_message(error_of([&] { k_means(bad, 5, options); }), "a row holds nan");
  expect_message(error_of([&] { k_means(same, 7, options); }), "50 values, expected rows of 7");
}

TEST(Codebook, PicksAndRebuildsAsTheSourceDoes) {
  Codebook book;
  book.site = {SiteKind::resid_post, 0};
  book.width = kWidth;
  book.codes = golden("centres");
  const std::vector<float> y = golden("y");
  for (std::int64_t k : {1, 3}) {
    book.nearest = k;
    const SparseRows z = book.encode(y);
    const std::vector<float> ids = golden("ids" + std::to_string(k)),
                             cosine = golden("cosine" + std::to_string(k)),
                             expected = golden("output" + std::to_string(k));
    ASSERT_EQ(z.feature.size(), ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ASSERT_EQ(z.feature[i], static_cast<std::int32_t>(ids[i])) << i;
      ASSERT_NEAR(z.value[i], cosine[i], 1e-6) << i;
    }
    std::vector<float> out(y.size());
    book.decode(z, out);
    for (std::size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], expected[i], 2e-6) << i;
  }
}

TEST(Codebook, SamplesAndResultsDoNotDependOnBatchesOrShards) {
  const Model model = testing::tiny_model({});
  Forward forward(model);
  std::vector<Prompt> prompts;
  for (const auto& ids : testing::random_prompts({9, 14, 1, 30, 22}, 61, 3)) {
    prompts.push_back({"p" + std::to_string(prompts.size()),
                       "",
                       ids,
                       static_cast<std::int64_t>(ids.size()),
                       {},
                       {}});
  }
  const Site site{SiteKind::z, 1};
  const auto sample = [&](std::int64_t batch) {
    RowSample probe(site, 20, 1, 5);
    Probe* const probes[] = {&probe};
    LiveOptions options;
    options.batch_tokens = batch;
    run_probes(probes, forward, prompts, options);
    return probe.rows();
  };
  const std::vector<float> rows = sample(1000);
  EXPECT_EQ(rows.size(), 20U * 24);
  EXPECT_EQ(sample(1), rows);
  RowSample first(site, 20, 1, 5);
  for (const auto& [begin, end] : {std::pair{0, 3}, {3, 5}}) {
    const std::unique_ptr<Probe> part = first.fresh();
    Probe* const probes[] = {part.get()};
    run_probes(probes, forward, std::span(prompts).subspan(begin, end - begin));
    first.merge(*part);
  }
  EXPECT_EQ(first.rows(), rows);

  Codebook book;
  book.site = site;
  book.width = 24;
  book.codes.assign(rows.begin(), rows.begin() + 6 * 24);
  book.nearest = 2;
  TranscoderConfig place;
  place.output.site = site;
  place.d_out = 24;
  OutputMeans means({place}, 1);
  Probe* mean_probe[] = {&means};
  run_probes(mean_probe, forward, prompts);
  CodebookEval whole(book, nullptr, means.means().front(), {.skip = 1});
  Probe* whole_probe[] = {&whole};
  run_probes(whole_probe, forward, prompts);
  EXPECT_EQ(whole.sums().tokens, 9 + 14 + 30 + 22 - 4);
  EXPECT_EQ(whole.sums().active, 2 * whole.sums().tokens);
  std::int64_t fired = 0;
  for (std::int64_t c = 0; c < 6; ++c) fired += whole.codes().count(c);
  EXPECT_EQ(fired, whole.sums().active);
  const auto top = whole.top_tokens();
  for (std::size_t c = 0; c < 6; ++c) {
    for (std::size_t i = 1; i < top[c].size(); ++i) {
      EXPECT_TRUE(
          top[c][i - 1].count > top[c][i].count ||
          (top[c][i - 1].count == top[c][i].count && top[c][i - 1].token < top[c][i].token));
    }
  }
  EXPECT_GE(whole.perplexity(), 1);
  EXPECT_LE(whole.perplexity(), 6.0001);
  // Written and read again.
  testing::TempDir folder;
  ResultFile file(folder.path() / "c.h5", {});
  file.group(whole.name());
  whole.write(file);
  file.close();
  const Codebook back = read_codebook(folder.path() / "c.h5");
  EXPECT_EQ(back.codes, book.codes);
  EXPECT_EQ(back.site, site);
  EXPECT_EQ(back.nearest, 2);
  expect_message(error_of([&] { read_codebook(folder.path() / "no.h5"); }), "no.h5");
}

}  // namespace
}  // namespace lamina
