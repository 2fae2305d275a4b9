#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "lamina/core/dtype.h"
#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"
#include "lamina/patching/path_judge.h"
#include "support/tiny_model.h"

namespace lamina::testing {

inline std::filesystem::path ablate_folder() {
  return std::filesystem::path(LAMINA_SOURCE_DIR) / "tests/patching";
}

/// One tensor of ablate.safetensors (make_ablate_goldens.py).
inline std::vector<float> ablate_golden(const std::string& name) {
  static const TensorStore store = open_safetensors(ablate_folder() / "ablate.safetensors");
  const TensorInfo* tensor = store.find(name);
  if (tensor == nullptr) throw Error("no golden " + name);
  std::vector<float> values(tensor->elements());
  expand_to_f32(tensor->dtype, tensor->bytes, values);
  return values;
}

/// The prompts of ablate.safetensors.
inline PathPrompts golden_prompts() {
  PathPrompts prompts;
  for (int i = 0; i < 3; ++i) {
    prompts.ids.push_back(std::to_string(i));
    std::vector<std::int32_t>& ids = prompts.tokens.emplace_back();
    for (const float id : ablate_golden("prompt." + std::to_string(i))) {
      ids.push_back(static_cast<std::int32_t>(id));
    }
  }
  prompts.answers.resize(3);
  return prompts;
}

inline PathPrompts random_path_prompts(const std::vector<std::int64_t>& lengths,
                                       std::int64_t d_vocab, std::uint64_t seed) {
  PathPrompts prompts;
  prompts.tokens = random_prompts(lengths, d_vocab, seed);
  for (std::size_t i = 0; i < lengths.size(); ++i) prompts.ids.push_back(std::to_string(i));
  prompts.answers.resize(lengths.size());
  return prompts;
}

inline Batch batch_of(const PathPrompts& prompts) {
  Batch batch;
  for (const auto& ids : prompts.tokens) batch.add(ids);
  return batch;
}

/// The message of the UsageError that `call` throws.
template <class Call>
std::string usage_error(Call call) {
  try {
    call();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no UsageError";
}

}  // namespace lamina::testing
