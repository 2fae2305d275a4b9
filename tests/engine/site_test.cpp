#include "lamina/core/site.h"

#include <gtest/gtest.h>

#include "lamina/core/error.h"

namespace lamina {
namespace {

ModelConfig llama_like() {
  ModelConfig c;
  c.family = "llama";
  c.n_layers = 12, c.d_model = 8, c.n_heads = 4, c.n_kv_heads = 2, c.d_head = 2, c.d_mlp = 16;
  c.gated = true;
  return c;
}

std::vector<std::string> names(const std::vector<std::string>& patterns, const ModelConfig& c) {
  std::vector<std::string> out;
  for (Site site : match_sites(patterns, c)) out.push_back(site_name(site));
  return out;
}

std::string message(const std::string& pattern, const ModelConfig& c) {
  try {
    match_sites(std::span(&pattern, 1), c);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Site, NamesRoundTrip) {
  const ModelConfig c = llama_like();
  for (Site site : all_sites(c)) EXPECT_EQ(parse_site(site_name(site), c), site);
}

TEST(Site, Patterns) {
  const ModelConfig c = llama_like();
  using V = std::vector<std::string>;
  EXPECT_EQ(names({"resid_post"}, c).size(), 12u);
  EXPECT_EQ(names({"blocks.*.hook_resid_post"}, c).size(), 12u);
  EXPECT_EQ(names({"z:3"}, c), V{"blocks.3.attn.hook_z"});
  EXPECT_EQ(names({"resid_post:-1"}, c), V{"blocks.11.hook_resid_post"});
  EXPECT_EQ(names({"q:0-2"}, c),
            (V{"blocks.0.attn.hook_q", "blocks.1.attn.hook_q", "blocks.2.attn.hook_q"}));
  // Firing order and no repeats, whatever the order of the patterns.
  EXPECT_EQ(names({"blocks.1.hook_resid_post", "resid_post:0", "blocks.1.*_post"}, c),
            (V{"blocks.0.hook_resid_post", "blocks.1.mlp.hook_post", "blocks.1.hook_resid_post"}));
  EXPECT_EQ(names({"blocks.1.hook_resid_????"}, c), V{"blocks.1.hook_resid_post"});
  EXPECT_EQ(names({"*"}, c).size(), all_sites(c).size());
}

TEST(Site, TransformerLens4Aliases) {
  const ModelConfig c = llama_like();
  using V = std::vector<std::string>;
  EXPECT_EQ(names({"blocks.2.hook_in"}, c), V{"blocks.2.hook_resid_pre"});
  EXPECT_EQ(names({"blocks.2.mlp.in.hook_out"}, c), V{"blocks.2.mlp.hook_pre_linear"});
  EXPECT_EQ(names({"blocks.2.attn.o.hook_in"}, c), V{"blocks.2.attn.hook_z"});
  EXPECT_EQ(names({"blocks.*.hook_out"}, c).size(), 12u);
  EXPECT_EQ(names({"embed.hook_out"}, c), V{"hook_embed"});
}

TEST(Site, RefusalsNameTheNearest) {
  const ModelConfig c = llama_like();
  EXPECT_EQ(message("blocks.3.hook_resid_pst", c),
            "no site of this 12-layer llama model matches 'blocks.3.hook_resid_pst'; nearest: "
            "blocks.3.hook_resid_post, blocks.3.hook_resid_pre, blocks.3.hook_resid_mid, "
            "blocks.3.hook_attn_out");
  EXPECT_NE(message("hook_pos_embed", c).find("nearest: hook_embed"), std::string::npos);
  EXPECT_EQ(message("z:12", c),
            "site 'z:12': layer 12 is outside this model's 12 layers (0 to 11)");
  EXPECT_EQ(message("z:5-3", c), "site 'z:5-3': the range ends before it begins");
  EXPECT_EQ(message("z:x", c), "site 'z:x': 'x' is not a layer number or range");
  EXPECT_EQ(message("embed:1", c), "site 'embed:1': 'embed' has no layers");
  EXPECT_NE(message("blocks.40.hook_out", c), "no error");
}

TEST(Site, OnlyWhatTheModelHas) {
  ModelConfig c = llama_like();
  c.parallel = true;
  EXPECT_NE(message("resid_mid", c), "no error");
  c = llama_like();
  c.d_mlp = 0;
  EXPECT_NE(message("mlp_out", c), "no error");
  c = llama_like();
  c.positions = Positions::none;
  EXPECT_NE(message("rot_q", c), "no error");
}

}  // namespace
}  // namespace lamina
