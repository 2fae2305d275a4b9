#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "lamina/circuits/cross_layer.h"
#include "lamina/circuits/transcoder.h"
#include "lamina/core/forward.h"

// The local replacement model of one prompt: MLP outputs are a dictionary's reconstruction plus an
// error constant; attention patterns and the denominators of the norms are those of the prompt.
// What is left is linear in the features, the errors and the token embeddings. Letters: T tokens,
// D d_model, L layers, F active features.
// Source: Ameisen et al. 2025; safety-research/circuit-tracer (code).

namespace lamina {

/// A feature that is active at one token of the prompt.
struct ActiveFeature {
  std::int32_t layer = 0;
  std::int32_t position = 0;
  std::int32_t feature = 0;
  float activation = 0.0F;  // z > 0
  auto operator<=>(const ActiveFeature&) const = default;
};

/// What a run with changed features leaves as it was in the prompt's own run.
enum class Freedom : std::uint8_t {
  direct,       ///< patterns, norm denominators and all MLP outputs are kept (skip parts flow)
  constrained,  ///< patterns and denominators are kept; later features answer, errors are constants
  free,         ///< nothing: the model itself, with the change added to its MLP outputs
};
std::string_view freedom_name(Freedom freedom);
/// UsageError for a name that is none of them.
Freedom parse_freedom(std::string_view name);

/// A source of the replacement model is made `factor` times what it is: 2 doubles it, 0 ablates it.
/// Sources are numbered as in AttributionGraph: the active features, the errors (layer by layer,
/// T each), the tokens.
struct SourceChange {
  std::int64_t source = 0;
  double factor = 0.0;
  bool operator==(const SourceChange&) const = default;
};

/// What one changed run gives.
struct ReplacementRun {
  std::vector<float> pre_activations;  // [F], of the active features of the prompt
  std::vector<float> residual;         // [D] at the last token, over the final denominator
  std::vector<float> logits;           // [d_out] at the last token
};

struct ReplacementOptions {
  /// MLP outputs at the first token are constants without features or errors. circuit-tracer does
  /// so where the first token is a special one.
  bool constant_first = false;
};

/// One prompt's replacement model. Needs a decoder with a language head and no norm behind the
/// residual addition; a layer without a dictionary has its whole MLP output as error.
class Replacement {
 public:
  /// `transcoders`: at most one a layer, by the layer of their output, which must be mlp_out; they
  /// read resid_pre, resid_mid, ln1 or ln2 normalised of the same layer. They must outlive this
  /// object, as `forward` must. Throws UsageError for other places, two dictionaries of one layer
  /// and models that cannot be replaced; Error for widths that are not the model's.
  Replacement(Forward& forward, std::span<const Transcoder> transcoders,
              std::span<const std::int32_t> ids, const ReplacementOptions& options = {});
  /// The same with a cross-layer transcoder, which must outlive this object too.
  Replacement(Forward& forward, const CrossLayerTranscoder& transcoder,
              std::span<const std::int32_t> ids, const ReplacementOptions& options = {});
  ~Replacement();
  Replacement(Replacement&&) noexcept;

  const Model& model() const;
  Forward& forward() const;
  std::int64_t tokens() const;  // T
  std::span<const std::int32_t> ids() const;
  bool constant_first() const;

  /// Sorted by layer, position, feature.
  std::span<const ActiveFeature> features() const;
  /// F + L·T + T.
  std::int64_t sources() const;
  /// The dictionary of a layer, nullptr without; of a cross-layer transcoder its encoder.
  const Transcoder* transcoder(std::int32_t layer) const;
  /// The first layer whose features write to the MLP output of `target`: itself, 0 with a
  /// cross-layer transcoder.
  std::int32_t first_writer(std::int32_t target) const;
  /// Decoder rows of features of `layer` at the MLP output of `target`: out [features, D].
  void write_rows(std::int32_t layer, std::int32_t target, std::span<const std::int32_t> features,
                  std::span<float> out) const;
  /// What a source adds to the residual stream: [D] at its place, of a feature at its own layer
  /// (zeros for errors of layers without an MLP and of a constant first token).
  std::vector<float> source_vector(std::int64_t source) const;
  std::span<const float> error(std::int32_t layer) const;  // [T, D]
  std::span<const float> embedding() const;                // [T, D]
  /// Denominators of a norm site of the prompt's run, [T].
  std::span<const float> scale(SiteKind kind, std::int32_t layer) const;
  /// Logits of the last token.
  std::span<const float> logits() const;  // [d_out]
  /// The prompt's own values, as a run without changes gives them.
  const ReplacementRun& clean() const;
  /// Sum of squared errors over that of the MLP output around its mean, of one layer; 0 without an
  /// MLP.
  double unexplained(std::int32_t layer) const;

  /// Runs the model with changed sources: one result per set, several sets in one pass.
  std::vector<ReplacementRun> run(std::span<const std::vector<SourceChange>> sets,
                                  Freedom freedom) const;
  /// Direct run with every source at zero: what biases (position embeddings count as such) alone
  /// give, MLPs at their decoder bias.
  ReplacementRun biases() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lamina
