#include "engine/kv_cache.h"

#include "lamina/core/error.h"

namespace lamina {

KvCache::KvCache(const ModelConfig& config, std::int64_t sequences)
    : impl_(std::make_unique<Impl>()) {
  impl_->layers = config.n_layers;
  impl_->row = config.d_kv();
  impl_->sequences.resize(static_cast<std::size_t>(sequences));
  for (Impl::Sequence& sequence : impl_->sequences) {
    sequence.keys.resize(static_cast<std::size_t>(config.n_layers));
    sequence.values.resize(static_cast<std::size_t>(config.n_layers));
  }
}

KvCache::~KvCache() = default;
KvCache::KvCache(KvCache&&) noexcept = default;
KvCache& KvCache::operator=(KvCache&&) noexcept = default;

std::int64_t KvCache::length(std::int64_t sequence) const {
  return impl_->sequences.at(static_cast<std::size_t>(sequence)).length;
}

std::int64_t KvCache::sequences() const {
  return static_cast<std::int64_t>(impl_->sequences.size());
}

void KvCache::truncate(std::int64_t sequence, std::int64_t tokens) {
  Impl::Sequence& s = impl_->sequences.at(static_cast<std::size_t>(sequence));
  if (tokens < 0 || tokens > s.length) {
    fail_usage("cache sequence {} holds {} tokens and cannot be cut to {}", sequence, s.length,
               tokens);
  }
  s.length = tokens;
  for (auto* all : {&s.keys, &s.values}) {
    for (std::vector<float>& layer : *all)
      layer.resize(static_cast<std::size_t>(tokens * impl_->row));
  }
}

std::uint64_t KvCache::bytes_per_token() const {
  return static_cast<std::uint64_t>(impl_->layers * impl_->row) * 2 * sizeof(float);
}

}  // namespace lamina
