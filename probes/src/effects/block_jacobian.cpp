#include "lamina/probes/block_jacobian.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "lamina/core/backward.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

std::uint64_t mix(std::uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// The random bits of one token of one pair.
class Signs {
 public:
  Signs(std::uint64_t seed, std::int64_t prompt, std::int64_t position, std::int64_t layer,
        std::int64_t pair) {
    key_ = seed;
    for (const std::int64_t part : {prompt, position, layer, pair}) {
      key_ = mix(key_ ^ static_cast<std::uint64_t>(part));
    }
  }
  float token() const { return mix(~key_) & 1 ? 1.0f : -1.0f; }
  void fill(std::span<float> out) const {
    std::uint64_t bits = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (i % 64 == 0) bits = mix(key_ + i / 64);
      out[i] = bits >> (i % 64) & 1 ? 1.0f : -1.0f;
    }
  }

 private:
  std::uint64_t key_;
};

// One layer of one batch, ready to be run backwards.
class Block {
 public:
  Block(Forward& forward, const Batch& batch, std::int32_t layer, std::span<const float> entering)
      : backward_(forward.model()) {
    const Step step{.layer = layer};
    forward.run(batch, {}, {.steps = {&step, 1}, .start = entering, .tape = &tape_});
    hooks_.read({SiteKind::resid_pre, layer}, [this](SiteView& view) {
      gradient_.assign(view.values.begin(), view.values.end());
    });
  }
  // Jᵀv of the whole batch; valid until the next call.
  std::span<const float> transposed(std::span<const float> v) {
    backward_.seed_residual(tape_, v);
    backward_.run(tape_, {}, hooks_);
    return gradient_;
  }

 private:
  Backward backward_;
  Tape tape_;
  Hooks hooks_;
  std::vector<float> gradient_;
};

// Sums over tokens of one layer; one entry a pair.
struct Sums {
  std::vector<double> own, all;
};

void add_random(Block& block, const Batch& batch, std::int64_t first_prompt, std::int32_t layer,
                std::int64_t d, const JacobianOptions& options, Sums& sums) {
  const std::int64_t tokens = batch.tokens();
  std::vector<float> v(size(tokens * d)), turned(size(tokens * d)), signs(size(tokens));
  std::vector<double> own(size(tokens)), all(size(tokens));
  for (std::int64_t k = 0; k < options.probes; ++k) {
    std::int64_t row = 0;
    for (std::int64_t p = 0; p < batch.prompts(); ++p) {
      for (std::int64_t t = 0; t < batch.length(p); ++t, ++row) {
        const Signs bits(options.seed, first_prompt + p, t, layer, k);
        const auto at = std::span(v).subspan(size(row * d), size(d));
        bits.fill(at);
        signs[size(row)] = bits.token();
        for (std::int64_t i = 0; i < d; ++i) turned[size(row * d + i)] = bits.token() * at[size(i)];
      }
    }
    const std::span<const float> first = block.transposed(v);
    const std::vector<float> g(first.begin(), first.end());
    const std::span<const float> h = block.transposed(turned);
#pragma omp parallel for schedule(static)
    for (std::int64_t r = 0; r < tokens; ++r) {
      double product = 0, squares = 0;
      for (std::int64_t i = r * d; i < (r + 1) * d; ++i) {
        const double a = double{g[size(i)]} - v[size(i)];
        const double b = double{h[size(i)]} - turned[size(i)];
        product += a * b;
        squares += a * a + b * b;
      }
      own[size(r)] = product * signs[size(r)];
      all[size(r)] = squares / 2;
    }
    for (std::int64_t r = 0; r < tokens; ++r) {
      sums.own[size(k)] += own[size(r)];
      sums.all[size(k)] += all[size(r)];
    }
  }
}

void add_exact(Block& block, const Batch& batch, std::int64_t d, Sums& sums) {
  std::int64_t longest = 0;
  for (std::int64_t p = 0; p < batch.prompts(); ++p) longest = std::max(longest, batch.length(p));
  std::vector<float> unit(size(batch.tokens() * d));
  // Prompts do not reach each other: one unit vector in each at a time.
  for (std::int64_t t = 0; t < longest; ++t) {
    for (std::int64_t i = 0; i < d; ++i) {
      std::fill(unit.begin(), unit.end(), 0.0f);
      for (std::int64_t p = 0; p < batch.prompts(); ++p) {
        if (t < batch.length(p)) unit[size((batch.offsets[size(p)] + t) * d + i)] = 1.0f;
      }
      const std::span<const float> g = block.transposed(unit);
      for (std::int64_t p = 0; p < batch.prompts(); ++p) {
        if (t >= batch.length(p)) continue;
        const std::int64_t begin = batch.offsets[size(p)];
        for (std::int64_t r = begin; r < batch.offsets[size(p) + 1]; ++r) {
          double squares = 0;
          for (std::int64_t j = r * d; j < (r + 1) * d; ++j) {
            const double a = double{g[size(j)]} - unit[size(j)];
            squares += a * a;
          }
          sums.all[0] += squares;
          if (r == begin + t) sums.own[0] += squares;
        }
      }
    }
  }
}

// Means over pairs of squares per token → root, as a share of √d, and its standard error.
void finish(const std::vector<double>& sums, double tokens, double d, bool exact, double& value,
            double& error) {
  const auto n = static_cast<double>(sums.size());
  double mean = 0, spread = 0;
  for (const double s : sums) mean += s / tokens / d / n;
  for (const double s : sums) spread += std::pow(s / tokens / d - mean, 2);
  value = std::sqrt(std::max(mean, 0.0));
  if (exact || (n > 1 && spread == 0)) {
    error = 0.0;
  } else if (n == 1) {
    error = std::numeric_limits<double>::quiet_NaN();
  } else {
    const double of_square = std::sqrt(spread / (n - 1) / n);
    error = value > 0 ? of_square / (2 * value) : std::sqrt(of_square);
  }
}

}  // namespace

BlockJacobian measure_block_jacobian(Forward& forward, std::span<const Prompt> prompts,
                                     const JacobianOptions& options) {
  const ModelConfig& config = forward.model().config();
  const std::int64_t layers = config.n_layers, d = config.d_model;
  if (options.probes < 0 || options.batch_tokens < 1) {
    fail_usage("{} pairs of random vectors and {} batch tokens cannot be", options.probes,
               options.batch_tokens);
  }
  if (prompts.empty()) fail("there are no prompts to take Jacobians at");
  BlockJacobian out;
  out.n_layers = layers;
  out.exact = options.probes == 0;
  const std::size_t pairs = size(std::max<std::int64_t>(options.probes, 1));
  std::vector<Sums> sums(size(layers), {std::vector<double>(pairs), std::vector<double>(pairs)});
  const auto all = static_cast<std::int64_t>(prompts.size());
  std::int64_t done = 0;
  for (std::int64_t first = 0; first < all;) {
    Batch batch;
    std::int64_t last = first;
    do {
      batch.add(prompts[size(last)].ids);
      ++last;
    } while (last < all &&
             batch.tokens() + static_cast<std::int64_t>(prompts[size(last)].ids.size()) <=
                 options.batch_tokens);
    std::vector<std::vector<float>> entering(size(layers));
    Hooks hooks;
    for (std::int32_t l = 0; l < layers; ++l) {
      hooks.read({SiteKind::resid_pre, l}, [&entering, l](SiteView& view) {
        entering[size(l)].assign(view.values.begin(), view.values.end());
      });
    }
    forward.run(batch, hooks);
    for (std::int32_t l = 0; l < layers; ++l) {
      Block block(forward, batch, l, entering[size(l)]);
      if (out.exact) {
        add_exact(block, batch, d, sums[size(l)]);
      } else {
        add_random(block, batch, first, l, d, options, sums[size(l)]);
      }
      done += last - first;
      if (options.progress) options.progress(done, all * layers);
    }
    out.tokens += batch.tokens();
    first = last;
  }
  for (auto* values : {&out.own, &out.own_error, &out.all, &out.all_error}) {
    values->resize(size(layers));
  }
  const auto tokens = static_cast<double>(out.tokens), width = static_cast<double>(d);
  for (std::size_t l = 0; l < sums.size(); ++l) {
    finish(sums[l].own, tokens, width, out.exact, out.own[l], out.own_error[l]);
    finish(sums[l].all, tokens, width, out.exact, out.all[l], out.all_error[l]);
  }
  return out;
}

}  // namespace lamina
