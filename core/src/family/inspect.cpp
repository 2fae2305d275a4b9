#include "lamina/core/inspect.h"

#include "family/family.h"

namespace lamina {

ModelSummary inspect_model(const std::filesystem::path& path) {
  const OpenedModel opened = open_model(path);
  ModelSummary summary;
  summary.config = opened.config;
  for (const CanonicalTensor& tensor : canonical_tensors(opened.config)) {
    summary.parameters += static_cast<std::uint64_t>(tensor.rows * tensor.cols);
  }
  summary.memory_bytes = summary.parameters * sizeof(float);
  for (const auto& file : opened.files) {
    summary.file_bytes += file->bytes().size();
    summary.files.push_back(file->path());
  }
  return summary;
}

}  // namespace lamina
