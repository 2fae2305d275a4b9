#include <algorithm>

#include "lamina/circuits/codebook.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

// SplitMix64's mixing of 64 bits (Steele, Lea, Flood 2014).
std::uint64_t mixed(std::uint64_t z) {
  z += 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

std::uint64_t key_of(std::uint64_t seed, const std::string& prompt, std::int64_t position) {
  std::uint64_t key = mixed(seed);
  for (unsigned char c : prompt) key = mixed(key ^ c);
  return mixed(key ^ static_cast<std::uint64_t>(position));
}

}  // namespace

RowSample::RowSample(Site site, std::int64_t cap, std::int64_t skip, std::uint64_t seed)
    : site_(site), cap_(cap), skip_(skip), seed_(seed) {
  if (cap < 1) fail_usage("rows to keep: expected at least 1, got {}", cap);
}

std::unique_ptr<Probe> RowSample::fresh() const {
  return std::make_unique<RowSample>(site_, cap_, skip_, seed_);
}

void RowSample::observe(const ActivationBlock& block) {
  const ActivationBlock::Values& from = block.at(site_);
  if (from.shape.attention) {
    fail_usage("{}: its values are no vectors of tokens", site_name(site_));
  }
  width_ = from.shape.row();
  for (std::int64_t p = 0; p < block.batch.prompts(); ++p) {
    const std::int64_t first = block.batch.offsets[static_cast<std::size_t>(p)];
    for (std::int64_t i = skip_; i < block.batch.length(p); ++i) {
      const auto row = from.values.begin() + (first + i) * width_;
      entries_.push_back({key_of(seed_, block.prompts[static_cast<std::size_t>(p)].id, i),
                          seen_++,
                          {row, row + width_}});
      if (entries_.size() >= 2 * static_cast<std::size_t>(cap_)) {
        trim(static_cast<std::size_t>(cap_));
      }
    }
  }
}

void RowSample::trim(std::size_t limit) {
  if (entries_.size() <= limit) return;
  std::nth_element(entries_.begin(), entries_.begin() + static_cast<std::ptrdiff_t>(limit),
                   entries_.end(), [](const Entry& a, const Entry& b) {
                     return a.key != b.key ? a.key < b.key : a.token < b.token;
                   });
  entries_.resize(limit);
}

void RowSample::merge(Probe& other) {
  auto& from = dynamic_cast<RowSample&>(other);
  if (from.width_ != 0) width_ = from.width_;
  for (Entry& entry : from.entries_) {
    entries_.push_back({entry.key, entry.token + seen_, std::move(entry.values)});
  }
  seen_ += from.seen_;
  from.entries_.clear();
  trim(static_cast<std::size_t>(cap_));
}

void RowSample::write(ResultFile&) const {}

std::vector<float> RowSample::rows() const {
  RowSample kept = *this;
  kept.trim(static_cast<std::size_t>(cap_));
  std::sort(kept.entries_.begin(), kept.entries_.end(),
            [](const Entry& a, const Entry& b) { return a.token < b.token; });
  std::vector<float> out;
  out.reserve(kept.entries_.size() * static_cast<std::size_t>(width_));
  for (const Entry& entry : kept.entries_) {
    out.insert(out.end(), entry.values.begin(), entry.values.end());
  }
  return out;
}

}  // namespace lamina
