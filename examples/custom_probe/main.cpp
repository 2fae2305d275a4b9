// custom_probe MODEL RESULTS.h5 [ID …]   runs the model over one prompt of token ids
// custom_probe RUN.h5 RESULTS.h5         reads a recording

#include <lamina/core/error.h>
#include <lamina/core/model.h>

#include <cstdio>
#include <cstdlib>

#include "residual_norm.h"

namespace {

ResidualNorm over_recording(const std::filesystem::path& path) {
  const lamina::Recording recording = lamina::Recording::open(path);
  ResidualNorm probe(recording.header().config);
  lamina::Probe* probes[] = {&probe};
  lamina::run_probes(probes, recording);
  return probe;
}

ResidualNorm over_model(const std::filesystem::path& path, int count, char** ids) {
  const lamina::Model model = lamina::Model::load(path);
  lamina::Forward forward(model);
  lamina::Prompt prompt;
  prompt.id = "0";
  for (int i = 0; i < count; ++i) prompt.ids.push_back(std::atoi(ids[i]));
  if (prompt.ids.empty()) prompt.ids = {0, 1, 2};
  prompt.given = static_cast<std::int64_t>(prompt.ids.size());
  ResidualNorm probe(model.config());
  lamina::Probe* probes[] = {&probe};
  lamina::run_probes(probes, forward, {&prompt, 1});
  return probe;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: custom_probe MODEL RESULTS.h5 [ID ...] | RUN.h5 RESULTS.h5\n");
    return 2;
  }
  try {
    const std::filesystem::path path = argv[1];
    const ResidualNorm probe =
        path.extension() == ".h5" ? over_recording(path) : over_model(path, argc - 3, argv + 3);
    const std::vector<double> means = probe.means();
    for (std::size_t l = 0; l < means.size(); ++l) std::printf("layer %zu\t%.6g\n", l, means[l]);
    lamina::ResultFile file(argv[2], {{"tool_version", "custom_probe"}});
    file.group(probe.name());
    probe.write(file);
    file.close();
    return 0;
  } catch (const lamina::Error& e) {
    std::fprintf(stderr, "custom_probe: %s\n", e.what());
    return 1;
  }
}
