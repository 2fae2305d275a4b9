// Tensor tables: every form of storage gives the canonical rows, whole and in pieces, and a set of
// tensors that does not fit the configuration is refused with both shapes.

#include "family/tensor_table.h"

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "family/registry.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

// Tensors in memory; a value is its flat index, so that a result tells where it was read.
class Tensors {
 public:
  Tensors& add(std::string name, std::vector<std::uint64_t> shape, DType type = DType::f32) {
    std::uint64_t n = 1;
    for (std::uint64_t extent : shape) n *= extent;
    std::vector<float>& values = values_.emplace_back(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
    infos_.push_back({std::move(name), type, std::move(shape), std::as_bytes(std::span(values))});
    return *this;
  }
  Tensors& remove(std::string_view name) {
    std::erase_if(infos_, [&](const TensorInfo& info) { return info.name == name; });
    return *this;
  }
  TensorStore store() const { return TensorStore("tiny", infos_, {}); }
  std::vector<float>& values(std::size_t i) { return values_[i]; }

 private:
  std::deque<std::vector<float>> values_;
  std::vector<TensorInfo> infos_;
};

// One layer, D = 6, H = 2, K = 1 (2 where a form needs it), d = 4, M = 5, V = 7.
ModelConfig tiny(std::int64_t kv_heads) {
  ModelConfig c;
  c.family = "tiny";
  c.n_layers = 1;
  c.d_model = 6;
  c.n_heads = 2;
  c.n_kv_heads = kv_heads;
  c.d_head = 4;
  c.d_vocab = 7;
  c.n_ctx = 9;
  c.norm = NormKind::none;
  c.norm_place = NormPlace::none;
  c.final_norm = false;
  c.qkv_bias = true;
  c.tied = true;
  c.attn_scale = 1;
  c.rotary_dim = 4;
  c.ropes.resize(1);
  c.layers.resize(1);
  return c;
}

TensorTable table(const std::vector<TensorRule>& rules) {
  static constexpr std::string_view kPrefixes[] = {""};
  static constexpr std::string_view kIgnored[] = {"L{l}.mask", "vision.*"};
  return {rules, kPrefixes, kIgnored};
}

std::vector<TensorRule> rules(Form q, Form k, Form v, Form o, bool fused) {
  const char* name = "qkv";
  return {{"embed", "E"},
          {"L.q", fused ? name : "q", q},
          {"L.k", fused ? name : "k", k},
          {"L.v", fused ? name : "v", v},
          {"L.q.b", fused ? "qkv.b" : "q.b", q == Form::fused_columns ? Form::fused_rows : q},
          {"L.k.b", fused ? "qkv.b" : "k.b", k == Form::fused_columns ? Form::fused_rows : k},
          {"L.v.b", fused ? "qkv.b" : "v.b", v == Form::fused_columns ? Form::fused_rows : v},
          {"L.o", "o", o},
          {"unembed", "U"}};
}

// Reads a whole tensor, and again row by row and from an odd start: all must agree.
std::vector<float> read(const WeightSource& source, std::string_view name, std::int64_t rows,
                        std::int64_t cols) {
  std::vector<float> whole(static_cast<std::size_t>(rows * cols));
  source.read_rows(name, 0, rows, whole);
  std::vector<float> row(static_cast<std::size_t>(cols));
  for (std::int64_t r = 0; r < rows; ++r) {
    source.read_rows(name, r, 1, row);
    for (std::int64_t c = 0; c < cols; ++c) {
      EXPECT_EQ(row[static_cast<std::size_t>(c)], whole[static_cast<std::size_t>(r * cols + c)]);
    }
  }
  if (rows > 3) {
    std::vector<float> middle(static_cast<std::size_t>((rows - 2) * cols));
    source.read_rows(name, 1, rows - 2, middle);
    EXPECT_TRUE(std::equal(middle.begin(), middle.end(), whole.begin() + cols));
  }
  return whole;
}

// value(r, c) for every element of a canonical tensor.
void expect_values(const WeightSource& source, std::string_view name, std::int64_t rows,
                   std::int64_t cols,
                   const std::function<std::int64_t(std::int64_t, std::int64_t)>& value) {
  const std::vector<float> got = read(source, name, rows, cols);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) {
      ASSERT_EQ(got[static_cast<std::size_t>(r * cols + c)], static_cast<float>(value(r, c)))
          << name << " row " << r << " column " << c;
    }
  }
}

TEST(Forms, RowsAndColumns) {
  Tensors t;
  t.add("E", {7, 6}).add("q", {6, 8}).add("k", {4, 6}).add("v", {4, 6}).add("o", {6, 8});
  t.add("q.b", {8}).add("k.b", {4}).add("v.b", {4}).add("L0.mask", {3}).add("vision.a.b", {2});
  const auto r = rules(Form::columns, Form::rows, Form::rows, Form::rows, false);
  const auto source = bind_tensors(t.store(), tiny(1), table(r));
  expect_values(*source, "0.q", 8, 6, [](auto i, auto j) { return j * 8 + i; });
  expect_values(*source, "0.k", 4, 6, [](auto i, auto j) { return i * 6 + j; });
  expect_values(*source, "0.q.b", 1, 8, [](auto, auto j) { return j; });
}

TEST(Forms, FusedColumnsOfGpt2) {
  Tensors t;
  t.add("E", {7, 6}).add("qkv", {6, 16}).add("qkv.b", {16}).add("o", {6, 8});
  const auto r =
      rules(Form::fused_columns, Form::fused_columns, Form::fused_columns, Form::rows, true);
  const auto source = bind_tensors(t.store(), tiny(1), table(r));
  expect_values(*source, "0.q", 8, 6, [](auto i, auto j) { return j * 16 + i; });
  expect_values(*source, "0.k", 4, 6, [](auto i, auto j) { return j * 16 + 8 + i; });
  expect_values(*source, "0.v", 4, 6, [](auto i, auto j) { return j * 16 + 12 + i; });
  expect_values(*source, "0.v.b", 1, 4, [](auto, auto j) { return 12 + j; });
}

TEST(Forms, FusedHeadsOfGptNeox) {
  Tensors t;
  t.add("E", {7, 6}).add("qkv", {24, 6}).add("qkv.b", {24}).add("o", {6, 8});
  const auto r = rules(Form::fused_heads, Form::fused_heads, Form::fused_heads, Form::rows, true);
  const auto source = bind_tensors(t.store(), tiny(2), table(r));
  for (const auto& [name, part] : {std::pair{"0.q", 0}, {"0.k", 1}, {"0.v", 2}}) {
    const auto row = [part = part](std::int64_t i) { return i / 4 * 12 + part * 4 + i % 4; };
    expect_values(*source, name, 8, 6, [&](auto i, auto j) { return row(i) * 6 + j; });
    expect_values(*source, std::string(name) + ".b", 1, 8, [&](auto, auto j) { return row(j); });
  }
}

TEST(Forms, HeadMatricesOfTransformerLens) {
  Tensors t;
  t.add("E", {7, 6})
      .add("q", {2, 6, 4})
      .add("k", {1, 6, 4})
      .add("v", {1, 6, 4})
      .add("o", {2, 4, 6});
  t.add("q.b", {2, 4}).add("k.b", {1, 4}).add("v.b", {1, 4});
  const auto r =
      rules(Form::head_columns, Form::head_columns, Form::head_columns, Form::head_inputs, false);
  const auto source = bind_tensors(t.store(), tiny(1), table(r));
  expect_values(*source, "0.q", 8, 6, [](auto i, auto j) { return i / 4 * 24 + j * 4 + i % 4; });
  expect_values(*source, "0.o", 6, 8, [](auto i, auto j) { return j * 6 + i; });
  expect_values(*source, "0.q.b", 1, 8, [](auto, auto j) { return j; });
}

TEST(Forms, InterleavedRowsOfGgufLlama) {
  Tensors t;
  t.add("E", {7, 6}).add("q", {8, 6}).add("k", {4, 6}).add("v", {4, 6}).add("o", {6, 8});
  t.add("q.b", {8}).add("k.b", {4}).add("v.b", {4});
  const auto r = rules(Form::rope_rows, Form::rope_rows, Form::rows, Form::rows, false);
  const auto source = bind_tensors(t.store(), tiny(1), table(r));
  // Rows 0 1 2 3 of a head stand in the file as 0 2 1 3 (pairs side by side).
  const auto row = [](std::int64_t i) { return i / 4 * 4 + 2 * (i % 4 % 2) + i % 4 / 2; };
  expect_values(*source, "0.q", 8, 6, [&](auto i, auto j) { return row(i) * 6 + j; });
  expect_values(*source, "0.q.b", 1, 8, [&](auto, auto j) { return row(j); });
  expect_values(*source, "0.v", 4, 6, [](auto i, auto j) { return i * 6 + j; });
}

class TensorSets : public ::testing::Test {
 protected:
  TensorSets() {
    tensors_.add("E", {7, 6}).add("q", {8, 6}).add("k", {4, 6}).add("v", {4, 6}).add("o", {6, 8});
    tensors_.add("q.b", {8}).add("k.b", {4}).add("v.b", {4});
  }
  std::string message(Form q = Form::rows) {
    const auto r = rules(q, Form::rows, Form::rows, Form::rows, false);
    try {
      bind_tensors(tensors_.store(), config_, table(r));
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  }
  Tensors tensors_;
  ModelConfig config_ = tiny(1);
};

TEST_F(TensorSets, Complete) {
  EXPECT_EQ(message(), "accepted");
}
TEST_F(TensorSets, Missing) {
  tensors_.remove("k");
  EXPECT_EQ(message(), "tiny: no tensor \"k\"; expected [4, 6]");
}
TEST_F(TensorSets, MissingEmbedding) {
  tensors_.remove("E");
  EXPECT_EQ(message(), "tiny: no tensor \"E\"");
}
TEST_F(TensorSets, WrongShape) {
  tensors_.remove("k").add("k", {8, 6});
  EXPECT_EQ(message(), "tiny: tensor \"k\" has shape [8, 6]; expected [4, 6]");
}
TEST_F(TensorSets, Transposed) {
  tensors_.remove("q").add("q", {6, 8});
  EXPECT_EQ(message(), "tiny: tensor \"q\" has shape [6, 8]; expected [8, 6]");
}
TEST_F(TensorSets, WrongRank) {
  tensors_.remove("q.b").add("q.b", {1, 8});
  EXPECT_EQ(message(), "tiny: tensor \"q.b\" has shape [1, 8]; expected [8]");
}
TEST_F(TensorSets, Unknown) {
  tensors_.add("experts.0.w", {2, 3});
  EXPECT_EQ(message(),
            "tiny: tensor \"experts.0.w\" [2, 3] has no place in a tiny model with 1 layers");
}
TEST_F(TensorSets, MaskNamesAreExact) {
  tensors_.add("L0.masks", {2});
  EXPECT_EQ(message(), "tiny: tensor \"L0.masks\" [2] has no place in a tiny model with 1 layers");
}
TEST_F(TensorSets, IntegerType) {
  tensors_.remove("q").add("q", {8, 6}, DType::i32);
  EXPECT_EQ(message(),
            "tiny: tensor \"q\" has type i32; expected a floating-point or quantised type");
}
TEST_F(TensorSets, QuantisedAndTransposed) {
  tensors_.remove("q").add("q", {6, 8}, DType::q8_0);
  EXPECT_EQ(message(Form::columns),
            "tiny: tensor \"q\" is stored as q8_0 in blocks of 32, which cannot be cut along its "
            "rows of 6");
}
TEST_F(TensorSets, TiedHeadThatEqualsTheEmbedding) {
  tensors_.add("U", {7, 6});
  EXPECT_EQ(message(), "accepted");
}
TEST_F(TensorSets, TiedHeadThatDiffers) {
  tensors_.add("U", {7, 6});
  tensors_.values(8)[3] += 1;
  EXPECT_EQ(message(),
            "tiny: the configuration ties the unembedding to the embedding, but \"U\" [7, 6] "
            "differs from \"E\" [7, 6]");
}
TEST_F(TensorSets, MissingHead) {
  config_.tied = false;
  EXPECT_EQ(message(), "tiny: no tensor \"U\"; expected [7, 6]");
}

TEST(Patterns, NumbersAndTails) {
  EXPECT_TRUE(matches_tensor_pattern("h.12.attn.bias", "h.{l}.attn.bias"));
  EXPECT_FALSE(matches_tensor_pattern("h.x.attn.bias", "h.{l}.attn.bias"));
  EXPECT_FALSE(matches_tensor_pattern("h.1.attn.bias2", "h.{l}.attn.bias"));
  EXPECT_FALSE(matches_tensor_pattern("h.1.attn", "h.{l}.attn.bias"));
  EXPECT_TRUE(matches_tensor_pattern("vision_tower.x.1", "vision_tower.*"));
}

// Every family's table has a line for every tensor its configurations can ask for.
TEST(Tables, PrefixesAreFound) {
  const ModelConfig c =
      parse_config(R"({"model_type": "gpt2", "n_layer": 1, "n_embd": 4, "n_head": 2,
    "vocab_size": 5, "n_positions": 3})",
                   "config.json");
  for (const std::string p : {"", "transformer."}) {
    Tensors t;
    t.add(p + "wte.weight", {5, 4}).add(p + "wpe.weight", {3, 4});
    t.add(p + "h.0.attn.c_attn.weight", {4, 12}).add(p + "h.0.attn.c_attn.bias", {12});
    t.add(p + "h.0.attn.c_proj.weight", {4, 4}).add(p + "h.0.attn.c_proj.bias", {4});
    t.add(p + "h.0.mlp.c_fc.weight", {4, 16}).add(p + "h.0.mlp.c_fc.bias", {16});
    t.add(p + "h.0.mlp.c_proj.weight", {16, 4}).add(p + "h.0.mlp.c_proj.bias", {4});
    for (const char* n : {"h.0.ln_1", "h.0.ln_2", "ln_f"}) {
      t.add(p + n + ".weight", {4}).add(p + n + ".bias", {4});
    }
    t.add(p + "h.0.attn.bias", {1, 1, 3, 3}).add(p + "h.0.attn.masked_bias", {1});
    const auto source = bind_tensors(t.store(), c, kGpt2Tensors);
    expect_values(*source, "0.in", 16, 4, [](auto i, auto j) { return j * 16 + i; });
    expect_values(*source, "0.out", 4, 16, [](auto i, auto j) { return j * 4 + i; });
  }
}

}  // namespace
}  // namespace lamina
