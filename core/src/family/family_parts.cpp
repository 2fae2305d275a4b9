#include "family/family_parts.h"

#include "lamina/core/error.h"

namespace lamina {

std::int64_t positive(ConfigReader& reader, std::string_view key, std::int64_t fallback) {
  const std::int64_t value = reader.integer(key, fallback);
  if (value < 1) reader.refuse(key, "expected 1 or more");
  return value;
}

ModelConfig read_sizes(ConfigReader& r, std::string_view family, std::int64_t kv_heads_default,
                       std::int64_t head_dim_default) {
  ModelConfig c;
  c.family = family;
  c.n_layers = r.integer("num_hidden_layers");
  // Settings per layer are made before validate() sees the number: cap it here as well.
  if (c.n_layers < 1 || c.n_layers > 4096) r.refuse("num_hidden_layers", "expected 1 to 4096");
  c.d_model = r.integer("hidden_size");
  c.n_heads = r.integer("num_attention_heads");
  if (c.n_heads < 1) r.refuse("num_attention_heads", "expected 1 or more");
  c.n_kv_heads =
      r.integer("num_key_value_heads", kv_heads_default > 0 ? kv_heads_default : c.n_heads);
  if (r.has("head_dim") || head_dim_default > 0) {
    c.d_head = r.integer("head_dim", head_dim_default);
  } else if (c.d_model % c.n_heads != 0) {
    r.refuse("num_attention_heads",
             fmt::format("hidden_size = {} must be a multiple of it", c.d_model));
  } else {
    c.d_head = c.d_model / c.n_heads;
  }
  if (c.d_head < 1) r.refuse("head_dim", "expected 1 or more");
  c.d_mlp = positive(r, "intermediate_size", 0);
  c.d_vocab = r.integer("vocab_size");
  c.n_ctx = r.integer("max_position_embeddings");
  c.layers.resize(static_cast<std::size_t>(c.n_layers));
  return c;
}

std::vector<bool> read_layer_types(ConfigReader& reader, std::size_t n_layers,
                                   const std::function<bool(std::size_t)>& by_default) {
  std::vector<bool> sliding(n_layers);
  if (!reader.has("layer_types")) {
    for (std::size_t l = 0; l < n_layers; ++l) sliding[l] = by_default(l);
    return sliding;
  }
  const std::vector<std::string> types = reader.texts("layer_types");
  if (types.size() != n_layers) {
    reader.refuse("layer_types", fmt::format("{} entries; expected one for each of {} layers",
                                             types.size(), n_layers));
  }
  for (std::size_t l = 0; l < n_layers; ++l) {
    if (types[l] != "sliding_attention" && types[l] != "full_attention") {
      reader.refuse("layer_types", fmt::format("entry {} is \"{}\"; known: full_attention, "
                                               "sliding_attention",
                                               l, types[l]));
    }
    sliding[l] = types[l] == "sliding_attention";
  }
  return sliding;
}

}  // namespace lamina
