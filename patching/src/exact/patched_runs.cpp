#include "exact/patched_runs.h"

#include <algorithm>
#include <tuple>

#include "lamina/core/error.h"

namespace lamina {
namespace {

// More rows than this gain nothing: the weights are read seldom enough, and the rows of one batch
// should stay in the caches.
constexpr std::uint64_t kMostRows = 1024;

// Logits rows that fit into `memory` at once.
std::int64_t logit_rows(const ModelConfig& config, std::uint64_t memory) {
  const std::uint64_t row =
      static_cast<std::uint64_t>(config.d_vocab + 2 * config.d_model) * sizeof(float);
  return static_cast<std::int64_t>(std::clamp<std::uint64_t>(memory / row, 1, 256));
}

}  // namespace

void WriteList::clear() {
  run_ = 0;
  pool_.clear();
  entries_.clear();
}

void WriteList::set(Site site, std::int64_t position, std::int64_t offset,
                    std::span<const float> values) {
  set_attention(site, 0, position, offset, values);
}

void WriteList::set_attention(Site site, std::int64_t head, std::int64_t position,
                              std::int64_t offset, std::span<const float> values) {
  entries_[site].push_back({run_, position, head, offset, pool_.size(), values.size()});
  pool_.insert(pool_.end(), values.begin(), values.end());
}

void WriteList::apply(SiteView& view, const std::vector<Entry>& entries,
                      std::span<const Continuation> which) const {
  auto first = entries.begin(), last = entries.end();
  if (view.shape.attention) {
    std::tie(first, last) =
        std::equal_range(entries.begin(), entries.end(), Entry{view.prompt, 0, 0, 0, 0, 0},
                         [](const Entry& a, const Entry& b) { return a.run < b.run; });
  }
  for (auto e = first; e != last; ++e) {
    const std::int64_t row = e->position - which[static_cast<std::size_t>(e->run)].first;
    const std::int64_t to =
        view.shape.attention
            ? (e->head * view.queries + row) * view.keys + e->offset
            : (view.batch.offsets[static_cast<std::size_t>(e->run)] + row) * view.shape.row() +
                  e->offset;
    std::copy_n(pool_.begin() + static_cast<std::ptrdiff_t>(e->from), e->count,
                view.values.begin() + to);
  }
}

PatchedRuns::PatchedRuns(Forward& forward, const RunState& state, std::uint64_t memory)
    : forward_(forward), state_(state), config_(forward.model().config()), memory_(memory) {}

std::uint64_t PatchedRuns::bytes_per_row(const ModelConfig& config, bool results) {
  std::int64_t values = 5 * config.d_model + 2 * config.d_attn() + 4 * config.d_kv() +
                        (config.gated ? 2 : 1) * config.d_mlp;
  if (config.parallel) values += config.d_model;
  if (results) values += 2 * config.n_heads * config.d_model;
  return static_cast<std::uint64_t>(values) * sizeof(float);
}

std::int32_t runs_of_site(SiteKind kind) {
  switch (kind) {
    case SiteKind::attn_scores:
    case SiteKind::pattern:
      return kAttentionRuns;
    case SiteKind::result:
      return kResultRuns;
    case SiteKind::ln_final_scale:
    case SiteKind::ln_final_normalized:
      return kFinalNormRuns;
    default:
      return 0;
  }
}

void each_last_row(Forward& forward, const Batch& batch, std::uint64_t memory,
                   const std::function<void(std::int64_t, std::span<const float>)>& use) {
  const ModelConfig& config = forward.model().config();
  const auto width = static_cast<std::size_t>(config.d_vocab);
  const std::int64_t most = logit_rows(config, memory);
  std::vector<float> logits;
  for (std::int64_t i = 0; i < batch.prompts(); i += most) {
    std::vector<std::int64_t> rows;
    for (std::int64_t p = i; p < std::min(i + most, batch.prompts()); ++p) {
      rows.push_back(batch.offsets[static_cast<std::size_t>(p) + 1] - 1);
    }
    logits.resize(rows.size() * width);
    forward.run_logits(rows, logits);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      use(i + static_cast<std::int64_t>(r), std::span(logits).subspan(r * width, width));
    }
  }
}

std::vector<std::pair<std::size_t, std::size_t>> groups_within(std::span<const std::uint64_t> bytes,
                                                               std::uint64_t budget) {
  std::vector<std::pair<std::size_t, std::size_t>> groups;
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (groups.empty() || sum + bytes[i] > budget) {
      groups.emplace_back(i, i);
      sum = 0;
    }
    groups.back().second = i + 1;
    sum += bytes[i];
  }
  return groups;
}

void PatchedRuns::run(std::vector<PatchedRun> runs) {
  std::stable_sort(runs.begin(), runs.end(), [](const PatchedRun& a, const PatchedRun& b) {
    return std::tie(a.layer, a.group) < std::tie(b.layer, b.group);
  });
  // Half for the rows, a quarter for logits, a quarter for what is written.
  const std::uint64_t row_bytes = bytes_per_row(config_, true);
  const std::uint64_t plain_bytes = bytes_per_row(config_, false);
  const std::uint64_t kv_bytes = static_cast<std::uint64_t>(2 * config_.d_kv()) * sizeof(float);
  for (std::size_t i = 0; i < runs.size();) {
    std::uint64_t bytes = 0, rows = 0;
    std::size_t end = i;
    for (; end < runs.size(); ++end) {
      const PatchedRun& r = runs[end];
      if (r.layer != runs[i].layer || r.group != runs[i].group) break;
      const auto length = static_cast<std::uint64_t>(state_.batch.length(r.prompt));
      const std::uint64_t more = length - static_cast<std::uint64_t>(r.first);
      // Every continuation has all its prompt's keys and values of a layer at hand.
      const std::uint64_t need =
          more * (r.group == kResultRuns ? row_bytes : plain_bytes) + length * kv_bytes;
      if (end > i && (bytes + need > memory_ / 2 || rows + more > kMostRows)) break;
      bytes += need;
      rows += more;
    }
    run_batch(std::span(runs).subspan(i, end - i));
    i = end;
  }
}

void PatchedRuns::run_batch(std::span<const PatchedRun> batch) {
  list_.clear();
  for (const PatchedRun& run : batch) {
    writes(run, list_);
    ++list_.run_;
  }
  if (batch.front().layer == config_.n_layers && batch.front().group == 0) return final_rows(batch);

  std::vector<Continuation> which;
  std::vector<std::int64_t> last;
  std::int64_t rows = 0;
  for (const PatchedRun& run : batch) {
    which.push_back({run.prompt, run.first});
    rows += state_.batch.length(run.prompt) - run.first;
    last.push_back(rows - 1);
  }
  Hooks hooks;
  if (extra) extra(batch, hooks);
  for (const auto& [site, entries] : list_.entries_) {
    hooks.write(site, [this, &entries = entries, &which](SiteView& view) {
      list_.apply(view, entries, which);
    });
  }
  const std::span<const float> out = forward_.resume(state_, batch.front().layer, which, hooks);
  if (finish) finish(batch, out);
  if (consume) give_logits(batch, last);
}

void PatchedRuns::give_logits(std::span<const PatchedRun> batch,
                              std::span<const std::int64_t> rows) {
  const auto width = static_cast<std::size_t>(config_.d_vocab);
  const auto most = static_cast<std::size_t>(logit_rows(config_, memory_ / 4));
  for (std::size_t i = 0; i < batch.size(); i += most) {
    const std::size_t n = std::min(most, batch.size() - i);
    logits_.resize(n * width);
    forward_.run_logits(rows.subspan(i, n), logits_);
    for (std::size_t r = 0; r < n; ++r) {
      consume(batch[i + r], std::span(logits_).subspan(r * width, width));
    }
  }
}

// Runs that change the last block's output alone: no layer is computed.
void PatchedRuns::final_rows(std::span<const PatchedRun> batch) {
  const auto d = static_cast<std::size_t>(config_.d_model);
  const auto width = static_cast<std::size_t>(config_.d_vocab);
  const auto most = static_cast<std::size_t>(logit_rows(config_, memory_ / 4));
  const std::vector<float>& after = state_.resid[static_cast<std::size_t>(config_.n_layers)];
  std::vector<float> rows(batch.size() * d);
  for (std::size_t r = 0; r < batch.size(); ++r) {
    const std::int64_t last =
        state_.batch.offsets[static_cast<std::size_t>(batch[r].prompt) + 1] - 1;
    std::copy_n(after.begin() + last * config_.d_model, d,
                rows.begin() + static_cast<std::ptrdiff_t>(r * d));
  }
  for (const auto& [site, entries] : list_.entries_) {
    for (const WriteList::Entry& e : entries) {
      std::copy_n(list_.pool_.begin() + static_cast<std::ptrdiff_t>(e.from), e.count,
                  rows.begin() + e.run * config_.d_model + e.offset);
    }
  }
  for (std::size_t i = 0; i < batch.size(); i += most) {
    const std::size_t n = std::min(most, batch.size() - i);
    logits_.resize(n * width);
    forward_.logits(std::span(rows).subspan(i * d, n * d), logits_);
    for (std::size_t r = 0; r < n; ++r) {
      consume(batch[i + r], std::span(logits_).subspan(r * width, width));
    }
  }
}

}  // namespace lamina
