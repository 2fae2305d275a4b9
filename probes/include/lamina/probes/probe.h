#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lamina/core/block.h"
#include "lamina/core/forward.h"
#include "lamina/core/recording.h"
#include "lamina/core/result_file.h"
#include "lamina/core/run.h"

namespace lamina {

/// An analysis over activations, as a fold: it names the sites it wants, observes blocks of whole
/// prompts in order, can be merged with another instance that observed other prompts, and writes
/// its results. The same probe runs live, over a recording, and over shards in parallel; its
/// results are the same.
///
/// Write your own by deriving from this class; see examples/custom_probe.
class Probe {
 public:
  virtual ~Probe() = default;

  /// Name of the analysis: the group under /analyses in the result file.
  virtual std::string name() const = 0;
  /// The sites that every block must hold.
  virtual std::vector<Site> sites(const ModelConfig& config) const = 0;
  /// A new instance with the same settings that has observed nothing.
  virtual std::unique_ptr<Probe> fresh() const = 0;
  /// Observes a block. Blocks come in order of their prompts; a block holds whole prompts.
  virtual void observe(const ActivationBlock& block) = 0;
  /// Adds what `other` observed, whose prompts come after this one's. `other` has the same type and
  /// settings and is left empty.
  virtual void merge(Probe& other) = 0;
  /// Writes the results: the file is positioned at this analysis' group.
  virtual void write(ResultFile& file) const = 0;
};

/// Runs several probes in one forward pass over `prompts`, storing nothing.
void run_probes(std::span<Probe* const> probes, Forward& forward, std::span<const Prompt> prompts,
                const LiveOptions& options = {});

/// Runs several probes over a recording. Error if it lacks a site that one of them wants.
void run_probes(std::span<Probe* const> probes, const Recording& recording,
                std::uint64_t block_bytes = std::uint64_t{256} << 20,
                const Progress& progress = {});

}  // namespace lamina
