#include "family/registry.h"

namespace lamina {
namespace {

constexpr FolderFamily kFolders[] = {
    {"bert", read_bert, &kBertTensors, &kBertClassifierTensors},
    {"distilbert", read_distilbert, &kDistilBertTensors, &kDistilBertClassifierTensors},
    {"gemma", read_gemma, &kGemmaTensors},
    {"gemma2", read_gemma2, &kGemma2Tensors},
    {"gemma3", read_gemma3, &kGemma2Tensors},
    {"gemma3_text", read_gemma3_text, &kGemma2Tensors},
    {"gpt2", read_gpt2, &kGpt2Tensors},
    {"gpt_neox", read_gpt_neox, &kGptNeoxTensors},
    {"lamina", read_canonical, &kCanonicalTensors},
    {"llama", read_llama, &kLlamaTensors},
    {"mistral", read_mistral, &kLlamaTensors},
    {"qwen2", read_qwen2, &kLlamaTensors},
    {"qwen3", read_qwen3, &kLlamaTensors},
    {"roberta", read_roberta, &kRobertaTensors, &kRobertaClassifierTensors},
};

constexpr GgufFamily kGguf[] = {
    {"gemma", read_gguf_gemma, &kGgufTensors},
    {"gemma2", read_gguf_gemma2, &kGgufTensors},
    {"gemma3", read_gguf_gemma3, &kGgufTensors},
    {"gpt2", read_gguf_gpt2, &kGgufGptTensors},
    {"gptneox", read_gguf_gptneox, &kGgufGptTensors},
    {"llama", read_gguf_llama, &kGgufLlamaTensors},
    {"qwen2", read_gguf_qwen2, &kGgufTensors},
    {"qwen3", read_gguf_qwen3, &kGgufTensors},
};

}  // namespace

std::span<const FolderFamily> folder_families() {
  return kFolders;
}
std::span<const GgufFamily> gguf_families() {
  return kGguf;
}

}  // namespace lamina
