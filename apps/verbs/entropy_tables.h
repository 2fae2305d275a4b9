#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "lamina/core/tokenizer.h"
#include "lamina/probes/attention_stats.h"
#include "lamina/probes/massive.h"
#include "lamina/probes/output_stats.h"

// What `lamina entropy` found, for people and for scripts. A part that was not run is nullptr.
namespace lamina::cli {

struct EntropyParts {
  const AttentionProbe* attention = nullptr;
  const MassiveProbe* massive = nullptr;
  const OutputProbe* output = nullptr;
};

/// Layers downward with a cell per head; then at most `show` heads of every kind, keys and
/// dimensions. `tokenizer` may be nullptr.
std::string entropy_text(const EntropyParts& parts, const Tokenizer* tokenizer, std::int64_t show);
nlohmann::ordered_json entropy_json(const EntropyParts& parts, const Tokenizer* tokenizer);

}  // namespace lamina::cli
