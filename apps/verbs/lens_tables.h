#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "lamina/probes/latent.h"
#include "lamina/probes/lens.h"

// Results of the reading verbs for people and for scripts.
namespace lamina::cli {

/// For the first `show` tokens read: the layers downward with their most likely tokens; then the
/// means over all of them. `tokenizer` may be nullptr.
std::string lens_text(const LensResults& results, const Tokenizer* tokenizer, std::int64_t show);
nlohmann::ordered_json lens_json(const LensResults& results, const Tokenizer* tokenizer);

/// Mean probability of every language per layer with its interval, and which one leads.
std::string latent_text(const LatentTask& task, const LatentResults& results);
nlohmann::ordered_json latent_json(const LatentTask& task, const LatentResults& results);

}  // namespace lamina::cli
