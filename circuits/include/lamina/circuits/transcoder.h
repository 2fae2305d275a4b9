#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/model.h"
#include "lamina/core/site.h"

// Dictionaries of features: transcoders, skip transcoders and sparse autoencoders are one object.
// Letters: D_in, D_out widths of what is read and rebuilt, F features, N rows.

namespace lamina {

/// What becomes of a feature's pre-activation u.
enum class FeatureActivation : std::uint8_t {
  relu,        ///< max(u, 0)
  topk,        ///< the k largest of a row, those of them above 0
  batch_topk,  ///< in training the k·N largest of a batch; afterwards u > threshold (one for all)
  jump_relu,   ///< u where u > threshold (of the feature), else 0
};
std::string_view feature_activation_name(FeatureActivation activation);
/// UsageError for a name that is none of them.
FeatureActivation parse_feature_activation(std::string_view name);

/// A place that a dictionary reads or rebuilds: a site and, for the normalised ones, whether the
/// norm's weight and bias are applied (then it is exactly what the MLP's matrices multiply, which
/// no site holds: sites are before weight and bias).
struct DictionaryPlace {
  Site site;
  bool norm_weights = false;
  bool operator==(const DictionaryPlace&) const = default;
};
/// "blocks.3.ln2.hook_normalized", with "·w" behind it if the norm's weights are applied.
std::string dictionary_place_name(const DictionaryPlace& place);
/// The place with this name, as TransformerLens, SAELens and circuit-tracer write it:
/// "blocks.3.hook_resid_mid", with "·w" as above, "blocks.3.mlp.hook_in" (the norm with its
/// weights) or, with `layer` ≥ 0, only what follows "blocks.3.". UsageError for names that are
/// none.
DictionaryPlace parse_dictionary_place(std::string_view name, std::int32_t layer = -1);
/// The values [rows, width] of a place from those of its site, in place: times the norm's weight,
/// plus its bias. UsageError if weights are asked of a site that is no norm.
void apply_place(const Model& model, const DictionaryPlace& place, std::span<float> rows);

struct TranscoderConfig {
  std::string name;               // of the dictionary: file stem
  std::string model_id;           // that it was trained on, as its file says; may be empty
  DictionaryPlace input, output;  // equal: a sparse autoencoder
  std::int64_t d_in = 0, d_out = 0, features = 0;
  FeatureActivation activation = FeatureActivation::relu;
  std::int64_t k = 0;                  // of topk and batch_topk; else 0
  bool subtract_decoder_bias = false;  // x − b_dec is encoded (autoencoders only: D_in = D_out)
  bool skip = false;                   // adds W_skip x
  bool operator==(const TranscoderConfig&) const = default;
};

/// Activations of some rows, feature ids ascending within a row.
struct SparseRows {
  std::vector<std::int64_t> offsets{0};  // [rows + 1]
  std::vector<std::int32_t> feature;     // [entries]
  std::vector<float> value;              // [entries], > 0

  std::int64_t rows() const { return static_cast<std::int64_t>(offsets.size()) - 1; }
};

/// u = W_enc (x − [b_dec]) + b_enc, z = activation(u), y = W_decᵀ z + b_dec + [W_skip x].
/// Source: Dunefsky, Chlenski, Nanda 2024 (transcoders); SAELens and circuit-tracer (variants).
struct Transcoder {
  TranscoderConfig config;
  std::vector<float> encoder;       // W_enc [F, D_in], a feature's row in one piece
  std::vector<float> encoder_bias;  // [F]
  std::vector<float> decoder;       // W_dec [F, D_out]
  std::vector<float> decoder_bias;  // [D_out]
  std::vector<float> threshold;     // [F]; jump_relu, and batch_topk (all equal); else empty
  std::vector<float> skip;          // W_skip [D_out, D_in]; empty without

  /// Error for sizes and settings of `config` that cannot be, naming the first array whose size is
  /// not that of `config`, with both, and for values that are not finite.
  void check() const;
  /// The same without W_dec.
  void check_encoder() const;
  /// x [N, D_in] → u [N, F].
  void pre_activations(std::span<const float> x, std::span<float> u) const;
  /// x [N, D_in] → the active features. Needs memory for the result and a few blocks of
  /// pre-activations, never for [N, F]. In both, a row's values are the same bit for bit whatever
  /// the other rows and however many threads.
  SparseRows encode(std::span<const float> x) const;
  /// y [N, D_out] of features z; x [N, D_in] is read only if there is a skip.
  void decode(const SparseRows& z, std::span<const float> x, std::span<float> y) const;
  /// The same dictionary with `subtract_decoder_bias` folded into b_enc: b_enc − W_enc b_dec.
  Transcoder without_subtraction() const;
};

/// Error, with both names, for a dictionary whose file names another model. Compared is what
/// follows the last '/', without case; "gpt2-small" is "gpt2"; the model's name may go on after a
/// dot.
void require_same_model(const TranscoderConfig& config, std::string_view model_id);

/// Makes `config` one of `model`'s: a norm that two sublayers share is named as the model names it.
/// Error, with both values, for layers and sites that the model lacks, for widths that are not
/// theirs, for an output place behind a norm of its own, and, unless `other_model`, for a
/// dictionary whose file names another model.
void bind_dictionary(TranscoderConfig& config, const Model& model, bool other_model = false);

}  // namespace lamina
