// A weight report in a result file.

#include <limits>
#include <numeric>

#include "lamina/circuits/weight_report.h"
#include "lamina/probes/lens.h"

namespace lamina {
namespace {

constexpr float kNone = std::numeric_limits<float>::quiet_NaN();

// Lists of (index, value) on axes whose last one is rank; short lists end in −1 and NaN.
struct Lists {
  std::vector<std::int32_t> index;
  std::vector<float> value;

  void add(const std::vector<Ranked>& ranked, std::int64_t length) {
    for (std::int64_t i = 0; i < length; ++i) {
      const bool there = i < std::ssize(ranked);
      index.push_back(there ? ranked[static_cast<std::size_t>(i)].index : -1);
      value.push_back(there ? ranked[static_cast<std::size_t>(i)].value : kNone);
    }
  }
};

using Names = std::vector<std::string>;

void write_lists(ResultFile& file, const std::string& name, const Names& axes, const Lists& lists,
                 const std::string& what, const Tokenizer* tokenizer, bool tokens) {
  file.dataset(name, axes, std::span<const std::int32_t>(lists.index), what + "; -1: none", "");
  file.dataset(name + "_gain", axes, std::span<const float>(lists.value),
               "what a unit of it adds; NaN: none", "");
  if (!tokens || tokenizer == nullptr) return;
  std::vector<std::string> text;
  for (const std::int32_t id : lists.index)
    text.push_back(id >= 0 && id < tokenizer->vocab_size() ? printable_piece(*tokenizer, id) : "");
  file.dataset(name + "_text", axes, std::span<const std::string>(text), "text of the token", "");
}

void write_extremes(ResultFile& file, const std::string& name, const Names& axes,
                    std::span<const Extremes* const> all, std::int64_t length,
                    const std::string& what, const Tokenizer* tokenizer, bool tokens) {
  Lists top, bottom;
  for (const Extremes* e : all) {
    top.add(e->top, length);
    bottom.add(e->bottom, length);
  }
  write_lists(file, name + "_top", axes, top, what + ", largest first", tokenizer, tokens);
  write_lists(file, name + "_bottom", axes, bottom, what + ", smallest first", tokenizer, tokens);
}

// The lists of features of a reader in a row over all layers of the model.
void add_layers(std::vector<const Extremes*>& all, const ReaderConnections& c,
                std::int64_t n_layers) {
  static const Extremes kEmpty;
  for (std::int64_t l = 0; l < n_layers; ++l) {
    const Extremes* found = &kEmpty;
    for (std::size_t i = 0; i < c.layers.size(); ++i)
      if (c.layers[i] == l) found = &c.features[i];
    all.push_back(found);
  }
}

std::vector<std::int64_t> count_up(std::int64_t n) {
  std::vector<std::int64_t> out(static_cast<std::size_t>(n));
  std::iota(out.begin(), out.end(), 0);
  return out;
}

}  // namespace

void WeightReport::write(ResultFile& file, const Tokenizer* tokenizer) const {
  Names names;
  std::string back;
  for (const FeatureConnections& f : features) names.push_back(hop_name(f.feature));
  for (const Hop& hop : options.pull_back) back += (back.empty() ? "" : " ") + hop_name(hop);
  const auto settings = [&] {
    file.setting("pull_back", back);
    file.setting("top", options.top);
    file.setting("defaults", std::string("[ours] top 10, heads 3"));
    file.setting("norms", std::string("weights and centring folded, denominators left out"));
    const std::vector<std::int64_t> rank = count_up(options.top), layer = count_up(n_layers);
    file.axis("feature", std::span<const std::string>(names));
    file.axis("rank", std::span<const std::int64_t>(rank));
    file.axis("layer", std::span<const std::int64_t>(layer));
  };
  const std::int64_t k = options.top;
  file.group("paths_weights");
  settings();
  std::vector<const Extremes*> tokens, logits, connections;
  for (const FeatureConnections& f : features) {
    tokens.push_back(&f.direct.tokens);
    logits.push_back(&f.logits);
    add_layers(connections, f.direct, n_layers);
  }
  if (options.tokens)
    write_extremes(file, "deembedding", {"feature", "rank"}, tokens, k,
                   "tokens by what their embeddings add to the feature", tokenizer, true);
  if (options.logits && back.empty())
    write_extremes(file, "logit", {"feature", "rank"}, logits, k,
                   "tokens by what the feature adds to their logits, over the mean", tokenizer,
                   true);
  if (options.connections)
    write_extremes(file, "source", {"feature", "layer", "rank"}, connections, k,
                   "earlier features of a layer by what they add to the feature", nullptr, false);
  if (!options.through_heads) return;

  file.group("paths_weights_heads");
  settings();
  file.setting("heads", options.heads);
  const std::vector<std::int64_t> head = count_up(n_heads), chosen = count_up(options.heads);
  file.axis("head", std::span<const std::int64_t>(head));
  file.axis("through", std::span<const std::int64_t>(chosen));
  std::vector<float> norms, norm;
  std::vector<std::int32_t> through_layer, through_head;
  tokens.clear();
  connections.clear();
  static const FeatureConnections::Head kNoHead{
      .layer = -1, .head = -1, .norm = kNone, .connections = {}};
  for (const FeatureConnections& f : features) {
    norms.insert(norms.end(), f.head_norms.begin(), f.head_norms.end());
    for (std::int64_t i = 0; i < options.heads; ++i) {
      const FeatureConnections::Head& h =
          i < std::ssize(f.heads) ? f.heads[static_cast<std::size_t>(i)] : kNoHead;
      through_layer.push_back(h.layer);
      through_head.push_back(h.head);
      norm.push_back(h.norm);
      tokens.push_back(&h.connections.tokens);
      add_layers(connections, h.connections, n_layers);
    }
  }
  file.dataset("norm", Names{"feature", "layer", "head"}, std::span<const float>(norms),
               "norm of the feature read through the head, W_OV transposed times it", "");
  const Names place = {"feature", "through"};
  file.dataset("through_layer", place, std::span<const std::int32_t>(through_layer),
               "layer of the heads of the largest norm; -1: none", "");
  file.dataset("through_head", place, std::span<const std::int32_t>(through_head), "the head", "");
  file.dataset("through_norm", place, std::span<const float>(norm), "its norm", "");
  if (options.tokens)
    write_extremes(file, "deembedding", {"feature", "through", "rank"}, tokens, k,
                   "tokens by what their embeddings add to the feature through the head", tokenizer,
                   true);
  if (options.connections)
    write_extremes(file, "source", {"feature", "through", "layer", "rank"}, connections, k,
                   "earlier features of a layer by what they add to the feature through the head",
                   nullptr, false);
}

}  // namespace lamina
