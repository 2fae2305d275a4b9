#include "verbs/patch_sweep.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "lamina/core/error.h"
#include "pair_inputs.h"

namespace lamina::cli {
namespace {

std::int64_t longest_clean(std::span<const Pair> pairs) {
  std::int64_t longest = 0;
  for (const Pair& pair : pairs) longest = std::max(longest, pair.tokens());
  return longest;
}

bool same_length(std::span<const Pair> pairs) {
  return std::all_of(pairs.begin(), pairs.end(),
                     [&](const Pair& pair) { return pair.tokens() == pairs.front().tokens(); });
}

std::vector<std::int64_t> counted(std::int64_t from, std::int64_t n) {
  std::vector<std::int64_t> values(static_cast<std::size_t>(n));
  std::iota(values.begin(), values.end(), from);
  return values;
}

std::int64_t head_count(const SiteShape& shape, const ModelConfig& config) {
  return shape.attention ? config.n_heads : shape.heads;
}

Split default_split(Site site, bool by_position, const ModelConfig& config) {
  const bool heads = head_count(site_shape(site, config), config) > 0;
  return {.position = !heads && by_position, .head = heads, .neuron = false};
}

Split parse_split(const std::vector<std::string>& by) {
  Split split{.position = false, .head = false, .neuron = false};
  for (const std::string& word : by) {
    if (word == "position") {
      split.position = true;
    } else if (word == "head") {
      split.head = true;
    } else if (word == "neuron") {
      split.neuron = true;
    } else if (word != "layer") {
      fail_usage("--by: '{}', expected layer, position, head or neuron", word);
    }
  }
  return split;
}

}  // namespace

std::vector<std::int32_t> parse_layers(std::string_view text, std::int64_t count) {
  const auto bad = [&](std::string_view part) {
    fail_usage("--layers: '{}' of '{}', expected layers 0 … {} such as 3, 0-5 or -1", part, text,
               count - 1);
  };
  std::set<std::int32_t> layers;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    const std::string_view part = text.substr(at, comma - at);
    const std::size_t dash = part.find('-', 1);
    const auto number = [&](std::string_view digits) {
      std::int64_t value = 0;
      const auto [end, error] =
          std::from_chars(digits.data(), digits.data() + digits.size(), value);
      if (error != std::errc() || end != digits.data() + digits.size()) bad(part);
      if (value < 0) value += count;
      if (value < 0 || value >= count) bad(part);
      return static_cast<std::int32_t>(value);
    };
    const std::int32_t first = number(part.substr(0, dash));
    const std::int32_t last = dash == part.npos ? first : number(part.substr(dash + 1));
    if (last < first) bad(part);
    for (std::int32_t layer = first; layer <= last; ++layer) layers.insert(layer);
    at = comma + 1;
  }
  return {layers.begin(), layers.end()};
}

std::vector<std::vector<Site>> chosen_sites(const NodeChoice& choice, const ModelConfig& config) {
  const std::vector<std::int32_t> layers = choice.layers.empty()
                                               ? std::vector<std::int32_t>()
                                               : parse_layers(choice.layers, config.n_layers);
  std::vector<std::vector<Site>> kinds;
  for (const std::string& pattern : choice.sites) {
    for (const Site site : match_sites(std::span(&pattern, 1), config)) {
      if (!layers.empty() && std::find(layers.begin(), layers.end(), site.layer) == layers.end()) {
        continue;
      }
      auto same = std::find_if(kinds.begin(), kinds.end(),
                               [&](const auto& sites) { return sites[0].kind == site.kind; });
      if (same == kinds.end()) same = kinds.insert(kinds.end(), std::vector<Site>());
      if (std::find(same->begin(), same->end(), site) == same->end()) same->push_back(site);
    }
  }
  if (kinds.empty()) fail_usage("--layers {} leaves no site to patch", choice.layers);
  for (auto& sites : kinds) std::sort(sites.begin(), sites.end());
  return kinds;
}

ChosenNodes chosen_nodes(const NodeChoice& choice, const ModelConfig& config,
                         std::span<const Pair> pairs, const Tokenizer* tokenizer, Align align) {
  const std::int64_t positions = longest_clean(pairs);
  const bool equal = same_length(pairs);
  ChosenNodes chosen;
  for (const std::vector<Site>& sites : chosen_sites(choice, config)) {
    const Split split = choice.by.empty() ? default_split(sites[0], choice.by_position, config)
                                          : parse_split(choice.by);
    if (split.neuron && choice.layers.empty() && sites.size() > 1) {
      fail_usage("--by neuron needs --layers: {} has {} neurons in each of {} layers",
                 site_label(sites[0].kind), config.d_mlp, sites.size());
    }
    const std::vector<Node> nodes = nodes_of(sites, split, positions, config);
    PatchGrid grid{.label = site_label(sites[0].kind), .dims = {}, .first = chosen.nodes.size()};
    PatchDim layer{.name = "layer", .values = {}, .labels = {}};
    for (const Site site : sites) layer.values.push_back(site.layer);
    grid.dims.push_back(std::move(layer));
    if (split.position) {
      PatchDim dim{.name = "position", .values = counted(0, positions), .labels = {}};
      if (equal) {
        dim.labels = position_labels(pairs, tokenizer, positions);
      } else if (align == Align::end) {
        dim.values = counted(-positions, positions);
      }
      grid.dims.push_back(std::move(dim));
    }
    const SiteShape shape = site_shape(sites[0], config);
    if (split.head) {
      const std::int64_t heads = head_count(shape, config);
      const char* name = heads == config.n_heads ? "head" : "kv_head";
      grid.dims.push_back({.name = name, .values = counted(0, heads), .labels = {}});
    }
    if (split.neuron) {
      grid.dims.push_back({.name = "neuron", .values = counted(0, config.d_mlp), .labels = {}});
    }
    chosen.nodes.insert(chosen.nodes.end(), nodes.begin(), nodes.end());
    chosen.grids.push_back(std::move(grid));
  }
  return chosen;
}

PatchResult run_method(const PatchMethod& method, Forward& forward, std::span<const Pair> pairs,
                       MetricKind kind, std::span<const Node> nodes, const PatchOptions& options,
                       Align align) {
  if (align == Align::start || same_length(pairs)) {
    const Metric metric = make_metric(kind, pairs, forward);
    return method.run({forward, pairs, metric, nodes, options});
  }
  const std::int64_t positions = longest_clean(pairs);
  std::map<std::int64_t, std::vector<std::size_t>> by_length;
  for (std::size_t p = 0; p < pairs.size(); ++p) by_length[pairs[p].tokens()].push_back(p);
  PatchResult all;
  all.clean.resize(pairs.size());
  all.corrupted.resize(pairs.size());
  all.patched.assign(nodes.size() * pairs.size(), std::numeric_limits<double>::quiet_NaN());
  std::int64_t before = 0;
  for (const auto& [length, members] : by_length) {
    std::vector<Pair> part;
    for (const std::size_t p : members) part.push_back(pairs[p]);
    std::vector<Node> shifted;
    std::vector<std::size_t> index;  // of the shifted node among all
    for (std::size_t n = 0; n < nodes.size(); ++n) {
      Node node = nodes[n];
      if (node.position >= 0) node.position -= positions - length;
      if (nodes[n].position >= 0 && node.position < 0) continue;
      shifted.push_back(node);
      index.push_back(n);
    }
    PatchOptions here = options;
    const auto total = static_cast<std::int64_t>(nodes.size() * pairs.size());
    const auto skipped = static_cast<std::int64_t>((nodes.size() - shifted.size()) * part.size());
    if (options.progress) {
      here.progress = [&](std::int64_t done, std::int64_t) {
        options.progress(before + skipped + done, total);
      };
    }
    const Metric metric = make_metric(kind, part, forward);
    const PatchResult result = method.run({forward, part, metric, shifted, here});
    for (std::size_t i = 0; i < members.size(); ++i) {
      all.clean[members[i]] = result.clean[i];
      all.corrupted[members[i]] = result.corrupted[i];
      for (std::size_t n = 0; n < index.size(); ++n) {
        all.patched[index[n] * pairs.size() + members[i]] = result.patched[n * members.size() + i];
      }
    }
    all.runs += result.runs;
    all.skipped += result.skipped;
    before += static_cast<std::int64_t>(nodes.size() * part.size());
  }
  return all;
}

}  // namespace lamina::cli
