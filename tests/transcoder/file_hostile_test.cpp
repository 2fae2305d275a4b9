// Files that somebody broke, by accident or on purpose: one line that names the file and both
// values, and nothing else happens.

#include <gtest/gtest.h>

#include <fstream>
#include <functional>

#include "lamina/circuits/transcoder_file.h"
#include "support/tiny_model.h"
#include "transcoder/support.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using testing::expect_message;
using testing::kTranscoderGoldens;
using testing::TempDir;

// A writable copy of a golden folder.
class Broken {
 public:
  explicit Broken(const char* golden) {
    fs::copy(kTranscoderGoldens / golden, path(), fs::copy_options::recursive);
  }
  fs::path path() const { return folder_.path() / "broken"; }
  std::string text(const char* file) const {
    std::ifstream in(path() / file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  }
  void write(const char* file, const std::string& text) const {
    std::ofstream(path() / file, std::ios::binary) << text;
  }
  void replace(const char* file, const std::string& from, const std::string& to) const {
    std::string all = text(file);
    ASSERT_NE(all.find(from), std::string::npos) << from;
    all.replace(all.find(from), from.size(), to);
    write(file, all);
  }
  /// Rewrites a weight file with its tensors changed by `edit`.
  void edit(const char* file, const std::function<void(std::vector<F32Tensor>&)>& change) const {
    std::vector<std::vector<float>> values;
    std::vector<F32Tensor> tensors;
    {
      const TensorStore store = open_safetensors(path() / file);
      values.reserve(store.tensors().size());
      for (const TensorInfo& tensor : store.tensors()) {
        values.emplace_back(tensor.elements());
        expand_to_f32(tensor.dtype, tensor.bytes, values.back());
        tensors.push_back({tensor.name, tensor.shape, values.back()});
      }
    }
    change(tensors);
    fs::remove(path() / file);
    write_safetensors(path() / file, tensors);
  }
  std::string error() const {
    return error_of([&] {
      const TranscoderSet set = TranscoderSet::open(path());
      for (std::size_t i = 0; i < set.size(); ++i) set.load(i);
    });
  }

 private:
  TempDir folder_;
};

F32Tensor& find(std::vector<F32Tensor>& tensors, std::string_view name) {
  for (F32Tensor& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  throw Error("no tensor");
}

constexpr const char* kWeights = "sae_weights.safetensors";

TEST(HostileSaeLens, ShapesAndTensors) {
  {
    const Broken b("transcoder");
    b.replace("cfg.json", "\"d_in\": 12", "\"d_in\": 13");
    expect_message(b.error(), "tensor W_enc: expected shape [13, 40], found [12, 40]");
  }
  {
    const Broken b("transcoder");
    b.replace("cfg.json", "\"d_sae\": 40", "\"d_sae\": 41");
    expect_message(b.error(), "tensor W_enc: expected shape [12, 41], found [12, 40]");
  }
  {
    const Broken b("transcoder");
    b.edit(kWeights, [](auto& t) { std::erase_if(t, [](auto& x) { return x.name == "b_dec"; }); });
    expect_message(b.error(), "sae_weights.safetensors: no tensor b_dec");
  }
  {
    const Broken b("transcoder");
    b.edit(kWeights, [](auto& t) { find(t, "b_dec").name = "b_gate"; });
    expect_message(b.error(), "tensor \"b_gate\" is none that this layout has (W_enc, b_enc");
  }
  {
    const Broken b("skip_transcoder");
    b.replace("cfg.json", "\"skip_transcoder\"", "\"transcoder\"");
    expect_message(b.error(), "tensor W_skip in an architecture without a skip");
  }
  {
    const Broken b("jumprelu");
    b.replace("cfg.json", "\"jumprelu\"", "\"standard\"");
    expect_message(b.error(), "tensor threshold in a dictionary with activation relu");
  }
  {
    const Broken b("standard");
    b.replace("cfg.json", "\"standard\"", "\"jumprelu\"");
    expect_message(b.error(), "no tensor threshold");
  }
  {
    const Broken b("standard");
    static const std::vector<float> factor(40, 2.0F);
    b.edit(kWeights, [](auto& t) { t.push_back({"scaling_factor", {40}, factor}); });
    expect_message(b.error(), "scaling_factor holds values other than 1");
  }
  {
    const Broken b("standard");
    static std::vector<float> bad(40, 0.0F);
    bad[7] = INFINITY;
    b.edit(kWeights, [](auto& t) { find(t, "b_enc").values = bad; });
    expect_message(b.error(), "b_enc holds inf, expected finite values");
  }
  {
    const Broken b("topk_rescaled");
    static const std::vector<float> zeros(480, 0.0F);
    b.edit(kWeights, [](auto& t) { find(t, "W_dec").values = zeros; });
    expect_message(b.error(), "the decoder row of feature 0 has norm 0");
  }
  {
    const Broken b("standard");
    b.replace("cfg.json", "blocks.1.hook_resid_post", "blocks.1.hook_nothing");
    expect_message(b.error(), "cfg.json: input hook \"blocks.1.hook_nothing\": no place");
  }
  {
    const Broken b("standard");
    b.replace("cfg.json", "blocks.1.hook_resid_post", "");
    expect_message(b.error(), "it names no input hook; give it (--input-hook)");
  }
}

TEST(HostileSaeLens, FilesThatAreNotWhatTheyShouldBe) {
  {
    const Broken b("standard");
    b.write("cfg.json", std::string((1 << 20) + 1, ' '));
    expect_message(b.error(), "1048577 bytes, at most 1048576 are allowed");
  }
  {
    const Broken b("standard");
    const std::string all = b.text(kWeights);
    for (std::size_t size : {std::size_t{0}, std::size_t{4}, std::size_t{40}, all.size() - 1}) {
      b.write(kWeights, all.substr(0, size));
      expect_message(b.error(), "sae_weights.safetensors");
    }
    // A pickle is no safetensors file and is never looked into.
    b.write(kWeights, std::string("\x80\x02}q\x00.", 6) + std::string(100, 'x'));
    expect_message(b.error(), "sae_weights.safetensors");
    fs::remove(b.path() / kWeights);
    expect_message(b.error(), "sae_weights.safetensors");
  }
  {
    const Broken b("standard");
    b.replace("cfg.json", "{\"d_in\"", "{\"d_sae\": 1, \"d_in\"");
    expect_message(b.error(), "appears twice");
  }
  TempDir empty;
  expect_message(error_of([&] { TranscoderSet::open(empty.path()); }),
                 "expected cfg.json (SAELens), layer_*.safetensors or W_enc_0.safetensors");
  expect_message(error_of([&] { TranscoderSet::open(empty.path() / "no"); }),
                 "no such file or folder");
  std::ofstream(empty.path() / "x.npz") << "x";
  expect_message(error_of([&] { TranscoderSet::open(empty.path() / "x.npz"); }),
                 "expected a .safetensors file or a folder");
}

TEST(HostileCircuitTracer, ShapesTensorsAndPaths) {
  {
    const Broken b("ct_relu");
    b.edit("layer_1.safetensors", [](auto& t) { find(t, "b_dec").shape = {6, 2}; });
    expect_message(b.error(),
                   "layer_1.safetensors: tensor b_dec: expected shape [12], found [6, 2]");
  }
  {
    const Broken b("ct_relu");
    b.edit("layer_0.safetensors", [](auto& t) { find(t, "W_enc").shape = {480}; });
    expect_message(b.error(), "tensor W_enc: expected a matrix, found shape [480]");
  }
  {
    const Broken b("ct_jump_skip");
    static const std::vector<float> negative(40, -0.5F);
    b.edit("layer_0.safetensors",
           [](auto& t) { find(t, "activation_function.threshold").values = negative; });
    expect_message(b.error(), "threshold of feature 0: expected 0 or more, found -0.5");
  }
  {
    const Broken b("ct_jump_skip");
    b.replace("config.yaml", "model_kind", "activation: relu\nmodel_kind");
    expect_message(b.error(),
                   "activation relu, but there is a tensor activation_function.threshold");
  }
  for (const auto& [path, part] :
       {std::pair{"../layer_0.safetensors", "expected a file in the same folder"},
        {"/etc/layer_0.safetensors", "expected a file in the same folder"},
        {"a/../../x.safetensors", "expected a file in the same folder"},
        {"weights.npz", "expected a .safetensors file, found \".npz\""},
        {"hf://a/b/c/layer_9.safetensors", "no file"},
        {"\"\"", "expected a file in the same folder"}}) {
    const Broken b("ct_jump_skip");
    b.replace("config.yaml", "hf://test/ct_jump_skip/layer_0.safetensors?revision=main", path);
    expect_message(b.error(), part);
  }
  {
    const Broken b("ct_relu");
    b.replace("config.yaml", "transcoder_set", "cross_layer_transcoder");
    expect_message(b.error(),
                   "model_kind cross_layer_transcoder, but the folder has no W_enc_0.safetensors");
  }
  {
    const Broken b("ct_topk");
    b.replace("config.yaml", "k: 5", "k: 0");
    expect_message(b.error(), "k: expected a whole number from 1 to");
  }
  {
    const Broken b("ct_relu");
    fs::remove(b.path() / "config.yaml");
    expect_message(b.error(), "it names no input hook; give it (--input-hook)");
  }
}

TEST(HostileCrossLayer, LayersAndShapes) {
  {
    const Broken b("clt");
    fs::remove(b.path() / "W_enc_1.safetensors");
    expect_message(b.error(), "tensor W_dec_0: expected shape [40, 1, 12], found [40, 3, 12]");
  }
  {
    const Broken b("clt");
    fs::remove(b.path() / "W_dec_2.safetensors");
    expect_message(b.error(), "W_dec_2.safetensors");
  }
  {
    const Broken b("clt");
    b.edit("W_enc_1.safetensors",
           [](auto& t) { std::erase_if(t, [](auto& x) { return x.name == "threshold_1"; }); });
    expect_message(b.error(), "no tensor threshold_1, other than layer 0");
  }
  {
    const Broken b("clt");
    b.edit("W_enc_0.safetensors", [](auto& t) { find(t, "b_enc_0").shape = {4, 10}; });
    expect_message(b.error(), "tensor b_enc_0: expected shape [40], found [4, 10]");
  }
  {  // decoders are read when needed, and checked then
    const Broken b("clt");
    static const std::vector<float> bad(40 * 2 * 12, NAN);
    b.edit("W_dec_1.safetensors", [](auto& t) { find(t, "W_dec_1").values = bad; });
    const TranscoderSet set = TranscoderSet::open(b.path());
    std::vector<float> row(12);
    const std::int32_t feature[] = {3};
    expect_message(error_of([&] { set.cross_layer()->decoder_rows(1, 2, feature, row); }),
                   "W_dec_1 holds nan, expected finite values");
  }
}

}  // namespace
}  // namespace lamina
