#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lamina/core/forward.h"

namespace lamina {

/// How the backward pass treats the four places where a block is not linear. All false: the
/// gradient. The forward pass is never changed.
struct BackwardRules {
  /// Denominators of all norms (the final and the q/k norms too) are constants; centring stays.
  bool frozen_norm = false;
  /// Attention patterns are constants: nothing flows to q and k.
  bool frozen_pattern = false;
  /// act(x)/x′ instead of act′(x), x′ = x moved by `stabiliser` away from 0 (so that x = 0 passes
  /// nothing on, as in RelP's code); ReLU keeps its derivative.
  bool activation_ratio = false;
  /// Half the gradient to each factor of a gated product.
  bool half_gate = false;
  /// Nothing flows through the MLPs: their outputs are constants.
  bool frozen_mlp = false;
  double stabiliser = 1e-6;

  /// Relevance patching's default set: norm, activation and gate, the pattern full.
  /// Source: the code of RelP (FarnoushRJ/RelP).
  static BackwardRules relp() {
    return {.frozen_norm = true, .activation_ratio = true, .half_gate = true};
  }
};

/// What a forward pass must keep for the backward pass: RunOptions::tape. Reused between passes.
class Tape {
 public:
  Tape();
  ~Tape();
  Tape(Tape&&) noexcept;
  Tape& operator=(Tape&&) noexcept;

  const Batch& batch() const;
  std::uint64_t bytes() const;
  /// Estimate per token, attention patterns aside (they are computed again).
  static std::uint64_t bytes_per_token(const ModelConfig& config);

  struct Impl;  // private: core/src/engine/tape.h
  Impl& impl() { return *impl_; }
  const Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

/// A place that reads the residual stream: a head's q, k or v, an MLP, or the logits (layer and
/// head −1). `head` counts query heads for k and v too, as if every query head had its own key and
/// value head.
struct ReadPoint {
  enum class Kind : std::uint8_t { q, k, v, mlp, logits };
  Kind kind = Kind::logits;
  std::int32_t layer = -1;
  std::int64_t head = -1;
  bool operator==(const ReadPoint&) const = default;
};

/// Called with the gradient [tokens, d_model] at what one read point reads: the residual stream
/// before the norm (if there is one), as if this read point had its own copy of it.
using ReadPointFunction = std::function<void(ReadPoint, std::span<const float>)>;

/// Norm of the gradient of one weight tensor (canonical name: "0.q", "3.ln1.w", "unembed" …).
struct ParameterNorm {
  std::string tensor;
  std::int32_t layer;  // −1 outside the layers
  double norm;
};

/// Runs a model backwards over a tape.
///
/// As in the forward pass, a prompt's gradients do not depend on what else is in the batch or on
/// the number of threads.
class Backward {
 public:
  explicit Backward(const Model& model);
  ~Backward();
  Backward(Backward&&) noexcept;

  /// Adds the gradient at the logits of some token rows of the tape: gradient [rows, d_vocab] with
  /// respect to the final logits (after the soft-cap). May be called several times before run().
  void seed(const Tape& tape, std::span<const std::int64_t> rows, std::span<const float> gradient);
  /// The same at the output of the last block: gradient [tokens, d_model].
  void seed_residual(const Tape& tape, std::span<const float> gradient);

  /// Runs backwards from the seeds. `hooks` see the gradient at their site, complete, in the shape
  /// of the site; writing hooks change it and what flows on (adding to it seeds the site). They
  /// fire in reverse order of the forward pass; at hook_result every head has the gradient of
  /// attn_out before any post-norm. A value that a forward hook wrote counts as the value computed
  /// plus a constant. `read_points`: see ReadPointFunction. The seeds are used up.
  void run(const Tape& tape, const BackwardRules& rules = {}, const Hooks& hooks = {},
           const ReadPointFunction& read_points = {});

  /// Asks the next runs for the gradient of every weight tensor, one matrix at a time, of which
  /// only the norm is kept. A tied embedding counts once, both uses added. To be called before the
  /// seeds of a run; UsageError in run() otherwise, and for a pass that ran a layer twice.
  void want_parameter_norms(bool wanted);
  /// Of the last run, in canonical order.
  const std::vector<ParameterNorm>& parameter_norms() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lamina
