#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lamina/circuits/cross_layer.h"
#include "lamina/circuits/transcoder.h"
#include "lamina/core/model.h"

// What features are connected to by weights alone, whatever the prompt: earlier features, tokens,
// logits, directly and through attention heads. Source: Dunefsky, Chlenski, Nanda 2024
// ("input-invariant" connections, de-embeddings, pulled-back features).
//
// Norms: their weights are folded into what reads behind them, and LayerNorm's centring too (then
// a vector may be set against whatever stands in the residual stream). Their denominators depend on
// the prompt and are left out: numbers are right up to one positive factor a norm. The authors'
// models have both folded when they are loaded (TransformerLens), so the numbers are theirs.

namespace lamina {

/// A vector that is set against the residual stream (value = vector · stream) at a point of the
/// stack: 2 l entering layer l, 2 l + 1 between its attention and its MLP (sequential blocks),
/// 2 L behind the last layer.
struct StreamReader {
  std::vector<float> vector;  // [D]
  std::int64_t point = 0;
};

/// The point at which a dictionary reads; UsageError, naming it, for places that are neither the
/// residual stream nor a norm of it.
std::int64_t reading_point(const TranscoderConfig& dictionary, const ModelConfig& model);
/// The first point at which the residual stream holds what a dictionary writes.
std::int64_t writing_point(const TranscoderConfig& dictionary, const ModelConfig& model);
/// The same of heads.
std::int64_t head_reading_point(std::int32_t layer);
std::int64_t head_writing_point(std::int32_t layer, const ModelConfig& model);

/// `vector`, set against the norm at `kind` of a layer (weights applied), as one that is set
/// against what that norm reads: times the weights, centred if it is a LayerNorm. In place; models
/// without norms leave it as it is.
void fold_norm(const Model& model, SiteKind kind, std::int32_t layer, std::span<float> vector);
/// x − mean of x if the model's norms are LayerNorms.
void centre_for_norm(const ModelConfig& model, std::span<float> vector);

/// A feature's encoder row as a reader of the residual stream.
StreamReader feature_reader(const Model& model, const Transcoder& dictionary, std::int64_t feature);
/// A logit as a reader behind the last layer: its row of the unembedding minus the mean row, final
/// norm folded. Error for a token outside the vocabulary.
StreamReader logit_reader(const Model& model, std::int32_t token);
/// The same of a direction [D] in front of the unembedding (final norm's weights not applied).
StreamReader final_reader(const Model& model, std::span<const float> direction);

/// What `reader` reads off head (layer, head) of unit attention: W_OVᵀ · reader. UsageError for
/// heads that are not there or write behind the reader.
StreamReader through_head(const Model& model, const StreamReader& reader, std::int32_t layer,
                          std::int64_t head);
/// Norms of through_head() for every head in front of the reader: [layer, head], the others NaN.
std::vector<float> head_norms(const Model& model, const StreamReader& reader);

/// What one unit of each feature adds to the reader's value: W_dec · reader, [F]. UsageError for
/// dictionaries that write behind the reader.
std::vector<float> feature_gains(const Model& model, const Transcoder& dictionary,
                                 const StreamReader& reader);
/// The same of a layer of a cross-layer transcoder: all it writes in front of the reader.
std::vector<float> feature_gains(const CrossLayerTranscoder& dictionary, std::int32_t layer,
                                 const StreamReader& reader);
/// Of each token's embedding, [V]: de-embedding. Positions and a norm on the embeddings aside (its
/// weights are folded).
std::vector<float> token_gains(const Model& model, const StreamReader& reader);
/// What a vector [D] written to the residual stream adds to each logit directly, over the mean:
/// [d_out], final norm folded.
std::vector<float> logit_gains(const Model& model, std::span<const float> written);

struct Ranked {
  std::int32_t index = 0;
  float value = 0;
};
/// The k largest, largest first, and the k smallest, smallest first; ties by the smaller index.
struct Extremes {
  std::vector<Ranked> top, bottom;
};
Extremes extremes(std::span<const float> values, std::int64_t k);

/// One step of a way through the model: "a3.h2" is head 2 of layer 3, "3.57" feature 57 of layer 3.
struct Hop {
  bool is_head = false;
  std::int32_t layer = 0;
  std::int64_t index = 0;
  bool operator==(const Hop&) const = default;
};
/// UsageError for a text that is neither.
Hop parse_hop(std::string_view text);
std::string hop_name(const Hop& hop);

}  // namespace lamina
