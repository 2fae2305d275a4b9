#include "lamina/patching/knockout.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <set>

#include "exact/patched_runs.h"
#include "lamina/core/error.h"
#include "lamina/patching/causal_trace.h"
#include "nodes/nodes.h"

namespace lamina {
namespace {

/// One query and the keys that are hidden from it.
struct Cut {
  std::int64_t query = 0;
  std::vector<std::int64_t> keys;
};

// What is cut in one layer: keys that the query sees anyway are all that can be hidden.
std::vector<Cut> cuts_of(const Pair& pair, const KnockoutOptions& options,
                         const ModelConfig& config, std::int32_t layer) {
  const std::int64_t window = config.layers[static_cast<std::size_t>(layer)].window;
  std::vector<Cut> cuts;
  for (const std::int64_t query : options.to.of(pair)) {
    const std::int64_t begin = window > 0 ? std::max<std::int64_t>(0, query + 1 - window) : 0;
    const std::int64_t end = config.causal ? query + 1 : pair.tokens();
    Cut cut{.query = query, .keys = {}};
    for (const std::int64_t key : options.from.of(pair)) {
      if (key >= begin && key < end) cut.keys.push_back(key);
    }
    if (std::ssize(cut.keys) == end - begin) {
      fail_usage("pair '{}': position {} would be left with nothing to attend to", pair.id, query);
    }
    if (!cut.keys.empty()) cuts.push_back(std::move(cut));
  }
  return cuts;
}

}  // namespace

PositionSet PositionSet::parse(std::string_view text, std::string_view what) {
  const auto bad = [&](std::string_view part) {
    fail_usage("{}: '{}' of '{}', expected subject, first, last, a position or a range such as 3-6",
               what, part, text);
  };
  PositionSet set;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    const std::string_view part = text.substr(at, comma - at);
    at = comma + 1;
    if (part == "subject") {
      set.subject = true;
    } else if (part == "first") {
      set.ranges.emplace_back(0, 0);
    } else if (part == "last") {
      set.ranges.emplace_back(-1, -1);
    } else {
      const auto number = [&](std::string_view digits) {
        std::int64_t value = 0;
        const char* end = digits.data() + digits.size();
        const auto parsed = std::from_chars(digits.data(), end, value);
        if (parsed.ec != std::errc() || parsed.ptr != end) bad(part);
        return value;
      };
      const std::size_t dash = part.size() > 1 ? part.find('-', 1) : part.npos;
      const std::int64_t first = number(part.substr(0, dash));
      set.ranges.emplace_back(first, dash == part.npos ? first : number(part.substr(dash + 1)));
    }
  }
  return set;
}

std::vector<std::int64_t> PositionSet::of(const Pair& pair) const {
  std::set<std::int64_t> positions;
  if (subject) {
    if (!pair.subject) fail_usage("pair '{}' has no subject", pair.id);
    for (std::int64_t t = pair.subject->first; t < pair.subject->second; ++t) positions.insert(t);
  }
  const std::int64_t length = pair.tokens();
  for (auto [first, last] : ranges) {
    for (std::int64_t* end : {&first, &last}) {
      const std::int64_t typed = *end;
      if (*end < 0) *end += length;
      if (*end < 0 || *end >= length) {
        fail_usage("pair '{}': position {} of a prompt of {} tokens", pair.id, typed, length);
      }
    }
    if (last < first) {
      fail_usage("pair '{}': positions {} to {} are not in order", pair.id, first, last);
    }
    for (std::int64_t t = first; t <= last; ++t) positions.insert(t);
  }
  return {positions.begin(), positions.end()};
}

KnockoutResult knock_out(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                         std::span<const std::int32_t> layers, const KnockoutOptions& options) {
  const ModelConfig& config = forward.model().config();
  if (pairs.empty()) fail_usage("attention knock-out needs at least one pair");
  if (metric.pairs() != std::ssize(pairs)) {
    fail_usage("the metric was made for {} pairs, {} are run", metric.pairs(), pairs.size());
  }
  if (options.window < 1) fail_usage("a window of {} layers; at least 1", options.window);
  for (const std::int32_t layer : layers) {
    if (layer < 0 || layer >= config.n_layers) {
      fail_usage("layer {} was asked for; the model has {}", layer, config.n_layers);
    }
  }
  KnockoutResult result;
  result.knocked.resize(layers.size() * pairs.size());
  std::vector<std::uint64_t> bytes;
  for (const Pair& pair : pairs) {
    bytes.push_back(
        static_cast<std::uint64_t>(pair.tokens()) *
        (RunState::bytes_per_token(config) + PatchedRuns::bytes_per_row(config, false)));
  }
  std::int64_t done = 0;
  const auto advance = [&] {
    ++done;
    if (options.progress) options.progress(done, std::ssize(result.knocked));
  };
  for (const auto& [first_pair, end_pair] : groups_within(bytes, options.memory / 2)) {
    Batch clean;
    for (std::size_t p = first_pair; p < end_pair; ++p) clean.add(pairs[p].clean);
    RunState state;
    RunOptions keep;
    keep.keep = &state;
    forward.run(clean, {}, keep);
    each_last_row(
        forward, clean, options.memory / 8,
        [&, first = first_pair](std::int64_t prompt, std::span<const float> logits) {
          result.clean.push_back(metric.value(static_cast<std::int64_t>(first) + prompt, logits));
        });
    std::vector<PatchedRun> runs;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const LayerWindow window = layer_window(layers[i], options.window, config.n_layers);
      for (std::size_t p = first_pair; p < end_pair; ++p) {
        const std::size_t id = i * pairs.size() + p;
        std::int64_t first = pairs[p].tokens();
        std::int32_t start = config.n_layers;
        for (std::int32_t layer = window.first; layer < window.end; ++layer) {
          for (const Cut& cut : cuts_of(pairs[p], options, config, layer)) {
            // In the last layer only the last row is read.
            if (layer + 1 == config.n_layers && cut.query + 1 != pairs[p].tokens()) continue;
            first = std::min(first, cut.query);
            start = std::min(start, layer);
          }
        }
        if (start == config.n_layers) {
          result.knocked[id] = result.clean[p];
          ++result.skipped;
          advance();
          continue;
        }
        runs.push_back({.id = static_cast<std::int64_t>(id),
                        .prompt = static_cast<std::int64_t>(p - first_pair),
                        .layer = start,
                        .first = config.causal ? first : 0,
                        .group = kAttentionRuns});
      }
    }
    PatchedRuns patched(forward, state, options.memory / 2);
    patched.writes = [&](const PatchedRun& run, WriteList& list) {
      const auto p = static_cast<std::size_t>(run.id) % pairs.size();
      const LayerWindow window = layer_window(
          layers[static_cast<std::size_t>(run.id) / pairs.size()], options.window, config.n_layers);
      constexpr float kHidden = -std::numeric_limits<float>::infinity();
      for (std::int32_t layer = run.layer; layer < window.end; ++layer) {
        for (const Cut& cut : cuts_of(pairs[p], options, config, layer)) {
          if (cut.query < run.first) continue;
          for (std::int64_t head = 0; head < config.n_heads; ++head) {
            for (const std::int64_t key : cut.keys) {
              list.set_attention({SiteKind::attn_scores, layer}, head, cut.query, key,
                                 std::span(&kHidden, 1));
            }
          }
        }
      }
    };
    patched.consume = [&](const PatchedRun& run, std::span<const float> logits) {
      const auto p = run.id % std::ssize(pairs);
      result.knocked[static_cast<std::size_t>(run.id)] = metric.value(p, logits);
      ++result.runs;
      advance();
    };
    patched.run(std::move(runs));
  }
  return result;
}

}  // namespace lamina
