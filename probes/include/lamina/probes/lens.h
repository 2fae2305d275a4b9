#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lamina/core/tokenizer.h"
#include "lamina/probes/probe.h"
#include "lamina/probes/readout.h"

namespace lamina {

/// Which tokens of a prompt a lens reads.
enum class LensPositions : std::uint8_t {
  last,  ///< the last given token: the one whose logits predict the prompt's target
  all,   ///< every token, generated ones included
  list,  ///< LensOptions::position_list
};

/// Affine maps that a tuned lens puts before the final norm: h ← h + A·h + b, one per site.
/// Source: Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens".
struct LensTranslators {
  struct Map {
    Site site;
    std::vector<float> weight;  // A [d_model, d_model], row-major: (A·h)_i = Σ_j A_ij h_j
    std::vector<float> bias;    // b [d_model]
  };
  std::int64_t d_model = 0;
  std::vector<Map> maps;
  /// The map of a site, or nullptr: the site is read as it is.
  const Map* find(Site site) const;
};

/// Reads translators: a safetensors file with fp32, fp16 or bf16 tensors `<site name>.weight`
/// [d_model, d_model] and `<site name>.bias` [d_model]. Error for a missing partner, other names
/// and other shapes.
LensTranslators read_translators(const std::filesystem::path& path, const ModelConfig& config);
/// `metadata` says how they were made; it does not matter for reading.
void write_translators(const std::filesystem::path& path, const LensTranslators& translators,
                       const std::map<std::string, std::string>& metadata = {});

struct LensOptions {
  std::vector<Site> sites;  // residual-width sites, any order; empty = default_lens_sites()
  LensPositions positions = LensPositions::last;
  std::vector<std::int64_t> position_list;  // token indices within each prompt; −1 = its last token
  std::int64_t top_k = 10;
  std::int64_t overlap_k = 5;                            // [ours] 5, as in METHODS' top-5 overlap
  std::uint64_t logit_bytes = std::uint64_t{256} << 20;  // bound of the logits held at a time
  std::shared_ptr<const LensTranslators> translators;    // nullptr: plain logit lens
};

/// The stream entering the first block, then leaving every block.
std::vector<Site> default_lens_sites(const ModelConfig& config);

/// "embed" for the stream entering block 0, "3" for the one leaving block 3, "3.resid_mid",
/// "3.attn_out" … for the others.
std::string lens_label(Site site);

/// Parses "last", "all" or a list like "0,5,-1" into options; UsageError otherwise.
void parse_positions(std::string_view text, LensOptions& options);

/// What a lens found. T tokens read, S sites, k = min(top_k, d_vocab). Arrays row-major.
struct LensResults {
  std::vector<Site> sites;  // [S] in firing order; the last is the model's own output
  std::int64_t k = 0;

  std::vector<std::string> prompt_ids;  // [prompts observed]

  std::vector<std::int32_t> prompt;      // [T] index into prompt_ids
  std::vector<std::int32_t> position;    // [T] token index within the prompt
  std::vector<std::int32_t> token_id;    // [T] the token read
  std::vector<std::int32_t> target;      // [T] −1 = none
  std::vector<std::int32_t> exit_layer;  // [T] −1 = the embedding already says it

  std::vector<std::int32_t> topk_ids;     // [T, S, k] by falling logit, ties by smaller id
  std::vector<float> topk_logprobs;       // [T, S, k] nats
  std::vector<std::int32_t> target_rank;  // [T, S] 1 = first; −1 without a target
  std::vector<float> target_logprob;      // [T, S] nats; NaN without a target
  std::vector<float> entropy;             // [T, S] bits
  std::vector<float> kl_to_final;         // [T, S] KL(p_l ‖ p_final), nats
  std::vector<float> kl_from_final;       // [T, S] KL(p_final ‖ p_l), nats
  std::vector<float> overlap;             // [T, S] |top_l ∩ top_final| / overlap_k

  std::int64_t tokens() const { return static_cast<std::int64_t>(position.size()); }
  std::int64_t site_count() const { return static_cast<std::int64_t>(sites.size()); }
};

/// Means over tokens, per site. [S] each.
struct LensAverages {
  std::int64_t tokens = 0, targets = 0;  // tokens read; those with a target
  std::vector<double> agreement;         // share whose argmax is the final argmax
  std::vector<double> accuracy;          // share of targets that are the argmax; NaN without
  std::vector<double> target_logprob;    // NaN without targets
  std::vector<double> entropy, kl_to_final, kl_from_final, overlap;
};
LensAverages average(const LensResults& results);

/// Logit lens, and tuned lens with translators: p_l = softmax(U·norm_final(h)) at residual sites.
/// Final soft-cap and embedding scale are part of the model, not of the lens.
class LogitLens : public Probe {
 public:
  /// `readout` must outlive the probe. `tokenizer` (may be nullptr) adds the tokens' text to the
  /// results.
  LogitLens(const ModelConfig& config, const Readout& readout, LensOptions options = {},
            const Tokenizer* tokenizer = nullptr);
  ~LogitLens() override;

  std::string name() const override;
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  void write(ResultFile& file) const override;

  const LensResults& results() const { return results_; }
  const LensOptions& options() const { return options_; }

 private:
  void read_tokens(const ActivationBlock& block, std::int64_t first, std::int64_t count,
                   std::span<const std::int64_t> rows);

  ModelConfig config_;
  const Readout* readout_;
  LensOptions options_;
  const Tokenizer* tokenizer_;
  LensResults results_;
};

/// A token's text for people: bytes that are no UTF-8 become <0xNN>, line breaks ⏎.
std::string printable_piece(const Tokenizer& tokenizer, std::int32_t id);

}  // namespace lamina
