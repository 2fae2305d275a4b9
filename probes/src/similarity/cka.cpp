#include "lamina/probes/cka.h"

#include <algorithm>
#include <optional>

#include "lamina/core/error.h"
#include "similarity/cka_engine.h"

namespace lamina {

CkaMode parse_cka_mode(std::string_view name) {
  if (name == "exact") return CkaMode::exact;
  if (name == "minibatch") return CkaMode::minibatch;
  fail_usage("cka: mode '{}', expected exact or minibatch", name);
}

std::string_view cka_mode_name(CkaMode mode) {
  return mode == CkaMode::exact ? "exact" : "minibatch";
}

CkaPool parse_cka_pool(std::string_view name) {
  if (name == "none") return CkaPool::none;
  if (name == "mean") return CkaPool::mean;
  if (name == "last") return CkaPool::last;
  fail_usage("cka: pool '{}', expected none, mean or last", name);
}

std::string_view cka_pool_name(CkaPool pool) {
  return pool == CkaPool::none ? "none" : pool == CkaPool::mean ? "mean" : "last";
}

CkaMeasures parse_cka_measures(std::span<const std::string> names) {
  CkaMeasures m{false, false, false, false, false};
  for (const std::string& name : names) {
    bool* const which = name == "linear"     ? &m.linear
                        : name == "debiased" ? &m.debiased
                        : name == "rbf"      ? &m.rbf
                        : name == "svcca"    ? &m.svcca
                        : name == "pwcca"    ? &m.pwcca
                                             : nullptr;
    if (which == nullptr) {
      fail_usage("cka: measure '{}', expected linear, debiased, rbf, svcca or pwcca", name);
    }
    *which = true;
  }
  return m;
}

std::vector<Site> cka_sites(const ModelConfig& config, std::string_view site) {
  std::string pattern(site);
  if (pattern.empty()) {
    pattern = config.norm_place == NormPlace::post ? "normalized_resid_post" : "resid_post";
  }
  std::vector<Site> sites = match_sites(std::span(&pattern, 1), config);
  for (const Site s : sites) {
    if (s.kind != sites.front().kind) {
      fail_usage("cka: '{}' stands for {} and {}, sites of one kind expected", pattern,
                 site_name(sites.front()), site_name(s));
    }
  }
  if (site_shape(sites.front(), config).attention) {
    fail_usage("cka: {} has no row per token; give a site that has", site_name(sites.front()));
  }
  const SiteKind kind = sites.front().kind;
  const bool whole_stream = pattern == "resid_post" || pattern == "normalized_resid_post";
  if (whole_stream && (kind == SiteKind::resid_post || kind == SiteKind::normalized_resid_post)) {
    sites.insert(sites.begin(), Site{SiteKind::resid_pre, 0});
  }
  return sites;
}

struct CkaProbe::Impl {
  cka::Engine engine;
  std::optional<CkaResults> results;
};

CkaProbe::CkaProbe(const ModelConfig& config, CkaOptions options)
    : config_(config),
      options_(std::move(options)),
      impl_(std::make_unique<Impl>(
          Impl{cka::Engine({cka::make_side(config_, options_)}, options_), std::nullopt})) {}
CkaProbe::~CkaProbe() = default;

std::vector<Site> CkaProbe::sites(const ModelConfig& config) const {
  return cka_sites(config, options_.site);
}

std::unique_ptr<Probe> CkaProbe::fresh() const {
  return std::make_unique<CkaProbe>(config_, options_);
}

void CkaProbe::observe(const ActivationBlock& block) {
  impl_->engine.add(0, block);
}

void CkaProbe::merge(Probe& other) {
  auto* from = dynamic_cast<CkaProbe*>(&other);
  const auto same = [](const CkaOptions& a, const CkaOptions& b) {
    const CkaMeasures &m = a.measures, &n = b.measures;
    return a.mode == b.mode && m.linear == n.linear && m.debiased == n.debiased && m.rbf == n.rbf &&
           m.svcca == n.svcca && m.pwcca == n.pwcca && a.site == b.site && a.skip == b.skip &&
           a.pool == b.pool && a.minibatch == b.minibatch && a.sample == b.sample &&
           a.bandwidth == b.bandwidth && a.seed == b.seed && a.variance == b.variance &&
           a.floor == b.floor;
  };
  if (from == nullptr || !same(options_, from->options_) ||
      config_.n_layers != from->config_.n_layers || config_.d_model != from->config_.d_model) {
    fail("cka: cannot be merged with a {} of other settings", other.name());
  }
  impl_->engine.merge(from->impl_->engine);
}

const CkaResults& CkaProbe::results() const {
  if (!impl_->results) {
    impl_->engine.finish();
    if (options_.mode == CkaMode::exact) {
      cka::Tables tables(static_cast<std::int64_t>(sites(config_).size()));
      impl_->engine.reduce(tables);
      impl_->results = impl_->engine.results(&tables);
    } else {
      impl_->results = impl_->engine.results(nullptr);
    }
  }
  return *impl_->results;
}

void CkaProbe::write(ResultFile& file) const {
  write_cka(file, results(), options_);
}

std::vector<std::pair<std::int64_t, std::int64_t>> cka_blocks(std::span<const double> matrix,
                                                              std::int64_t n, double least) {
  std::vector<std::pair<std::int64_t, std::int64_t>> blocks;
  for (std::int64_t i = 0; i < n; ++i) {
    bool joins = !blocks.empty();
    for (std::int64_t j = joins ? blocks.back().first : i; joins && j < i; ++j) {
      joins = matrix[static_cast<std::size_t>(j * n + i)] >= least;
    }
    if (joins) {
      blocks.back().second = i;
    } else {
      blocks.push_back({i, i});
    }
  }
  return blocks;
}

}  // namespace lamina
