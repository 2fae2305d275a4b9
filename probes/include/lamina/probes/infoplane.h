#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/result_file.h"
#include "lamina/probes/linear_probe.h"

// The information plane: what a layer's state T says of the input X and of the target Y.
namespace lamina {

enum class InfoProjection : std::uint8_t { pca, random };
enum class InfoBins : std::uint8_t { width, count };

struct InfoPlaneOptions {
  InfoProjection projection = InfoProjection::pca;
  std::int64_t components = 2;  // that are binned together
  InfoBins binning = InfoBins::width;
  std::int64_t bins = 8;      // per component
  std::int64_t gaussian = 8;  // principal components that the Gaussians are fitted in
  std::int64_t slices = 64;   // random directions of the sliced distance
  std::int64_t controls = 5;  // repetitions of I(T;Y) with shuffled labels
  std::uint64_t seed = 0;
};

/// One site's numbers; natural logarithms (nats).
struct SiteInformation {
  std::string site;
  std::int32_t layer = -1;
  std::int64_t states = 0;  // occupied cells
  double entropy = 0;       // H(T)
  double input = 0;         // I(X;T)
  double target = 0;        // I(T;Y)
  double shuffled = 0;      // mean of I(T;Y) with shuffled labels: its bias; NaN without controls
  double variance = 0;      // share of the variance that the binned components hold
  double kl_bound = 0;      // mixture-of-Gaussians bound on I(T;Y)
  double gaussian_wasserstein = 0;  // W₂ of Gaussians, mean over pairs of classes
  double sliced_wasserstein = 0;    // W₁ along random directions, mean over pairs of classes
};

struct InfoPlaneResults {
  double target_entropy = 0, input_entropy = 0;  // H(Y), H(X)
  std::vector<SiteInformation> sites;
};

/// Entropy and mutual information of values by their counts (plug-in estimates), nats.
double plugin_entropy(std::span<const std::int64_t> x);
double plugin_information(std::span<const std::int64_t> x, std::span<const std::int64_t> y);

/// One site: `values` [row, width]; `inputs` [row] number of the row's input. Error, naming `site`,
/// if a value is not finite or all rows are equal. Same bits at any number of threads.
SiteInformation site_information(std::string_view site, std::span<const float> values,
                                 std::int64_t width, const ProbeTargets& targets,
                                 std::span<const std::int64_t> inputs,
                                 const InfoPlaneOptions& options);

/// Datasets with dimension site.
void write_infoplane(ResultFile& file, const InfoPlaneResults& results,
                     const InfoPlaneOptions& options);

}  // namespace lamina
