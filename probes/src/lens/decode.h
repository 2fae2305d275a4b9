#pragma once

// Residual rows of a block to logits, for the lenses.

#include <cstdint>
#include <span>
#include <vector>

#include "lamina/core/block.h"
#include "lamina/probes/lens.h"
#include "lamina/probes/readout.h"

namespace lamina {

class RowDecoder {
 public:
  RowDecoder(const Readout& readout, const LensTranslators* translators)
      : readout_(readout), translators_(translators) {}

  /// Logits of one site's token rows: appended as rows to x, then logits [rows, d_vocab].
  /// gather() collects rows (translated, not yet normalised); decode() does the rest for all of
  /// them in one product.
  void gather(const ActivationBlock& block, Site site, std::span<const std::int64_t> token_rows);
  /// Logits of everything gathered since the last decode, [rows, d_vocab]; valid until the next.
  std::span<const float> decode(std::vector<float>& logits);

 private:
  const Readout& readout_;
  const LensTranslators* translators_;
  std::vector<float> rows_, normalized_;
};

/// The token rows of block prompt `prompt` that `options` select, counted from the prompt's start.
std::vector<std::int64_t> selected_positions(const ActivationBlock& block, std::int64_t prompt,
                                             const LensOptions& options);

/// The token that should follow position `position` of the prompt; −1 if nobody knows.
std::int32_t expected_next(const Prompt& prompt, std::int64_t position);

/// Throws unless every site is a token site of residual width that this model has.
void check_lens_sites(std::span<const Site> sites, const ModelConfig& config);

}  // namespace lamina
