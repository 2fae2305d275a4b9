#include "lamina/patching/exact.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <optional>

#include "exact/counter_noise.h"
#include "exact/patched_runs.h"
#include "lamina/core/error.h"
#include "nodes/mean_values.h"
#include "nodes/nodes.h"
#include "nodes/site_values.h"

namespace lamina {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

using Ids = std::vector<std::int32_t>;

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

std::uint64_t node_key(const Node& node) {
  std::uint64_t key = mixed(static_cast<std::uint64_t>(node.site.kind),
                            static_cast<std::uint64_t>(node.site.layer + 1));
  for (const std::int64_t part : {node.position, node.head, node.neuron}) {
    key = mixed(key, static_cast<std::uint64_t>(part + 1));
  }
  return key;
}

class Sweep {
 public:
  Sweep(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
        std::span<const Node> nodes, const PatchOptions& options);
  PatchResult run();

 private:
  /// Some whole prompts whose unpatched runs are kept at a time.
  struct Group {
    std::size_t first = 0, end = 0;         // pairs
    std::vector<std::vector<Site>> pieces;  // sites recorded at a time
  };

  const Ids& base_ids(std::size_t pair) const {
    return denoise() ? pairs_[pair].corrupted : pairs_[pair].clean;
  }
  const Ids& other_ids(std::size_t pair) const {
    return denoise() ? pairs_[pair].clean : pairs_[pair].corrupted;
  }
  bool denoise() const { return options_.direction == Direction::denoise; }
  std::int64_t base_length(std::size_t pair) const { return std::ssize(base_ids(pair)); }
  std::int64_t base_row(std::size_t pair, std::int64_t position) const {
    return denoise() ? pairs_[pair].corrupted_position(position) : position;
  }
  std::int64_t source_row(std::size_t pair, std::int64_t position) const {
    const bool corrupted = denoise() == (options_.replacement == Replacement::resample);
    return corrupted ? pairs_[pair].corrupted_position(position) : position;
  }

  void check() const;
  void choose_partners();
  std::vector<Group> groups() const;
  void run_group(const Group& group, PatchResult& result);
  void run_piece(const Group& group, std::span<const Site> sites, PatchResult& result);
  std::vector<double> metric_of(const Batch& batch, std::size_t first_pair);
  std::optional<PatchedRun> planned(std::size_t node, std::size_t pair) const;
  void list_writes(const PatchedRun& run, WriteList& list) const;
  /// Calls use(site row, head, offset, base values, new values) for each row the node overwrites,
  /// from the first position on, until it returns false.
  template <class Use>
  void rows_of(std::size_t node, std::size_t pair, Use&& use) const;

  Forward& forward_;
  std::span<const Pair> pairs_;
  const Metric& metric_;
  std::span<const Node> nodes_;
  const PatchOptions& options_;
  const ModelConfig& config_;
  std::vector<std::size_t> partners_;  // resample: [pair]
  std::optional<MeanValues> means_;

  // The group at hand.
  std::size_t first_pair_ = 0;
  RunState state_;
  std::optional<SiteValues> base_, source_;
  mutable std::vector<float> scratch_;
  std::int64_t done_ = 0;
};

Sweep::Sweep(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
             std::span<const Node> nodes, const PatchOptions& options)
    : forward_(forward),
      pairs_(pairs),
      metric_(metric),
      nodes_(nodes),
      options_(options),
      config_(forward.model().config()) {
  check();
  if (options.replacement == Replacement::resample) choose_partners();
  if (options.replacement == Replacement::mean) {
    std::vector<Ids> others;
    if (options.reference.empty()) {
      for (std::size_t p = 0; p < pairs.size(); ++p) others.push_back(other_ids(p));
    }
    std::vector<Site> sites;
    for (const Node& node : nodes) sites.push_back(node.site);
    std::sort(sites.begin(), sites.end());
    sites.erase(std::unique(sites.begin(), sites.end()), sites.end());
    means_.emplace(forward, options.reference.empty() ? others : options.reference, sites,
                   options.mean_per_position, options.memory / 2);
    if (options.mean_per_position) {
      for (std::size_t p = 0; p < pairs.size(); ++p) {
        if (base_length(p) == means_->length()) continue;
        fail_usage("pair '{}' has {} tokens; the means per position are those of {} positions",
                   pairs[p].id, base_length(p), means_->length());
      }
    }
  }
}

void Sweep::check() const {
  if (pairs_.empty()) fail_usage("patching needs at least one pair");
  if (metric_.pairs() != static_cast<std::int64_t>(pairs_.size())) {
    fail_usage("the metric was made for {} pairs, {} are patched", metric_.pairs(), pairs_.size());
  }
  std::int64_t longest = 0;
  for (const Pair& pair : pairs_) longest = std::max(longest, pair.tokens());
  check_nodes(nodes_, config_, longest);
  const bool mapped = std::any_of(pairs_.begin(), pairs_.end(),
                                  [](const Pair& pair) { return !pair.token_map.empty(); });
  for (const Node& node : nodes_) {
    if (mapped && site_shape(node.site, config_).attention) {
      fail_usage("{} cannot be patched between prompts whose positions are mapped",
                 site_name(node.site));
    }
  }
}

void Sweep::choose_partners() {
  std::map<std::int64_t, std::vector<std::size_t>> by_length;
  for (std::size_t p = 0; p < pairs_.size(); ++p) by_length[base_length(p)].push_back(p);
  for (std::size_t p = 0; p < pairs_.size(); ++p) {
    const std::vector<std::size_t>& same = by_length[base_length(p)];
    if (same.size() < 2) {
      fail_usage("resampling: no other pair has the {} tokens of pair '{}'", base_length(p),
                 pairs_[p].id);
    }
    const auto self =
        static_cast<std::size_t>(std::find(same.begin(), same.end(), p) - same.begin());
    const std::uint64_t draw = mixed(options_.seed, mixed_name(pairs_[p].id));
    const std::size_t step = 1 + draw % (same.size() - 1);
    partners_.push_back(same[(self + step) % same.size()]);
  }
}

std::vector<Sweep::Group> Sweep::groups() const {
  std::vector<Site> sites;
  for (const Node& node : nodes_) {
    if (std::find(sites.rbegin(), sites.rend(), node.site) == sites.rend()) {
      sites.push_back(node.site);
    }
  }
  const bool results =
      std::any_of(sites.begin(), sites.end(), [](Site s) { return s.kind == SiteKind::result; });
  const std::uint64_t per_token =
      RunState::bytes_per_token(config_) + PatchedRuns::bytes_per_row(config_, results);
  const auto tokens = [&](std::size_t pair) {  // with a map the prompts may differ in length
    return std::max(base_length(pair), static_cast<std::int64_t>(other_ids(pair).size()));
  };
  const auto site_bytes = [&](Site site, std::size_t pair) {
    const std::int64_t length = tokens(pair);
    return 2 * SiteValues::bytes(site, config_, std::span(&length, 1));
  };
  const std::uint64_t budget = options_.memory / 2;
  std::vector<std::uint64_t> bytes;
  for (std::size_t p = 0; p < pairs_.size(); ++p) {
    bytes.push_back(static_cast<std::uint64_t>(tokens(p)) * per_token);
    for (const Site site : sites) bytes.back() += site_bytes(site, p);
  }
  std::vector<Group> groups;
  for (const auto& [first, end] : groups_within(bytes, budget)) {
    Group group{.first = first, .end = end, .pieces = {sites}};
    if (end == first + 1 && bytes[first] > budget) {  // a pair whose sites do not fit together
      std::vector<std::uint64_t> each;
      for (const Site site : sites) each.push_back(site_bytes(site, first));
      const std::uint64_t fixed = static_cast<std::uint64_t>(tokens(first)) * per_token;
      group.pieces.clear();
      for (const auto& [from, to] : groups_within(each, budget > fixed ? budget - fixed : 0)) {
        group.pieces.emplace_back(sites.begin() + static_cast<std::ptrdiff_t>(from),
                                  sites.begin() + static_cast<std::ptrdiff_t>(to));
      }
    }
    groups.push_back(std::move(group));
  }
  return groups;
}

// Metric of the last rows of the pass just run.
std::vector<double> Sweep::metric_of(const Batch& batch, std::size_t first_pair) {
  std::vector<double> values;
  each_last_row(
      forward_, batch, options_.memory / 8,
      [&](std::int64_t prompt, std::span<const float> logits) {
        values.push_back(metric_.value(static_cast<std::int64_t>(first_pair) + prompt, logits));
      });
  return values;
}

PatchResult Sweep::run() {
  PatchResult result;
  result.patched.assign(nodes_.size() * pairs_.size(), kNan);
  for (const Group& group : groups()) run_group(group, result);
  return result;
}

void Sweep::run_group(const Group& group, PatchResult& result) {
  first_pair_ = group.first;
  Batch base, other, source;
  for (std::size_t p = group.first; p < group.end; ++p) {
    base.add(base_ids(p));
    other.add(other_ids(p));
    if (options_.replacement == Replacement::resample) source.add(base_ids(partners_[p]));
  }
  const bool from_other = options_.replacement == Replacement::other;
  if (from_other) source = other;
  for (std::size_t i = 0; i < group.pieces.size(); ++i) {
    Hooks base_hooks, source_hooks;
    base_.emplace(config_, group.pieces[i], base);
    base_->attach(base_hooks);
    RunOptions keep;
    if (i == 0) keep.keep = &state_;
    forward_.run(base, base_hooks, keep);
    std::vector<double> base_metric, other_metric;
    if (i == 0) base_metric = metric_of(base, group.first);
    source_.reset();
    if (source.prompts() > 0) {
      source_.emplace(config_, group.pieces[i], source);
      source_->attach(source_hooks);
      forward_.run(source, source_hooks);
      if (i == 0 && from_other) other_metric = metric_of(other, group.first);
    }
    if (i == 0) {
      if (!from_other) {
        forward_.run(other);
        other_metric = metric_of(other, group.first);
      }
      auto& clean = denoise() ? other_metric : base_metric;
      auto& corrupted = denoise() ? base_metric : other_metric;
      result.clean.insert(result.clean.end(), clean.begin(), clean.end());
      result.corrupted.insert(result.corrupted.end(), corrupted.begin(), corrupted.end());
    }
    run_piece(group, group.pieces[i], result);
  }
}

template <class Use>
void Sweep::rows_of(std::size_t n, std::size_t pair, Use&& use) const {
  const Node& node = nodes_[n];
  const auto p = static_cast<std::int64_t>(pair - first_pair_);
  const std::int64_t length = pairs_[pair].tokens();
  const bool attention = site_shape(node.site, config_).attention;
  const Replacement how = options_.replacement;
  const std::uint64_t key =
      how == Replacement::noise
          ? mixed(mixed(options_.seed, mixed_name(pairs_[pair].id)), node_key(node))
          : 0;
  std::uint64_t drawn = 0;  // noise values drawn for this node so far
  const auto replaced = [&](std::span<const float> base, auto&& source_values,
                            auto&& mean_values) -> std::span<const float> {
    switch (how) {
      case Replacement::other:
      case Replacement::resample:
        return source_values();
      case Replacement::mean:
        return mean_values();
      case Replacement::zero:
        scratch_.assign(base.size(), 0.0f);
        break;
      case Replacement::noise:
        scratch_.assign(base.begin(), base.end());
        for (float& value : scratch_) {
          value += static_cast<float>(options_.noise_sigma) * normal_number(key, drawn++);
        }
        break;
    }
    return scratch_;
  };
  const std::int64_t from = node.position < 0 ? 0 : node.position;
  const std::int64_t end = node.position < 0 ? length : node.position + 1;
  for (std::int64_t t = from; t < end; ++t) {
    const std::int64_t to = base_row(pair, t), of = source_row(pair, t);
    if (!attention) {
      const NodeSlice slice = node_slice(node, config_);
      const auto cut = [&](std::span<const float> row) {
        return row.subspan(static_cast<std::size_t>(slice.offset),
                           static_cast<std::size_t>(slice.count));
      };
      const std::span<const float> base = cut(base_->row(node.site, p, to));
      const std::span<const float> value = replaced(
          base, [&] { return cut(source_->row(node.site, p, of)); },
          [&] { return cut(means_->row(node.site, to)); });
      if (!use(to, std::int64_t{0}, slice.offset, base, value)) return;
      continue;
    }
    // Only keys this query sees: what the mask hides stays hidden.
    const std::int64_t window = config_.layers[static_cast<std::size_t>(node.site.layer)].window;
    const std::int64_t last = config_.causal ? to + 1 : base_length(pair);
    const std::int64_t first = window > 0 ? std::max<std::int64_t>(0, to + 1 - window) : 0;
    const auto cut = [&](std::span<const float> row) {
      return row.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(last - first));
    };
    const HeadRange heads = node_heads(node, config_);
    for (std::int64_t h = heads.first; h < heads.end; ++h) {
      const std::span<const float> base = cut(base_->row(node.site, p, h, to));
      const std::span<const float> value = replaced(
          base, [&] { return cut(source_->row(node.site, p, h, of)); },
          [&] { return cut(means_->row(node.site, h, to)); });
      if (!use(to, h, first, base, value)) return;
    }
  }
}

// Where a patched run must start; none if it cannot differ from the base run.
std::optional<PatchedRun> Sweep::planned(std::size_t n, std::size_t pair) const {
  const Node& node = nodes_[n];
  const std::int64_t length = base_length(pair);
  const Site site = latest_equal(node.site, config_);
  PatchedRun run{.id = static_cast<std::int64_t>(n * pairs_.size() + pair),
                 .prompt = static_cast<std::int64_t>(pair - first_pair_),
                 .layer = start_layer(site, config_),
                 .first = length,
                 .group = runs_of_site(site.kind)};
  const bool only_last_row = run.layer == config_.n_layers ||
                             (run.layer + 1 == config_.n_layers && behind_keys(site.kind));
  rows_of(n, pair,
          [&](std::int64_t row, std::int64_t, std::int64_t, std::span<const float> base,
              std::span<const float> value) {
            const bool matters = !only_last_row || row == length - 1;
            if (matters && row < run.first && !same_bits(base, value)) run.first = row;
            // Without a map rows come in order: the first one that differs decides.
            return run.first == length || !pairs_[pair].token_map.empty();
          });
  if (run.first == length) return std::nullopt;
  if (!config_.causal) run.first = 0;
  return run;
}

void Sweep::list_writes(const PatchedRun& run, WriteList& list) const {
  const auto n = static_cast<std::size_t>(run.id) / pairs_.size();
  const auto pair = static_cast<std::size_t>(run.id) % pairs_.size();
  const Site site = latest_equal(nodes_[n].site, config_);
  const bool attention = site_shape(site, config_).attention;
  // Without layers only the last row is there.
  const std::int64_t first = run.layer == config_.n_layers ? base_length(pair) - 1 : run.first;
  rows_of(n, pair,
          [&](std::int64_t row, std::int64_t head, std::int64_t offset, std::span<const float>,
              std::span<const float> value) {
            if (row < first) return true;
            if (attention) {
              list.set_attention(site, head, row, offset, value);
            } else {
              list.set(site, row, offset, value);
            }
            return true;
          });
}

void Sweep::run_piece(const Group& group, std::span<const Site> sites, PatchResult& result) {
  const std::int64_t total =
      static_cast<std::int64_t>(nodes_.size()) * static_cast<std::int64_t>(pairs_.size());
  const auto advance = [&] {
    ++done_;
    if (options_.progress) options_.progress(done_, total);
  };
  const std::vector<double>& base_metric = denoise() ? result.corrupted : result.clean;
  std::vector<PatchedRun> runs;
  for (std::size_t n = 0; n < nodes_.size(); ++n) {
    if (std::find(sites.begin(), sites.end(), nodes_[n].site) == sites.end()) continue;
    for (std::size_t p = group.first; p < group.end; ++p) {
      if (nodes_[n].position >= pairs_[p].tokens()) {
        advance();
        continue;
      }
      if (const std::optional<PatchedRun> run = planned(n, p)) {
        runs.push_back(*run);
        continue;
      }
      result.patched[n * pairs_.size() + p] = base_metric[p];
      ++result.skipped;
      advance();
    }
  }
  PatchedRuns patched(forward_, state_, options_.memory / 2);
  patched.writes = [this](const PatchedRun& run, WriteList& list) { list_writes(run, list); };
  patched.consume = [&](const PatchedRun& run, std::span<const float> logits) {
    const auto pairs_count = static_cast<std::int64_t>(pairs_.size());
    try {
      result.patched[static_cast<std::size_t>(run.id)] =
          metric_.value(run.id % pairs_count, logits);
    } catch (const Error& error) {
      fail("{} patched, {}", node_name(nodes_[static_cast<std::size_t>(run.id / pairs_count)]),
           error.what());
    }
    ++result.runs;
    advance();
  };
  patched.run(std::move(runs));
}

}  // namespace

PatchResult patch_exactly(Forward& forward, std::span<const Pair> pairs, const Metric& metric,
                          std::span<const Node> nodes, const PatchOptions& options) {
  return Sweep(forward, pairs, metric, nodes, options).run();
}

std::vector<double> normalised_scores(const PatchResult& result, Direction direction,
                                      std::int64_t nodes) {
  const std::vector<double>& base =
      direction == Direction::denoise ? result.corrupted : result.clean;
  const std::vector<double>& other =
      direction == Direction::denoise ? result.clean : result.corrupted;
  const std::size_t pairs = base.size();
  std::vector<double> scores;
  for (std::size_t n = 0; n < static_cast<std::size_t>(nodes); ++n) {
    double moved = 0.0, whole = 0.0;
    bool any = false;
    for (std::size_t p = 0; p < pairs; ++p) {
      const double value = result.patched[n * pairs + p];
      if (value != value) continue;  // the node does not exist for this pair
      any = true;
      moved += value - base[p];
      whole += other[p] - base[p];
    }
    scores.push_back(any ? moved / whole : kNan);
  }
  return scores;
}

}  // namespace lamina
