#pragma once

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "globals.h"
#include "lamina/core/result_file.h"
#include "lamina/core/site.h"
#include "lamina/core/tokenizer.h"
#include "lamina/patching/pairs.h"

// What `patch` prints and writes, whatever was patched and however it was scored.
namespace lamina::cli {

/// One dimension along which a site was split.
struct PatchDim {
  std::string name;                  // "layer", "position", "head" …
  std::vector<std::int64_t> values;  // what the file says
  std::vector<std::string> labels;   // what the table says; empty: the values
};

/// Consecutive nodes in row-major order of their dimensions.
struct PatchGrid {
  std::string label;  // "z", "resid_pre" …
  std::vector<PatchDim> dims;
  std::size_t first = 0;  // its first node
  std::size_t count() const {
    std::size_t n = 1;
    for (const PatchDim& dim : dims) n *= dim.values.size();
    return n;
  }
};

struct PatchReport {
  std::string title;  // "denoising: corrupted prompts run, clean values put in"
  std::string score;  // what a score is, one sentence
  std::vector<std::pair<std::string, std::string>> settings;  // name, value; also printed
  std::vector<std::string> pair_ids;
  std::string base_name, other_name;  // "corrupted", "clean"; other_name empty: none
  std::vector<double> base, other;    // metric of the unpatched runs, [pair]
  std::vector<PatchGrid> grids;
  std::vector<double> patched;  // metric, [node, pair]; NaN where there is no such node
  std::vector<double> effect;   // mean of patched − base over the pairs, [node]
  std::vector<double> scores;   // [node]
  std::int64_t runs = 0, skipped = 0;
  double seconds = 0.0;

  /// Fills effect and scores: effect over the mean of other − base (of the same pairs) or, without
  /// an other run, over the mean of base.
  void summarise();
};

/// "z" of blocks.3.attn.hook_z, "mlp_pre" of blocks.0.mlp.hook_pre …
std::string site_label(SiteKind kind);

/// Labels of positions 0 … n − 1 of prompts of one length: the token where all pairs agree, "*"
/// where they do not. `from_end`: positions are −n … −1.
std::vector<std::string> position_labels(std::span<const Pair> pairs, const Tokenizer* tokenizer,
                                         std::int64_t n);

/// Tables for people: the runs, a map of the scores where it fits, the `show` largest nodes.
std::string patch_text(const PatchReport& report, std::int64_t show);
nlohmann::ordered_json patch_json(const PatchReport& report, std::int64_t show);
void write_patch(const PatchReport& report, ResultFile& file);

}  // namespace lamina::cli
