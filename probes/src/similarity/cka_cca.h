#pragma once

#define EIGEN_DONT_PARALLELIZE
#include <Eigen/Core>

// Canonical correlations from covariances alone. C = XᵀX of centred columns, X [n, d].

namespace lamina::cka {

/// Principal directions of one stream: XW has orthonormal columns.
struct Whitening {
  Eigen::MatrixXd w;     // [d, k] eigenvectors over the root of their eigenvalues
  Eigen::MatrixXd load;  // [d, k] C·w: inner products of the columns of X with those of XW
};

/// The fewest directions that hold `share` of tr C; none if C is zero.
Whitening whiten_share(const Eigen::MatrixXd& c, double share);
/// Those whose variance is more than `floor` of the largest.
Whitening whiten_floor(const Eigen::MatrixXd& c, double floor);

/// Mean canonical correlation of XWx and YWy, with xy = XᵀY. NaN if a side has no direction.
double mean_cca(const Whitening& x, const Whitening& y, const Eigen::MatrixXd& xy);

/// Projection-weighted canonical correlations, weighted by X and by Y (Morcos, Raghu, Bengio 2018):
/// Σ α_i ρ_i / Σ α_i, α_i = Σ_j |⟨h_i, x_j⟩| over the columns x_j of X, h_i X's canonical variates.
struct Pwcca {
  double by_x = 0, by_y = 0;
};
Pwcca pwcca(const Whitening& x, const Whitening& y, const Eigen::MatrixXd& xy);

}  // namespace lamina::cka
