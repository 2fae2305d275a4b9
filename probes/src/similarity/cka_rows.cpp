#include "similarity/cka_rows.h"

#include <algorithm>

#include "lamina/core/error.h"

namespace lamina::cka {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

}  // namespace

std::uint64_t row_key(std::uint64_t seed, std::string_view prompt, std::int64_t position) {
  std::uint64_t hash = mix(seed + 0x9e3779b97f4a7c15ULL);
  for (const char c : prompt) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  return mix(mix(hash) + static_cast<std::uint64_t>(position) * 0x9e3779b97f4a7c15ULL);
}

Side make_side(const ModelConfig& config, const CkaOptions& options) {
  Side side;
  side.sites = cka_sites(config, options.site);
  side.width = site_shape(side.sites.front(), config).row();
  return side;
}

Rows::Rows(std::vector<Side> sides, const CkaOptions& options)
    : skip_(options.skip), pool_(options.pool), seed_(options.seed) {
  for (Side& side : sides) {
    streams_ += side.count();
    Part part;
    part.kept.resize(size(side.count()));
    part.side = std::move(side);
    parts_.push_back(std::move(part));
  }
}

std::int64_t Rows::rows() const {
  const auto rows = [](const Part& part) { return static_cast<std::int64_t>(part.meta.size()); };
  return std::min(rows(parts_.front()), rows(parts_.back()));
}

const float* Rows::row(std::int64_t stream, std::int64_t r) const {
  const Part& p = part(stream);
  const std::int64_t s = &p == &parts_.front() ? stream : stream - parts_.front().side.count();
  if (r < p.kept_rows) return p.kept[size(s)].data() + r * p.side.width;
  r -= p.kept_rows;
  if (pool_ == CkaPool::mean) return p.pooled[size(s)].data() + r * p.side.width;
  return p.values[size(s)] + p.picked[size(r)] * p.side.width;
}

void Rows::add(std::size_t side, const ActivationBlock& block) {
  Part& part = parts_[side];
  const std::int64_t tokens = block.batch.tokens();
  part.values.clear();
  for (Site site : part.side.sites) {
    const std::vector<float>& values = block.at(site).values;
    if (values.size() != size(tokens * part.side.width)) {
      fail("cka: {} holds {} values, {} tokens × {} were expected", site_name(site), values.size(),
           tokens, part.side.width);
    }
    part.values.push_back(values.data());
  }
  part.picked.clear();
  for (std::int64_t p = 0; p < block.batch.prompts(); ++p) {
    const std::string& id = block.prompts[size(p)].id;
    const std::int64_t first = block.batch.offsets[size(p)], length = block.batch.length(p);
    if (pool_ == CkaPool::none) {
      for (std::int64_t i = skip_; i < length; ++i) {
        part.picked.push_back(first + i);
        part.meta.push_back({row_key(seed_, id, i), i == 0});
      }
      continue;
    }
    if (length <= skip_) {
      fail("cka: prompt '{}' has {} tokens, more than the {} that are skipped were expected", id,
           length, skip_);
    }
    part.picked.push_back(first + length - 1);
    part.meta.push_back({row_key(seed_, id, 0), false});
  }
  if (pool_ == CkaPool::mean) pool(part, block);
}

void Rows::pool(Part& part, const ActivationBlock& block) {
  const std::int64_t d = part.side.width, prompts = block.batch.prompts();
  part.pooled.assign(size(part.side.count()), {});
  for (std::int64_t s = 0; s < part.side.count(); ++s) {
    std::vector<float>& out = part.pooled[size(s)];
    out.resize(size(prompts * d));
#pragma omp parallel for schedule(static)
    for (std::int64_t p = 0; p < prompts; ++p) {
      const std::int64_t first = block.batch.offsets[size(p)] + skip_;
      const std::int64_t last = block.batch.offsets[size(p + 1)];
      std::vector<double> sum(size(d));
      for (std::int64_t t = first; t < last; ++t) {
        const float* x = part.values[size(s)] + t * d;
        for (std::int64_t i = 0; i < d; ++i) sum[size(i)] += static_cast<double>(x[i]);
      }
      for (std::int64_t i = 0; i < d; ++i) {
        out[size(p * d + i)] = static_cast<float>(sum[size(i)] / static_cast<double>(last - first));
      }
    }
  }
}

void Rows::drop(std::int64_t count) {
  std::int64_t before = 0;
  for (Part& part : parts_) {
    const auto rows = static_cast<std::int64_t>(part.meta.size());
    const std::int64_t d = part.side.width;
    for (std::int64_t s = 0; s < part.side.count(); ++s) {
      std::vector<float>& kept = part.kept[size(s)];
      for (std::int64_t r = std::max(count, part.kept_rows); r < rows; ++r) {
        const float* x = row(before + s, r);
        kept.insert(kept.end(), x, x + d);
      }
      kept.erase(kept.begin(), kept.begin() + std::min(count, part.kept_rows) * d);
    }
    part.meta.erase(part.meta.begin(), part.meta.begin() + count);
    part.kept_rows = static_cast<std::int64_t>(part.meta.size());
    part.values.clear();
    part.picked.clear();
    part.pooled.clear();
    before += part.side.count();
  }
}

void Rows::append(const Rows& other) {
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    Part& to = parts_[i];
    const Part& from = other.parts_[i];
    to.meta.insert(to.meta.end(), from.meta.begin(), from.meta.end());
    for (std::size_t s = 0; s < to.kept.size(); ++s) {
      to.kept[s].insert(to.kept[s].end(), from.kept[s].begin(), from.kept[s].end());
    }
    to.kept_rows += from.kept_rows;
  }
}

}  // namespace lamina::cka
