#include "similarity/cka_engine.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>

#include "lamina/core/error.h"

namespace lamina::cka {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// Calls work(0) … work(n − 1) on all threads; what one of them throws is thrown here.
template <class Work>
void parallel(std::size_t n, const Work& work) {
  std::exception_ptr error;
#pragma omp parallel for schedule(dynamic)
  for (std::size_t i = 0; i < n; ++i) {
    try {
      work(i);
    } catch (...) {
#pragma omp critical(lamina_cka_error)
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace

void check_options(const CkaOptions& o) {
  const auto least = [](std::int64_t value, std::int64_t bound, const char* name) {
    if (value < bound) fail_usage("cka: {} is {}, at least {} expected", name, value, bound);
  };
  least(o.skip, 0, "skip");
  least(o.minibatch, 4, "the number of rows of a minibatch");
  if (o.minibatch > 8192) {
    fail_usage("cka: a minibatch of {} rows, at most 8192 expected", o.minibatch);
  }
  least(o.sample, 2, "the sample of the RBF kernel");
  if (o.sample > 20000) fail_usage("cka: a sample of {} rows, at most 20000 expected", o.sample);
  if (!(o.bandwidth > 0) || !std::isfinite(o.bandwidth)) {
    fail_usage("cka: the bandwidth is {}, a positive number expected", o.bandwidth);
  }
  if (!(o.variance > 0) || o.variance > 1) {
    fail_usage("cka: the share of the variance is {}, expected above 0 and at most 1", o.variance);
  }
  if (!(o.floor >= 0) || o.floor >= 1) {
    fail_usage("cka: the floor is {}, expected at least 0 and below 1", o.floor);
  }
  if (o.mode == CkaMode::minibatch && (o.measures.svcca || o.measures.pwcca)) {
    fail_usage("cka: svcca and pwcca need exact sums; minibatches give debiased and rbf");
  }
}

Tables::Tables(std::int64_t streams)
    : squares(Eigen::MatrixXd::Constant(streams, streams, kNan)),
      products(squares),
      svcca(squares),
      pwcca(squares),
      traces(Eigen::VectorXd::Constant(streams, kNan)),
      first_token(Eigen::VectorXd::Constant(streams, kNan)),
      shares(size(streams)),
      floors(size(streams)),
      components(size(streams)) {}

Engine::Engine(std::vector<Side> sides, const CkaOptions& options, std::vector<Pair> pairs,
               bool sample)
    : sides_(std::move(sides)), options_(options), rows_(sides_, options) {
  check_options(options_);
  if (options_.mode == CkaMode::exact) {
    if (pairs.empty()) {
      std::vector<std::vector<Pair>> passes = plan(sides_, options_);
      if (passes.size() > 1) {
        std::uint64_t bytes = Sums::fixed_bytes(rows_, options_.measures.debiased);
        for (const Pair& pair : wanted(sides_)) bytes += Sums::pair_bytes(rows_, pair);
        fail_usage(
            "cka: exact sums of all pairs of {} streams take {:.1f} MiB in one pass, {:.1f} MiB "
            "are "
            "allowed (--memory); allow more, choose fewer layers (--site), use --mode minibatch, "
            "or record the activations first, which may be read several times",
            rows_.streams(), static_cast<double>(bytes) / (1 << 20),
            static_cast<double>(options_.memory) / (1 << 20));
      }
      pairs = std::move(passes.front());
    }
    sums_.emplace(rows_, std::move(pairs), options_.measures.debiased);
  } else {
    minibatches_.emplace(rows_);
  }
  if (!sample || !options_.measures.rbf) return;
  // The kernels of all streams above their diagonals, in double.
  const double bytes = static_cast<double>(rows_.streams()) * 4 *
                       static_cast<double>(options_.sample) * static_cast<double>(options_.sample);
  if (bytes > static_cast<double>(options_.memory)) {
    fail_usage(
        "cka: RBF kernels of {} sampled rows (--sample) of {} streams take {:.1f} MiB, "
        "{:.1f} MiB are allowed (--memory)",
        options_.sample, rows_.streams(), bytes / (1 << 20),
        static_cast<double>(options_.memory) / (1 << 20));
  }
  sample_.emplace(rows_, options_.sample);
}

std::vector<Pair> Engine::wanted(const std::vector<Side>& sides) {
  std::vector<Pair> pairs;
  const std::int64_t a = sides.front().count();
  const std::int64_t all = a + (sides.size() > 1 ? sides.back().count() : 0);
  for (std::int64_t s = 0; s < all; ++s) pairs.push_back({s, s});
  for (std::int64_t s = 0; s < a; ++s) {
    for (std::int64_t t = sides.size() > 1 ? a : s + 1; t < all; ++t) pairs.push_back({s, t});
  }
  return pairs;
}

std::vector<std::vector<Pair>> Engine::plan(const std::vector<Side>& sides,
                                            const CkaOptions& options) {
  const Rows rows(sides, options);
  const std::uint64_t fixed = Sums::fixed_bytes(rows, options.measures.debiased);
  std::vector<std::vector<Pair>> passes(1);
  std::uint64_t bytes = fixed;
  bool whitened = true;  // every stream's own pair is in the first pass
  for (const Pair& pair : wanted(sides)) {
    const std::uint64_t more = Sums::pair_bytes(rows, pair);
    if (bytes + more > options.memory) {
      if (passes.back().empty()) {
        fail_usage(
            "cka: the sums of one pair of streams take {:.1f} MiB, {:.1f} MiB are allowed "
            "(--memory)",
            static_cast<double>(fixed + more) / (1 << 20),
            static_cast<double>(options.memory) / (1 << 20));
      }
      passes.emplace_back();
      bytes = fixed;
    }
    if (pair.first == pair.second && passes.size() > 1) whitened = false;
    passes.back().push_back(pair);
    bytes += more;
  }
  if (!whitened && (options.measures.svcca || options.measures.pwcca)) {
    fail_usage(
        "cka: svcca and pwcca need the covariances of all {} streams at once, more than the "
        "{:.1f} MiB allowed (--memory)",
        rows.streams(), static_cast<double>(options.memory) / (1 << 20));
  }
  return passes;
}

void Engine::take(std::int64_t first, std::int64_t count) {
  if (sums_) sums_->add(rows_, first, count);
  if (minibatches_) minibatches_->add(rows_, first, count);
}

void Engine::add(std::size_t side, const ActivationBlock& block) {
  if (finished_) fail("cka: the results were read; nothing can be added to them");
  rows_.add(side, block);
  if (sides_.size() > 1) rows_.drop(0);
  const std::int64_t slab = sums_ ? Sums::kSlab : options_.minibatch, rows = rows_.rows();
  const std::int64_t slabs = rows / slab;
  for (std::int64_t s = 0; s < slabs; ++s) take(s * slab, slab);
  if (sample_) sample_->add(rows_, 0, slabs * slab);
  seen_ += slabs * slab;
  rows_.drop(slabs * slab);
}

void Engine::merge(Engine& other) {
  if (finished_ || other.finished_) fail("cka: the results were read; nothing can be merged");
  if (sums_) {
    // Both remainders are added as they are: sums do not care where a slab ends.
    finish();
    other.finish();
    finished_ = other.finished_ = false;
    sums_->merge(*other.sums_);
  } else {
    minibatches_->merge(*other.minibatches_);
    rows_.append(other.rows_);
    other.rows_.drop(other.rows_.rows());
    const std::int64_t count = options_.minibatch;
    for (; rows_.rows() >= count; rows_.drop(count)) {
      take(0, count);
      if (sample_) sample_->add(rows_, 0, count);
      seen_ += count;
    }
    other.minibatches_.emplace(other.rows_);
  }
  if (sample_) sample_->merge(*other.sample_);
  seen_ += other.seen_;
  other.seen_ = 0;
}

void Engine::finish() {
  if (finished_) return;
  const std::int64_t rest = rows_.rows();
  const bool whole = sums_ || (minibatches_->batches() == 0 && rest >= 4);
  if (rest > 0 && whole) take(0, rest);
  if (sample_) sample_->add(rows_, 0, rest);
  if (whole) {
    seen_ += rest;
  } else {
    left_out_ = rest;
  }
  rows_.drop(rest);
  finished_ = true;
}

void Engine::reduce(Tables& tables) const {
  if (sums_->rows() == 0) return;
  tables.rows = static_cast<double>(sums_->rows());
  const std::vector<Pair>& pairs = sums_->pairs();
  const CkaMeasures& m = options_.measures;
  // A stream's own pairs come first: their directions serve all others.
  std::size_t own = 0;
  while (own < pairs.size() && pairs[own].first == pairs[own].second) ++own;
  parallel(own, [&](std::size_t p) {
    const std::int64_t s = pairs[p].first;
    const Eigen::MatrixXd c = sums_->covariance(p);
    tables.squares(s, s) = c.squaredNorm();
    tables.traces[s] = sums_->squares(s);
    tables.first_token[s] = sums_->first_squares(s) / sums_->squares(s);
    if (m.debiased) tables.products(s, s) = sums_->square_products(p);
    if (m.svcca) {
      tables.shares[size(s)] = whiten_share(c, options_.variance);
      tables.components[size(s)] = static_cast<std::int32_t>(tables.shares[size(s)].w.cols());
      tables.svcca(s, s) = tables.components[size(s)] > 0 ? 1 : kNan;
    }
    if (m.pwcca) {
      tables.floors[size(s)] = whiten_floor(c, options_.floor);
      tables.pwcca(s, s) = tables.floors[size(s)].w.cols() > 0 ? 1 : kNan;
    }
  });
  parallel(pairs.size() - own, [&](std::size_t i) {
    const std::size_t p = own + i;
    const auto [a, b] = pairs[p];
    const Eigen::MatrixXd c = sums_->covariance(p);
    tables.squares(a, b) = tables.squares(b, a) = c.squaredNorm();
    if (m.debiased) tables.products(a, b) = tables.products(b, a) = sums_->square_products(p);
    if (m.svcca) {
      tables.svcca(a, b) = tables.svcca(b, a) =
          mean_cca(tables.shares[size(a)], tables.shares[size(b)], c);
    }
    if (m.pwcca) {
      const Pwcca both = pwcca(tables.floors[size(a)], tables.floors[size(b)], c);
      tables.pwcca(a, b) = both.by_x;
      tables.pwcca(b, a) = both.by_y;
    }
  });
}

}  // namespace lamina::cka
