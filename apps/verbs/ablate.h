#pragma once

#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "inputs.h"
#include "lamina/core/forward.h"
#include "lamina/core/model.h"
#include "lamina/core/result_file.h"
#include "lamina/patching/layer_path.h"
#include "lamina/patching/metric.h"
#include "lamina/patching/pairs.h"
#include "lamina/patching/path_judge.h"
#include "pair_inputs.h"

// The parts of `lamina ablate`: one function per method, each in a file of its own.
namespace lamina::cli {

struct AblateArgs {
  std::string model;
  PromptInputs prompts;
  PairInputs pairs;
  std::string method;
  std::string positions = "all", distance = "angular";
  std::int64_t remove = -1;
  double max_distance = -1;
  std::string removed;
  bool two_sided = false;
  std::vector<std::string> paths;
  std::int64_t simulations = 200, edits = 4, block = 2, repeats = 1;
  double cost = 0.02, explore = 0.5;
  bool sublayers = false;
  std::int64_t show = 10;
  std::string memory = "1G";
  OutputOptions output;
  bool json = false;
};

/// A model, what it is judged by, and where results go.
class Ablation {
 public:
  /// Loads everything; errors for what does not go together.
  Ablation(const AblateArgs& args, const Globals& globals);

  const AblateArgs& args() const { return args_; }
  const Globals& globals() const { return globals_; }
  const Model& model() const { return model_; }
  const ModelConfig& config() const { return model_.config(); }
  Forward& forward() { return forward_; }
  const PathPrompts& prompts() const { return prompts_; }
  const Metric* metric() const { return metric_ ? &*metric_ : nullptr; }
  std::uint64_t memory() const { return memory_; }
  bool last_only() const { return args_.positions == "last"; }
  PathJudge judge();

  /// A result file in the making, its group begun and the settings that all methods share written.
  std::unique_ptr<ResultFile> begin_file(const std::string& group) const;

 private:
  const AblateArgs& args_;
  const Globals& globals_;
  Model model_;
  Forward forward_;
  std::uint64_t memory_;
  std::vector<Pair> pairs_;
  PathPrompts prompts_;
  std::optional<Metric> metric_;
};

// Each gives what is printed: a table, or JSON.
std::string ablate_finercut(Ablation& run);
std::string ablate_importance(Ablation& run);
std::string ablate_paths(Ablation& run);
std::string ablate_search(Ablation& run);

/// The columns of a quality that are worth printing: those that are measured.
struct QualityColumns {
  explicit QualityColumns(const Ablation& run, const PathQuality& whole);
  std::vector<std::string> headings() const;
  std::vector<std::string> cells(const PathQuality& quality) const;
  nlohmann::ordered_json json(const PathQuality& quality) const;

  std::string distance, metric;  // headings; metric empty without one
  bool nll, accuracy;
};
/// Writes layers, distance, nll, … of some paths along `dimension`.
void write_qualities(ResultFile& file, const std::string& dimension,
                     const std::vector<PathQuality>& qualities, const Ablation& run);

/// "12.5", "30": layers as they are printed.
std::string layers_text(double layers);
/// "97.1%"; empty for NaN.
std::string share_text(double share);
/// Three digits; empty for NaN.
std::string value_text(double value);
/// What paths are judged by, one line.
std::string basis_text(const Ablation& run, std::int64_t rows);

}  // namespace lamina::cli
