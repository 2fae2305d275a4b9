#include "lamina/probes/infoplane.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "lamina/core/error.h"
#include "probing/held_out.h"
#include "probing/linear_fit.h"
#include "probing/parallel_tasks.h"

namespace lamina {
namespace {

using linear::Matrix;
using linear::Vector;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

double uniform(std::uint64_t seed, std::uint64_t at) {
  return (static_cast<double>(held_out::mix(seed, at) >> 11) + 0.5) * 0x1.0p-53;
}

// The standard normal number `at` of a seed (Box and Muller).
double normal(std::uint64_t seed, std::uint64_t at) {
  return std::sqrt(-2 * std::log(uniform(seed, 2 * at))) *
         std::cos(2 * std::acos(-1.0) * uniform(seed, 2 * at + 1));
}

Matrix random_directions(std::int64_t width, std::int64_t count, std::uint64_t seed) {
  Matrix out(width, count);
  for (std::int64_t c = 0; c < count; ++c) {
    for (std::int64_t i = 0; i < width; ++i) {
      out(i, c) = normal(seed, static_cast<std::uint64_t>(c * width + i));
    }
    out.col(c).normalize();
  }
  return out;
}

// Rows in their first principal components, [n, ≤ count].
Matrix principal_components(const Matrix& centred, std::int64_t count) {
  Matrix vectors;
  Vector squares;
  if (centred.rows() <= centred.cols()) {
    linear::principal(centred * centred.transpose(), centred.cols(), vectors, squares);
    const Eigen::Index kept = std::min<Eigen::Index>(count, squares.size());
    return vectors.leftCols(kept) * squares.head(kept).cwiseSqrt().asDiagonal();
  }
  linear::principal(centred.transpose() * centred, centred.rows(), vectors, squares);
  return centred * vectors.leftCols(std::min<Eigen::Index>(count, squares.size()));
}

std::vector<std::int64_t> bin(const Vector& x, const InfoPlaneOptions& options) {
  const auto n = static_cast<std::size_t>(x.size());
  std::vector<std::int64_t> out(n);
  if (options.binning == InfoBins::width) {
    const double low = x.minCoeff(), width = x.maxCoeff() - low;
    for (std::size_t i = 0; i < n; ++i) {
      const double share = width > 0 ? (x[static_cast<Eigen::Index>(i)] - low) / width : 0.0;
      out[i] = std::min(static_cast<std::int64_t>(share * static_cast<double>(options.bins)),
                        options.bins - 1);
    }
    return out;
  }
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  const auto value = [&](std::size_t i) { return x[static_cast<Eigen::Index>(i)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return value(a) < value(b); });
  for (std::size_t r = 0; r < n; ++r) {
    // Equal values share a bin: that of the first of them.
    out[order[r]] =
        r > 0 && value(order[r]) == value(order[r - 1])
            ? out[order[r - 1]]
            : static_cast<std::int64_t>(r) * options.bins / static_cast<std::int64_t>(n);
  }
  return out;
}

// Each row's cell of the grid, numbered in order of appearance.
std::vector<std::int64_t> cells(const Matrix& projected, const InfoPlaneOptions& options) {
  const auto n = static_cast<std::size_t>(projected.rows());
  std::vector<std::vector<std::int64_t>> keys(n);
  for (Eigen::Index c = 0; c < projected.cols(); ++c) {
    const std::vector<std::int64_t> one = bin(projected.col(c), options);
    for (std::size_t i = 0; i < n; ++i) keys[i].push_back(one[i]);
  }
  std::map<std::vector<std::int64_t>, std::int64_t> known;
  std::vector<std::int64_t> out;
  for (const auto& key : keys) {
    out.push_back(known.emplace(key, static_cast<std::int64_t>(known.size())).first->second);
  }
  return out;
}

struct Gaussian {
  double share = 0;
  Vector mean;
  Matrix covariance;
};

// One Gaussian per class; a millionth of the mean variance is added to every direction.
std::vector<Gaussian> class_gaussians(const Matrix& x, const ProbeTargets& targets) {
  std::vector<Gaussian> out(targets.classes.size());
  const Vector all = x.colwise().mean().transpose();
  const double average =
      (x.rowwise() - all.transpose()).squaredNorm() / static_cast<double>(x.size());
  for (std::size_t c = 0; c < out.size(); ++c) {
    std::vector<Eigen::Index> rows;
    for (std::size_t i = 0; i < targets.label.size(); ++i) {
      if (targets.label[i] == static_cast<std::int32_t>(c))
        rows.push_back(static_cast<Eigen::Index>(i));
    }
    const Matrix some = x(rows, Eigen::all);
    Gaussian& g = out[c];
    g.share = static_cast<double>(rows.size()) / static_cast<double>(x.rows());
    g.mean = some.colwise().mean().transpose();
    const Matrix centred = some.rowwise() - g.mean.transpose();
    g.covariance = centred.transpose() * centred / std::max<double>(double(rows.size()) - 1, 1);
    g.covariance.diagonal().array() += 1e-6 * average;
  }
  return out;
}

double kl(const Gaussian& a, const Gaussian& b) {
  const Eigen::LLT<Matrix> lb(b.covariance), la(a.covariance);
  const Vector shift = b.mean - a.mean;
  const auto log_det = [](const Eigen::LLT<Matrix>& l) {
    return 2 * l.matrixL().toDenseMatrix().diagonal().array().log().sum();
  };
  return 0.5 * (lb.solve(a.covariance).trace() + shift.dot(lb.solve(shift)) -
                static_cast<double>(shift.size()) + log_det(lb) - log_det(la));
}

double wasserstein(const Gaussian& a, const Gaussian& b) {
  const Eigen::SelfAdjointEigenSolver<Matrix> root(a.covariance);
  const Matrix half = root.operatorSqrt();
  const Eigen::SelfAdjointEigenSolver<Matrix> inner(half * b.covariance * half,
                                                    Eigen::EigenvaluesOnly);
  const double cross = inner.eigenvalues().cwiseMax(0.0).cwiseSqrt().sum();
  return std::sqrt(std::max(
      (a.mean - b.mean).squaredNorm() + a.covariance.trace() + b.covariance.trace() - 2 * cross,
      0.0));
}

// ∫ |F_a − F_b| of two sorted samples.
double wasserstein_1d(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0, at = 0;
  std::size_t i = 0, j = 0;
  bool first = true;
  while (i < a.size() || j < b.size()) {
    const double next = j == b.size() || (i < a.size() && a[i] <= b[j]) ? a[i] : b[j];
    if (!first) {
      sum += (next - at) * std::abs(static_cast<double>(i) / static_cast<double>(a.size()) -
                                    static_cast<double>(j) / static_cast<double>(b.size()));
    }
    first = false;
    at = next;
    while (i < a.size() && a[i] == next) ++i;
    while (j < b.size() && b[j] == next) ++j;
  }
  return sum;
}

// Mean over pairs of classes and random directions, over the spread along a mean direction.
double sliced(const Matrix& centred, const ProbeTargets& targets, const InfoPlaneOptions& options) {
  const std::size_t classes = targets.classes.size();
  const Matrix along =
      centred * random_directions(centred.cols(), options.slices, options.seed ^ 0x736c6963ULL);
  double sum = 0;
  for (Eigen::Index s = 0; s < along.cols(); ++s) {
    std::vector<std::vector<double>> values(classes);
    for (std::size_t i = 0; i < targets.label.size(); ++i) {
      values[static_cast<std::size_t>(targets.label[i])].push_back(
          along(static_cast<Eigen::Index>(i), s));
    }
    for (auto& v : values) std::sort(v.begin(), v.end());
    for (std::size_t a = 0; a < classes; ++a) {
      for (std::size_t b = a + 1; b < classes; ++b) sum += wasserstein_1d(values[a], values[b]);
    }
  }
  const double pairs = static_cast<double>(classes * (classes - 1) / 2);
  const double spread = std::sqrt(centred.squaredNorm() / static_cast<double>(centred.size()));
  return sum / pairs / static_cast<double>(along.cols()) / spread;
}

}  // namespace

double plugin_entropy(std::span<const std::int64_t> x) {
  std::map<std::int64_t, std::int64_t> counts;
  for (std::int64_t v : x) ++counts[v];
  double h = 0;
  for (const auto& [value, count] : counts) {
    const double p = static_cast<double>(count) / static_cast<double>(x.size());
    h -= p * std::log(p);
  }
  return h;
}

double plugin_information(std::span<const std::int64_t> x, std::span<const std::int64_t> y) {
  std::map<std::pair<std::int64_t, std::int64_t>, std::int64_t> counts;
  for (std::size_t i = 0; i < x.size(); ++i) ++counts[{x[i], y[i]}];
  double joint = 0;
  for (const auto& [value, count] : counts) {
    const double p = static_cast<double>(count) / static_cast<double>(x.size());
    joint -= p * std::log(p);
  }
  return std::max(plugin_entropy(x) + plugin_entropy(y) - joint, 0.0);
}

SiteInformation site_information(std::string_view site, std::span<const float> values,
                                 std::int64_t width, const ProbeTargets& targets,
                                 std::span<const std::int64_t> inputs,
                                 const InfoPlaneOptions& options) {
  const auto n = static_cast<std::int64_t>(targets.label.size());
  if (values.size() != static_cast<std::size_t>(n * width) ||
      targets.label.size() != inputs.size()) {
    fail_usage("{}: {} values for {} rows of {}", site, values.size(), n, width);
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      fail("{}: row {} of {} holds {} at component {}: activations must be finite", site,
           i / static_cast<std::size_t>(width), n, values[i], i % static_cast<std::size_t>(width));
    }
  }
  SiteInformation out;
  out.site = site;
  parallel_tasks(1, [&](std::size_t) {
    Matrix x =
        Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(
            values.data(), n, width)
            .cast<double>();
    const Vector mean = x.colwise().mean().transpose();
    const double largest = x.cwiseAbs().maxCoeff();
    x.rowwise() -= mean.transpose();
    const double total = x.squaredNorm();
    if (!(std::sqrt(total / static_cast<double>(x.size())) > 1e-12 * largest)) {
      fail("{}: all {} rows are the same", site, n);
    }
    const Matrix components =
        principal_components(x, std::max(options.components, options.gaussian));
    const Matrix projected =
        options.projection == InfoProjection::pca
            ? Matrix(components.leftCols(
                  std::min<Eigen::Index>(options.components, components.cols())))
            : Matrix(x * random_directions(width, options.components, options.seed));
    out.variance = projected.squaredNorm() / total;
    const std::vector<std::int64_t> t = cells(projected, options);
    const std::vector<std::int64_t> y(targets.label.begin(), targets.label.end());
    out.states = *std::max_element(t.begin(), t.end()) + 1;
    out.entropy = plugin_entropy(t);
    out.input = plugin_information(t, inputs);
    out.target = plugin_information(t, y);
    out.shuffled = options.controls > 0 ? 0.0 : kNaN;
    for (std::int64_t c = 0; c < options.controls; ++c) {
      // Rows in the order of random numbers give a permutation.
      std::vector<std::pair<std::uint64_t, std::int64_t>> order;
      const std::uint64_t seed = held_out::mix(options.seed, static_cast<std::uint64_t>(c));
      for (std::size_t i = 0; i < y.size(); ++i) order.emplace_back(held_out::mix(seed, i), y[i]);
      std::sort(order.begin(), order.end());
      std::vector<std::int64_t> shuffled;
      for (const auto& [key, label] : order) shuffled.push_back(label);
      out.shuffled += plugin_information(t, shuffled) / static_cast<double>(options.controls);
    }
    const Matrix some =
        components.leftCols(std::min<Eigen::Index>(options.gaussian, components.cols()));
    const std::vector<Gaussian> gaussians = class_gaussians(some, targets);
    double pairs = 0;
    for (const Gaussian& a : gaussians) {
      double mixture = 0;
      for (const Gaussian& b : gaussians) {
        mixture += b.share * std::exp(&a == &b ? 0.0 : -kl(a, b));
        if (&b <= &a) continue;
        out.gaussian_wasserstein += wasserstein(a, b);
        ++pairs;
      }
      out.kl_bound -= a.share * std::log(mixture);
    }
    const double spread = std::sqrt(some.squaredNorm() / static_cast<double>(n));
    out.gaussian_wasserstein /= pairs * spread;
    out.sliced_wasserstein = options.slices > 0 ? sliced(x, targets, options) : kNaN;
  });
  return out;
}

void write_infoplane(ResultFile& file, const InfoPlaneResults& results,
                     const InfoPlaneOptions& options) {
  using Names = std::vector<std::string>;
  file.setting("projection",
               std::string(options.projection == InfoProjection::pca ? "pca" : "random"));
  file.setting("components", options.components);
  file.setting("binning", std::string(options.binning == InfoBins::width ? "width" : "count"));
  file.setting("bins", options.bins);
  file.setting("gaussian_components", options.gaussian);
  file.setting("slices", options.slices);
  file.setting("controls", options.controls);
  file.setting("seed", std::to_string(options.seed));
  file.setting("target_entropy", results.target_entropy);
  file.setting("input_entropy", results.input_entropy);
  Names sites;
  std::vector<std::int32_t> layers, states;
  for (const SiteInformation& s : results.sites) {
    sites.push_back(s.site);
    layers.push_back(s.layer);
    states.push_back(static_cast<std::int32_t>(s.states));
  }
  const Names site{"site"};
  file.axis("site", sites);
  file.dataset("layer", site, layers, "layer of the site, -1 outside the layers", "layer");
  file.dataset("states", site, states, "occupied cells of the grid", "");
  const auto write = [&](std::string_view name, double SiteInformation::*field,
                         std::string_view description, std::string_view units) {
    std::vector<double> values;
    for (const SiteInformation& s : results.sites) values.push_back(s.*field);
    file.dataset(name, site, values, description, units);
  };
  write("entropy", &SiteInformation::entropy, "H(T) of the cells", "nats");
  write("input_information", &SiteInformation::input, "I(X;T)", "nats");
  write("target_information", &SiteInformation::target, "I(T;Y)", "nats");
  write("shuffled_information", &SiteInformation::shuffled,
        "I(T;Y) with shuffled labels, mean over repetitions: the bias of the estimate", "nats");
  write("variance", &SiteInformation::variance, "share of the variance in the binned components",
        "1");
  write(
      "kl_bound", &SiteInformation::kl_bound,
      "-sum p_i log sum p_j exp(-KL(N_i|N_j)) of the classes' Gaussians: at least I(T;Y) of their "
      "mixture",
      "nats");
  write("gaussian_wasserstein", &SiteInformation::gaussian_wasserstein,
        "W2 of the classes' Gaussians, mean over pairs, over the rows' spread in these components",
        "1");
  write("sliced_wasserstein", &SiteInformation::sliced_wasserstein,
        "W1 along random directions, mean over pairs and directions, over the rows' spread per "
        "direction",
        "1");
}

}  // namespace lamina
