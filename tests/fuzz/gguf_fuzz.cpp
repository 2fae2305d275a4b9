#include "lamina/core/gguf.h"

#include "check_tensors.h"
#include "lamina/core/error.h"

namespace {

template <class Action>
void attempt(Action action) {
  try {
    action();
  } catch (const lamina::Error&) {
    // A refusal; any other exception ends the program.
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  attempt([&] {
    const lamina::GgufContent content = lamina::parse_gguf(file, "fuzz");
    lamina::fuzz::check_tensors(content.tensors, file);
    // The look-ups must refuse or answer, whatever the value's type.
    for (const auto& [key, value] : content.metadata.values()) {
      attempt([&] { static_cast<void>(content.metadata.integer(key)); });
      attempt([&] { static_cast<void>(content.metadata.number(key)); });
      attempt([&] { static_cast<void>(content.metadata.boolean(key)); });
      attempt([&] { static_cast<void>(content.metadata.text(key)); });
      attempt([&] { static_cast<void>(content.metadata.texts(key)); });
      attempt([&] { static_cast<void>(content.metadata.numbers(key)); });
      attempt([&] { static_cast<void>(content.metadata.integers(key)); });
    }
  });
  return 0;
}
