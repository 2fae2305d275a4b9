#include "lamina/patching/node.h"

#include "patching/support.h"

namespace lamina {
namespace {

using testing::expect_message;
using testing::message_of;

const ModelConfig& config() {
  static const Model model = testing::tiny_model({});  // 4 heads, 2 of keys and values, 40 neurons
  return model.config();
}

std::vector<Node> nodes(std::vector<Site> sites, Split split, std::int64_t positions = 3) {
  return nodes_of(sites, split, positions, config());
}

TEST(Node, Names) {
  const Site z{SiteKind::z, 3}, post{SiteKind::mlp_post, 0};
  EXPECT_EQ(node_name({z, 5, 2, -1}), "blocks.3.attn.hook_z[5].head2");
  EXPECT_EQ(node_name({post, -1, -1, 17}), "blocks.0.mlp.hook_post.neuron17");
  EXPECT_EQ(node_name({{SiteKind::embed, -1}, 0, -1, -1}), "hook_embed[0]");
  EXPECT_EQ(node_name({post, -1, -1, -1}), "blocks.0.mlp.hook_post");
}

TEST(Node, WholeSites) {
  const std::vector<Site> sites = {{SiteKind::resid_pre, 0}, {SiteKind::resid_pre, 2}};
  const auto whole = nodes(sites, {.position = false}, 0);
  ASSERT_EQ(whole.size(), 2u);
  EXPECT_EQ(whole[1], (Node{sites[1], -1, -1, -1}));
}

TEST(Node, OrderIsSitePositionHeadNeuron) {
  const Site z{SiteKind::z, 0}, q{SiteKind::q, 1};
  const auto all = nodes({z, q}, {.position = true, .head = true});
  ASSERT_EQ(all.size(), 2u * 3 * 4);
  EXPECT_EQ(all[0], (Node{z, 0, 0, -1}));
  EXPECT_EQ(all[1], (Node{z, 0, 1, -1}));
  EXPECT_EQ(all[4], (Node{z, 1, 0, -1}));
  EXPECT_EQ(all[12], (Node{q, 0, 0, -1}));
  const auto neurons = nodes({{SiteKind::mlp_post, 1}}, {.position = true, .neuron = true}, 2);
  ASSERT_EQ(neurons.size(), 80u);
  EXPECT_EQ(neurons[41], (Node{{SiteKind::mlp_post, 1}, 1, -1, 1}));
}

TEST(Node, KeysAndValuesCountTheirOwnHeads) {
  EXPECT_EQ(nodes({{SiteKind::k, 0}}, {.position = false, .head = true}).size(), 2u);
  EXPECT_EQ(nodes({{SiteKind::q, 0}}, {.position = false, .head = true}).size(), 4u);
}

TEST(Node, AttentionSitesSplitByHeadAndQuery) {
  const auto rows = nodes({{SiteKind::pattern, 2}}, {.position = true, .head = true});
  ASSERT_EQ(rows.size(), 12u);
  EXPECT_EQ(node_name(rows[5]), "blocks.2.attn.hook_pattern[1].head1");
  expect_message(message_of<UsageError>([] {
                   nodes({{SiteKind::pattern, 0}}, {.neuron = true});
                 }),
                 "blocks.0.attn.hook_pattern has no neurons");
}

TEST(Node, SplitsAndSitesThatDoNotExist) {
  expect_message(message_of<UsageError>([] {
                   nodes({{SiteKind::resid_pre, 0}}, {.head = true});
                 }),
                 "blocks.0.hook_resid_pre has no heads", "pattern");
  expect_message(message_of<UsageError>([] {
                   nodes({{SiteKind::z, 0}}, {.neuron = true});
                 }),
                 "blocks.0.attn.hook_z has no neurons", "pre_linear");
  expect_message(message_of<UsageError>([] {
                   nodes({{SiteKind::resid_pre, 7}}, {});
                 }),
                 "blocks.7.hook_resid_pre", "nearest: ", "blocks.0.hook_resid_pre");
  expect_message(message_of<UsageError>([] {
                   nodes({{SiteKind::pos_embed, -1}}, {});
                 }),
                 "hook_pos_embed", "nearest: ");
  expect_message(message_of<UsageError>([] {
                   nodes({{SiteKind::z, 0}}, {}, 0);
                 }),
                 "at least 1 position expected, found 0");
  expect_message(
      message_of<UsageError>([] {
        nodes({{SiteKind::mlp_post, 0}}, {.position = true, .neuron = true}, std::int64_t{1} << 62);
      }),
      "more than 67108864 nodes");
}

}  // namespace
}  // namespace lamina
