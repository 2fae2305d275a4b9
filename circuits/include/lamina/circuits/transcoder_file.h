#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/circuits/cross_layer.h"
#include "lamina/circuits/transcoder.h"

// Files of dictionaries, in the layouts of SAELens and circuit-tracer (docs/transcoders.md).

namespace lamina {

enum class DictionaryFormat : std::uint8_t {
  saelens,         ///< folder: cfg.json and sae_weights.safetensors
  circuit_tracer,  ///< one safetensors file a layer, described by config.yaml or config.json
  cross_layer,     ///< circuit-tracer's W_enc_{l}.safetensors and W_dec_{l}.safetensors
};
std::string_view dictionary_format_name(DictionaryFormat format);

/// Where a dictionary comes from.
struct DictionaryOrigin {
  std::filesystem::path path;  // the file with the weights
  DictionaryFormat format = DictionaryFormat::saelens;
  std::string architecture;             // as the file says; "" if it says nothing
  std::string input_hook, output_hook;  // as the file says
  std::vector<std::string> notes;       // what a user of the numbers should know, a sentence each
};

/// What a file may leave open.
struct DictionaryReadOptions {
  std::string input_hook, output_hook;  // for files that name none, "" = none; replace what it says
  std::string activation;               // the same: "relu", "topk" …
  std::int64_t k = 0;                   // the same, of topk
  /// A normalised input hook ("ln2.hook_normalized"): whether the norm's weights are applied.
  std::optional<bool> norm_weights;
  /// For files that say expected_average_only_in: what activations were multiplied by. 0 = unknown.
  double input_scale = 0;
};

/// Several dictionaries, usually one a layer, or one cross-layer transcoder. Opening reads the
/// descriptions and maps the files; weights are expanded by load().
class TranscoderSet {
 public:
  /// A SAELens folder, a folder of such folders, a circuit-tracer file or folder. Sorted by layer.
  /// Throws Error that names the file and what it should hold: layouts, architectures and settings
  /// that lamina does not compute, shapes, values that are not finite.
  static TranscoderSet open(const std::filesystem::path& path,
                            const DictionaryReadOptions& options = {});

  std::size_t size() const { return entries_.size(); }
  const TranscoderConfig& config(std::size_t i) const { return entries_.at(i).config; }
  const DictionaryOrigin& origin(std::size_t i) const { return entries_.at(i).origin; }
  Transcoder load(std::size_t i) const;
  /// Not null for a cross-layer transcoder; then the set is empty.
  const std::shared_ptr<const CrossLayerTranscoder>& cross_layer() const { return cross_layer_; }
  /// bind_dictionary() for all.
  void bind(const Model& model, bool other_model = false);

  struct Entry {
    TranscoderConfig config;
    DictionaryOrigin origin;
    std::function<Transcoder(const TranscoderConfig&)> load;
  };

 private:
  std::vector<Entry> entries_;
  std::shared_ptr<const CrossLayerTranscoder> cross_layer_;
};

/// Writes a SAELens 6 folder that SAELens itself loads, except that it knows no topk transcoders
/// (architecture "topk_transcoder"). A batch_topk dictionary is written as jumprelu, as SAELens
/// does; a transcoder that subtracts b_dec is written with the subtraction folded into b_enc.
/// `metadata`: further keys of cfg.json's "metadata" (how it was trained).
void write_saelens(const std::filesystem::path& folder, const Transcoder& transcoder,
                   const std::map<std::string, std::string>& metadata = {});

/// Writes a circuit-tracer folder: layer_{l}.safetensors, one of each layer, and config.yaml. All
/// must read places of one name, rebuild places of one name, and have one activation. Autoencoders'
/// subtraction is folded into b_enc. `scan`: circuit-tracer's identifier, may be empty.
void write_circuit_tracer(const std::filesystem::path& folder,
                          std::span<const Transcoder* const> transcoders, std::string_view scan);

}  // namespace lamina
