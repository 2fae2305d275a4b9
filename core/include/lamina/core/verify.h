#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lamina/core/forward.h"
#include "lamina/core/recording.h"
#include "lamina/core/run.h"

namespace lamina {

/// One property of a recording, checked at every value it concerns.
struct VerifyCheck {
  std::string name;           // "resid_post = resid_pre + attn_out + mlp_out"
  std::int64_t compared = 0;  // values looked at; 0: the recording lacks the sites, nothing checked
  std::int64_t failures = 0;  // values beyond what rounding allows
  double error = 0;           // at the worst value: |found − expected| …
  double allowed = 0;         // … and what rounding allows there
  std::string place;          // of the worst value: site, prompt, token, column

  bool passed() const { return failures == 0; }
};

struct VerifyReport {
  std::vector<VerifyCheck> checks;
  bool passed() const;
};

/// Checks a recording against itself: finite values, patterns that sum to 1, the residual stream
/// adding up at every layer (resid_mid, resid_post, and each block beginning where the last ended),
/// and logit summaries that are ordered log-probabilities. Offsets, shapes and shards were checked
/// when it was opened.
///
/// With `forward`, the model that was recorded (Error if its fingerprint differs), also: the output
/// projection of z gives attn_out, and every stored value and log-probability is what the model
/// gives when it runs again.
///
/// What rounding allows follows from the stored type and the magnitudes that were added, not from
/// what was found.
VerifyReport verify_recording(const Recording& recording, Forward* forward = nullptr,
                              const Progress& progress = {});

}  // namespace lamina
