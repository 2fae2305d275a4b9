// Monte-Carlo tree search over edits of a path, alone and with a model.

#include "lamina/patching/path_search.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "lamina/core/threads.h"
#include "patching/ablate_support.h"

namespace lamina::testing {
namespace {

std::string key(std::span<const Step> path) {
  std::string out;
  for (const Step& step : path) {
    out += static_cast<char>('a' + step.layer);
    if (!step.mlp) out += '\'';
    if (!step.attention) out += '"';
  }
  return out;
}

LayerPath straight(std::int32_t layers) {
  LayerPath path;
  for (std::int32_t l = 0; l < layers; ++l) path.push_back({l});
  return path;
}

// A quality without structure: any two paths differ, nothing about one tells of another.
PathValue scattered(std::span<const Step> path) {
  std::uint64_t hash = 14695981039346656037u;
  for (const char c : key(path)) hash = (hash ^ static_cast<std::uint8_t>(c)) * 1099511628211u;
  hash ^= hash >> 29;
  hash *= 0xbf58476d1ce4e5b9u;
  return {static_cast<double>(hash >> 40) / 1e6, static_cast<double>(path.size())};
}

// Every path within one and two edits, written down independently of the search: an edit takes a
// block out or puts copies of it behind it, anywhere at or behind the place that the first left.
std::set<std::string> within_two_edits(const LayerPath& whole, std::size_t edits, std::size_t block,
                                       std::size_t repeats) {
  struct State {
    LayerPath path;
    std::size_t next;
  };
  std::set<std::string> all = {key(whole)};
  std::vector<State> level = {{whole, 0}};
  for (std::size_t e = 0; e < edits; ++e) {
    std::vector<State> deeper;
    for (const State& s : level) {
      for (std::size_t i = s.next; i < s.path.size(); ++i) {
        for (std::size_t n = 1; n <= block && i + n <= s.path.size(); ++n) {
          for (std::size_t copies = 0; copies <= repeats + 1; ++copies) {
            if (copies == 1 || (copies == 0 && n == s.path.size())) continue;  // as it was; nothing
            LayerPath path(s.path.begin(), s.path.begin() + static_cast<std::ptrdiff_t>(i));
            for (std::size_t c = 0; c < copies; ++c) {
              for (std::size_t j = i; j < i + n; ++j) path.push_back(s.path[j]);
            }
            for (std::size_t j = i + n; j < s.path.size(); ++j) path.push_back(s.path[j]);
            all.insert(key(path));
            deeper.push_back({path, copies == 0 ? i : i + n * (copies - 1)});
          }
        }
      }
    }
    level = std::move(deeper);
  }
  return all;
}

TEST(PathTree, TriesEverythingWithinItsEditsAndFindsTheBest) {
  for (const auto& [layers, edits, block, repeats] : std::vector<std::array<std::int64_t, 4>>{
           {4, 1, 2, 1}, {3, 2, 2, 1}, {4, 2, 1, 2}, {5, 2, 3, 1}}) {
    const LayerPath whole = straight(static_cast<std::int32_t>(layers));
    const std::set<std::string> all =
        within_two_edits(whole, static_cast<std::size_t>(edits), static_cast<std::size_t>(block),
                         static_cast<std::size_t>(repeats));
    for (const std::uint64_t seed : {0u, 1u, 2u}) {
      std::map<std::string, int> calls;
      const TreeResult r = search_tree(whole,
                                       [&](std::span<const Step> path) {
                                         ++calls[key(path)];
                                         return scattered(path);
                                       },
                                       {.simulations = 100000,
                                        .cost = 0.01,
                                        .edits = edits,
                                        .block = block,
                                        .repeats = repeats,
                                        .seed = seed});
      EXPECT_TRUE(r.exhausted);
      std::set<std::string> tried;
      double best = -1e9;
      for (const PathTried& t : r.tried) {
        tried.insert(key(t.path));
        EXPECT_DOUBLE_EQ(t.reward, t.value.quality - 0.01 * t.value.layers);
        best = std::max(best, t.reward);
      }
      EXPECT_EQ(tried, all);
      EXPECT_EQ(r.tried.size(), all.size());
      EXPECT_EQ(r.tried[r.best].reward, best);
      EXPECT_EQ(key(r.tried[0].path), key(whole));
      for (const auto& [path, times] : calls) EXPECT_EQ(times, 1) << path;
    }
  }
}

TEST(PathTree, KeepsItsBudgetAndItsSeed) {
  const LayerPath whole = straight(12);
  TreeOptions options{.simulations = 150, .edits = 3};
  std::int64_t told = 0;
  options.progress = [&](std::int64_t done) { told = done; };
  const TreeResult a = search_tree(whole, scattered, options);
  EXPECT_EQ(a.tried.size(), 151u);
  EXPECT_EQ(told, 150);
  EXPECT_FALSE(a.exhausted);
  const TreeResult b = search_tree(whole, scattered, options);
  ASSERT_EQ(b.tried.size(), a.tried.size());
  for (std::size_t i = 0; i < a.tried.size(); ++i)
    EXPECT_EQ(key(a.tried[i].path), key(b.tried[i].path));
  options.seed = 9;
  const TreeResult c = search_tree(whole, scattered, options);
  EXPECT_FALSE(std::ranges::equal(
      a.tried, c.tried, {}, [](const PathTried& t) { return key(t.path); },
      [](const PathTried& t) { return key(t.path); }));
  options.simulations = 0;
  EXPECT_EQ(search_tree(whole, scattered, options).tried.size(), 1u);
}

// Where good edits add up, the tree must reach them long before chance would: of 10 layers three
// are harmful and one is worth repeating; the best path needs four edits out of some 10^5.
TEST(PathTree, ClimbsWhereEditsAddUp) {
  const LayerPath whole = straight(10);
  const auto quality = [](std::span<const Step> path) {
    std::array<int, 10> times{};
    for (const Step& step : path) ++times[static_cast<std::size_t>(step.layer)];
    double value = 0;
    for (std::size_t l = 0; l < 10; ++l) {
      const int want = l == 2 || l == 5 || l == 8 ? 0 : l == 6 ? 2 : 1;
      value -= std::abs(times[l] - want);
    }
    return PathValue{value, static_cast<double>(path.size())};
  };
  int found = 0, random_found = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    TreeOptions options{.simulations = 1500, .edits = 4, .block = 1, .repeats = 1, .seed = seed};
    const TreeResult r = search_tree(whole, quality, options);
    found += r.tried[r.best].value.quality == 0 ? 1 : 0;
    options.explore = 1e9;  // the rewards do not matter: breadth first
    const TreeResult blind = search_tree(whole, quality, options);
    random_found += blind.tried[blind.best].value.quality == 0 ? 1 : 0;
  }
  EXPECT_GE(found, 18);
  EXPECT_LE(random_found, 5);
}

TEST(PathTree, UselessPathsAreNotErrors) {
  const LayerPath whole = straight(4);
  const TreeResult r = search_tree(
      whole,
      [](std::span<const Step> path) {
        return PathValue{path.size() > 4 ? std::nan("") : static_cast<double>(path.size()), 0};
      },
      {.simulations = 1000, .edits = 2});
  EXPECT_TRUE(r.exhausted);
  EXPECT_EQ(r.best, 0u);
  EXPECT_THROW(search_tree({}, scattered, {}), UsageError);
  EXPECT_THROW(search_tree(whole, scattered, {.block = 0}), UsageError);
}

class ModelSearch : public ::testing::Test {
 protected:
  Model model = Model::load(ablate_folder() / "ablate_model");
  Forward forward{model};
  PathPrompts prompts = golden_prompts();
};

TEST_F(ModelSearch, QualitiesAreThoseOfRunsOfTheirOwn) {
  prompts.answers[0] = {7};
  prompts.answers[1] = {3, 9};
  PathSearchOptions options;
  options.tree = {.simulations = 60, .edits = 3, .seed = 4};
  const std::vector<PromptPaths> found = search_paths(forward, prompts, options);
  ASSERT_EQ(found.size(), 3u);
  for (std::size_t p = 0; p < 3; ++p) {
    ASSERT_EQ(found[p].tree.tried.size(), 61u);
    EXPECT_EQ(found[p].tree.tried[0].path, all_steps(model.config()));
    EXPECT_LT(found[p].steps_run, found[p].steps_asked);
    PathPrompts one;
    one.ids = {"x"};
    one.tokens = {prompts.tokens[p]};
    one.answers = {found[p].answers};
    PathJudge judge(forward, one, {.last_only = true});
    for (std::size_t i = 0; i < 61; ++i) {
      const PathTried& tried = found[p].tree.tried[i];
      const PathQuality q = judge.judge(tried.path);
      EXPECT_EQ(tried.value.quality, -q.nll);
      EXPECT_EQ(tried.value.layers, q.layers);
      EXPECT_EQ(found[p].right[i], q.accuracy);
    }
  }
  // Without an answer the whole model's own is wanted.
  EXPECT_EQ(found[2].right[0], 1);
  EXPECT_EQ(found[0].answers, prompts.answers[0]);
}

TEST_F(ModelSearch, DependsOnTheSeedAlone) {
  PathSearchOptions options;
  options.tree = {.simulations = 40, .edits = 3, .seed = 1};
  const std::vector<PromptPaths> a = search_paths(forward, prompts, options);
  const auto paths = [](const PromptPaths& found) {
    std::vector<std::string> all;
    for (const PathTried& t : found.tree.tried) all.push_back(key(t.path));
    return all;
  };
  for (const int threads : {1, 4}) {
    set_threads(threads);
    options.memory = threads == 1 ? 0 : std::uint64_t{1} << 30;
    const std::vector<PromptPaths> b = search_paths(forward, prompts, options);
    for (std::size_t p = 0; p < a.size(); ++p) {
      EXPECT_EQ(paths(a[p]), paths(b[p]));
      for (std::size_t i = 0; i < a[p].tree.tried.size(); ++i) {
        EXPECT_EQ(a[p].tree.tried[i].value.quality, b[p].tree.tried[i].value.quality);
      }
    }
  }
  set_threads(2);
  EXPECT_NE(paths(a[0]), paths(a[1]));  // a stream for each prompt
  options.tree.seed = 2;
  EXPECT_NE(paths(search_paths(forward, prompts, options)[0]), paths(a[0]));
}

TEST_F(ModelSearch, SublayersOneByOneAreTheModel) {
  PathSearchOptions options;
  options.sublayers = true;
  options.tree = {.simulations = 30, .edits = 2};
  const std::vector<PromptPaths> found = search_paths(forward, prompts, options);
  PathSearchOptions whole;
  whole.tree.simulations = 0;
  const std::vector<PromptPaths> plain = search_paths(forward, prompts, whole);
  EXPECT_EQ(found[0].tree.tried[0].path.size(), 8u);
  EXPECT_EQ(found[0].tree.tried[0].value.quality, plain[0].tree.tried[0].value.quality);
  EXPECT_DOUBLE_EQ(found[0].tree.tried[0].value.layers, 4.0);

  const Model parallel = tiny_model(varied_configs()[2]);
  Forward other(parallel);
  EXPECT_THROW(search_paths(other, prompts, options), UsageError);
}

TEST_F(ModelSearch, BudgetsFallAndQualitiesWithThem) {
  prompts.answers[0] = {7};
  PathSearchOptions options;
  options.tree = {.simulations = 80, .edits = 3};
  const std::vector<PromptPaths> found = search_paths(forward, prompts, options);
  const std::vector<BudgetRow> rows = budget_table(found);
  ASSERT_GT(rows.size(), 3u);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    EXPECT_LE(rows[i].used, rows[i].layers);
    if (i == 0) continue;
    EXPECT_LT(rows[i].layers, rows[i - 1].layers);
    if (rows[i].prompts == rows[i - 1].prompts) {
      EXPECT_LE(rows[i].quality, rows[i - 1].quality);
    }
  }
  // The first row is the best of everything.
  double best = 0;
  for (const PromptPaths& prompt : found) {
    double most = -1e9;
    for (const PathTried& t : prompt.tree.tried) most = std::max(most, t.value.quality);
    best += most / 3;
    const std::int64_t shortest = prompt.shortest_right();
    for (std::size_t i = 0; i < prompt.tree.tried.size(); ++i) {
      if (prompt.right[i] == 0) continue;
      ASSERT_GE(shortest, 0);
      EXPECT_LE(prompt.tree.tried[static_cast<std::size_t>(shortest)].value.layers,
                prompt.tree.tried[i].value.layers);
    }
  }
  EXPECT_NEAR(rows[0].quality, best, 1e-12);
}

}  // namespace
}  // namespace lamina::testing
