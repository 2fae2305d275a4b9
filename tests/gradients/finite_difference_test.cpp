// The backward pass against central differences of the forward pass, over random models of every
// kind of block: at every site, through hooks that write, along other steps, and for the rules that
// a forward pass can imitate by writing the old values back.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "support.h"

namespace lamina {
namespace {

using testing::SiteValues;
using testing::size;
using testing::TinyConfig;
using Prompts = std::vector<std::vector<float>>;  // values of one site, [prompt]

// A step of h times the site's size changes m by h·(g·u) + O(h³); the forward pass is fp32, so
// differences of m carry about 1e-7 of the terms of m. Which of the two errors is larger depends on
// the model: the best of these steps counts.
constexpr double kSteps[] = {1.6e-2, 4e-3, 1e-3};
constexpr double kTolerance = 1e-2;

double rms(const Prompts& values) {
  double sum = 0, n = 0;
  for (const auto& prompt : values) {
    for (float value : prompt) {
      if (std::isfinite(value)) sum += static_cast<double>(value) * value, n += 1;
    }
  }
  return std::sqrt(sum / n);
}

// A random direction of the site's size. Masked scores and patterns stay.
Prompts direction(Site site, const Prompts& values, std::uint64_t seed) {
  const double scale = rms(values);
  Prompts out;
  for (const auto& prompt : values) {
    out.push_back(testing::normal_values(prompt.size(), ++seed * 7919));
    for (std::size_t i = 0; i < prompt.size(); ++i) {
      const bool masked =
          !std::isfinite(prompt[i]) || (site.kind == SiteKind::pattern && prompt[i] == 0.0f);
      out.back()[i] = masked ? 0.0f : static_cast<float>(out.back()[i] * scale);
    }
  }
  return out;
}

double dot(const Prompts& a, const Prompts& b) {
  double sum = 0;
  for (std::size_t p = 0; p < a.size(); ++p) {
    for (std::size_t i = 0; i < a[p].size(); ++i) {
      if (b[p][i] != 0) sum += static_cast<double>(a[p][i]) * b[p][i];
    }
  }
  return sum;
}

// f(p, first, values) for the values of every prompt in a view.
void each_prompt(SiteView& view, const std::function<void(std::size_t, std::span<float>)>& f) {
  if (view.shape.attention) {
    f(size(view.prompt), view.values);
    return;
  }
  for (std::int64_t p = 0; p < view.batch.prompts(); ++p) {
    f(size(p), view.values.subspan(size(view.batch.offsets[size(p)] * view.shape.row()),
                                   size(view.batch.length(p) * view.shape.row())));
  }
}

HookFunction add(const Prompts& what, double factor) {
  return [&what, factor](SiteView& view) {
    each_prompt(view, [&](std::size_t p, std::span<float> values) {
      for (std::size_t i = 0; i < values.size(); ++i) {
        if (what[p][i] != 0) values[i] += static_cast<float>(factor * what[p][i]);
      }
    });
  };
}

HookFunction copy_to(Prompts& to) {
  return [&to](SiteView& view) {
    to.resize(size(view.batch.prompts()));
    each_prompt(view, [&](std::size_t p, std::span<float> values) {
      to[p].assign(values.begin(), values.end());
    });
  };
}

HookFunction restore(const Prompts& what) {
  return [&what](SiteView& view) {
    each_prompt(view, [&](std::size_t p, std::span<float> values) {
      std::copy(what[p].begin(), what[p].end(), values.begin());
    });
  };
}

class Difference : public ::testing::TestWithParam<TinyConfig> {
 protected:
  Difference() {
    Hooks hooks;
    off_kinks(hooks);
    testing::read_all(config_, hooks, base_);
    forward_.run(batch_, hooks);
    std::vector<float> logits(metric_.c.size());
    forward_.run_logits(metric_.rows, logits);
    for (std::size_t i = 0; i < logits.size(); ++i) terms_ += std::abs(logits[i] * metric_.c[i]);
  }

  // At a ReLU's kink a difference finds neither derivative. Constants (made in the first pass) keep
  // the inputs of ReLUs away from it.
  void off_kinks(Hooks& hooks) {
    if (config_.act != Activation::relu || config_.d_mlp == 0) return;
    pushed_ = 0;
    for (std::int32_t layer = 0; layer < config_.n_layers; ++layer) {
      hooks.write({SiteKind::mlp_pre, layer}, [this](SiteView& view) {
        if (pushed_ == pushes_.size()) {
          std::vector<float>& push = pushes_.emplace_back();
          for (float value : view.values) push.push_back(value < 0 ? -0.1f : 0.1f);
        }
        const std::vector<float>& push = pushes_[pushed_++];
        for (std::size_t i = 0; i < push.size(); ++i) view.values[i] += push[i];
      });
    }
  }

  // m where h times `u` is added at `site`, under the hooks that `more` adds.
  double metric_at(Site site, const Prompts& u, double h, const std::function<void(Hooks&)>& more,
                   const RunOptions& options = {}) {
    Hooks hooks;
    off_kinks(hooks);
    hooks.write(site, add(u, h));
    if (more) more(hooks);
    forward_.run(batch_, hooks, options);
    return metric_.of(forward_);
  }

  // got[k] against the central differences of value(k, h), all directions k at once:
  // ‖differences − got‖ ≤ tolerance · ‖differences‖, for one of the steps. `terms`: the magnitudes
  // that a value is a sum of.
  void expect_derivatives(const std::string& what, const std::vector<double>& got, double terms,
                          const std::function<double(std::size_t, double)>& value) {
    double best = INFINITY, norm_of_best = 0, norm = 0;
    for (double h : kSteps) {
      double error = 0;
      norm = 0;
      for (std::size_t k = 0; k < got.size(); ++k) {
        const double want = (value(k, h) - value(k, -h)) / (2 * h);
        error += (want - got[k]) * (want - got[k]);
        norm += want * want;
      }
      error = std::sqrt(error), norm = std::sqrt(norm);
      if (error < best) best = error, norm_of_best = norm;
      if (error <= 0.3 * kTolerance * norm) break;
    }
    const double rounding = 1e-7 * terms / kSteps[0];
    EXPECT_LE(best, kTolerance * norm_of_best + rounding) << what << ": derivatives of " << norm;
    if (norm_of_best > 10 * rounding) worst_ = std::max(worst_, best / norm_of_best);
  }

  void expect_gradient(Site site, const Prompts& gradient, const Prompts& values, int directions,
                       const std::function<void(Hooks&)>& more = {},
                       const RunOptions& options = {}) {
    std::vector<Prompts> u;
    std::vector<double> got;
    for (int k = 0; k < directions; ++k) {
      u.push_back(direction(site, values, static_cast<std::uint64_t>(100 * k + 1)));
      got.push_back(dot(gradient, u.back()));
    }
    expect_derivatives(site_name(site), got, terms_, [&](std::size_t k, double h) {
      return metric_at(site, u[k], h, more, options);
    });
  }

  void TearDown() override {
    RecordProperty("largest_relative_error", fmt::format("{:.2e}", worst_));
  }

  // The gradient under `rules` against differences of passes in which `kinds` keep their old
  // values.
  void expect_frozen(const BackwardRules& rules, std::initializer_list<SiteKind> kinds) {
    Hooks base;
    off_kinks(base);
    const SiteValues gradient =
        testing::gradients(forward_, backward_, batch_, metric_, rules, base);
    const auto frozen = [&](Site site) {
      return std::find(kinds.begin(), kinds.end(), site.kind) != kinds.end();
    };
    const auto freeze = [&](Hooks& hooks) {
      for (const auto& [site, values] : base_) {
        if (frozen(site)) hooks.write(site, restore(values));
      }
    };
    for (const auto& [site, values] : base_) {
      if (!frozen(site)) expect_gradient(site, gradient.at(site), values, 3, freeze);
    }
  }

  Model model_ = testing::tiny_model(GetParam(), 3);
  const ModelConfig& config_ = model_.config();
  Forward forward_{model_};
  Backward backward_{model_};
  Batch batch_ = testing::pack(testing::random_prompts({6, 9}, GetParam().d_vocab, 2));
  testing::Metric metric_ = testing::random_metric(batch_, config_, 4);
  SiteValues base_;
  std::vector<std::vector<float>> pushes_;  // of off_kinks, in the order of the steps
  std::size_t pushed_ = 0;
  double terms_ = 0;  // Σ |c·logit|
  double worst_ = 0;
};

TEST_P(Difference, EverySite) {
  Hooks base;
  off_kinks(base);
  const SiteValues gradient = testing::gradients(forward_, backward_, batch_, metric_, {}, base);
  ASSERT_EQ(gradient.size(), all_sites(config_).size());
  for (const auto& [site, values] : base_) {
    ASSERT_FALSE(gradient.at(site).empty()) << site_name(site) << " never fired";
    expect_gradient(site, gradient.at(site), values, 6);
  }
}

// A gradient that a hook adds at a site flows back as if the metric read that site: ⟨a, J u⟩ =
// ⟨Jᵀa, u⟩.
TEST_P(Difference, AddingAtASiteSeedsIt) {
  const Site entry{SiteKind::resid_pre, 0};
  const Prompts u[] = {direction(entry, base_.at(entry), 5), direction(entry, base_.at(entry), 6),
                       direction(entry, base_.at(entry), 7)};
  const std::vector<float> nothing(metric_.c.size());
  for (const auto& [site, values] : base_) {
    if (site.kind == SiteKind::embed || site.kind == SiteKind::pos_embed) continue;
    const Prompts a = direction(site, values, 77);
    Tape tape;
    Hooks base;
    off_kinks(base);
    forward_.run(batch_, base, {.tape = &tape});
    backward_.seed(tape, metric_.rows, nothing);
    Prompts found(base_.at(entry).size());
    Hooks hooks;
    hooks.write(site, add(a, 1.0));
    hooks.read(entry, copy_to(found));
    backward_.run(tape, {}, hooks);

    double terms = 0;
    for (std::size_t p = 0; p < a.size(); ++p) {
      for (std::size_t i = 0; i < a[p].size(); ++i) {
        if (a[p][i] != 0) terms += std::abs(a[p][i] * values[p][i]);
      }
    }
    const std::vector<double> got = {dot(found, u[0]), dot(found, u[1]), dot(found, u[2])};
    expect_derivatives(site_name(site), got, terms, [&](std::size_t k, double h) {
      Prompts moved(values.size());
      Hooks reading;
      off_kinks(reading);
      reading.write(entry, add(u[k], h));
      reading.read(site, copy_to(moved));
      forward_.run(batch_, reading);
      return dot(moved, a);
    });
  }
}

TEST_P(Difference, FrozenPatterns) {
  expect_frozen({.frozen_pattern = true}, {SiteKind::pattern});
}

TEST_P(Difference, FrozenMlps) {
  expect_frozen({.frozen_mlp = true}, {SiteKind::mlp_out});
}

TEST_P(Difference, FrozenNorms) {
  if (config_.qk_norm) GTEST_SKIP() << "the denominators of query and key norms are no sites";
  const std::initializer_list<SiteKind> scales = {SiteKind::ln1_scale, SiteKind::ln1_post_scale,
                                                  SiteKind::ln2_scale, SiteKind::ln2_post_scale,
                                                  SiteKind::ln_final_scale};
  expect_frozen({.frozen_norm = true}, scales);
}

TEST_P(Difference, FrozenNormsPatternsAndMlps) {
  if (config_.qk_norm) GTEST_SKIP() << "the denominators of query and key norms are no sites";
  expect_frozen(
      {.frozen_norm = true, .frozen_pattern = true, .frozen_mlp = true},
      {SiteKind::ln1_scale, SiteKind::ln1_post_scale, SiteKind::ln2_scale, SiteKind::ln2_post_scale,
       SiteKind::ln_final_scale, SiteKind::pattern, SiteKind::mlp_out});
}

// What a forward hook wrote counts as the computed value plus a constant: the gradient is that of
// the written pass.
TEST_P(Difference, ThroughHooksThatWrite) {
  std::vector<std::pair<Site, Prompts>> constants;
  std::uint64_t seed = 900;
  for (Site site : all_sites(config_)) {
    if (site.layer > 1 || site.kind == SiteKind::pattern) continue;
    if (site.kind == SiteKind::mlp_pre && !pushes_.empty()) continue;  // written by off_kinks
    const bool scale = site_name(site).ends_with("hook_scale");
    Prompts change = direction(site, base_.at(site), ++seed);
    for (auto& prompt : change) {
      for (float& value : prompt) value = scale ? std::abs(value) * 0.1f : value * 0.2f;
    }
    constants.emplace_back(site, std::move(change));
  }
  const auto write = [&](Hooks& hooks) {
    for (const auto& [site, change] : constants) hooks.write(site, add(change, 1.0));
    // One head of one prompt sees its own token only.
    hooks.write({SiteKind::attn_scores, 1}, [](SiteView& view) {
      if (view.prompt != 1) return;
      for (std::int64_t q = 0; q < view.queries; ++q) {
        for (std::int64_t k = 0; k < view.keys; ++k) {
          if (k != q) view.values[size(q * view.keys + k)] = -INFINITY;
        }
      }
    });
  };
  pushes_.clear();
  Hooks hooks;
  off_kinks(hooks);
  write(hooks);
  SiteValues values;
  testing::read_all(config_, hooks, values);
  const SiteValues gradient = testing::gradients(forward_, backward_, batch_, metric_, {}, hooks);
  for (const auto& [site, written] : values) {
    expect_gradient(site, gradient.at(site), written, 3, write);
  }
}

// Layers skipped, repeated and halved, from given values.
TEST_P(Difference, AlongOtherStepsFromAStart) {
  const std::vector<Step> steps = {
      {2}, {0}, {0}, {1, true, false}, {1, false, true}, {0, false, true}};
  const std::vector<float> start =
      testing::normal_values(size(batch_.tokens() * config_.d_model), 31);
  const RunOptions options{.steps = steps, .start = start};
  Prompts values, gradient;
  const Site entry{SiteKind::resid_pre, 2};
  Hooks reading, hooks;
  pushes_.clear();
  off_kinks(reading);
  reading.read(entry, copy_to(values));
  hooks.read(entry, copy_to(gradient));
  int embeddings = 0;
  hooks.read({SiteKind::embed, -1}, [&](SiteView&) { ++embeddings; });
  Tape tape;
  RunOptions taped = options;
  taped.tape = &tape;
  forward_.run(batch_, reading, taped);
  backward_.seed(tape, metric_.rows, metric_.c);
  backward_.run(tape, {}, hooks);
  EXPECT_EQ(embeddings, 0) << "the pass began behind the embedding";
  expect_gradient(entry, gradient, values, 6, {}, options);
}

TEST_P(Difference, SeededAtTheLastBlock) {
  const std::vector<float> v = testing::normal_values(size(batch_.tokens() * config_.d_model), 8);
  Tape tape;
  Hooks base;
  off_kinks(base);
  forward_.run(batch_, base, {.tape = &tape});
  backward_.seed_residual(tape, v);
  SiteValues gradient;
  Hooks hooks;
  testing::read_all(config_, hooks, gradient);
  backward_.run(tape, {}, hooks);
  for (Site site : {Site{SiteKind::ln_final_scale, -1}, Site{SiteKind::ln_final_normalized, -1}}) {
    if (!gradient.contains(site)) continue;
    EXPECT_TRUE(testing::all_zero(gradient.at(site))) << site_name(site);
  }
  double terms = 0;
  for (float c : v) terms += 3 * std::abs(c);
  for (Site site : {Site{SiteKind::resid_pre, 0}, Site{SiteKind::z, 1}, Site{SiteKind::v, 2}}) {
    std::vector<Prompts> u;
    std::vector<double> got;
    for (std::uint64_t k = 0; k < 6; ++k) {
      u.push_back(direction(site, base_.at(site), 30 * k));
      got.push_back(dot(gradient.at(site), u.back()));
    }
    expect_derivatives(site_name(site), got, terms, [&](std::size_t k, double h) {
      Hooks moved;
      off_kinks(moved);
      moved.write(site, add(u[k], h));
      const auto x = forward_.run(batch_, moved);
      double sum = 0;
      for (std::size_t i = 0; i < x.size(); ++i) sum += static_cast<double>(v[i]) * x[i];
      return sum;
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Blocks, Difference, ::testing::ValuesIn(testing::gradient_configs()),
                         [](const auto& test) { return testing::name_of(test.param); });

}  // namespace
}  // namespace lamina
