#include "transcoder/row_sums.h"

#include <cmath>
#include <limits>

#include "lamina/core/error.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

double ratio(double a, double b) {
  return b == 0 ? std::numeric_limits<double>::quiet_NaN() : a / b;
}

}  // namespace

namespace rows {

std::vector<std::int64_t> counted(const Batch& batch, std::int64_t skip) {
  std::vector<std::int64_t> rows;
  for (std::int64_t p = 0; p < batch.prompts(); ++p) {
    for (std::int64_t r = batch.offsets[size(p)] + skip; r < batch.offsets[size(p + 1)]; ++r) {
      rows.push_back(r);
    }
  }
  return rows;
}

std::vector<float> gather(const ActivationBlock& block, Site site, std::int64_t width,
                          std::span<const std::int64_t> rows, const std::string& name) {
  const ActivationBlock::Values& from = block.at(site);
  if (from.shape.attention || from.shape.row() != width) {
    fail("{}: it has {} values at {}, the activations have {}", name, width, site_name(site),
         from.shape.attention ? 0 : from.shape.row());
  }
  std::vector<float> out;
  out.reserve(rows.size() * size(width));
  for (std::int64_t r : rows) {
    const auto first = from.values.begin() + r * width;
    out.insert(out.end(), first, first + width);
  }
  return out;
}

void add(ReconstructionSums& sums, std::span<const float> y, std::span<const float> rebuilt,
         std::span<const double> mean) {
  double error = 0, variance = 0, squares = 0, rebuilt_squares = 0, dot = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double a = y[i], b = rebuilt[i];
    error += (a - b) * (a - b);
    variance += (a - mean[i]) * (a - mean[i]);
    squares += a * a;
    rebuilt_squares += b * b;
    dot += a * b;
  }
  sums.error += error;
  sums.variance += variance;
  sums.squares += squares;
  if (variance > 0) {
    sums.row_explained += 1 - error / variance;
    ++sums.varying_rows;
  }
  if (squares > 0 && rebuilt_squares > 0) {
    sums.cosine += dot / std::sqrt(squares * rebuilt_squares);
    sums.norm_ratio += std::sqrt(rebuilt_squares / squares);
    ++sums.directed_rows;
  }
}

void add(ReconstructionSums& to, const ReconstructionSums& from) {
  to.tokens += from.tokens;
  to.active += from.active;
  to.error += from.error;
  to.variance += from.variance;
  to.squares += from.squares;
  to.row_explained += from.row_explained;
  to.varying_rows += from.varying_rows;
  to.cosine += from.cosine;
  to.norm_ratio += from.norm_ratio;
  to.directed_rows += from.directed_rows;
}

}  // namespace rows

double ReconstructionSums::l0() const {
  return ratio(static_cast<double>(active), static_cast<double>(tokens));
}
double ReconstructionSums::explained_variance() const {
  return 1 - ratio(error, variance);
}
double ReconstructionSums::explained_variance_rows() const {
  return ratio(row_explained, static_cast<double>(varying_rows));
}
double ReconstructionSums::mse(std::int64_t width) const {
  return ratio(error, static_cast<double>(tokens) * static_cast<double>(width));
}
double ReconstructionSums::normalized_mse() const {
  return ratio(error, squares);
}
double ReconstructionSums::mean_cosine() const {
  return ratio(cosine, static_cast<double>(directed_rows));
}
double ReconstructionSums::mean_norm_ratio() const {
  return ratio(norm_ratio, static_cast<double>(directed_rows));
}

}  // namespace lamina
