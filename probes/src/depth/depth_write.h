#pragma once

// What the depth analyses write alike.

#include <numeric>
#include <string>
#include <vector>

#include "lamina/core/config.h"
#include "lamina/core/result_file.h"
#include "lamina/probes/streams.h"

namespace lamina {

inline std::vector<std::int64_t> counting(std::int64_t n, std::int64_t first = 0) {
  std::vector<std::int64_t> values(static_cast<std::size_t>(n));
  std::iota(values.begin(), values.end(), first);
  return values;
}

inline void write_choice(ResultFile& file, const TokenChoice& choice, std::int64_t tokens) {
  file.setting("skip", choice.skip);
  file.setting("every", choice.every);
  file.setting("tokens", tokens);
}
inline void write_layers(ResultFile& file, const ModelConfig& config) {
  file.axis("layer", counting(config.n_layers));
}
inline void write_streams(ResultFile& file, const ModelConfig& config) {
  file.axis("stream", stream_labels(config));
}

}  // namespace lamina
