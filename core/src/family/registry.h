#pragma once

// The families lamina knows: one entry per `model_type` of config.json and one per GGUF
// architecture. A new family adds a reader, a tensor table and a line in registry.cpp.

#include <span>
#include <string_view>

#include "family/config_reader.h"
#include "family/tensor_table.h"
#include "lamina/core/gguf.h"

namespace lamina {

class GgufReader;

/// A family of config.json folders (Hugging Face's, and lamina's own).
struct FolderFamily {
  std::string_view model_type;
  ModelConfig (*read)(ConfigReader& reader);
  const TensorTable* tensors;
  const TensorTable* classifier_tensors = nullptr;  // where a classifier's head has other names
};
std::span<const FolderFamily> folder_families();

/// The family that a config.json names. Error listing the known families for any other.
const FolderFamily& folder_family(std::string_view config_text, std::string_view source);
/// Reads and validates a config.json's text.
ModelConfig parse_config(std::string_view config_text, std::string_view source);

/// A GGUF architecture.
struct GgufFamily {
  std::string_view architecture;
  ModelConfig (*read)(GgufReader& reader);
  const TensorTable* tensors;
};
std::span<const GgufFamily> gguf_families();

// Readers and tables, by file.
ModelConfig read_bert(ConfigReader&);
ModelConfig read_roberta(ConfigReader&);
ModelConfig read_distilbert(ConfigReader&);
extern const TensorTable kBertTensors, kBertClassifierTensors;
extern const TensorTable kRobertaTensors, kRobertaClassifierTensors;
extern const TensorTable kDistilBertTensors, kDistilBertClassifierTensors;
ModelConfig read_gpt2(ConfigReader&);
extern const TensorTable kGpt2Tensors;
ModelConfig read_gpt_neox(ConfigReader&);
extern const TensorTable kGptNeoxTensors;
ModelConfig read_llama(ConfigReader&);
ModelConfig read_mistral(ConfigReader&);
ModelConfig read_qwen2(ConfigReader&);
ModelConfig read_qwen3(ConfigReader&);
extern const TensorTable kLlamaTensors;
ModelConfig read_gemma(ConfigReader&);
ModelConfig read_gemma2(ConfigReader&);
ModelConfig read_gemma3_text(ConfigReader&);
ModelConfig read_gemma3(ConfigReader&);
extern const TensorTable kGemmaTensors;
extern const TensorTable kGemma2Tensors;
ModelConfig read_canonical(ConfigReader&);
extern const TensorTable kCanonicalTensors;

ModelConfig read_gguf_gpt2(GgufReader&);
ModelConfig read_gguf_gptneox(GgufReader&);
ModelConfig read_gguf_llama(GgufReader&);
ModelConfig read_gguf_qwen2(GgufReader&);
ModelConfig read_gguf_qwen3(GgufReader&);
ModelConfig read_gguf_gemma(GgufReader&);
ModelConfig read_gguf_gemma2(GgufReader&);
ModelConfig read_gguf_gemma3(GgufReader&);
extern const TensorTable kGgufGptTensors;
extern const TensorTable kGgufLlamaTensors;  // q and k rows interleaved
extern const TensorTable kGgufTensors;       // rows as in Hugging Face's files

}  // namespace lamina
