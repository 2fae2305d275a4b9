#include "lamina/probes/probe.h"

#include <algorithm>

#include "lamina/core/error.h"

namespace lamina {
namespace {

// What all probes want together, in firing order, without repeats.
std::vector<Site> wanted_sites(std::span<Probe* const> probes, const ModelConfig& config) {
  std::vector<Site> wanted;
  for (const Probe* probe : probes) {
    const std::vector<Site> sites = probe->sites(config);
    wanted.insert(wanted.end(), sites.begin(), sites.end());
  }
  std::sort(wanted.begin(), wanted.end());
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
  return wanted;
}

BlockConsumer observe_all(std::span<Probe* const> probes) {
  return [probes](const ActivationBlock& block) {
    for (Probe* probe : probes) probe->observe(block);
  };
}

}  // namespace

void run_probes(std::span<Probe* const> probes, Forward& forward, std::span<const Prompt> prompts,
                const LiveOptions& options) {
  const std::vector<Site> sites = wanted_sites(probes, forward.model().config());
  run_live(forward, prompts, sites, options, observe_all(probes));
}

void run_probes(std::span<Probe* const> probes, const Recording& recording,
                std::uint64_t block_bytes, const Progress& progress) {
  const ModelConfig& config = recording.header().config;
  for (const Probe* probe : probes) {
    for (Site site : probe->sites(config)) {
      if (recording.has(site)) continue;
      fail("{}: {} needs {}, which was not recorded (record it with --sites {})",
           recording.path().string(), probe->name(), site_name(site), site_name(site));
    }
  }
  run_recorded(recording, wanted_sites(probes, config), block_bytes, observe_all(probes), progress);
}

}  // namespace lamina
