// Layer paths as text, and distances between outputs.

#include <cmath>

#include "lamina/patching/layer_path.h"
#include "lamina/patching/output_distance.h"
#include "patching/ablate_support.h"

namespace lamina::testing {
namespace {

ModelConfig config_of(std::int64_t layers, std::int64_t d_mlp = 4) {
  ModelConfig config;
  config.n_layers = layers;
  config.d_mlp = d_mlp;
  return config;
}

std::string error_of(std::string_view text, std::int64_t layers = 12, std::int64_t d_mlp = 4) {
  return usage_error([&] { parse_layer_path(text, config_of(layers, d_mlp)); });
}

TEST(LayerPath, ReadsSkipsRepeatsOrderAndParts) {
  const ModelConfig config = config_of(12);
  const LayerPath want = {{0, true, true},   {1, true, true}, {2, true, true},
                          {7, true, true},   {7, true, true}, {9, true, false},
                          {10, false, true}, {4, true, true}, {3, true, true}};
  EXPECT_EQ(parse_layer_path("0-2,7,7,9a,10m,4-3", config), want);
  EXPECT_EQ(parse_layer_path(" 0 - 2 ,7*2,\t9 a,10m , 4-3 ", config), want);
  EXPECT_EQ(parse_layer_path("0-1m*2", config),
            (LayerPath{{0, false, true}, {1, false, true}, {0, false, true}, {1, false, true}}));
  EXPECT_EQ(parse_layer_path("0-11", config), all_steps(config));
  EXPECT_EQ(parse_layer_path("3a", config_of(4, 0)), (LayerPath{{3, true, false}}));
}

TEST(LayerPath, TextIsTheShortestAndReadsBack) {
  const ModelConfig config = config_of(30);
  for (const char* text :
       {"0-5,7*2,9a,10m", "0-29", "5-3", "0,2,4", "1a,1m", "0-3a,3m*4", "7*3,8-10"}) {
    const LayerPath path = parse_layer_path(text, config);
    EXPECT_EQ(layer_path_text(path, config), text);
  }
  EXPECT_EQ(layer_path_text(parse_layer_path("0,1,2,2,2,1,0", config), config), "0-2,2*2,1-0");
  EXPECT_EQ(layer_path_text(LayerPath{{3, false, false}}, config), "nothing");
  EXPECT_EQ(layer_path_text(LayerPath{{3, true, false}}, config_of(4, 0)), "3");
  // Whatever the path, its text means the same steps.
  std::uint64_t state = 1;
  for (int trial = 0; trial < 200; ++trial) {
    LayerPath path;
    for (int i = 0; i < 12; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      const auto part = (state >> 40) % 5;
      path.push_back({static_cast<std::int32_t>((state >> 33) % 4), part != 0, part != 1});
    }
    const std::string text = layer_path_text(path, config);
    EXPECT_EQ(parse_layer_path(text, config), path) << text;
  }
}

TEST(LayerPath, ErrorsNameTheCharacter) {
  EXPECT_EQ(error_of(""), "the path is empty; expected layers such as 0-5,7,7,9a,10m");
  EXPECT_EQ(error_of("  "), "the path is empty; expected layers such as 0-5,7,7,9a,10m");
  EXPECT_EQ(error_of("0-5,x"), "path '0-5,x': expected a layer at character 5, found 'x'");
  EXPECT_EQ(error_of("0-5,"), "path '0-5,': expected a layer at character 5, found the end");
  EXPECT_EQ(error_of(",1"), "path ',1': expected a layer at character 1, found ','");
  EXPECT_EQ(error_of("3-"), "path '3-': expected a layer at character 3, found the end");
  EXPECT_EQ(error_of("3am"), "path '3am': expected a comma at character 3, found 'm'");
  EXPECT_EQ(error_of("3 4"), "path '3 4': expected a comma at character 3, found '4'");
  EXPECT_EQ(error_of("-1"), "path '-1': expected a layer at character 1, found '-'");
  EXPECT_EQ(error_of("0,12"),
            "path '0,12': layer 12 at character 3; this model has layers 0 to 11");
  EXPECT_EQ(error_of("0-99999999999999999999999999"),
            "path '0-99999999999999999999999999': layer 99999999999999999999 at character 3; this "
            "model has layers 0 to 11");
  EXPECT_EQ(error_of("1*0"), "path '1*0': 0 times at character 3; expected 1 to 4096");
  EXPECT_EQ(error_of("1*x"), "path '1*x': expected a number of times at character 3, found 'x'");
  EXPECT_EQ(error_of("0-11*400"),
            "path '0-11*400': more than 4096 steps with the item at character 1");
  EXPECT_EQ(error_of("2,3m", 12, 0),
            "path '2,3m': 'm' at character 4, but this model's layers have no MLP");
  EXPECT_EQ(error_of("1,\xff\n"), "path '1,?\?': expected a layer at character 3, found byte 0xff");
  const std::string endless = error_of(std::string(100000, '1'));
  EXPECT_LT(endless.size(), 200u) << endless;
}

TEST(LayerPath, SublayersAreWholeModelMinusThem) {
  const ModelConfig config = config_of(3);
  const std::vector<Sublayer> removed = parse_sublayers("1a, 0m", config);
  EXPECT_EQ(removed, (std::vector<Sublayer>{{1, false}, {0, true}}));
  EXPECT_EQ(path_without(removed, config),
            (LayerPath{{0, true, false}, {1, false, true}, {2, true, true}}));
  EXPECT_DOUBLE_EQ(layers_used(path_without(removed, config), config), 2.0);
  EXPECT_DOUBLE_EQ(layers_used(all_steps(config_of(3, 0)), config_of(3, 0)), 3.0);
  EXPECT_EQ(all_sublayers(config).size(), 6u);
  EXPECT_EQ(all_sublayers(config_of(3, 0)).size(), 3u);
  EXPECT_EQ(sublayer_name({12, true}), "12m");
  EXPECT_EQ(usage_error([&] { parse_sublayers("1a,2", config); }),
            "'1a,2': expected a sublayer such as 12a or 12m at character 4");
  EXPECT_EQ(usage_error([&] { parse_sublayers("1a,0m,1a", config); }),
            "'1a,0m,1a': sublayer 1a at character 7 stands there twice");
}

class Distances : public ::testing::TestWithParam<DistanceKind> {};

TEST_P(Distances, EqualNumpy) {
  const std::vector<float> x = ablate_golden("x"), y = ablate_golden("y");
  const std::vector<float> want =
      ablate_golden("distance." + std::string(distance_name(GetParam())));
  const std::size_t n = x.size() / want.size();
  for (std::size_t r = 0; r < want.size(); ++r) {
    const double got =
        output_distance(GetParam(), std::span(x).subspan(r * n, n), std::span(y).subspan(r * n, n));
    // The goldens are float32; numpy's arccos is good to 1e-8 at 0.
    EXPECT_NEAR(got, want[r], 1e-7 * want[r] + 5e-8) << "row " << r;
  }
}

TEST_P(Distances, OfEqualRowsIsZeroAndOfUnequalPositive) {
  const std::vector<float> x = ablate_golden("x");
  EXPECT_EQ(output_distance(GetParam(), x, x), 0.0);
  std::vector<float> y = x;
  y[3] += 0.5f;
  EXPECT_GT(output_distance(GetParam(), x, y), 0.0);
  y[3] = std::nanf("");
  EXPECT_TRUE(std::isnan(output_distance(GetParam(), x, y)));
  EXPECT_THROW(output_distance(GetParam(), x, std::span(y).first(3)), Error);
}

TEST_P(Distances, AddUpOverPrompts) {
  const std::vector<double> rows = {3, 4, 12};
  const std::vector<std::int64_t> offsets = {0, 2, 3};
  const double want = GetParam() == DistanceKind::norm ? (5.0 + 12.0) / 2 : 19.0 / 3;
  EXPECT_DOUBLE_EQ(total_distance(GetParam(), rows, offsets), want);
}

INSTANTIATE_TEST_SUITE_P(All, Distances,
                         ::testing::Values(DistanceKind::angular, DistanceKind::norm,
                                           DistanceKind::kl, DistanceKind::js),
                         [](const auto& kind) { return std::string(distance_name(kind.param)); });

TEST(Distances, BoundsAndNames) {
  const std::vector<float> a = {1, 0}, b = {0, 2}, c = {-3, 0}, big = {200, 0}, other = {0, 200};
  EXPECT_DOUBLE_EQ(output_distance(DistanceKind::angular, a, b), std::acos(0.0));
  EXPECT_DOUBLE_EQ(output_distance(DistanceKind::angular, a, c), std::acos(-1.0));
  EXPECT_NEAR(output_distance(DistanceKind::js, big, other), std::log(2.0), 1e-15);
  EXPECT_EQ(parse_distance("js"), DistanceKind::js);
  EXPECT_EQ(usage_error([] { parse_distance("cosine"); }),
            "unknown distance 'cosine'; expected angular, norm, kl or js");
}

}  // namespace
}  // namespace lamina::testing
