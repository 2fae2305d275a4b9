#include "lamina/probes/clue.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "lamina/core/error.h"
#include "lamina/probes/choice.h"
#include "probing/held_out.h"

namespace lamina {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

Score share(std::int64_t right, std::int64_t all) {
  const Interval interval = wilson(right, all);
  return {static_cast<double>(right) / static_cast<double>(all), interval.low, interval.high};
}

}  // namespace

bool parse_correct(const FeatureRow& row, std::string_view positive) {
  if (!positive.empty()) return row.label == positive;
  std::string word = row.label;
  for (char& c : word) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  for (const char* yes : {"1", "true", "yes", "correct", "right"}) {
    if (word == yes) return true;
  }
  for (const char* no : {"0", "false", "no", "incorrect", "wrong"}) {
    if (word == no) return false;
  }
  fail(
      "prompt '{}': label '{}' says neither right nor wrong; --positive VALUE says which value is "
      "right",
      row.prompt_id, row.label);
}

struct Clue::Impl {
  std::vector<std::uint8_t> correct;
  std::vector<std::int32_t> fold, unit;  // [trace]
  std::int32_t units = 0, judged_folds = 1;
  ClueOptions options;
  const ClueCentroids* given = nullptr;
  ClueResults out;

  std::size_t traces() const { return correct.size(); }
  bool judged(std::size_t i) const { return fold[i] < judged_folds; }
  void deal(const ProbeTargets& targets);
  void rerank(std::span<const std::string> answers);
};

void Clue::Impl::deal(const ProbeTargets& targets) {
  if (options.train_share <= 0) {
    fold = deal_folds(targets, {.strengths = {1.0}, .folds = options.folds, .seed = options.seed});
    judged_folds = static_cast<std::int32_t>(options.folds);
    return;
  }
  if (!(options.train_share < 1)) {
    fail_usage("train share {}: between 0 and 1 expected", options.train_share);
  }
  // Groups in an order of their own, the first of them for the centroids.
  std::vector<std::pair<std::uint64_t, std::int32_t>> order;
  for (std::int32_t u = 0; u < units; ++u) {
    order.emplace_back(held_out::mix(options.seed, static_cast<std::uint64_t>(u)), u);
  }
  std::sort(order.begin(), order.end());
  const auto trained =
      static_cast<std::size_t>(std::lround(options.train_share * static_cast<double>(units)));
  std::vector<std::int32_t> of_unit(size(units), 0);
  for (std::size_t i = 0; i < std::min(trained, order.size()); ++i) {
    of_unit[size(order[i].second)] = 1;
  }
  std::int64_t left[2] = {0, 0}, tested = 0;
  for (std::size_t i = 0; i < traces(); ++i) {
    fold.push_back(of_unit[size(unit[i])]);
    if (fold[i] == 1) ++left[correct[i]];
    tested += fold[i] == 0;
  }
  if (left[0] == 0 || left[1] == 0 || tested == 0) {
    fail(
        "the split leaves {} right and {} wrong traces for the centroids and {} to judge: at least "
        "1 of each expected",
        left[1], left[0], tested);
  }
}

Clue::Clue(std::span<const FeatureRow> rows, std::span<const std::uint8_t> correct,
           const ClueOptions& options, const ClueCentroids* given)
    : impl_(std::make_unique<Impl>()) {
  Impl& s = *impl_;
  s.correct.assign(correct.begin(), correct.end());
  s.options = options;
  s.given = given;
  if (rows.empty()) fail("there are no traces with a label");
  std::unordered_map<std::string, std::int32_t> units;
  for (const FeatureRow& row : rows) {
    s.unit.push_back(
        units.emplace(row.group, static_cast<std::int32_t>(units.size())).first->second);
  }
  s.units = static_cast<std::int32_t>(units.size());
  if (given != nullptr) {
    s.fold.assign(rows.size(), 0);
  } else {
    const auto right = std::count(correct.begin(), correct.end(), 1);
    const auto all = static_cast<std::int64_t>(rows.size());
    if (right == 0 || right == all) {
      fail("{} of {} traces are right: centroids need right and wrong ones", right, all);
    }
    ProbeTargets targets;
    targets.classes = {"wrong", "right"};
    targets.unit = s.unit;
    targets.units = s.units;
    targets.label.assign(correct.begin(), correct.end());
    s.deal(targets);
  }
  s.out.correct = s.correct;
  s.out.to_success.assign(rows.size(), 0.0);
  s.out.to_failure.assign(rows.size(), 0.0);
}

Clue::~Clue() = default;

void Clue::add_layer(std::string_view site, std::span<const float> values, std::int64_t width) {
  Impl& s = *impl_;
  const std::size_t n = s.traces(), d = size(width);
  if (values.size() != n * d) {
    fail_usage("{}: {} values for {} traces of {}", site, values.size(), n, width);
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      fail("{}: trace {} of {} holds {}: activations must be finite", site, i / d, n, values[i]);
    }
  }
  // Sums by fold and class; the centroids that judge a fold leave its own sum out.
  std::int32_t folds = 1;
  for (std::int32_t f : s.fold) folds = std::max(folds, f + 1);
  std::vector<std::vector<double>> sums(size(folds) * 2, std::vector<double>(d, 0.0));
  std::vector<double> counts(size(folds) * 2, 0.0);
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t which = size(s.fold[i]) * 2 + s.correct[i];
    counts[which] += 1;
    for (std::size_t k = 0; k < d; ++k) sums[which][k] += values[i * d + k];
  }
  const auto centroid = [&](std::int32_t without, std::size_t c) {
    std::vector<double> mean(d, 0.0);
    double count = 0;
    for (std::int32_t f = 0; f < folds; ++f) {
      if (f == without) continue;
      const std::size_t which = size(f) * 2 + c;
      count += counts[which];
      for (std::size_t k = 0; k < d; ++k) mean[k] += sums[which][k];
    }
    for (double& m : mean) m /= count;
    return mean;
  };
  std::vector<std::vector<double>> centroids;  // [fold · 2 + class]
  if (s.given != nullptr) {
    const auto found = std::find(s.given->sites.begin(), s.given->sites.end(), site);
    const auto at = static_cast<std::size_t>(found - s.given->sites.begin());
    if (found == s.given->sites.end() || s.given->success[at].size() != d) {
      fail("{}: the centroids hold {} values for it, {} expected", site,
           found == s.given->sites.end() ? 0 : s.given->success[at].size(), d);
    }
    for (const auto* from : {&s.given->failure[at], &s.given->success[at]}) {
      centroids.emplace_back(from->begin(), from->end());
    }
  } else {
    for (std::int32_t f = 0; f < s.judged_folds; ++f) {
      for (std::size_t c = 0; c < 2; ++c) centroids.push_back(centroid(f, c));
    }
    s.out.centroids.sites.emplace_back(site);
    // What a later run judges by: all traces, or those of the training share.
    const std::int32_t without = s.options.train_share > 0 ? 0 : -1;
    const auto failure = centroid(without, 0), success = centroid(without, 1);
    s.out.centroids.failure.emplace_back(failure.begin(), failure.end());
    s.out.centroids.success.emplace_back(success.begin(), success.end());
  }
  std::vector<double> near(n, 0.0), far(n, 0.0);
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < static_cast<std::int64_t>(n); ++t) {
    const std::size_t i = size(t);
    if (!s.judged(i)) continue;
    double squares[2] = {0, 0};
    for (std::size_t c = 0; c < 2; ++c) {
      const std::vector<double>& mean = centroids[size(s.fold[i]) * 2 + c];
      for (std::size_t k = 0; k < d; ++k) {
        const double e = values[i * d + k] - mean[k];
        squares[c] += e * e;
      }
    }
    far[i] = std::sqrt(squares[0]);
    near[i] = std::sqrt(squares[1]);
  }
  std::int64_t right = 0, judged = 0;
  std::vector<double> scores(n);
  std::vector<std::int32_t> folds_judged, units_judged;
  std::vector<double> scores_judged;
  std::vector<std::uint8_t> positive;
  for (std::size_t i = 0; i < n; ++i) {
    s.out.to_success[i] += near[i];
    s.out.to_failure[i] += far[i];
    if (!s.judged(i)) continue;
    ++judged;
    right += (near[i] < far[i]) == (s.correct[i] == 1);
    folds_judged.push_back(s.fold[i]);
    units_judged.push_back(s.unit[i]);
    scores_judged.push_back(far[i] - near[i]);
    positive.push_back(s.correct[i]);
  }
  const held_out::Scorer scorer(folds_judged, units_judged, 0, 0);
  s.out.sites.emplace_back(site);
  s.out.layer_accuracy.push_back(static_cast<double>(right) / static_cast<double>(judged));
  s.out.layer_auroc.push_back(scorer.auroc(scores_judged, positive).value);
}

void Clue::Impl::rerank(std::span<const std::string> answers) {
  std::vector<std::vector<std::size_t>> groups(size(units));
  for (std::size_t i = 0; i < traces(); ++i) {
    if (judged(i)) groups[size(unit[i])].push_back(i);
  }
  ClueReranking& r = out.reranking;
  std::int64_t nearest = 0, first = 0, majority = 0, oracle = 0;
  for (const auto& group : groups) {
    if (group.size() < 2) continue;
    ++r.questions;
    r.candidates += static_cast<std::int64_t>(group.size());
    std::size_t best = group.front();
    std::int64_t right = 0;
    std::vector<std::pair<std::string, std::int64_t>> votes;  // in order of appearance
    for (std::size_t i : group) {
      if (out.to_success[i] < out.to_success[best]) best = i;
      right += correct[i];
      if (answers.empty()) continue;
      const auto vote = std::find_if(votes.begin(), votes.end(),
                                     [&](const auto& v) { return v.first == answers[i]; });
      if (vote == votes.end()) {
        votes.emplace_back(answers[i], 1);
      } else {
        ++vote->second;
      }
    }
    nearest += correct[best];
    first += correct[group.front()];
    oracle += right > 0;
    r.mean += static_cast<double>(right) / static_cast<double>(group.size());
    if (answers.empty()) continue;
    const auto winner =
        std::max_element(votes.begin(), votes.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    for (std::size_t i : group) {
      if (answers[i] != winner->first) continue;
      majority += correct[i];
      break;
    }
  }
  if (r.questions == 0) return;
  r.nearest = share(nearest, r.questions);
  r.first = share(first, r.questions);
  r.majority = answers.empty() ? Score{kNaN, kNaN, kNaN} : share(majority, r.questions);
  r.mean /= static_cast<double>(r.questions);
  r.oracle = static_cast<double>(oracle) / static_cast<double>(r.questions);
}

ClueResults Clue::finish(std::span<const std::string> answers) {
  Impl& s = *impl_;
  const std::size_t n = s.traces();
  const auto layers = static_cast<double>(s.out.sites.size());
  if (s.out.sites.empty()) fail_usage("no layer was given");
  s.out.predicted.assign(n, 2);
  std::vector<std::int32_t> fold, unit, guess, label;
  std::vector<double> score;
  for (std::size_t i = 0; i < n; ++i) {
    if (!s.judged(i)) {
      s.out.to_success[i] = s.out.to_failure[i] = kNaN;
      continue;
    }
    s.out.to_success[i] /= layers;
    s.out.to_failure[i] /= layers;
    s.out.predicted[i] = s.out.to_success[i] < s.out.to_failure[i] ? 1 : 0;
    fold.push_back(s.fold[i]);
    unit.push_back(s.unit[i]);
    guess.push_back(s.out.predicted[i]);
    label.push_back(s.correct[i]);
    score.push_back(s.out.to_failure[i] - s.out.to_success[i]);
  }
  // Units as numbers without gaps: a resample draws from those that were judged.
  std::unordered_map<std::int32_t, std::int32_t> dense;
  for (std::int32_t& u : unit) {
    u = dense.emplace(u, static_cast<std::int32_t>(dense.size())).first->second;
  }
  const held_out::Scorer scorer(fold, unit, s.options.resamples, s.options.seed);
  const std::vector<std::uint8_t> positive(label.begin(), label.end());
  s.out.judged = static_cast<std::int64_t>(label.size());
  s.out.base = static_cast<double>(std::count(label.begin(), label.end(), 1)) /
               static_cast<double>(label.size());
  s.out.accuracy = scorer.accuracy(guess, label);
  s.out.balanced_accuracy = scorer.balanced(guess, label, 2);
  s.out.auroc = scorer.auroc(score, positive);
  s.rerank(answers);
  if (s.given != nullptr) s.out.centroids = *s.given;
  return std::move(s.out);
}

}  // namespace lamina
