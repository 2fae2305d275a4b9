// Against what the released code of the transcoder paper computes (make_author_goldens.py).

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "gtest/gtest.h"
#include "lamina/circuits/paths.h"
#include "lamina/core/dtype.h"
#include "lamina/core/safetensors.h"

namespace lamina {
namespace {

const std::string kHere = LAMINA_SOURCE_DIR "/tests/feature_paths/goldens/";

std::vector<Transcoder> read_transcoders(std::int64_t d) {
  const TensorStore file = open_safetensors(kHere + "transcoders.safetensors");
  std::vector<Transcoder> all;
  for (std::int32_t l = 0; l < 3; ++l) {
    const auto floats = [&](const char* name) {
      const TensorInfo* t = file.find(fmt::format("{}.{}", l, name));
      std::vector<float> out(t->elements());
      expand_to_f32(t->dtype, t->bytes, out);
      return out;
    };
    Transcoder t;
    const std::vector<float> in = floats("W_enc"), subtracted = floats("b_dec");  // [D, F]
    t.encoder_bias = floats("b_enc");
    t.decoder = floats("W_dec");
    t.decoder_bias = floats("b_dec_out");
    const std::size_t width = static_cast<std::size_t>(d), f = t.encoder_bias.size();
    t.encoder.resize(in.size());
    for (std::size_t j = 0; j < f; ++j) {
      double bias = t.encoder_bias[j];
      for (std::size_t i = 0; i < width; ++i) {
        t.encoder[j * width + i] = in[i * f + j];
        bias -= double{in[i * f + j]} * subtracted[i];
      }
      t.encoder_bias[j] = static_cast<float>(bias);
    }
    t.config.name = fmt::format("authors-{}", l);
    t.config.input = {{SiteKind::ln2_normalized, l}, false};
    t.config.output = {{SiteKind::mlp_out, l}, false};
    t.config.d_in = t.config.d_out = d;
    t.config.features = static_cast<std::int64_t>(f);
    all.push_back(std::move(t));
  }
  return all;
}

class Authors : public ::testing::Test {
 protected:
  Authors()
      : model_(Model::load(LAMINA_SOURCE_DIR "/tests/goldens/gpt2")),
        transcoders_(read_transcoders(model_.config().d_model)),
        forward_(model_) {
    std::ifstream file(kHere + "expected.json");
    expected_ = nlohmann::json::parse(file);
    ids_ = expected_["ids"].get<std::vector<std::int32_t>>();
  }

  static void near(const std::vector<float>& ours, const nlohmann::json& theirs,
                   const std::string& what) {
    const auto values = theirs.get<std::vector<double>>();
    ASSERT_EQ(ours.size(), values.size()) << what;
    double most = 0;
    for (const double v : values) most = std::max(most, std::abs(v));
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_NEAR(ours[i], values[i], 2e-6 * most) << what << " " << i;
  }
  const Transcoder& of(std::int32_t layer) const {
    return transcoders_[static_cast<std::size_t>(layer)];
  }

  Model model_;
  std::vector<Transcoder> transcoders_;
  Forward forward_;
  nlohmann::json expected_;
  std::vector<std::int32_t> ids_;
};

TEST_F(Authors, ConnectionsByWeights) {
  for (const auto& one : expected_["weights"]) {
    const Hop hop = parse_hop(one["feature"].get<std::string>());
    const StreamReader reader = feature_reader(model_, of(hop.layer), hop.index);
    near(token_gains(model_, reader), one["deembedding"], "de-embedding of " + hop_name(hop));
    const float* row = of(hop.layer).decoder.data() + hop.index * model_.config().d_model;
    near(logit_gains(model_, {row, static_cast<std::size_t>(model_.config().d_model)}),
         one["logits"], "logits of " + hop_name(hop));
    std::vector<float> norms = head_norms(model_, reader);
    const std::size_t heads = static_cast<std::size_t>((hop.layer + 1) * model_.config().n_heads);
    for (std::size_t i = heads; i < norms.size(); ++i) EXPECT_TRUE(std::isnan(norms[i]));
    norms.resize(heads);
    near(norms, one["head_norms"], "head norms of " + hop_name(hop));
    for (const auto& [layer, gains] : one["sources"].items())
      near(feature_gains(model_, of(std::stoi(layer)), reader), gains, "from layer " + layer);
    for (const auto& [head, gains] : one["through"].items()) {
      const Hop h = parse_hop(head);
      near(token_gains(model_, through_head(model_, reader, h.layer, h.index)), gains,
           hop_name(hop) + " through " + head);
    }
    for (const auto& [way, gains] : one["sources_through"].items()) {
      const Hop h = parse_hop(way.substr(2));
      near(feature_gains(model_, of(way[0] - '0'), through_head(model_, reader, h.layer, h.index)),
           gains, hop_name(hop) + " through " + way);
    }
  }
}

TEST_F(Authors, PartsAndGreedyPaths) {
  const Replacement replacement(forward_, transcoders_, ids_);
  const PathFinder finder(replacement);
  PathOptions options;
  options.depth = expected_["iterations"].get<std::int64_t>();
  options.width = expected_["branches"].get<std::int64_t>();
  options.as_authors = true;
  for (const auto& one : expected_["roots"]) {
    const auto name = one["root"].get<std::string>();
    PathNode root{
        .kind = PathNodeKind::logit, .layer = -1, .position = 6, .index = 17, .other = 52};
    PathCursor cursor;
    if (name.starts_with("logit")) {
      cursor = finder.logit(17, 52);
    } else {
      const Hop hop = parse_hop(name.substr(0, name.find('@')));
      root = {.kind = PathNodeKind::feature,
              .layer = hop.layer,
              .position = std::stoi(name.substr(name.find('@') + 1)),
              .index = hop.index};
      cursor = finder.feature(root.layer, root.position, root.index);
    }
    EXPECT_EQ(path_node_name(root), name);
    const auto value = one["value"].get<double>();
    EXPECT_NEAR(cursor.value, value, 2e-6 * std::abs(value)) << name;

    std::map<std::string, double> parts;
    double errors = 0, own_bias = 0, all = 0;
    const auto contributions = finder.contributions(std::span(&cursor, 1));
    for (const PathContribution& c : contributions.front()) {
      all += std::abs(c.value);
      if (c.node.kind == PathNodeKind::error) {
        errors += c.value;
      } else if (c.node.kind == PathNodeKind::bias) {
        if (c.node.layer == -1) own_bias = c.value;
      } else if (c.node.kind == PathNodeKind::position) {
        parts[fmt::format("token@{}", c.node.position)] += c.value;
      } else {
        parts[path_node_name(c.node)] += c.value;
      }
    }
    EXPECT_EQ(parts.size(), one["parts"].size()) << name;
    for (const auto& [part, theirs] : one["parts"].items()) {
      ASSERT_TRUE(parts.contains(part)) << name << " lacks " << part;
      EXPECT_NEAR(parts[part], theirs.get<double>(), 2e-7 * all) << name << " from " << part;
    }
    if (one.contains("error")) {
      EXPECT_NEAR(errors, one["error"].get<double>(), 2e-7 * all) << name;
      EXPECT_NEAR(own_bias, one["bias"].get<double>(), 2e-7 * all) << name;
    }

    const FoundPaths found = find_paths(finder, root, cursor, options);
    EXPECT_LT(found.rounding(), 1e-6);
    std::vector<nlohmann::json> levels(one["levels"].begin(), one["levels"].end());
    std::vector<std::size_t> seen(levels.size());
    for (std::size_t p = 1; p < found.prefixes.size(); ++p) {
      const auto level = static_cast<std::size_t>(found.prefixes[p].depth) - 1;
      std::vector<std::string> nodes;
      for (const std::int32_t at : found.path(static_cast<std::int32_t>(p)))
        if (at > 0)
          nodes.push_back(path_node_name(found.prefixes[static_cast<std::size_t>(at)].node));
      ASSERT_LT(level, levels.size()) << name;
      ASSERT_LT(seen[level], levels[level].size()) << name;
      const nlohmann::json& theirs = levels[level][seen[level]++];
      EXPECT_EQ(nodes, theirs["nodes"].get<std::vector<std::string>>()) << name;
      EXPECT_NEAR(found.prefixes[p].contribution, theirs["contribution"].get<double>(), 2e-7 * all);
    }
    for (std::size_t l = 0; l < levels.size(); ++l) EXPECT_EQ(seen[l], levels[l].size()) << name;

    std::vector<double> edges;
    const PathGraph graph = merge_paths(found);
    for (const PathGraph::Edge& e : graph.edges) {
      const std::string& kind = graph.nodes[static_cast<std::size_t>(e.source)].kind;
      if (kind != "error" && kind != "bias" && kind != "rest") edges.push_back(e.weight);
    }
    std::sort(edges.begin(), edges.end());
    ASSERT_EQ(edges.size(), one["edges"].size()) << name;
    for (std::size_t i = 0; i < edges.size(); ++i)
      EXPECT_NEAR(edges[i], one["edges"][i].get<double>(), 2e-7 * all) << name;
  }
}

}  // namespace
}  // namespace lamina
