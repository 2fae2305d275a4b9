#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "lamina/core/error.h"
#include "transcoder/file_config.h"

namespace {

using namespace lamina::transcoder_files;

// A refusal of one line is fine; any other exception ends the program.
template <class Parse>
void expect_refusal_or_result(const Parse& parse) {
  try {
    parse();
  } catch (const lamina::Error& error) {
    if (std::string_view(error.what()).find('\n') != std::string_view::npos) std::abort();
  }
}

void check(const SaeLensConfig& c) {
  const bool sound = c.d_in >= 1 && c.d_in <= kMaxWidth && c.d_out >= 1 && c.d_out <= kMaxWidth &&
                     c.d_sae >= 0 && c.d_sae <= kMaxFeatures && c.k >= 0 && c.k <= kMaxFeatures &&
                     (c.activation != lamina::FeatureActivation::topk || c.k >= 1) &&
                     (!c.subtract_decoder_bias || c.d_in == c.d_out);
  if (!sound) std::abort();
}

}  // namespace

/// Reads the input as SAELens' cfg.json, as circuit-tracer's configuration, and as the name of a
/// place.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  expect_refusal_or_result([&] { check(parse_saelens_config(text, "fuzz")); });
  expect_refusal_or_result([&] {
    const CircuitTracerConfig c = parse_circuit_tracer_config(text, "fuzz");
    if (c.k < 0 || c.k > kMaxFeatures) std::abort();
  });
  for (std::int32_t layer : {-1, 3}) {
    expect_refusal_or_result([&] {
      const lamina::DictionaryPlace place = lamina::parse_dictionary_place(text, layer);
      // A place's name is read back as the same place.
      if (lamina::parse_dictionary_place(lamina::dictionary_place_name(place)) != place) {
        std::abort();
      }
    });
  }
  return 0;
}
