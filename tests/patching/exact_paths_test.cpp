// Path patching against whole runs with hooks, and against what the sums must be.

#include <cmath>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "lamina/core/threads.h"
#include "lamina/patching/path_patching.h"
#include "patching/exact_support.h"

namespace lamina {
namespace {

using namespace testing;
using Kind = Receiver::Kind;

std::vector<TinyConfig> sum_configs() {
  std::vector<TinyConfig> all = patch_configs();
  std::erase_if(all, [](const TinyConfig& c) { return c.norm_place == "post"; });
  return all;
}

class ExactPaths : public ::testing::TestWithParam<TinyConfig> {
 protected:
  Model model_ = tiny_model(GetParam(), 6);
  Forward forward_{model_};
  const ModelConfig& config_ = model_.config();
  std::vector<Pair> pairs_ = random_pairs({8, 11, 6, 8}, GetParam().d_vocab, 2);
  Metric metric_{MetricKind::logit_diff, pairs_, GetParam().d_vocab};

  std::vector<Node> senders() const {
    std::vector<Node> out;
    for (std::int32_t l = 0; l < config_.n_layers; ++l) {
      for (std::int64_t h = 0; h < config_.n_heads; ++h) {
        out.push_back({.site = {SiteKind::z, l}, .head = h});
      }
      out.push_back({.site = {SiteKind::z, l}, .position = 7, .head = 2});
      if (config_.d_mlp > 0) out.push_back({.site = {SiteKind::mlp_out, l}});
    }
    return out;
  }

  /// The two passes as whole runs.
  double slowly(std::size_t p, const Node& sender, const std::vector<Receiver>& receivers,
                Through through) {
    const Pair& pair = pairs_[p];
    const AllSites base = record_all(forward_, pair.clean);
    const AllSites other = record_all(forward_, pair.corrupted);
    const auto put = [](Hooks& hooks, Site site, const std::vector<float>& values) {
      hooks.write(site, [&values](SiteView& view) {
        std::copy(values.begin(), values.end(), view.values.begin());
      });
    };
    Hooks first;
    for (std::int32_t l = sender.site.layer; l < config_.n_layers; ++l) {
      if (through != Through::all && l > sender.site.layer) {
        put(first, {SiteKind::attn_out, l}, base.at({SiteKind::attn_out, l}));
      }
      if (through == Through::none && config_.d_mlp > 0) {
        put(first, {SiteKind::mlp_out, l}, base.at({SiteKind::mlp_out, l}));
      }
    }
    first.write(sender.site, [&](SiteView& view) {
      for_values(sender, config_, pair.tokens(),
                 [&](std::size_t i) { view.values[i] = other.at(sender.site)[i]; });
    });
    AllSites got;
    for (const Site site : all_sites(config_)) {
      first.read(site, [&got, site](SiteView& view) {
        got[site].assign(view.values.begin(), view.values.end());
      });
    }
    bool logits = false, others = false;
    for (const Receiver& r : receivers) (r.kind == Kind::logits ? logits : others) = true;
    const std::vector<float> direct = last_logits(forward_, pair.clean, first);
    const auto index = static_cast<std::int64_t>(p);
    if (!others) return metric_.value(index, direct);
    bool reached = false;  // whether any receiver but the logits read anything new
    Hooks second;
    for (const Receiver& r : receivers) {
      if (r.kind == Kind::mlp) {
        const Site pre{SiteKind::mlp_pre, r.layer}, linear{SiteKind::mlp_pre_linear, r.layer};
        reached = reached || got.at(pre) != base.at(pre);
        reached = reached || (config_.gated && got.at(linear) != base.at(linear));
        put(second, pre, got.at(pre));
        if (config_.gated) {
          put(second, linear, got.at(linear));
        }
      } else if (r.kind != Kind::logits) {
        const SiteKind kind = r.kind == Kind::q   ? SiteKind::q
                              : r.kind == Kind::k ? SiteKind::k
                                                  : SiteKind::v;
        const Node node{.site = {kind, r.layer}, .head = r.head};
        for_values(node, config_, pair.tokens(), [&](std::size_t i) {
          reached = reached || got.at(node.site)[i] != base.at(node.site)[i];
        });
        second.write(node.site, [&, node](SiteView& view) {
          for_values(node, config_, pair.tokens(),
                     [&](std::size_t i) { view.values[i] = got.at(node.site)[i]; });
        });
      }
    }
    if (logits && !reached) return metric_.value(index, direct);
    const Site last{SiteKind::resid_post, static_cast<std::int32_t>(config_.n_layers - 1)};
    if (logits) {
      second.write(last, [&](SiteView& view) {
        const std::int64_t from = (pair.tokens() - 1) * config_.d_model;
        for (std::int64_t i = from; i < from + config_.d_model; ++i) {
          const auto at = static_cast<std::size_t>(i);
          view.values[at] += got.at(last)[at] - base.at(last)[at];
        }
      });
    }
    return metric_.value(index, last_logits(forward_, pair.clean, second));
  }
};

INSTANTIATE_TEST_SUITE_P(Blocks, ExactPaths, ::testing::ValuesIn(sum_configs()),
                         [](const auto& test) { return plain_name(test.param.label); });

TEST_P(ExactPaths, EqualsWholeRunsBitForBit) {
  const auto top = static_cast<std::int32_t>(config_.n_layers - 1);
  std::vector<std::vector<Receiver>> sets = {
      {{Kind::logits, -1, -1}},
      {{Kind::q, top, 1}},
      {{Kind::k, top, 0}, {Kind::v, top, 1}},
      {{Kind::v, top / 2, 0}, {Kind::q, top, 3}},
      {{Kind::q, top, 2}, {Kind::logits, -1, -1}},
  };
  if (config_.d_mlp > 0) {
    sets.push_back({{Kind::mlp, top, -1}});
    sets.push_back({{Kind::mlp, 0, -1}, {Kind::v, top, 0}, {Kind::logits, -1, -1}});
  }
  const std::vector<Node> senders = this->senders();
  for (const std::vector<Receiver>& receivers : sets) {
    for (const Through through : {Through::none, Through::mlps, Through::all}) {
      const bool logits = std::any_of(receivers.begin(), receivers.end(),
                                      [](const Receiver& r) { return r.kind == Kind::logits; });
      if (through == Through::all && logits && receivers.size() > 1) {
        EXPECT_THROW(
            patch_paths(forward_, pairs_, metric_, senders, receivers, {.through = Through::all}),
            UsageError);
        continue;
      }
      const PatchResult result =
          patch_paths(forward_, pairs_, metric_, senders, receivers, {.through = through});
      for (std::size_t n = 0; n < senders.size(); ++n) {
        for (std::size_t p = 0; p < pairs_.size(); ++p) {
          if (senders[n].position >= pairs_[p].tokens()) continue;
          EXPECT_EQ(result.patched[n * pairs_.size() + p],
                    slowly(p, senders[n], receivers, through))
              << node_name(senders[n]) << " → " << receiver_name(receivers[0]) << " …, through "
              << static_cast<int>(through) << ", pair " << p;
        }
      }
    }
  }
}

TEST_P(ExactPaths, MemoryThreadsAndDirection) {
  const std::vector<Node> senders = this->senders();
  const std::vector<Receiver> receivers = {
      {Kind::v, static_cast<std::int32_t>(config_.n_layers - 1), 0}, {}};
  const int before = threads();
  set_threads(1);
  PathOptions options{.through = Through::mlps};
  const PatchResult one = patch_paths(forward_, pairs_, metric_, senders, receivers, options);
  set_threads(2);
  options.memory = 5000;
  const PatchResult two = patch_paths(forward_, pairs_, metric_, senders, receivers, options);
  set_threads(before);
  EXPECT_EQ(one.runs, two.runs);
  for (std::size_t i = 0; i < one.patched.size(); ++i) {
    EXPECT_TRUE(one.patched[i] == two.patched[i] || std::isnan(one.patched[i]));
  }
  // The other direction is the same with the prompts exchanged.
  options.direction = Direction::denoise;
  std::vector<Pair> exchanged = pairs_;
  for (Pair& pair : exchanged) std::swap(pair.clean, pair.corrupted);
  const PatchResult back = patch_paths(forward_, exchanged, metric_, senders, receivers, options);
  EXPECT_EQ(back.corrupted, one.clean);
  for (std::size_t i = 0; i < one.patched.size(); ++i) {
    EXPECT_TRUE(one.patched[i] == back.patched[i] || std::isnan(one.patched[i]));
  }
}

// In a model without norms, what heads write to the logits directly adds up: all heads at once are
// the sum of each alone, and through everything it is plain patching.
TEST(ExactPathSums, DirectEffectsOfHeadsAddUp) {
  TinyConfig tiny = varied_configs().back();
  ASSERT_EQ(tiny.norm, "none");
  const Model model = tiny_model(tiny, 3);
  Forward forward(model);
  const std::vector<Pair> pairs = random_pairs({7, 9}, tiny.d_vocab, 5);
  const Metric metric(MetricKind::logit_diff, pairs, tiny.d_vocab);
  const std::vector<Receiver> logits = {{}};
  std::vector<Node> nodes = {{.site = {SiteKind::z, 1}}};
  for (std::int64_t h = 0; h < tiny.n_heads; ++h)
    nodes.push_back({.site = {SiteKind::z, 1}, .head = h});
  const PatchResult direct = patch_paths(forward, pairs, metric, nodes, logits);
  double sum = 0.0;
  for (std::size_t n = 1; n < nodes.size(); ++n) sum += direct.patched[n * 2] - direct.clean[0];
  EXPECT_NE(sum, 0.0);
  EXPECT_NEAR(direct.patched[0] - direct.clean[0], sum, 1e-5);
  const PatchResult all =
      patch_paths(forward, pairs, metric, nodes, logits, {.through = Through::all});
  const PatchResult plain =
      patch_exactly(forward, pairs, metric, nodes, {.direction = Direction::noise});
  EXPECT_EQ(all.patched, plain.patched);
}

TEST(ExactPathErrors, AreNamed) {
  const Model model = tiny_model({.label = "gated rotary grouped"});
  Forward forward(model);
  const std::vector<Pair> pairs = random_pairs({7, 9}, 61, 5);
  const Metric metric(MetricKind::logit_diff, pairs, 61);
  const auto expect = [](const std::function<void()>& act, const std::string& text) {
    try {
      act();
      ADD_FAILURE() << "no error; expected: " << text;
    } catch (const UsageError& error) {
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
  };
  for (const char* bad : {"", "q", "q:", "q:1", "q:1.", "q:a.1", "q:1.-1", "r:1.1", "mlp",
                          "mlp:1.1", "mlp:x", "logit", "q:1.1x"}) {
    expect([&] { parse_receiver(bad, model.config()); }, "expected q:LAYER.HEAD");
  }
  expect([&] { parse_receiver("q:3.0", model.config()); }, "layers 0 … 2");
  expect([&] { parse_receiver("q:0.4", model.config()); }, "query heads 0 … 3");
  expect([&] { parse_receiver("k:0.2", model.config()); }, "key/value heads 0 … 1");
  EXPECT_EQ(receiver_name(parse_receiver("k:2.1", model.config())), "k:2.1");
  EXPECT_EQ(receiver_name(parse_receiver("mlp:2", model.config())), "mlp:2");
  EXPECT_EQ(receiver_name(parse_receiver("logits", model.config())), "logits");
  const std::vector<Receiver> logits = {{}};
  std::vector<Node> nodes = {{.site = {SiteKind::attn_out, 1}}};
  expect([&] { patch_paths(forward, pairs, metric, nodes, logits); }, "senders are z and mlp_out");
  nodes = {{.site = {SiteKind::z, 1}, .head = 0}};
  expect([&] { patch_paths(forward, pairs, metric, nodes, {}); }, "at least one receiver");
  const TinyConfig post = varied_configs()[4];
  const Model post_model = tiny_model(post);
  Forward post_forward(post_model);
  expect([&] { patch_paths(post_forward, pairs, metric, nodes, logits); }, "norms in it");
}

}  // namespace
}  // namespace lamina
