// Live, recorded and sharded runs of the same probes give the same results, bit for bit.

#include <gtest/gtest.h>

#include <cstring>

#include "lamina/core/error.h"
#include "lamina/core/threads.h"
#include "lamina/probes/latent.h"
#include "lamina/probes/lens.h"
#include "record/h5.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

using testing::TempDir;

// What one analysis wrote: name → bytes of every numeric dataset.
std::map<std::string, std::vector<std::byte>> read_results(const std::filesystem::path& path,
                                                           const std::string& analysis) {
  const h5::Lock lock;
  const h5::Object file = h5::open_file(path.string(), false);
  const h5::Object group = h5::open_group(file, "/analyses/" + analysis);
  std::map<std::string, std::vector<std::byte>> out;
  for (const std::string& name : h5::children(group, 1000)) {
    const h5::Object dataset = h5::open_dataset(group, name);
    const h5::Handle type(H5Dget_type(dataset.id()));
    if (H5Tget_class(type.get()) == H5T_STRING) {
      if (h5::dataset_dims(dataset).size() > 1) continue;  // words: compared in latent_test
      for (const std::string& text : h5::read_texts(dataset)) {
        for (char c : text + "\n") out[name].push_back(static_cast<std::byte>(c));
      }
      continue;
    }
    std::size_t count = H5Tget_size(type.get());
    for (hsize_t n : h5::dataset_dims(dataset)) count *= n;
    out[name].resize(count);
    EXPECT_GE(H5Dread(dataset.id(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, out[name].data()),
              0);
  }
  return out;
}

std::vector<Prompt> make_prompts(std::int64_t d_vocab) {
  std::vector<Prompt> prompts;
  for (const auto& ids : testing::random_prompts({5, 1, 9, 4, 2, 7}, d_vocab, 11)) {
    Prompt& p = prompts.emplace_back();
    p.id = "p" + std::to_string(prompts.size());
    p.ids = ids;
    p.given = static_cast<std::int64_t>(ids.size());
    if (prompts.size() % 2 == 0) p.target = static_cast<std::int32_t>(prompts.size() * 3);
  }
  return prompts;
}

// A model, its prompts, and the probes under test.
struct Fixture {
  Model model;
  Forward forward{model};
  std::unique_ptr<Readout> readout = model_readout(forward);
  std::vector<Prompt> prompts = make_prompts(model.config().d_vocab);
  std::shared_ptr<LatentTask> task = std::make_shared<LatentTask>();

  explicit Fixture(const testing::TinyConfig& config) : model(testing::tiny_model(config, 3)) {
    task->languages = {"aa", "bb", "cc"};
    for (std::size_t i = 0; i < prompts.size(); i += 2) {  // every other prompt is an item
      LatentItem item;
      item.prompt = prompts[i];
      item.words = {"a", "b", "c"};
      item.tokens = {{1, 2, 3}, {4}, {5, 60}};
      task->items.push_back(item);
    }
  }
  LensOptions lens_options() const {
    LensOptions o;
    o.positions = LensPositions::all;
    o.top_k = 4;
    o.sites = default_lens_sites(model.config());
    o.sites.push_back({SiteKind::attn_out, 1});
    return o;
  }
  std::vector<std::unique_ptr<Probe>> probes() const {
    std::vector<std::unique_ptr<Probe>> all;
    all.push_back(std::make_unique<LogitLens>(model.config(), *readout, lens_options()));
    all.push_back(std::make_unique<LatentLanguage>(model.config(), *readout, task));
    return all;
  }
};

std::vector<Probe*> pointers(const std::vector<std::unique_ptr<Probe>>& probes) {
  std::vector<Probe*> all;
  for (const auto& p : probes) all.push_back(p.get());
  return all;
}

std::filesystem::path write(const TempDir& folder, const std::string& name,
                            const std::vector<std::unique_ptr<Probe>>& probes) {
  const std::filesystem::path path = folder.path() / name;
  ResultFile file(path, {{"tool_version", "test"}});
  for (const auto& p : probes) {
    file.group(p->name());
    p->write(file);
  }
  file.close();
  return path;
}

void record(Fixture& s, const std::filesystem::path& path, std::vector<Site> sites) {
  RecordingHeader header;
  header.tool_version = "test";
  header.created_utc = "2026-01-01T00:00:00Z";
  header.model_id = "tiny";
  header.model_sha256 = std::string(64, '0');
  header.tokenizer_sha256 = std::string(64, '0');
  header.prompts_sha256 = std::string(64, '0');
  header.config = s.model.config();
  header.sites = std::move(sites);
  header.total_prompts = static_cast<std::int64_t>(s.prompts.size());
  RecordingWriter writer(path, header, s.prompts);
  run_live(s.forward, s.prompts, header.sites, {},
           [&](const ActivationBlock& block) { writer.append(block); });
  writer.finish();
}

class Runs : public ::testing::TestWithParam<testing::TinyConfig> {};

TEST_P(Runs, LiveRecordedAndShardedAreEqual) {
  Fixture s(GetParam());
  const TempDir folder;

  const auto live = s.probes();
  LiveOptions all_at_once;
  run_probes(pointers(live), s.forward, s.prompts, all_at_once);
  const auto want_lens = read_results(write(folder, "live.h5", live), "lens");
  const auto want_latent = read_results(folder.path() / "live.h5", "latent");
  EXPECT_GE(want_lens.size(), 20U);

  const auto expect_same = [&](const std::string& name, const auto& probes) {
    const std::filesystem::path path = write(folder, name + ".h5", probes);
    EXPECT_EQ(read_results(path, "lens"), want_lens) << name;
    EXPECT_EQ(read_results(path, "latent"), want_latent) << name;
  };

  const auto small_batches = s.probes();
  LiveOptions one_by_one;
  one_by_one.batch_tokens = 1;
  set_threads(1);
  run_probes(pointers(small_batches), s.forward, s.prompts, one_by_one);
  set_threads(3);
  expect_same("one by one", small_batches);

  std::vector<Site> sites = s.lens_options().sites;
  std::sort(sites.begin(), sites.end(),
            [](Site a, Site b) { return std::pair(a.layer, a.kind) < std::pair(b.layer, b.kind); });
  record(s, folder.path() / "run.h5", sites);
  const Recording recording = Recording::open(folder.path() / "run.h5");
  for (std::uint64_t bytes : {std::uint64_t{1}, std::uint64_t{1} << 30}) {
    const auto recorded = s.probes();
    run_probes(pointers(recorded), recording, bytes);
    expect_same("recorded " + std::to_string(bytes), recorded);
  }

  const auto merged = s.probes();
  for (std::int64_t first : {0, 2, 3}) {
    std::vector<std::unique_ptr<Probe>> shard;
    for (const auto& p : merged) shard.push_back(p->fresh());
    LiveOptions part;
    part.first_prompt = first;
    part.last_prompt = first == 0 ? 2 : first == 2 ? 3 : 6;
    run_probes(pointers(shard), s.forward, s.prompts, part);
    for (std::size_t i = 0; i < merged.size(); ++i) merged[i]->merge(*shard[i]);
  }
  expect_same("merged", merged);
}

// What the lens says about the last layer is what the model says.
TEST_P(Runs, TheLastSiteIsTheModel) {
  Fixture s(GetParam());
  LogitLens lens(s.model.config(), *s.readout, s.lens_options());
  Probe* probe = &lens;
  LiveOptions with_logits;
  with_logits.topk = 4;
  run_probes({&probe, 1}, s.forward, s.prompts);
  std::vector<std::int32_t> ids;
  std::vector<float> logprobs;
  run_live(s.forward, s.prompts, {}, with_logits, [&](const ActivationBlock& block) {
    ids.insert(ids.end(), block.logits.topk_ids.begin(), block.logits.topk_ids.end());
    logprobs.insert(logprobs.end(), block.logits.topk_logprobs.begin(),
                    block.logits.topk_logprobs.end());
  });
  const LensResults& r = lens.results();
  ASSERT_EQ(r.tokens(), 28);
  for (std::int64_t t = 0; t < r.tokens(); ++t) {
    for (std::int64_t i = 0; i < 4; ++i) {
      const std::int64_t at = (t * r.site_count() + r.site_count() - 1) * 4 + i;
      EXPECT_EQ(r.topk_ids[at], ids[t * 4 + i]);
      // The summary subtracts a rounded norm: one rounding of a number below 16.
      EXPECT_NEAR(r.topk_logprobs[at], logprobs[t * 4 + i], 2e-6);
    }
  }
}

TEST_P(Runs, ReadoutGivesTheHead) {
  Fixture s(GetParam());
  const ModelConfig& c = s.model.config();
  std::vector<float> weight(c.d_model), unembed(c.d_vocab * c.d_model);
  s.readout->norm_weight(weight);
  s.readout->unembedding_rows(0, c.d_vocab, unembed);
  // Logits of the first unit vector are the first column of U (bias and soft-cap apart).
  std::vector<float> x(c.d_model), zero(c.d_model), logits(c.d_vocab), base(c.d_vocab);
  x[0] = 1;
  s.readout->unembed(x, logits);
  s.readout->unembed(zero, base);
  for (std::int64_t i = 0; i < c.d_vocab; ++i) {
    const float u = unembed[i * c.d_model];
    const double cap = c.final_softcap;
    const double want = cap > 0 ? cap * std::tanh(u / cap) : u + base[i];
    EXPECT_NEAR(logits[i], want, 1e-6 * (1 + std::abs(u)));
  }
  std::vector<float> part(2 * c.d_model);
  s.readout->unembedding_rows(7, 2, part);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), unembed.begin() + 7 * c.d_model));
  EXPECT_THROW(s.readout->unembedding_rows(c.d_vocab - 1, 2, part), UsageError);
}

TEST(Recorded, AMissingSiteIsNamed) {
  Fixture s(testing::varied_configs()[0]);
  const TempDir folder;
  record(s, folder.path() / "run.h5", {{SiteKind::resid_post, 0}});
  const Recording recording = Recording::open(folder.path() / "run.h5");
  const auto probes = s.probes();
  try {
    run_probes(pointers(probes), recording);
    FAIL() << "ran without its sites";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("lens needs blocks.0.hook_resid_pre"), std::string::npos)
        << e.what();
  }
}

// Where a norm follows the last addition, no residual site holds what is unembedded.
TEST(PostNorm, IsRefused) {
  testing::TinyConfig config;
  for (const testing::TinyConfig& c : testing::varied_configs()) {
    if (c.norm_place == "post") config = c;
  }
  ASSERT_EQ(config.norm_place, "post");
  Fixture s(config);
  EXPECT_THROW(LogitLens(s.model.config(), *s.readout), UsageError);
  EXPECT_THROW(LatentLanguage(s.model.config(), *s.readout, s.task), UsageError);
}

std::vector<testing::TinyConfig> readable_configs() {
  std::vector<testing::TinyConfig> all = testing::varied_configs();
  std::erase_if(all, [](const auto& c) { return c.norm_place == "post"; });
  return all;
}

INSTANTIATE_TEST_SUITE_P(Every, Runs, ::testing::ValuesIn(readable_configs()),
                         [](const auto& param_info) {
                           std::string name;
                           for (char c : param_info.param.label) {
                             if (std::isalnum(static_cast<unsigned char>(c))) name += c;
                           }
                           return name;
                         });

}  // namespace
}  // namespace lamina
