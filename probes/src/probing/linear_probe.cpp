#include "lamina/probes/linear_probe.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "lamina/core/error.h"
#include "probing/class_means.h"
#include "probing/held_out.h"
#include "probing/linear_fit.h"
#include "probing/parallel_tasks.h"

namespace lamina {
namespace {

using linear::Fit;
using linear::Matrix;
using linear::Vector;

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// Labels as they are (version 0) and shuffled (1 …). Shuffling stays within a fold, so folds keep
// their shares of each class: whole units change labels if each has one only, else rows do.
struct Labels {
  std::vector<std::vector<std::int32_t>> classes;  // [version][row]
  std::vector<std::vector<double>> values;

  Labels(const ProbeTargets& targets, std::span<const std::int32_t> fold,
         const LinearProbeOptions& options) {
    const std::size_t rows = fold.size();
    const bool ridge = options.kind == ProbeKind::ridge;
    const auto same = [&](std::size_t a, std::size_t b) {
      return ridge ? targets.value[a] == targets.value[b] : targets.label[a] == targets.label[b];
    };
    std::vector<std::size_t> first(size(targets.units), rows);  // a row of each unit
    bool by_unit = true;
    for (std::size_t r = 0; r < rows; ++r) {
      std::size_t& f = first[size(targets.unit[r])];
      if (f == rows) f = r;
      by_unit = by_unit && same(f, r);
    }
    for (std::int64_t v = 0; v <= options.controls; ++v) {
      std::vector<std::size_t> from(rows);  // whose label a row takes
      std::iota(from.begin(), from.end(), 0);
      if (v > 0) {
        std::mt19937_64 random(
            held_out::mix(options.seed ^ 0x636f6e74726f6cULL, static_cast<std::uint64_t>(v)));
        for (std::int32_t f = 0; f < options.folds; ++f) {
          std::vector<std::size_t> members;
          for (std::size_t r = 0; r < rows; ++r) {
            if (fold[r] == f && (!by_unit || first[size(targets.unit[r])] == r)) {
              members.push_back(r);
            }
          }
          std::vector<std::size_t> order = members;
          for (std::size_t i = order.size(); i > 1; --i) {
            const double u = static_cast<double>(random() >> 11) * 0x1.0p-53;
            std::swap(order[i - 1], order[static_cast<std::size_t>(u * static_cast<double>(i))]);
          }
          for (std::size_t i = 0; i < members.size(); ++i) from[members[i]] = order[i];
        }
        if (by_unit) {
          for (std::size_t r = 0; r < rows; ++r) from[r] = from[first[size(targets.unit[r])]];
        }
      }
      auto& c = classes.emplace_back();
      auto& y = values.emplace_back();
      for (std::size_t r : from) {
        if (ridge) y.push_back(targets.value[r]);
        if (!ridge) c.push_back(targets.label[r]);
      }
    }
  }
};

class SiteFit {
 public:
  SiteFit(std::string_view site, std::span<const float> values, std::int64_t width,
          const ProbeTargets& targets, std::span<const std::int32_t> fold,
          const LinearProbeOptions& options)
      : targets_(targets),
        fold_(fold),
        options_(options),
        ridge_(options.kind == ProbeKind::ridge),
        classes_(static_cast<std::int32_t>(targets.classes.size())),
        labels_(targets, fold, options) {
    const auto rows = static_cast<std::int64_t>(fold.size());
    if (values.size() != size(rows * width)) {
      fail_usage("{}: {} values for {} rows of {}", site, values.size(), rows, width);
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (std::isfinite(values[i])) continue;
      fail("{}: row {} of {} holds {} at component {}: activations must be finite", site,
           i / size(width), rows, values[i], i % size(width));
    }
    x_ = Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(
             values.data(), rows, width)
             .cast<double>();
    out_.site = site;
    out_.width = width;
    out_.outputs = classes_ > 2 ? classes_ : 1;
  }

  SiteProbe run();

 private:
  struct Training {
    linear::Basis basis;
    std::vector<Eigen::Index> rows;
  };
  Training train(std::int32_t without, std::int32_t and_without) const;
  std::vector<Fit> fit(const Training& training, std::size_t version,
                       std::span<const double> strengths) const;
  // Loss of `scores` [m, C] at the rows of one fold, m of them.
  double loss(const Matrix& scores, std::span<const Eigen::Index> rows, std::size_t version) const;
  std::vector<Eigen::Index> rows_of(std::int32_t fold) const;
  void choose_strengths();
  void hold_out(std::int32_t fold);
  void fit_all();
  void summarize();

  std::size_t strengths() const { return options_.strengths.size(); }
  std::size_t versions() const { return labels_.values.size(); }
  std::size_t best(const std::vector<double>& losses) const {
    std::size_t at = 0;  // ties: the stronger
    for (std::size_t s = 1; s < losses.size(); ++s) {
      if (losses[s] < losses[at] ||
          (losses[s] == losses[at] && options_.strengths[s] > options_.strengths[at])) {
        at = s;
      }
    }
    return at;
  }

  const ProbeTargets& targets_;
  std::span<const std::int32_t> fold_;
  const LinearProbeOptions& options_;
  bool ridge_;
  std::int32_t classes_;
  Labels labels_;
  Matrix x_;
  SiteProbe out_;
  std::vector<std::vector<std::size_t>> chosen_;  // [version][fold]
  // What the folds' fits say of their held-out rows.
  std::vector<std::vector<double>> right_;       // [version][row] 1 if right, or squared error
  std::vector<std::vector<double>> fold_loss_;   // [fold][strength]
  std::vector<std::vector<double>> fold_right_;  // [fold][strength] Σ right or Σ squared error
  std::vector<double> mean_;                     // [row] mean of the fold's training values
  Matrix decision_, projection_, whitened_;      // [n, C]
  std::vector<double> residual_;                 // [fold]
};

std::vector<Eigen::Index> SiteFit::rows_of(std::int32_t fold) const {
  std::vector<Eigen::Index> rows;
  for (std::size_t r = 0; r < fold_.size(); ++r) {
    if (fold_[r] == fold) rows.push_back(static_cast<Eigen::Index>(r));
  }
  return rows;
}

SiteFit::Training SiteFit::train(std::int32_t without, std::int32_t and_without) const {
  Training out;
  for (std::size_t r = 0; r < fold_.size(); ++r) {
    if (fold_[r] != without && fold_[r] != and_without) {
      out.rows.push_back(static_cast<Eigen::Index>(r));
    }
  }
  out.basis = linear::make_basis(x_(out.rows, Eigen::all));
  return out;
}

std::vector<Fit> SiteFit::fit(const Training& training, std::size_t version,
                              std::span<const double> strengths) const {
  if (ridge_) {
    Vector y(training.rows.size());
    for (std::size_t i = 0; i < training.rows.size(); ++i) {
      y[static_cast<Eigen::Index>(i)] = labels_.values[version][size(training.rows[i])];
    }
    return linear::fit_ridge(training.basis, y, strengths);
  }
  std::vector<std::int32_t> labels;
  for (Eigen::Index r : training.rows) labels.push_back(labels_.classes[version][size(r)]);
  return linear::fit_logistic(training.basis, labels, classes_, strengths);
}

double SiteFit::loss(const Matrix& scores, std::span<const Eigen::Index> rows,
                     std::size_t version) const {
  if (ridge_) {
    double sum = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const double error =
          scores(static_cast<Eigen::Index>(i), 0) - labels_.values[version][size(rows[i])];
      sum += error * error;
    }
    return sum / static_cast<double>(rows.size());
  }
  std::vector<std::int32_t> labels;
  for (Eigen::Index r : rows) labels.push_back(labels_.classes[version][size(r)]);
  return linear::log_loss(scores, labels);
}

Matrix scores_of(const Matrix& z, const Fit& fit) {
  Matrix scores = z * fit.weight;
  scores.rowwise() += fit.bias.transpose();
  return scores;
}

std::int32_t predicted(const Matrix& scores, Eigen::Index row) {
  if (scores.cols() == 1) return scores(row, 0) > 0 ? 1 : 0;
  Eigen::Index best = 0;
  scores.row(row).maxCoeff(&best);
  return static_cast<std::int32_t>(best);
}

// The strength for each held-out fold f: least loss on the other folds g by fits that saw neither.
// One fit without f and g serves f (tested on g) and g (tested on f).
void SiteFit::choose_strengths() {
  const auto folds = size(options_.folds);
  chosen_.assign(versions(), std::vector<std::size_t>(folds, 0));
  if (strengths() == 1) return;
  std::vector<std::pair<std::int32_t, std::int32_t>> pairs;
  for (std::int32_t f = 0; f < options_.folds; ++f) {
    for (std::int32_t g = f + 1; g < options_.folds; ++g) pairs.emplace_back(f, g);
  }
  // [pair][version][side][strength]
  std::vector<std::vector<std::vector<std::vector<double>>>> losses(pairs.size());
  parallel_tasks(pairs.size(), [&](std::size_t p) {
    const auto [f, g] = pairs[p];
    const Training training = train(f, g);
    const std::vector<Eigen::Index> rows[] = {rows_of(f), rows_of(g)};
    const Matrix z[] = {training.basis.project(x_(rows[0], Eigen::all)),
                        training.basis.project(x_(rows[1], Eigen::all))};
    losses[p].resize(versions());
    for (std::size_t v = 0; v < versions(); ++v) {
      const std::vector<Fit> fits = fit(training, v, options_.strengths);
      losses[p][v].resize(2);
      for (std::size_t side = 0; side < 2; ++side) {
        for (const Fit& one : fits) {
          losses[p][v][side].push_back(loss(scores_of(z[side], one), rows[side], v));
        }
      }
    }
  });
  for (std::size_t v = 0; v < versions(); ++v) {
    for (std::int32_t f = 0; f < options_.folds; ++f) {
      std::vector<double> sum(strengths(), 0.0);
      for (std::size_t p = 0; p < pairs.size(); ++p) {
        if (pairs[p].first != f && pairs[p].second != f) continue;
        const std::size_t tested = pairs[p].first == f ? 1 : 0;  // the side that is not f
        for (std::size_t s = 0; s < strengths(); ++s) sum[s] += losses[p][v][tested][s];
      }
      chosen_[v][size(f)] = best(sum);
    }
  }
}

void SiteFit::hold_out(std::int32_t fold) {
  const Training training = train(fold, fold);
  const std::vector<Eigen::Index> rows = rows_of(fold);
  const Matrix test = x_(rows, Eigen::all);
  const Matrix z = training.basis.project(test);
  const auto right = [&](const Matrix& scores, std::size_t i, std::size_t v) {
    const auto at = static_cast<Eigen::Index>(i);
    if (!ridge_) {
      return predicted(scores, at) == labels_.classes[v][size(rows[i])] ? 1.0 : 0.0;
    }
    const double error = scores(at, 0) - labels_.values[v][size(rows[i])];
    return error * error;
  };
  for (std::size_t v = 0; v < versions(); ++v) {
    const std::size_t chosen = chosen_[v][size(fold)];
    // The path is of interest for the labels as they are; a control needs its own strength only.
    const std::span<const double> path =
        v == 0 ? std::span<const double>(options_.strengths)
               : std::span<const double>(options_.strengths).subspan(chosen, 1);
    const std::vector<Fit> fits = fit(training, v, path);
    const Matrix scores = scores_of(z, fits[v == 0 ? chosen : 0]);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      right_[v][size(rows[i])] = right(scores, i, v);
    }
    if (v > 0) continue;
    decision_(rows, Eigen::all) = scores;
    for (std::size_t s = 0; s < strengths(); ++s) {
      const Matrix path_scores = scores_of(z, fits[s]);
      fold_loss_[size(fold)][s] = loss(path_scores, rows, 0);
      for (std::size_t i = 0; i < rows.size(); ++i) {
        fold_right_[size(fold)][s] += right(path_scores, i, 0);
      }
      residual_[size(fold)] = std::max(residual_[size(fold)], fits[s].residual);
    }
    if (ridge_) {
      for (Eigen::Index r : rows) mean_[size(r)] = fits[0].bias[0];
    }
  }
  if (ridge_) return;
  std::vector<std::int32_t> labels;
  for (Eigen::Index r : training.rows) labels.push_back(targets_.label[size(r)]);
  const linear::MeanDirections means =
      linear::mean_directions(x_(training.rows, Eigen::all), labels, classes_, options_.shrinkage);
  projection_(rows, Eigen::all) = test * means.raw;
  whitened_(rows, Eigen::all) = test * means.whitened;
}

std::vector<double> row_major(const Matrix& m) {
  std::vector<double> out(size(m.size()));
  Eigen::Map<Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(
      out.data(), m.rows(), m.cols()) = m;
  return out;
}

// The fit to all rows, and the directions of all rows.
void SiteFit::fit_all() {
  const Training training = train(-1, -1);
  if (training.basis.constant == out_.width) {
    fail("{}: all {} features are the same in all {} rows", out_.site, out_.width, fold_.size());
  }
  out_.constant_features = training.basis.constant;
  const double strength[] = {out_.strength};
  const Fit last = fit(training, 0, strength).front();
  Vector bias = last.bias;
  out_.weight = row_major(training.basis.unproject(last.weight, bias).transpose());
  out_.bias.assign(bias.begin(), bias.end());
  out_.residual = std::max(out_.residual, last.residual);
  if (ridge_) return;
  const linear::MeanDirections means =
      linear::mean_directions(x_, targets_.label, classes_, options_.shrinkage);
  out_.direction = row_major(means.raw.transpose());
  out_.midpoint.assign(means.midpoint.begin(), means.midpoint.end());
  out_.whitened = row_major(means.whitened.transpose());
}

void SiteFit::summarize() {
  const auto n = static_cast<double>(fold_.size());
  const held_out::Scorer scorer(fold_, targets_.unit, options_.resamples, options_.seed);
  const auto column = [](const Matrix& m, Eigen::Index c) {
    return std::vector<double>(m.col(c).begin(), m.col(c).end());
  };
  const auto total = [&](std::size_t v) {
    double sum = 0;
    for (std::size_t r = 0; r < mean_.size(); ++r) {
      const double d = labels_.values[v][r] - mean_[r];
      sum += d * d;
    }
    return sum;
  };
  const auto score = [&](double sum, std::size_t v) {
    return ridge_ ? 1 - sum / total(v) : sum / n;
  };
  for (std::int64_t f = 0; f < options_.folds; ++f) {
    const std::vector<Eigen::Index> rows = rows_of(static_cast<std::int32_t>(f));
    double sum = 0, spread = 0;
    for (Eigen::Index r : rows) {
      sum += right_[0][size(r)];
      if (ridge_) spread += std::pow(targets_.value[size(r)] - mean_[size(r)], 2);
    }
    out_.fold_score.push_back(ridge_ ? 1 - sum / spread : sum / static_cast<double>(rows.size()));
    out_.fold_strength.push_back(options_.strengths[chosen_[0][size(f)]]);
    out_.residual = std::max(out_.residual, residual_[size(f)]);
  }
  for (std::size_t v = 1; v < versions(); ++v) {
    out_.control.push_back(score(std::accumulate(right_[v].begin(), right_[v].end(), 0.0), v));
  }
  out_.decision = row_major(decision_);
  if (ridge_) {
    out_.r2 = scorer.r2(out_.decision, mean_, targets_.value);
  } else {
    std::vector<std::int32_t> guess;
    for (Eigen::Index r = 0; r < decision_.rows(); ++r) guess.push_back(predicted(decision_, r));
    out_.accuracy = scorer.accuracy(guess, targets_.label);
    out_.balanced_accuracy = scorer.balanced(guess, targets_.label, classes_);
    for (Eigen::Index c = 0; c < out_.outputs; ++c) {
      std::vector<std::uint8_t> positive;
      for (std::int32_t label : targets_.label)
        positive.push_back(label == (classes_ == 2 ? 1 : c));
      out_.direction_auroc.push_back(scorer.auroc(column(projection_, c), positive));
      out_.whitened_auroc.push_back(scorer.auroc(column(whitened_, c), positive));
      if (classes_ == 2) out_.auroc = scorer.auroc(column(decision_, c), positive);
    }
    constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
    if (classes_ != 2) out_.auroc = {kNaN, kNaN, kNaN};
  }
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  out_.control_mean = out_.control.empty()
                          ? kNaN
                          : std::accumulate(out_.control.begin(), out_.control.end(), 0.0) /
                                static_cast<double>(out_.control.size());
  out_.selectivity = out_.score(options_.kind).value - out_.control_mean;
  for (std::size_t s = 0; s < strengths(); ++s) {
    double sum = 0;
    for (const auto& fold : fold_right_) sum += fold[s];
    out_.path_score.push_back(score(sum, 0));
  }
}

SiteProbe SiteFit::run() {
  const auto n = static_cast<Eigen::Index>(fold_.size());
  const auto folds = size(options_.folds);
  right_.assign(versions(), std::vector<double>(fold_.size(), 0.0));
  fold_loss_.assign(folds, std::vector<double>(strengths(), 0.0));
  fold_right_ = fold_loss_;
  residual_.assign(folds, 0.0);
  if (ridge_) mean_.assign(fold_.size(), 0.0);
  decision_ = Matrix::Zero(n, out_.outputs);
  if (!ridge_) projection_ = whitened_ = decision_;

  choose_strengths();
  parallel_tasks(folds, [&](std::size_t f) { hold_out(static_cast<std::int32_t>(f)); });
  // Each row counts once, however the folds' sizes differ.
  out_.path_loss.assign(strengths(), 0.0);
  for (std::size_t f = 0; f < folds; ++f) {
    const auto share = static_cast<double>(rows_of(static_cast<std::int32_t>(f)).size()) /
                       static_cast<double>(fold_.size());
    for (std::size_t s = 0; s < strengths(); ++s) out_.path_loss[s] += share * fold_loss_[f][s];
  }
  out_.strength = options_.strengths[best(out_.path_loss)];
  parallel_tasks(1, [&](std::size_t) { fit_all(); });
  summarize();
  return std::move(out_);
}

void check_options(const LinearProbeOptions& options) {
  if (options.strengths.empty()) fail_usage("no regularisation strength was given");
  for (double s : options.strengths) {
    if (!(s > 0) || !std::isfinite(s)) fail_usage("strength {}: a positive number expected", s);
  }
  if (options.controls < 0 || options.resamples < 0) {
    fail_usage("{} controls and {} resamples: 0 or more expected", options.controls,
               options.resamples);
  }
  if (!(options.shrinkage > 0 && options.shrinkage <= 1)) {
    fail_usage("shrinkage {}: more than 0 and at most 1 expected", options.shrinkage);
  }
}

}  // namespace

SiteProbe probe_site(std::string_view site, std::span<const float> values, std::int64_t width,
                     const ProbeTargets& targets, std::span<const std::int32_t> fold,
                     const LinearProbeOptions& options) {
  check_options(options);
  return SiteFit(site, values, width, targets, fold, options).run();
}

}  // namespace lamina
