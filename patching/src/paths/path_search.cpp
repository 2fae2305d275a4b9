#include "lamina/patching/path_search.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "lamina/core/error.h"
#include "lamina/core/math.h"
#include "lamina/patching/path_runner.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// Seeds that neighbouring prompts do not share: the finaliser of splitmix64.
std::uint64_t stream(std::uint64_t seed, std::uint64_t prompt) {
  std::uint64_t z = seed + (prompt + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

LayerPath whole_path(const ModelConfig& config, bool sublayers) {
  LayerPath path;
  for (const Step& step : all_steps(config)) {
    if (!sublayers || config.d_mlp == 0) {
      path.push_back(step);
    } else {
      path.push_back({step.layer, true, false});
      path.push_back({step.layer, false, true});
    }
  }
  return path;
}

// Judges the paths of one prompt by the logits of its last token.
class LastToken {
 public:
  LastToken(Forward& forward, const PathPrompts& prompts, std::int64_t prompt,
            const PathSearchOptions& options)
      : forward_(forward),
        config_(forward.model().config()),
        metric_(options.metric),
        prompt_(prompt),
        runner_(forward, batch_of(prompts.tokens[size(prompt)]), options.memory),
        logits_(size(config_.d_vocab)) {
    paths_.answers = prompts.answers[size(prompt)];
  }

  PathValue operator()(std::span<const Step> path) {
    const auto d = size(config_.d_model);
    const std::span<const float> out = runner_.run(path, true);
    forward_.logits(out.last(d), logits_);
    const auto top = static_cast<std::int32_t>(std::ranges::max_element(logits_) - logits_.begin());
    // The whole model comes first.
    if (paths_.answers.empty()) paths_.answers.push_back(top);
    paths_.right.push_back(std::ranges::count(paths_.answers, top) > 0 ? 1 : 0);
    return {quality(), layers_used(path, config_)};
  }

  PromptPaths finish(TreeResult tree) {
    paths_.tree = std::move(tree);
    paths_.steps_asked = runner_.steps_asked();
    paths_.steps_run = runner_.steps_run();
    return std::move(paths_);
  }

 private:
  static Batch batch_of(std::span<const std::int32_t> ids) {
    Batch batch;
    batch.add(ids);
    return batch;
  }

  // Not finite if the logits are not: such a path is useless, not an error.
  double quality() const {
    const double log_sum = math::log_sum_exp(logits_);
    if (!std::isfinite(log_sum)) return log_sum - log_sum;  // NaN
    if (metric_ != nullptr) {
      const double value = metric_->value(prompt_, logits_);
      const bool lower_is_better =
          metric_->kind() == MetricKind::nll || metric_->kind() == MetricKind::kl;
      return lower_is_better ? -value : value;
    }
    std::vector<float> picked;
    for (const std::int32_t id : paths_.answers) picked.push_back(logits_[size(id)]);
    return math::log_sum_exp(picked) - log_sum;
  }

  Forward& forward_;
  const ModelConfig& config_;
  const Metric* metric_;
  std::int64_t prompt_;
  PathRunner runner_;
  std::vector<float> logits_;
  PromptPaths paths_;
};

}  // namespace

std::int64_t PromptPaths::best_within(double layers) const {
  std::int64_t best = -1;
  for (std::size_t i = 0; i < tree.tried.size(); ++i) {
    const PathValue& value = tree.tried[i].value;
    if (value.layers > layers || !std::isfinite(value.quality)) continue;
    if (best < 0) {
      best = static_cast<std::int64_t>(i);
      continue;
    }
    const PathValue& other = tree.tried[size(best)].value;
    if (value.quality > other.quality ||
        (value.quality == other.quality && value.layers < other.layers)) {
      best = static_cast<std::int64_t>(i);
    }
  }
  return best;
}

std::int64_t PromptPaths::shortest_right() const {
  std::int64_t best = -1;
  for (std::size_t i = 0; i < tree.tried.size(); ++i) {
    if (right[i] == 0) continue;
    const PathValue& value = tree.tried[i].value;
    if (!std::isfinite(value.quality)) continue;
    if (best >= 0) {
      const PathValue& other = tree.tried[size(best)].value;
      if (value.layers > other.layers) continue;
      if (value.layers == other.layers && value.quality <= other.quality) continue;
    }
    best = static_cast<std::int64_t>(i);
  }
  return best;
}

std::vector<PromptPaths> search_paths(Forward& forward, const PathPrompts& prompts,
                                      const PathSearchOptions& options) {
  const ModelConfig& config = forward.model().config();
  if (prompts.count() == 0) fail("there are no prompts to search paths for");
  if (options.sublayers && config.parallel) {
    fail_usage(
        "sublayer edits need sequential blocks; this {} model's attention and MLP run in "
        "parallel",
        config.family);
  }
  if (options.metric != nullptr && options.metric->pairs() != prompts.count()) {
    fail("a metric of {} pairs for {} prompts", options.metric->pairs(), prompts.count());
  }
  const LayerPath whole = whole_path(config, options.sublayers);
  std::vector<PromptPaths> found;
  const std::int64_t each = options.tree.simulations;
  for (std::int64_t p = 0; p < prompts.count(); ++p) {
    LastToken judge(forward, prompts, p, options);
    TreeOptions tree = options.tree;
    tree.seed = stream(options.tree.seed, static_cast<std::uint64_t>(p));
    tree.progress = [&](std::int64_t done) {
      if (options.progress) options.progress(p * each + done, prompts.count() * each);
    };
    TreeResult result = search_tree(whole, std::ref(judge), tree);
    if (!std::isfinite(result.tried[0].value.quality)) {
      fail("prompt '{}': the whole model's logits are not finite", prompts.ids[size(p)]);
    }
    found.push_back(judge.finish(std::move(result)));
    if (options.progress) options.progress((p + 1) * each, prompts.count() * each);
  }
  return found;
}

std::vector<BudgetRow> budget_table(std::span<const PromptPaths> found) {
  std::set<double, std::greater<>> budgets;
  for (const PromptPaths& prompt : found) {
    for (const PathTried& tried : prompt.tree.tried) budgets.insert(tried.value.layers);
  }
  std::vector<BudgetRow> rows;
  for (const double budget : budgets) {
    BudgetRow row{.layers = budget};
    for (const PromptPaths& prompt : found) {
      const std::int64_t best = prompt.best_within(budget);
      if (best < 0) continue;
      const PathTried& tried = prompt.tree.tried[size(best)];
      row.used += tried.value.layers;
      row.quality += tried.value.quality;
      row.right += prompt.right[size(best)];
      const std::int64_t shortest = prompt.shortest_right();
      if (shortest >= 0 && prompt.tree.tried[size(shortest)].value.layers <= budget) {
        row.any_right += 1;
      }
      ++row.prompts;
    }
    if (row.prompts == 0) continue;
    const auto n = static_cast<double>(row.prompts);
    row.used /= n;
    row.quality /= n;
    row.right /= n;
    row.any_right /= n;
    rows.push_back(row);
  }
  return rows;
}

}  // namespace lamina
