#include "lamina/core/safetensors.h"

#include "check_tensors.h"
#include "lamina/core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  try {
    lamina::fuzz::check_tensors(lamina::parse_safetensors(file, "fuzz").tensors, file);
  } catch (const lamina::Error&) {
    // A refusal; any other exception ends the program.
  }
  return 0;
}
