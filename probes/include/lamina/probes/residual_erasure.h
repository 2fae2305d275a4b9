#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/core/prompts.h"
#include "lamina/core/result_file.h"
#include "lamina/probes/layer_effects.h"

// Until which layer the answer needs a token: the residual stream of one token at one layer is
// replaced by the mean of all tokens there. After "Do Language Models Use Their Depth
// Efficiently?" and its released code (measure_token_skip).

namespace lamina {

/// Where the change of the probabilities is read.
enum class ErasureScope : std::uint8_t {
  /// Where the answer is predicted: in front of every token behind Prompt::given, at the last token
  /// if there is none.
  answer,
  /// At every token behind the erased one.
  later,
};
std::string_view erasure_scope_name(ErasureScope scope);
ErasureScope parse_erasure_scope(std::string_view name);

struct ErasureOptions {
  ErasureScope scope = ErasureScope::answer;
  std::int64_t prompts = 1;          // the first so many are erased in; the mean is of all
  std::int64_t batch_tokens = 1024;  // rows computed at once
  std::uint64_t memory = std::uint64_t{256} << 20;  // for probabilities of the undisturbed pass
  StepProgress progress;
};

/// One prompt of T tokens.
struct ErasureMap {
  std::int64_t prompt = 0;          // index
  std::vector<std::int64_t> reads;  // positions read (answer scope)
  /// [L + 1, T] largest ‖p − p′‖ with token t replaced in what enters layer l, l = L: in what
  /// leaves the last one. 0 if t is behind all that is read.
  std::vector<double> effect;
};

struct Erasure {
  std::int64_t n_layers = 0;
  std::int64_t mean_tokens = 0;  // of all prompts, position 0 among them
  std::vector<float> mean;       // [L + 1, d_model]
  std::vector<ErasureMap> maps;
};

/// UsageError for a model that is no causal language model.
Erasure measure_erasure(Forward& forward, std::span<const Prompt> prompts,
                        const ErasureOptions& options = {});

/// Writes to the file's current group.
void write_erasure(ResultFile& file, const Erasure& results, std::span<const Prompt> prompts,
                   const ErasureOptions& options);

}  // namespace lamina
