#include "lamina/patching/path_patching.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "exact/patched_runs.h"
#include "lamina/core/error.h"
#include "nodes/nodes.h"
#include "nodes/site_values.h"

namespace lamina {
namespace {

/// Part of a site's rows that a receiver reads.
struct Read {
  Site site;
  std::int64_t offset = 0, count = 0;
};

std::vector<Read> reads_of(const Receiver& receiver, const ModelConfig& config) {
  const std::int64_t dh = config.d_head;
  const auto head = [&](SiteKind kind) {
    return std::vector<Read>{{{kind, receiver.layer}, receiver.head * dh, dh}};
  };
  switch (receiver.kind) {
    case Receiver::Kind::q:
      return head(SiteKind::q);
    case Receiver::Kind::k:
      return head(SiteKind::k);
    case Receiver::Kind::v:
      return head(SiteKind::v);
    case Receiver::Kind::mlp: {
      std::vector<Read> reads = {{{SiteKind::mlp_pre, receiver.layer}, 0, config.d_mlp}};
      if (config.gated)
        reads.push_back({{SiteKind::mlp_pre_linear, receiver.layer}, 0, config.d_mlp});
      return reads;
    }
    case Receiver::Kind::logits:
      return {};
  }
  return {};
}

bool has_path(const Node& sender, const Receiver& receiver, const ModelConfig& config) {
  if (receiver.kind == Receiver::Kind::logits || receiver.layer > sender.site.layer) return true;
  return receiver.kind == Receiver::Kind::mlp && receiver.layer == sender.site.layer &&
         sender.site.kind == SiteKind::z && !config.parallel;
}

class Paths {
 public:
  Paths(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
        std::span<const Node> senders, std::span<const Receiver> receivers,
        const PathOptions& options);
  PatchResult run();

 private:
  /// What a sender's run left at the receivers: for each read, rows first … of it.
  struct Kept {
    std::vector<std::vector<float>> reads;  // [read][rows, count]
    std::vector<float> direct;              // change of the last row in front of the final norm
  };

  bool noise() const { return options_.direction == Direction::noise; }
  const std::vector<std::int32_t>& base_ids(std::size_t p) const {
    return noise() ? pairs_[p].clean : pairs_[p].corrupted;
  }
  const std::vector<std::int32_t>& other_ids(std::size_t p) const {
    return noise() ? pairs_[p].corrupted : pairs_[p].clean;
  }
  std::int64_t base_length(std::size_t p) const { return std::ssize(base_ids(p)); }

  void check() const;
  std::vector<Site> recorded_base() const;
  std::uint64_t kept_bytes(const PatchedRun& run) const;
  void run_group(std::size_t first, std::size_t end, PatchResult& result);
  void run_chunk(std::span<const PatchedRun> runs, PatchResult& result);
  void keep_receivers(std::span<const PatchedRun> runs, std::vector<Kept>& kept,
                      PatchResult& result);
  std::optional<PatchedRun> through_receivers(const PatchedRun& sent, const Kept& kept) const;
  template <class Use>
  void sent_rows(const PatchedRun& run, Use&& use) const;

  const Node& sender(const PatchedRun& run) const {
    return senders_[static_cast<std::size_t>(run.id) / pairs_.size()];
  }
  std::size_t pair(const PatchedRun& run) const {
    return static_cast<std::size_t>(run.id) % pairs_.size();
  }
  std::span<const float> base_row(const PatchedRun& run, const Read& read, std::int64_t t) const {
    return base_->row(read.site, run.prompt, t)
        .subspan(static_cast<std::size_t>(read.offset), static_cast<std::size_t>(read.count));
  }

  Forward& forward_;
  std::span<const Pair> pairs_;
  const Metric& metric_;
  std::span<const Node> senders_;
  std::span<const Receiver> receivers_;
  const PathOptions& options_;
  const ModelConfig& config_;
  std::vector<Read> reads_;
  bool to_logits_ = false;

  // The group at hand.
  std::size_t first_pair_ = 0;
  RunState state_;
  std::optional<SiteValues> base_, other_;
  std::int64_t done_ = 0;
};

Paths::Paths(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
             std::span<const Node> senders, std::span<const Receiver> receivers,
             const PathOptions& options)
    : forward_(forward),
      pairs_(pairs),
      metric_(metric),
      senders_(senders),
      receivers_(receivers),
      options_(options),
      config_(forward.model().config()) {
  check();
  for (const Receiver& receiver : receivers) {
    to_logits_ = to_logits_ || receiver.kind == Receiver::Kind::logits;
    for (const Read& read : reads_of(receiver, config_)) reads_.push_back(read);
  }
}

void Paths::check() const {
  if (pairs_.empty()) fail_usage("path patching needs at least one pair");
  if (metric_.pairs() != std::ssize(pairs_)) {
    fail_usage("the metric was made for {} pairs, {} are patched", metric_.pairs(), pairs_.size());
  }
  if (receivers_.empty()) fail_usage("path patching needs at least one receiver");
  if (config_.norm != NormKind::none && config_.norm_place == NormPlace::post) {
    fail_usage("path patching needs a residual stream that is a sum; this {} model has norms in it",
               config_.family);
  }
  std::int64_t longest = 0;
  for (const Pair& pair : pairs_) longest = std::max(longest, pair.tokens());
  check_nodes(senders_, config_, longest);
  for (const Node& node : senders_) {
    if (node.site.kind != SiteKind::z && node.site.kind != SiteKind::mlp_out) {
      fail_usage("{} cannot send: senders are z and mlp_out", site_name(node.site));
    }
  }
  bool logits = false;
  for (const Receiver& r : receivers_) {
    logits = logits || r.kind == Receiver::Kind::logits;
    parse_receiver(receiver_name(r), config_);  // throws if the model has no such place
  }
  if (options_.through == Through::all && logits && receivers_.size() > 1) {
    fail_usage("through everything, the logits hold the paths of all other receivers already");
  }
}

// What is compared, frozen and sent from.
std::vector<Site> Paths::recorded_base() const {
  std::vector<Site> sites;
  for (const Node& node : senders_) sites.push_back(node.site);
  for (const Read& read : reads_) sites.push_back(read.site);
  for (std::int32_t layer = 0; layer < config_.n_layers; ++layer) {
    if (options_.through != Through::all) sites.push_back({SiteKind::attn_out, layer});
    if (options_.through == Through::none && config_.d_mlp > 0) {
      sites.push_back({SiteKind::mlp_out, layer});
    }
  }
  std::sort(sites.begin(), sites.end());
  sites.erase(std::unique(sites.begin(), sites.end()), sites.end());
  return sites;
}

PatchResult Paths::run() {
  PatchResult result;
  result.patched.assign(senders_.size() * pairs_.size(), std::numeric_limits<double>::quiet_NaN());
  const std::vector<Site> sites = recorded_base();
  std::vector<std::uint64_t> bytes;
  for (std::size_t p = 0; p < pairs_.size(); ++p) {
    const std::int64_t length = std::max(base_length(p), std::ssize(other_ids(p)));
    bytes.push_back(
        static_cast<std::uint64_t>(length) *
        (RunState::bytes_per_token(config_) + PatchedRuns::bytes_per_row(config_, false)));
    for (const Site site : sites) {
      bytes.back() += 2 * SiteValues::bytes(site, config_, std::span(&length, 1));
    }
  }
  for (const auto& [first, end] : groups_within(bytes, options_.memory / 2)) {
    run_group(first, end, result);
  }
  return result;
}

// Calls use(base row, base values, sent values) for the rows that a sender writes.
template <class Use>
void Paths::sent_rows(const PatchedRun& run, Use&& use) const {
  const Node& node = sender(run);
  const Pair& pair = pairs_[this->pair(run)];
  const NodeSlice slice = node_slice(node, config_);
  const auto cut = [&](std::span<const float> row) {
    return row.subspan(static_cast<std::size_t>(slice.offset),
                       static_cast<std::size_t>(slice.count));
  };
  const std::int64_t from = node.position < 0 ? 0 : node.position;
  const std::int64_t end = node.position < 0 ? pair.tokens() : node.position + 1;
  for (std::int64_t t = from; t < end; ++t) {
    const std::int64_t mapped = pair.corrupted_position(t);
    const std::int64_t to = noise() ? t : mapped, of = noise() ? mapped : t;
    use(to, cut(base_->row(node.site, run.prompt, to)),
        cut(other_->row(node.site, run.prompt, of)));
  }
}

std::uint64_t Paths::kept_bytes(const PatchedRun& run) const {
  std::int64_t width = config_.d_model;
  for (const Read& read : reads_) width += read.count;
  const std::int64_t rows = base_length(pair(run)) - run.first;
  return static_cast<std::uint64_t>(rows * width) * sizeof(float);
}

void Paths::run_group(std::size_t first_pair, std::size_t end_pair, PatchResult& result) {
  first_pair_ = first_pair;
  Batch base, other;
  for (std::size_t p = first_pair; p < end_pair; ++p) {
    base.add(base_ids(p));
    other.add(other_ids(p));
  }
  const auto collect = [&](const Batch& batch, std::vector<double>& values) {
    each_last_row(
        forward_, batch, options_.memory / 8,
        [&](std::int64_t prompt, std::span<const float> logits) {
          values.push_back(metric_.value(static_cast<std::int64_t>(first_pair) + prompt, logits));
        });
  };
  const std::vector<Site> sites = recorded_base();
  base_.emplace(config_, sites, base);
  Hooks base_hooks;
  base_->attach(base_hooks);
  RunOptions keep;
  keep.keep = &state_;
  forward_.run(base, base_hooks, keep);
  collect(base, noise() ? result.clean : result.corrupted);
  std::vector<Site> sent;
  for (const Node& node : senders_) sent.push_back(node.site);
  std::sort(sent.begin(), sent.end());
  sent.erase(std::unique(sent.begin(), sent.end()), sent.end());
  other_.emplace(config_, sent, other);
  Hooks other_hooks;
  other_->attach(other_hooks);
  forward_.run(other, other_hooks);
  collect(other, noise() ? result.corrupted : result.clean);

  const std::vector<double>& base_metric = noise() ? result.clean : result.corrupted;
  std::vector<PatchedRun> runs;
  for (std::size_t n = 0; n < senders_.size(); ++n) {
    const bool reaches = std::any_of(receivers_.begin(), receivers_.end(), [&](const Receiver& r) {
      return has_path(senders_[n], r, config_);
    });
    for (std::size_t p = first_pair; p < end_pair; ++p) {
      PatchedRun run{.id = static_cast<std::int64_t>(n * pairs_.size() + p),
                     .prompt = static_cast<std::int64_t>(p - first_pair),
                     .layer = senders_[n].site.layer,
                     .first = base_length(p)};
      const bool exists = senders_[n].position < pairs_[p].tokens();
      if (exists && reaches) {
        sent_rows(run,
                  [&](std::int64_t row, std::span<const float> was, std::span<const float> is) {
                    if (std::memcmp(was.data(), is.data(), was.size_bytes()) != 0) {
                      run.first = std::min(run.first, row);
                    }
                  });
      }
      if (run.first < base_length(p)) {
        if (!config_.causal) run.first = 0;
        runs.push_back(run);
        continue;
      }
      if (exists) {
        result.patched[static_cast<std::size_t>(run.id)] = base_metric[p];
        ++result.skipped;
      }
      ++done_;
      if (options_.progress) options_.progress(done_, std::ssize(result.patched));
    }
  }
  std::stable_sort(runs.begin(), runs.end(),
                   [](const PatchedRun& a, const PatchedRun& b) { return a.layer < b.layer; });
  std::vector<std::uint64_t> bytes;
  for (const PatchedRun& run : runs) bytes.push_back(kept_bytes(run));
  for (const auto& [from, to] : groups_within(bytes, options_.memory / 8)) {
    run_chunk(std::span(runs).subspan(from, to - from), result);
  }
}

// First passes of some senders: fills `kept`, and the metric if the path goes to the logits.
void Paths::keep_receivers(std::span<const PatchedRun> runs, std::vector<Kept>& kept,
                           PatchResult& result) {
  PatchedRuns first(forward_, state_, options_.memory * 3 / 8);
  first.writes = [&](const PatchedRun& run, WriteList& list) {
    const NodeSlice slice = node_slice(sender(run), config_);
    sent_rows(run, [&](std::int64_t row, std::span<const float>, std::span<const float> is) {
      if (row >= run.first) list.set(sender(run).site, row, slice.offset, is);
    });
  };
  std::vector<PatchedRun> numbered(runs.begin(), runs.end());
  std::vector<std::size_t> slots(senders_.size() * pairs_.size());
  for (std::size_t i = 0; i < runs.size(); ++i) slots[static_cast<std::size_t>(runs[i].id)] = i;
  const auto slot = [&](const PatchedRun& run) { return slots[static_cast<std::size_t>(run.id)]; };
  first.extra = [&](std::span<const PatchedRun> batch, Hooks& hooks) {
    const auto freeze = [&](Site site) {
      hooks.write(site, [this, batch, site](SiteView& view) {
        float* to = view.values.data();
        for (const PatchedRun& run : batch) {
          for (std::int64_t t = run.first; t < base_length(pair(run)); ++t) {
            const std::span<const float> row = base_->row(site, run.prompt, t);
            to = std::copy(row.begin(), row.end(), to);
          }
        }
      });
    };
    const std::int32_t start = batch.front().layer;
    for (std::int32_t layer = start; layer < config_.n_layers; ++layer) {
      if (options_.through != Through::all && layer > start) freeze({SiteKind::attn_out, layer});
      if (options_.through == Through::none && config_.d_mlp > 0)
        freeze({SiteKind::mlp_out, layer});
    }
    for (std::size_t r = 0; r < reads_.size(); ++r) {
      if (reads_[r].site.layer < start) continue;
      hooks.read(reads_[r].site, [&, batch, r](SiteView& view) {
        const Read& read = reads_[r];
        const std::int64_t width = view.shape.row();
        for (std::size_t i = 0; i < batch.size(); ++i) {
          std::vector<float>& rows = kept[slot(batch[i])].reads[r];
          for (std::int64_t t = view.batch.offsets[i]; t < view.batch.offsets[i + 1]; ++t) {
            const auto from = view.values.begin() + t * width + read.offset;
            rows.insert(rows.end(), from, from + read.count);
          }
        }
      });
    }
  };
  if (to_logits_) {
    const std::vector<float>& after = state_.resid[static_cast<std::size_t>(config_.n_layers)];
    first.finish = [&](std::span<const PatchedRun> batch, std::span<const float> out) {
      std::int64_t rows = 0;
      for (const PatchedRun& run : batch) {
        rows += base_length(pair(run)) - run.first;
        const std::int64_t last =
            state_.batch.offsets[static_cast<std::size_t>(run.prompt) + 1] - 1;
        std::vector<float>& direct = kept[slot(run)].direct;
        for (std::int64_t i = 0; i < config_.d_model; ++i) {
          direct.push_back(out[static_cast<std::size_t>((rows - 1) * config_.d_model + i)] -
                           after[static_cast<std::size_t>(last * config_.d_model + i)]);
        }
      }
    };
    first.consume = [&](const PatchedRun& run, std::span<const float> logits) {
      result.patched[static_cast<std::size_t>(run.id)] =
          metric_.value(static_cast<std::int64_t>(pair(run)), logits);
    };
  }
  first.run(std::move(numbered));
}

// The second pass of a sender: where what the receivers read differs from the base run.
std::optional<PatchedRun> Paths::through_receivers(const PatchedRun& sent, const Kept& kept) const {
  PatchedRun run = sent;
  const std::int64_t length = base_length(pair(sent));
  run.layer = static_cast<std::int32_t>(config_.n_layers);
  run.first = length;
  for (std::size_t r = 0; r < reads_.size(); ++r) {
    const Read& read = reads_[r];
    const std::int64_t rows = std::ssize(kept.reads[r]) / read.count;
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t t = sent.first + i;
      const std::span<const float> was = base_row(sent, read, t);
      if (std::memcmp(was.data(), kept.reads[r].data() + i * read.count, was.size_bytes()) == 0) {
        continue;
      }
      run.layer = std::min(run.layer, read.site.layer);
      run.first = std::min(run.first, t);
      break;
    }
  }
  if (run.first == length) return std::nullopt;
  if (!config_.causal) run.first = 0;
  return run;
}

void Paths::run_chunk(std::span<const PatchedRun> runs, PatchResult& result) {
  std::vector<Kept> kept(runs.size());
  for (Kept& k : kept) k.reads.resize(reads_.size());
  keep_receivers(runs, kept, result);

  const std::vector<double>& base_metric = noise() ? result.clean : result.corrupted;
  std::vector<PatchedRun> second;
  std::vector<const Kept*> kept_of(senders_.size() * pairs_.size(), nullptr);
  std::vector<std::int64_t> sent_first(kept_of.size(), 0);
  const auto advance = [&] {
    ++done_;
    if (options_.progress) options_.progress(done_, std::ssize(result.patched));
  };
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const auto id = static_cast<std::size_t>(runs[i].id);
    ++result.runs;
    kept_of[id] = &kept[i];
    sent_first[id] = runs[i].first;
    if (const std::optional<PatchedRun> run = through_receivers(runs[i], kept[i])) {
      second.push_back(*run);
      continue;
    }
    if (!to_logits_) result.patched[id] = base_metric[pair(runs[i])];
    advance();
  }
  PatchedRuns through(forward_, state_, options_.memory * 3 / 8);
  through.writes = [&](const PatchedRun& run, WriteList& list) {
    const auto id = static_cast<std::size_t>(run.id);
    for (std::size_t r = 0; r < reads_.size(); ++r) {
      const Read& read = reads_[r];
      if (read.site.layer < run.layer) continue;
      const std::vector<float>& values = kept_of[id]->reads[r];
      for (std::int64_t i = 0; i < std::ssize(values) / read.count; ++i) {
        const std::int64_t t = sent_first[id] + i;
        if (t < run.first) continue;
        list.set(read.site, t, read.offset,
                 std::span(values).subspan(static_cast<std::size_t>(i * read.count),
                                           static_cast<std::size_t>(read.count)));
      }
    }
  };
  if (to_logits_) {
    through.extra = [&](std::span<const PatchedRun> batch, Hooks& hooks) {
      const Site last{SiteKind::resid_post, static_cast<std::int32_t>(config_.n_layers - 1)};
      hooks.write(last, [&, batch](SiteView& view) {
        for (std::size_t i = 0; i < batch.size(); ++i) {
          const std::vector<float>& direct = kept_of[static_cast<std::size_t>(batch[i].id)]->direct;
          float* row = view.values.data() + (view.batch.offsets[i + 1] - 1) * config_.d_model;
          for (std::size_t d = 0; d < direct.size(); ++d) row[d] += direct[d];
        }
      });
    };
  }
  through.consume = [&](const PatchedRun& run, std::span<const float> logits) {
    result.patched[static_cast<std::size_t>(run.id)] =
        metric_.value(static_cast<std::int64_t>(pair(run)), logits);
    advance();
  };
  through.run(std::move(second));
}

}  // namespace

PatchResult patch_paths(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                        std::span<const Node> senders, std::span<const Receiver> receivers,
                        const PathOptions& options) {
  return Paths(forward, pairs, metric, senders, receivers, options).run();
}

}  // namespace lamina
