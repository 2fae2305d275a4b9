#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "lamina/probes/cka.h"
#include "similarity/cka_cca.h"
#include "similarity/cka_minibatch.h"
#include "similarity/cka_rows.h"
#include "similarity/cka_sample.h"
#include "similarity/cka_sums.h"

namespace lamina::cka {

/// UsageError for settings that make no sense.
void check_options(const CkaOptions& options);

/// What is known of pairs of streams after one or several passes; NaN where nothing is.
struct Tables {
  explicit Tables(std::int64_t streams);
  double rows = 0;
  Eigen::MatrixXd squares;       // ‖XᵀY‖²
  Eigen::MatrixXd products;      // Σ ‖x‖²‖y‖²
  Eigen::MatrixXd svcca, pwcca;  // pwcca: weighted by the row's stream
  Eigen::VectorXd traces;        // Σ ‖x‖²
  Eigen::VectorXd first_token;   // share of the variance
  std::vector<Whitening> shares, floors;
  std::vector<std::int32_t> components;
};

/// One pass over rows: what the options ask for, for some pairs of streams.
class Engine {
 public:
  /// All pairs if `pairs` is empty. `sample`: this pass takes the rows of the RBF kernel.
  Engine(std::vector<Side> sides, const CkaOptions& options, std::vector<Pair> pairs = {},
         bool sample = true);

  /// The pairs that are wanted, those of a stream with itself first.
  static std::vector<Pair> wanted(const std::vector<Side>& sides);
  /// The same cut into passes whose sums take no more than the memory allowed. UsageError if not
  /// even one pair fits.
  static std::vector<std::vector<Pair>> plan(const std::vector<Side>& sides,
                                             const CkaOptions& options);

  /// Adds a block of one side and, with `take`, consumes whole slabs of the rows that all sides
  /// have. Blocks of two sides are copied.
  void add(std::size_t side, const ActivationBlock& block);
  void merge(Engine& other);
  /// Consumes what is left over.
  void finish();
  /// Adds this pass's pairs; exact mode only.
  void reduce(Tables& tables) const;

  bool finished() const { return finished_; }
  /// `tables`: of all passes; exact mode only.
  CkaResults results(const Tables* tables) const;

 private:
  void take(std::int64_t first, std::int64_t count);
  void names(CkaResults& out) const;
  void from_tables(const Tables& tables, CkaResults& out) const;
  void from_minibatches(CkaResults& out) const;
  void from_sample(CkaResults& out) const;
  void explain(const Tables* tables, CkaResults& out) const;

  std::vector<Side> sides_;
  CkaOptions options_;
  Rows rows_;
  std::optional<Sums> sums_;
  std::optional<Minibatches> minibatches_;
  std::optional<Sample> sample_;
  std::int64_t seen_ = 0, left_out_ = 0;
  bool finished_ = false;
};

}  // namespace lamina::cka
