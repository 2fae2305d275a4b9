#include <algorithm>

#include "kernels/support.h"

namespace lamina::kernels {
namespace {

struct Case {
  std::int64_t queries, keys, heads, kv_heads, d_head;
  float softcap = 0;
  bool causal = true;
  std::int64_t window = 0;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.queries << " queries, " << c.keys << " keys, " << c.heads << '/' << c.kv_heads
             << " heads of " << c.d_head << ", cap " << c.softcap << (c.causal ? ", causal" : "")
             << ", window " << c.window;
}

struct Data {
  Floats q, k, v, z;
  AttentionArgs args;

  explicit Data(const Case& c, unsigned seed = 1)
      : q(random_floats(c.queries * c.heads * c.d_head, seed)),
        k(random_floats(c.keys * c.kv_heads * c.d_head, seed + 1)),
        v(random_floats(c.keys * c.kv_heads * c.d_head, seed + 2)),
        z(q.size(), -7.0f) {
    args = {
        q.data(),  k.data(), v.data(),   z.data(), c.queries,
        c.keys,    c.heads,  c.kv_heads, c.d_head, 1.0f / std::sqrt(static_cast<float>(c.d_head)),
        c.softcap, c.causal, c.window};
  }
  Data(const Data&) = delete;
};

const Case kCases[] = {
    {1, 1, 1, 1, 1},
    {3, 3, 2, 1, 5},
    {17, 17, 4, 4, 64},
    {70, 70, 9, 3, 64},
    {33, 90, 4, 1, 80},
    {1, 300, 4, 1, 256},
    {1, 77, 9, 3, 64},
    {40, 600, 2, 2, 33},
    {50, 50, 2, 1, 16, 30.0f},
    {70, 70, 3, 3, 20, 0, false},
    {90, 90, 4, 2, 32, 0, true, 1},
    {90, 90, 4, 2, 32, 0, true, 20},
    {60, 400, 4, 2, 24, 50.0f, true, 100},
    {45, 45, 2, 2, 8, 0, false, 10},
};

bool sees(const AttentionArgs& a, std::int64_t i, std::int64_t j) {
  const std::int64_t position = a.keys - a.queries + i;
  return !(a.causal && j > position) && !(a.window > 0 && position - j >= a.window);
}

// In double throughout. A score errs by about √d_head·ε‖q‖‖k‖·scale, which is the relative error of
// its exp; z errs by that of the patterns times the size of the values.
TEST(Attention, AgreesWithDouble) {
  for (const Case& c : kCases) {
    Data data(c);
    const AttentionArgs& a = data.args;
    attention(a);
    const std::int64_t group = a.heads / a.kv_heads;
    for (std::int64_t h = 0; h < a.heads; ++h) {
      for (std::int64_t i = 0; i < a.queries; ++i) {
        std::vector<double> p(a.keys, 0.0);
        double top = -1e300, sum = 0, largest_v = 0, score_size = 0;
        const float* q = a.q + (i * a.heads + h) * a.d_head;
        for (int pass = 0; pass < 2; ++pass) {
          for (std::int64_t j = 0; j < a.keys; ++j) {
            if (!sees(a, i, j)) continue;
            const float* k = a.k + (j * a.kv_heads + h / group) * a.d_head;
            double s = 0, qq = 0, kk = 0;
            for (std::int64_t d = 0; d < a.d_head; ++d) {
              s += static_cast<double>(q[d]) * k[d];
              qq += q[d] * q[d], kk += k[d] * k[d];
            }
            score_size = std::max(score_size, std::sqrt(qq * kk) * a.scale);
            s *= a.scale;
            if (a.softcap > 0) s = a.softcap * std::tanh(s / a.softcap);
            if (pass == 0) top = std::max(top, s);
            if (pass == 1) sum += p[j] = std::exp(s - top);
          }
        }
        for (std::int64_t d = 0; d < a.d_head; ++d) {
          double z = 0;
          for (std::int64_t j = 0; j < a.keys; ++j) {
            const double v = a.v[(j * a.kv_heads + h / group) * a.d_head + d];
            z += p[j] / sum * v;
            if (p[j] > 0) largest_v = std::max(largest_v, std::fabs(v));
          }
          const double relative =
              0x1p-24 * (std::sqrt(static_cast<double>(a.d_head)) * 2 * score_size + 8);
          ASSERT_NEAR(data.z[(i * a.heads + h) * a.d_head + d], z, relative * largest_v)
              << c << ": head " << h << ", query " << i << ", value " << d;
        }
      }
    }
  }
}

TEST(Attention, SameBitsEverywhere) {
  for (const Case& c : kCases) {
    Data data(c);
    SCOPED_TRACE(::testing::Message() << c);
    everywhere_the_same([&] {
      std::fill(data.z.begin(), data.z.end(), -7.0f);
      attention(data.args);
      return data.z;
    });
  }
}

TEST(Attention, StepsGiveTheSameBits) {
  for (const Case& c : kCases) {
    Data data(c);
    SCOPED_TRACE(::testing::Message() << c);
    attention(data.args);
    const Floats fused = data.z;
    Floats scores(c.heads * c.queries * c.keys);
    const Floats pattern = everywhere_the_same([&] {
      std::fill(scores.begin(), scores.end(), -7.0f);
      attention_scores(data.args, scores.data());
      for (std::int64_t i = 0; i < c.queries; ++i) {
        for (std::int64_t j = 0; j < c.keys; ++j) {
          EXPECT_EQ(std::isinf(scores[i * c.keys + j]), !sees(data.args, i, j)) << i << ' ' << j;
        }
      }
      attention_softmax(c.heads * c.queries, c.keys, scores.data());
      return scores;
    });
    const Floats steps = everywhere_the_same([&] {
      std::fill(data.z.begin(), data.z.end(), -7.0f);
      attention_values(data.args, pattern.data());
      return data.z;
    });
    EXPECT_TRUE(same_bits(fused, steps));
  }
}

// Later queries of one call against a call for them alone, keys of the earlier ones given: what a
// cache does. One query at a time and a few.
TEST(Attention, CachedEqualsUncached) {
  for (std::int64_t window : {0, 1, 13, 64}) {
    for (std::int64_t d_head : {5, 64}) {
      const Case c{75, 75, 6, 2, d_head, 0, true, window};
      Data data(c);
      attention(data.args);
      const std::int64_t row = c.heads * c.d_head;
      for (std::int64_t first = 0; first < c.queries;) {
        const std::int64_t count = std::min<std::int64_t>(1 + first % 4, c.queries - first);
        AttentionArgs part = data.args;
        Floats z(count * row);
        part.q += first * row;
        part.z = z.data();
        part.queries = count;
        part.keys = first + count;
        attention(part);
        ASSERT_TRUE(same_bits(
            z, Floats(data.z.begin() + first * row, data.z.begin() + (first + count) * row)))
            << c << ": query " << first;
        first += count;
      }
    }
  }
}

TEST(Attention, BatchEqualsSingles) {
  std::vector<std::unique_ptr<Data>> prompts;
  std::vector<AttentionArgs> args;
  std::vector<Floats> expected;
  unsigned seed = 10;
  for (const Case& c : kCases) {
    prompts.push_back(std::make_unique<Data>(c, seed += 3));
    attention(prompts.back()->args);
    expected.push_back(prompts.back()->z);
    args.push_back(prompts.back()->args);
  }
  everywhere_the_same([&] {
    attention_batch(args);
    Floats all;
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      EXPECT_TRUE(same_bits(expected[i], prompts[i]->z)) << kCases[i];
      all.insert(all.end(), prompts[i]->z.begin(), prompts[i]->z.end());
    }
    return all;
  });
}

// A key or value that a query may not see must not reach it, whatever it is.
TEST(Attention, MaskedNonFiniteKeysDoNotLeak) {
  for (std::int64_t window : {0, 9}) {
    const Case c{40, 40, 4, 2, 32, 0, true, window};
    Data clean(c), dirty(c);
    attention(clean.args);
    const std::int64_t bad = 21, kv = c.kv_heads * c.d_head, row = c.heads * c.d_head;
    for (std::int64_t d = 0; d < c.d_head; ++d) {
      dirty.k[bad * kv + d] = d % 2 == 0 ? std::nanf("") : INFINITY;
      dirty.v[bad * kv + d] = d % 2 == 0 ? INFINITY : std::nanf("");
    }
    const auto check = [&](const char* how) {
      for (std::int64_t i = 0; i < c.queries; ++i) {
        for (std::int64_t x = 0; x < row; ++x) {
          const float z = dirty.z[i * row + x];
          // Key head 0 serves the first half of the heads.
          if (sees(c.window == 0 ? clean.args : dirty.args, i, bad) && x < row / 2) {
            ASSERT_TRUE(std::isnan(z)) << how << ' ' << i << ' ' << x;
          } else {
            ASSERT_TRUE(same_bits(z, clean.z[i * row + x])) << how << ' ' << i << ' ' << x;
          }
        }
      }
    };
    attention(dirty.args);
    check("fused");
    Floats scores(c.heads * c.queries * c.keys);
    attention_scores(dirty.args, scores.data());
    attention_softmax(c.heads * c.queries, c.keys, scores.data());
    attention_values(dirty.args, scores.data());
    check("steps");
  }
}

// What a hook writes into a pattern counts, at masked places too.
TEST(Attention, WrittenPatternsCountEverywhere) {
  const Case c{20, 20, 2, 1, 6};
  Data data(c);
  Floats pattern(c.heads * c.queries * c.keys, 0.0f);
  for (std::int64_t h = 0; h < c.heads; ++h) {
    for (std::int64_t i = 0; i < c.queries; ++i) {
      pattern[(h * c.queries + i) * c.keys + (c.keys - 1 - i)] = 2.0f;
    }
  }
  attention_values(data.args, pattern.data());
  for (std::int64_t i = 0; i < c.queries; ++i) {
    for (std::int64_t h = 0; h < c.heads; ++h) {
      for (std::int64_t d = 0; d < c.d_head; ++d) {
        ASSERT_EQ(data.z[(i * c.heads + h) * c.d_head + d],
                  2.0f * data.v[(c.keys - 1 - i) * c.d_head + d]);
      }
    }
  }
}

TEST(Attention, SoftmaxOfNothingIsZero) {
  Floats x(3 * 21, -INFINITY);
  x[21 + 5] = 0.5f;
  attention_softmax(3, 21, x.data());
  for (int i = 0; i < 63; ++i) EXPECT_EQ(x[i], i == 26 ? 1.0f : 0.0f) << i;
}

}  // namespace
}  // namespace lamina::kernels
