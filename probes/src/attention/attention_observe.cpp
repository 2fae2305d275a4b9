// How AttentionProbe reads a block: tasks of (layer, key head), each serial, so that no sum depends
// on the number of threads.

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>

#include "attention/attention_row.h"
#include "lamina/core/attention.h"
#include "lamina/core/error.h"
#include "lamina/probes/attention_stats.h"

namespace lamina {
namespace {

// Rows of a pattern stored as bf16 add up to 1 within 0.4 %.
constexpr double kTotalTolerance = 0.01;

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

double row_norm(std::span<const float> row) {
  double squares = 0;
  for (const float v : row) squares += double{v} * v;
  return std::sqrt(squares);
}

// The latest earlier token with the same id, or −1: [token].
std::vector<std::int32_t> earlier_copies(std::span<const std::int32_t> ids) {
  std::vector<std::int32_t> order(ids.size()), earlier(ids.size(), -1);
  for (std::size_t i = 0; i < ids.size(); ++i) order[i] = static_cast<std::int32_t>(i);
  const auto id = [&](std::int32_t i) { return ids[size(i)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int32_t a, std::int32_t b) { return id(a) < id(b); });
  for (std::size_t i = 1; i < order.size(); ++i) {
    if (id(order[i]) == id(order[i - 1])) earlier[size(order[i])] = order[i - 1];
  }
  return earlier;
}

// Queries that see each key of a prompt and another one: [token].
std::vector<std::int32_t> seen_by(const ModelConfig& config, std::int32_t layer,
                                  std::int64_t tokens) {
  std::vector<std::int32_t> seen(size(tokens + 1));
  for (std::int64_t i = 0; i < tokens; ++i) {
    const VisibleKeys see = visible_keys(config, layer, tokens, i);
    if (see.count() < 2) continue;
    ++seen[size(see.first)];
    --seen[size(see.end)];
  }
  for (std::int64_t j = 1; j < tokens; ++j) seen[size(j)] += seen[size(j - 1)];
  seen.pop_back();
  return seen;
}

// One query of one head. `earlier` and `bin` are of its prompt.
void count_row(const AttentionRow& row, const rows::AttentionSummary& s,
               std::span<const std::int32_t> earlier, std::int32_t bin,
               const AttentionOptions& options, HeadStats& head) {
  const auto n = static_cast<std::int64_t>(row.pattern.size());
  head.entropy.add(s.entropy);
  head.bins[size(bin)].entropy.add(s.entropy);
  if (!std::isnan(s.score_sum)) {
    head.logits += n;
    head.logit_sum += s.score_sum;
    head.logit_max = std::max(head.logit_max, double{s.score_max});
  }
  if (n < 2) return;
  const double normalized = s.entropy / std::log(static_cast<double>(n));
  head.normalized.add(normalized);
  head.bins[size(bin)].normalized.add(normalized);
  head.collapsed += normalized <= options.collapse;
  head.overloaded += normalized >= options.overload;
  const auto weight = [&](std::int64_t key) {
    return double{row.pattern[size(key - row.first_key)]};
  };
  if (row.first_key == 0) {
    head.sink.add(weight(0));
    head.sink_top += s.top == 0;
  }
  head.self.add(weight(row.query));
  if (row.query > row.first_key) head.previous.add(weight(row.query - 1));
  double copies = 0, followers = 0;
  bool copied = false, followed = false;
  for (std::int32_t j = earlier[size(row.query)]; j >= row.first_key; j = earlier[size(j)]) {
    copied = true;
    copies += weight(j);
    if (j + 1 == row.query) continue;
    followed = true;
    followers += weight(j + 1);
  }
  if (copied) head.duplicate.add(copies);
  if (followed) head.induction.add(followers);
}

}  // namespace

// What all layers of a block share.
struct AttentionProbe::Pass {
  const ActivationBlock& block;
  std::vector<Site> sites;
  HeadStats empty;
  std::vector<std::vector<std::int32_t>> earlier;            // [prompt][token]
  std::vector<std::vector<std::vector<std::int32_t>>> seen;  // [layer][prompt][token]
  std::vector<std::int32_t> bin;                             // [position]
  std::vector<float> received;  // [layer, head, token of the block]: attention each key gets
};

void AttentionProbe::observe_heads(Pass& pass, std::int32_t layer, std::int64_t kv_head) {
  const Batch& batch = pass.block.batch;
  const std::int64_t group = config_.n_heads / config_.n_kv_heads, first_head = kv_head * group;
  const bool multiply = options_.source == AttentionSource::queries_keys;
  const std::int64_t per_layer = multiply ? 2 : 1;
  const ActivationBlock::Values& values = pass.block.at(pass.sites[size(layer * per_layer)]);
  const std::span<const float> all(values.values);
  std::vector<float> softmax;

  for (std::int64_t p = 0; p < batch.prompts(); ++p) {
    const std::int64_t start = batch.offsets[size(p)], tokens = batch.length(p);
    std::vector<HeadStats> part(size(group), pass.empty);
    const auto received = [&](std::int64_t head) {
      return pass.received.data() + (layer * config_.n_heads + head) * batch.tokens() + start;
    };
    const auto count = [&](const AttentionRow& row, const rows::AttentionSummary& s) {
      if (std::isnan(s.entropy) || std::abs(s.total - 1) > kTotalTolerance) {
        const std::string where =
            fmt::format("entropy: prompt '{}', layer {}, head {}, query {}",
                        pass.block.prompts[size(p)].id, layer, row.head, row.query);
        if (std::isnan(s.entropy))
          fail("{}: attention is no distribution of finite numbers", where);
        fail("{}: the pattern adds up to {}, 1 expected", where, s.total);
      }
      count_row(row, s, pass.earlier[size(p)], pass.bin[size(row.query)], options_,
                part[size(row.head - first_head)]);
      if (row.pattern.size() > 1) rows::add_to(row.pattern, received(row.head) + row.first_key);
    };

    if (multiply) {
      const std::span<const float> keys(pass.block.at(pass.sites[size(layer * 2 + 1)]).values);
      const auto q = all.subspan(size(start * config_.d_attn()), size(tokens * config_.d_attn()));
      const auto k = keys.subspan(size(start * config_.d_kv()), size(tokens * config_.d_kv()));
      const std::int64_t d = config_.d_head;
      for (std::int64_t t = 0; t < tokens; ++t) {
        const double key =
            row_norm(k.subspan(size((t * config_.n_kv_heads + kv_head) * d), size(d)));
        for (std::int64_t g = 0; g < group; ++g) {
          part[size(g)].query_norm.add(
              row_norm(q.subspan(size((t * config_.n_heads + first_head + g) * d), size(d))));
          part[size(g)].key_norm.add(key);
        }
      }
      attention_rows(config_, layer, kv_head, q, k, [&](const AttentionRow& row) {
        count(row, rows::summarise_attention(row.scores, row.pattern));
      });
    } else {
      for (std::int64_t h = first_head; h < first_head + group; ++h) {
        for (std::int64_t i = 0; i < tokens; ++i) {
          const VisibleKeys see = visible_keys(config_, layer, tokens, i);
          const auto of_query =
              all.subspan(size(values.offsets[size(p)] + (h * tokens + i) * tokens), size(tokens));
          const auto seen = of_query.subspan(size(see.first), size(see.count()));
          if (options_.source == AttentionSource::pattern) {
            count({h, i, see.first, {}, seen}, rows::summarise_attention(seen));
            continue;
          }
          softmax.assign(size(see.end), -std::numeric_limits<float>::infinity());
          std::copy(seen.begin(), seen.end(), softmax.begin() + see.first);
          attention_softmax(softmax);
          const auto pattern = std::span<const float>(softmax).subspan(size(see.first));
          count({h, i, see.first, seen, pattern}, rows::summarise_attention(seen, pattern));
        }
      }
    }

    const std::vector<std::int32_t>& seen = pass.seen[size(layer)][size(p)];
    for (std::int64_t g = 0; g < group; ++g) {
      const float* from = received(first_head + g);
      for (std::int64_t j = 0; j < std::min(tokens, options_.first_keys); ++j) {
        part[size(g)].key_sum[size(j)] = double{from[j]};
        part[size(g)].key_seen[size(j)] = seen[size(j)];
      }
      results_.head[size(layer * config_.n_heads + first_head + g)].add(part[size(g)]);
    }
  }
}

void AttentionProbe::observe_strong_keys(const Pass& pass) {
  const Batch& batch = pass.block.batch;
  const std::int64_t tokens = batch.tokens();
  std::vector<double> sum(size(tokens));
  constexpr std::int64_t kChunk = 256;
#pragma omp parallel for schedule(static)
  for (std::int64_t first = 0; first < tokens; first += kChunk) {
    const std::int64_t last = std::min(tokens, first + kChunk);
    for (std::int64_t head = 0; head < config_.n_layers * config_.n_heads; ++head) {
      const float* from = pass.received.data() + head * tokens;
      for (std::int64_t t = first; t < last; ++t) sum[size(t)] += double{from[t]};
    }
  }
  for (std::int64_t p = 0; p < batch.prompts(); ++p) {
    std::vector<StrongKey> strong;
    for (std::int64_t j = 1; j < batch.length(p); ++j) {
      std::int64_t seen = 0;
      for (const auto& layer : pass.seen) seen += layer[size(p)][size(j)];
      if (seen < options_.key_queries * config_.n_layers) continue;
      const std::int64_t t = batch.offsets[size(p)] + j;
      const double share = sum[size(t)] / static_cast<double>(seen * config_.n_heads);
      strong.push_back({"", j, batch.ids[size(t)], share});
    }
    keep_strongest(strong, options_.strongest);
    for (StrongKey& key : strong) key.prompt_id = pass.block.prompts[size(p)].id;
    std::vector<StrongKey>& all = results_.strong_keys;
    all.insert(all.end(), strong.begin(), strong.end());
    keep_strongest(all, options_.strongest);
  }
}

void AttentionProbe::observe(const ActivationBlock& block) {
  const Batch& batch = block.batch;
  Pass pass{block, sites(config_), {}, {}, {}, {}, {}};
  for (const Site site : pass.sites) {
    const ActivationBlock::Values& values = block.at(site);
    const SiteShape shape = site_shape(site, config_);
    std::int64_t expected = 0;
    for (std::int64_t p = 0; p < batch.prompts(); ++p) {
      const std::int64_t n = batch.length(p);
      expected += n * (shape.attention ? shape.heads * n : shape.row());
    }
    if (static_cast<std::int64_t>(values.values.size()) != expected) {
      fail("entropy: {} holds {} values, {} were expected", site_name(site), values.values.size(),
           expected);
    }
  }
  pass.empty.key_sum.resize(size(options_.first_keys));
  pass.empty.key_seen.resize(size(options_.first_keys));
  pass.empty.bins.resize(bins_.size());
  pass.received.resize(size(config_.n_layers * config_.n_heads * batch.tokens()));
  pass.seen.resize(size(config_.n_layers));
  std::int64_t longest = 0;
  for (std::int64_t p = 0; p < batch.prompts(); ++p) {
    longest = std::max(longest, batch.length(p));
    pass.earlier.push_back(earlier_copies(
        std::span(batch.ids).subspan(size(batch.offsets[size(p)]), size(batch.length(p)))));
    for (std::int32_t l = 0; l < config_.n_layers; ++l) {
      pass.seen[size(l)].push_back(seen_by(config_, l, batch.length(p)));
    }
  }
  for (std::int64_t i = 0, bin = 0; i < longest; ++i) {
    while (bin + 1 < static_cast<std::int64_t>(bins_.size()) && bins_[size(bin + 1)] <= i) ++bin;
    pass.bin.push_back(static_cast<std::int32_t>(bin));
  }

  const std::int64_t tasks = config_.n_layers * config_.n_kv_heads;
  std::vector<std::exception_ptr> errors(size(tasks));
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t task = 0; task < tasks; ++task) {
    try {
      observe_heads(pass, static_cast<std::int32_t>(task / config_.n_kv_heads),
                    task % config_.n_kv_heads);
    } catch (...) {
      errors[size(task)] = std::current_exception();
    }
  }
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  observe_strong_keys(pass);
  results_.tokens += batch.tokens();
  results_.prompts += batch.prompts();
}

}  // namespace lamina
