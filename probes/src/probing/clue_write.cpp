// CLUE's results as datasets, and its centroids as a file of tensors.

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "lamina/core/dtype.h"
#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"
#include "lamina/probes/clue.h"

namespace lamina {
namespace {

using Names = std::vector<std::string>;

}  // namespace

void write_centroids(const std::filesystem::path& path, const ClueCentroids& centroids) {
  std::vector<F32Tensor> tensors;
  for (std::size_t l = 0; l < centroids.sites.size(); ++l) {
    const std::vector<std::uint64_t> shape{centroids.success[l].size()};
    tensors.push_back({centroids.sites[l] + ".success", shape, centroids.success[l]});
    tensors.push_back({centroids.sites[l] + ".failure", shape, centroids.failure[l]});
  }
  const nlohmann::ordered_json about = {{"sites", centroids.sites},
                                        {"start", centroids.start},
                                        {"end", centroids.end},
                                        {"model_sha256", centroids.model_sha256}};
  write_safetensors(path, tensors, {{"format", "lamina-clue"}, {"centroids", about.dump()}});
}

ClueCentroids read_centroids(const std::filesystem::path& path) {
  ClueCentroids out;
  {
    const MappedFile file(path);
    const SafetensorsHeader header = parse_safetensors(file.bytes(), path.string());
    const auto format = header.metadata.find("format");
    const auto about = header.metadata.find("centroids");
    if (format == header.metadata.end() || format->second != "lamina-clue" ||
        about == header.metadata.end()) {
      fail("{}: no centroids: its format is '{}', 'lamina-clue' expected", path.string(),
           format == header.metadata.end() ? "" : format->second);
    }
    try {
      const nlohmann::json json = nlohmann::json::parse(about->second);
      out.sites = json.at("sites").get<Names>();
      out.start = json.at("start").get<std::string>();
      out.end = json.at("end").get<std::string>();
      out.model_sha256 = json.at("model_sha256").get<std::string>();
    } catch (const nlohmann::json::exception&) {
      fail("{}: the description of the centroids is damaged", path.string());
    }
  }
  if (out.sites.empty()) fail("{}: it holds no centroids", path.string());
  const TensorStore store = open_safetensors(path);
  for (const std::string& site : out.sites) {
    for (const char* which : {".success", ".failure"}) {
      const TensorInfo* tensor = store.find(site + which);
      if (tensor == nullptr || tensor->dtype != DType::f32 || tensor->shape.size() != 1) {
        fail("{}: it has no fp32 tensor {}{} of one dimension", path.string(), site, which);
      }
      std::vector<float> values(tensor->elements());
      expand_to_f32(tensor->dtype, tensor->bytes, values);
      for (float v : values) {
        if (!std::isfinite(v)) fail("{}: tensor {}{} holds {}", path.string(), site, which, v);
      }
      (which[1] == 's' ? out.success : out.failure).push_back(std::move(values));
    }
    if (out.success.back().size() != out.failure.back().size()) {
      fail("{}: {} has centroids of {} and {} values", path.string(), site,
           out.success.back().size(), out.failure.back().size());
    }
  }
  return out;
}

void write_clue(ResultFile& file, const ClueResults& r, std::span<const FeatureRow> rows,
                const ClueOptions& options) {
  file.setting("start", r.centroids.start);
  file.setting("end", r.centroids.end);
  file.setting("folds", options.folds);
  file.setting("train_share", options.train_share);
  file.setting("resamples", options.resamples);
  file.setting("seed", std::to_string(options.seed));
  file.setting("judged", r.judged);
  file.setting("questions", r.reranking.questions);
  file.setting("candidates", r.reranking.candidates);
  file.setting("distance",
               std::string("mean over layers of |state(end) - state(start) - centroid|"));
  Names prompts, groups;
  std::vector<std::int64_t> numbers, components;
  std::vector<std::int32_t> ends;
  for (const FeatureRow& row : rows) {
    numbers.push_back(static_cast<std::int64_t>(numbers.size()));
    prompts.push_back(row.prompt_id);
    groups.push_back(row.group);
    ends.push_back(static_cast<std::int32_t>(row.token));
  }
  file.axis("site", r.sites);
  file.axis("trace", numbers);
  file.axis("score", Names{"value", "low", "high"});
  const Names trace{"trace"}, site{"site"}, score{"score"};
  file.dataset("prompt_id", trace, prompts, "id of the trace's prompt", "");
  file.dataset("question", trace, groups, "group of the trace", "");
  file.dataset("end_token", trace, ends, "token that ends the trace, within its prompt", "token");
  file.dataset("correct", trace, r.correct, "1: labelled right", "");
  file.dataset("predicted", trace, r.predicted,
               "1: nearer to success, 0: to failure, 2: not judged", "");
  file.dataset("to_success", trace, r.to_success, "distance to the centroid of right traces", "1");
  file.dataset("to_failure", trace, r.to_failure, "distance to the centroid of wrong traces", "1");
  file.dataset("layer_accuracy", site, r.layer_accuracy, "accuracy by this layer alone", "1");
  file.dataset("layer_auroc", site, r.layer_auroc,
               "AUROC of to_failure - to_success by this layer alone", "1");
  const auto write_score = [&](std::string_view name, const Score& s, std::string_view what) {
    const std::vector<double> values = {s.value, s.low, s.high};
    file.dataset(name, score, values, what, "1");
  };
  write_score("accuracy", r.accuracy, "share of traces judged right, with its 95 % interval");
  write_score("balanced_accuracy", r.balanced_accuracy, "mean over right and wrong traces");
  write_score("auroc", r.auroc, "AUROC of to_failure - to_success, pairs of the same fold");
  if (r.reranking.questions > 0) {
    write_score("rerank_nearest", r.reranking.nearest,
                "questions whose candidate nearest to success is right");
    write_score("rerank_first", r.reranking.first, "questions whose first candidate is right");
    write_score("rerank_majority", r.reranking.majority,
                "questions whose commonest answer is right; NaN without answers");
  }
  std::size_t width = 0;
  for (const auto& c : r.centroids.success) width = std::max(width, c.size());
  for (std::size_t k = 0; k < width; ++k) components.push_back(static_cast<std::int64_t>(k));
  file.axis("component", components);
  file.axis("outcome", Names{"failure", "success"});
  std::vector<float> centroids;
  for (const std::string& name : r.sites) {
    const auto at = static_cast<std::size_t>(
        std::find(r.centroids.sites.begin(), r.centroids.sites.end(), name) -
        r.centroids.sites.begin());
    for (const auto* from : {&r.centroids.failure[at], &r.centroids.success[at]}) {
      centroids.insert(centroids.end(), from->begin(), from->end());
      centroids.resize(centroids.size() + width - from->size(), std::nanf(""));
    }
  }
  file.dataset("centroid", Names{"site", "outcome", "component"}, centroids,
               "mean of state(end) - state(start) over traces", "1");
}

}  // namespace lamina
