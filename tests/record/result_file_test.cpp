#include "lamina/core/result_file.h"

#include "expect_run.h"
#include "record/h5.h"

namespace lamina {
namespace {

using testing::error_of;
using testing::TempFolder;

const std::vector<std::string> kLayers = {"layer"}, kBoth = {"layer", "token"};

void write_sample(const std::filesystem::path& path) {
  ResultFile file(path, {{"tool_version", "0.1.0"}, {"model_id", "fake"}});
  file.group("lens");
  file.setting("kind", "logit");
  file.setting("tolerance", 0.5);
  file.setting("top", std::int64_t{3});
  file.axis("layer", std::vector<std::int64_t>{0, 4});
  file.axis("token", std::vector<std::string>{"the", "é", ""});
  file.axis("depth", std::vector<double>{0.5});
  file.dataset("entropy", kBoth, std::vector<float>{1, 2, 3, 4, 5, 6}, "entropy of the lens",
               "nats");
  file.dataset("mean", kLayers, std::vector<double>{0.1, 0.2}, "mean", "nats");
  file.group("cka");
  file.axis("layer", std::vector<std::int64_t>{0, 1, 2});
  file.dataset("best", kLayers, std::vector<std::int32_t>{7, 8, 9}, "best layer", "1");
  file.group("lens");  // and back
  file.dataset("top", kBoth, std::vector<std::string>{"a", "b", "c", "d", "e", "f"}, "top token",
               "1");
  file.dataset("count", {}, std::vector<std::int32_t>{42}, "a single number", "1");
  file.close();
}

// What a reader of dimension scales follows: dataset → DIMENSION_LIST → scale, and back.
std::string scale_of(const h5::Object& dataset, std::size_t dimension) {
  h5::Lock lock;
  h5::Handle attribute(H5Aopen(dataset.id(), "DIMENSION_LIST", H5P_DEFAULT));
  h5::Handle type(H5Aget_type(attribute.get()));
  h5::Handle space(H5Aget_space(attribute.get()));
  std::vector<hvl_t> list(static_cast<std::size_t>(H5Sget_simple_extent_npoints(space.get())));
  EXPECT_GE(H5Aread(attribute.get(), type.get(), list.data()), 0);
  std::string name = "none";
  if (dimension < list.size() && list[dimension].len == 1) {
    h5::Object scale{
        h5::Handle(H5Rdereference2(dataset.id(), H5P_DEFAULT, H5R_OBJECT, list[dimension].p)),
        "scale"};
    char path[100] = "";
    H5Iget_name(scale.id(), path, sizeof path);
    name = path;
    EXPECT_EQ(h5::read_text_attribute(scale, "CLASS"), "DIMENSION_SCALE");
    EXPECT_TRUE(h5::has_attribute(scale, "REFERENCE_LIST"));
  }
  H5Dvlen_reclaim(type.get(), space.get(), H5P_DEFAULT, list.data());
  return name;
}

TEST(ResultFile, DimensionsAreScales) {
  TempFolder folder;
  write_sample(folder / "r.h5");
  EXPECT_FALSE(std::filesystem::exists(folder / "r.h5.part"));
  const h5::Object file = h5::open_file((folder / "r.h5").string(), false);
  EXPECT_EQ(h5::read_text_attribute(file, "model_id"), "fake");
  const h5::Object lens = h5::open_group(file, "analyses/lens");
  EXPECT_EQ(h5::read_text_attribute(lens, "kind"), "logit");
  EXPECT_EQ(h5::read_real_attribute(lens, "tolerance"), 0.5);
  EXPECT_EQ(h5::read_integer_attribute(lens, "top"), 3);
  const h5::Object entropy = h5::open_dataset(lens, "entropy");
  EXPECT_EQ(h5::dataset_dims(entropy), (h5::Dims{2, 3}));
  EXPECT_EQ(h5::read_text_attribute(entropy, "units"), "nats");
  EXPECT_EQ(h5::read_text_attribute(entropy, "description"), "entropy of the lens");
  EXPECT_EQ(scale_of(entropy, 0), "/analyses/lens/layer");
  EXPECT_EQ(scale_of(entropy, 1), "/analyses/lens/token");
  EXPECT_EQ(scale_of(h5::open_dataset(lens, "top"), 1), "/analyses/lens/token");
  EXPECT_EQ(scale_of(h5::open_dataset(file, "analyses/cka/best"), 0), "/analyses/cka/layer");
  EXPECT_EQ(h5::read_texts(h5::open_dataset(lens, "token")),
            (std::vector<std::string>{"the", "é", ""}));
  std::vector<float> values(6);
  h5::read_rows(entropy, h5::Type::f32, 0, 2, values.data());
  EXPECT_EQ(values, (std::vector<float>{1, 2, 3, 4, 5, 6}));
}

TEST(ResultFile, RefusesMistakes) {
  TempFolder folder;
  ResultFile file(folder / "r.h5", {});
  const std::vector<float> six(6);
  const auto add = [&](std::string_view name, std::vector<std::string> dims) {
    return error_of([&] { file.dataset(name, dims, six, "", ""); });
  };
  EXPECT_HAS(add("x", {}), "dataset 'x' before any group");
  file.group("g");
  file.axis("a", std::vector<std::int64_t>{1, 2});
  file.axis("b", std::vector<std::int64_t>{1, 2, 3});
  EXPECT_HAS(add("x", {"a", "c"}), "dimension 'c' is no axis of this group");
  EXPECT_HAS(add("x", {"a", "a"}), "uses one dimension twice");
  EXPECT_HAS(add("x", {"a"}), "2 values expected for [2], found 6");
  EXPECT_HAS(add("x/y", {"a", "b"}), "name 'x/y' cannot be used");
  EXPECT_EQ(add("x", {"a", "b"}), "");
  EXPECT_HAS(add("x", {"a", "b"}), "dataset 'x' is there already");
  EXPECT_HAS(error_of([&] { file.axis("a", std::vector<std::int64_t>{1}); }), "is there already");
  file.setting("s", 1.0);
  EXPECT_HAS(error_of([&] { file.setting("s", 2.0); }), "setting 's' is there already");
  file.close();
  EXPECT_HAS(add("z", {"a", "b"}), "after close()");
}

TEST(ResultFile, NothingStaysOfAnAbandonedOne) {
  TempFolder folder;
  { ResultFile file(folder / "r.h5", {}); }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  EXPECT_HAS(error_of([&] { ResultFile file(folder / "no/r.h5", {}); }),
             "No such file or directory");
}

// For open_with_xarray.py.
TEST(Sample, WriteResults) {
  const char* folder = std::getenv("LAMINA_RECORD_SAMPLE");
  if (folder == nullptr) GTEST_SKIP() << "only for open_with_xarray.py";
  write_sample(std::filesystem::path(folder) / "results.h5");
}

}  // namespace
}  // namespace lamina
