// From sums to similarities.

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "similarity/cka_engine.h"

namespace lamina::cka {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// value(stream, stream) of layers against others.
template <class Value>
std::vector<double> matrix(const CkaResults& out, const Value& value) {
  const std::int64_t other = out.self ? 0 : out.a();
  std::vector<double> values;
  for (std::int64_t i = 0; i < out.a(); ++i) {
    for (std::int64_t j = 0; j < out.b(); ++j) values.push_back(value(i, other + j));
  }
  return values;
}

// One value a stream, to the layers and the others.
template <class From, class T>
void split(const CkaResults& out, const From& from, std::vector<T>& layers,
           std::vector<T>& layers_other) {
  const auto a = static_cast<std::ptrdiff_t>(out.a());
  layers.assign(from.begin(), from.begin() + a);
  layers_other.assign(from.begin() + a, from.end());
}

}  // namespace

void Engine::names(CkaResults& out) const {
  out.self = sides_.size() == 1;
  const auto name = [](const Side& side) {
    std::vector<std::string> names;
    for (std::size_t s = 0; s < side.sites.size(); ++s) {
      const bool enters =
          s == 0 && side.sites.size() > 1 && side.sites[1].kind != side.sites[0].kind;
      names.push_back(enters ? "embed" : std::to_string(side.sites[s].layer));
    }
    return names;
  };
  out.layers = name(sides_.front());
  if (!out.self) out.layers_other = name(sides_.back());
}

void Engine::from_tables(const Tables& t, CkaResults& out) const {
  const double n = t.rows;
  const auto ratio = [](double xy, double xx, double yy) {
    return xx > 0 && yy > 0 ? xy / (std::sqrt(xx) * std::sqrt(yy)) : kNan;
  };
  if (options_.measures.linear) {
    out.linear = matrix(out, [&](std::int64_t i, std::int64_t j) {
      const double self = ratio(t.squares(i, i), t.squares(i, i), t.squares(j, j));
      return i == j && !std::isnan(self) ? 1.0
                                         : ratio(t.squares(i, j), t.squares(i, i), t.squares(j, j));
    });
  }
  if (options_.measures.debiased) {
    // The unbiased HSIC of linear kernels of centred rows, times n (n − 3): every sum over a row of
    // the kernel without its diagonal is −‖x‖².
    const auto hsic = [&](std::int64_t i, std::int64_t j) {
      if (n < 4) return kNan;
      return t.squares(i, j) + t.traces[i] * t.traces[j] / ((n - 1) * (n - 2)) -
             t.products(i, j) * n / (n - 2);
    };
    out.debiased = matrix(out, [&](std::int64_t i, std::int64_t j) {
      const double value = ratio(hsic(i, j), hsic(i, i), hsic(j, j));
      return i == j && !std::isnan(value) ? 1.0 : value;
    });
  }
  if (options_.measures.svcca) {
    out.svcca = matrix(out, [&](std::int64_t i, std::int64_t j) { return t.svcca(i, j); });
    split(out, t.components, out.components, out.components_other);
  }
  if (options_.measures.pwcca) {
    out.pwcca = matrix(out, [&](std::int64_t i, std::int64_t j) { return t.pwcca(i, j); });
  }
  if (options_.pool == CkaPool::none) {
    split(out, t.first_token, out.first_token, out.first_token_other);
  }
}

void Engine::from_minibatches(CkaResults& out) const {
  const Minibatches& m = *minibatches_;
  out.minibatches = m.batches();
  out.debiased = matrix(out, [&](std::int64_t i, std::int64_t j) { return m.cka(i, j); });
  out.debiased_error = matrix(out, [&](std::int64_t i, std::int64_t j) { return m.error(i, j); });
  if (options_.pool != CkaPool::none) return;
  std::vector<double> shares;
  for (std::int64_t s = 0; s < rows_.streams(); ++s) {
    shares.push_back(m.first_squares(s) / m.squares(s));
  }
  split(out, shares, out.first_token, out.first_token_other);
}

void Engine::from_sample(CkaResults& out) const {
  const Sample::Result r = sample_->result(options_.bandwidth);
  out.sample = sample_->count();
  out.rbf = matrix(out, [&](std::int64_t i, std::int64_t j) { return r.cka(i, j); });
  out.rbf_debiased = matrix(out, [&](std::int64_t i, std::int64_t j) { return r.debiased(i, j); });
  split(out, r.sigma, out.sigma, out.sigma_other);
}

// Why there are NaN.
void Engine::explain(const Tables* tables, CkaResults& out) const {
  const auto note = [&](std::string text) { out.notes.push_back(std::move(text)); };
  if (out.rows < 2) note(fmt::format("{} rows: nothing varies over fewer than 2", out.rows));
  if (out.rows >= 2 && out.rows < 4) {
    note(fmt::format("{} rows: debiased similarity needs at least 4", out.rows));
  }
  if (minibatches_ && minibatches_->batches() == 1) {
    note("one minibatch: no standard error from fewer than 2");
  }
  if (out.rows < 2) return;
  const std::int64_t a = out.a();
  for (std::int64_t s = 0; s < rows_.streams(); ++s) {
    const std::string layer =
        s < a ? "layer " + out.layers[size(s)] : "other layer " + out.layers_other[size(s - a)];
    const double squares = tables != nullptr ? tables->squares(s, s) : minibatches_->squares(s);
    if (squares == 0) {
      note(layer + " does not vary over the rows: it has no similarity");
    } else if (!std::isfinite(squares)) {
      note(layer +
           " holds values that are not finite, or too large to square: it has no "
           "similarity");
    } else if (minibatches_ && minibatches_->batches() > 0 && !(minibatches_->hsic(s, s) > 0)) {
      note(layer +
           ": no variance is left without the diagonal of its kernel: it has no debiased "
           "similarity");
    } else if (sample_ && !((s < a ? out.sigma[size(s)] : out.sigma_other[size(s - a)]) > 0)) {
      note(layer + ": half of the sampled rows are equal: it has no RBF kernel");
    }
  }
}

CkaResults Engine::results(const Tables* tables) const {
  CkaResults out;
  names(out);
  out.rows = seen_;
  out.rows_left_out = left_out_;
  if (tables != nullptr) from_tables(*tables, out);
  if (minibatches_) from_minibatches(out);
  if (sample_) from_sample(out);
  explain(tables, out);
  return out;
}

}  // namespace lamina::cka
