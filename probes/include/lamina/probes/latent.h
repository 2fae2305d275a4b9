#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lamina/core/tokenizer.h"
#include "lamina/probes/probe.h"
#include "lamina/probes/readout.h"
#include "lamina/probes/word_list.h"

namespace lamina {

// Which language a model thinks in: Wendler et al., "Do Llamas Work in English?", and its code.

enum class LatentKind : std::uint8_t { translation, repetition, cloze };
/// Which words get the byte token of their first UTF-8 byte. nonascii: those whose first character
/// is not ASCII. authors: those of languages zh and ru, as in the released code. none: nobody.
enum class ByteTokens : std::uint8_t { nonascii, authors, none };

struct LatentTaskOptions {
  LatentKind kind = LatentKind::translation;
  std::string from = "fr";             // language prompted with (translation)
  std::string to = "zh";               // language asked for
  std::string pivot = "en";            // the language that the drop rules compare with
  std::vector<std::string> languages;  // scored side by side; empty: to, pivot, from
  std::int64_t shots = -1;             // −1: 4, for cloze 2
  std::uint64_t seed = 0;              // which words are the shots
  ByteTokens byte_tokens = ByteTokens::nonascii;
  bool all_forms = false;  // [ours] count every form of a word, not only the first
  /// [ours] A blank on both sides of punctuation, for tokenizers that split at blanks only.
  bool spaced = false;
  bool distinct = false;  // [ours] also drop items where any two scored languages share a token
};

/// The vocabulary entries that begin `word`: every character prefix, with and without a leading
/// space; with `byte_token` also the byte entry of its first byte. Ascending, without repeats.
std::vector<std::int32_t> word_tokens(const Tokenizer& tokenizer, std::string_view word,
                                      bool byte_token);

struct LatentItem {
  Prompt prompt;                                  // id: the word's id
  std::vector<std::string> words;                 // [language]
  std::vector<std::vector<std::int32_t>> tokens;  // [language]: word_tokens
};

struct LatentTask {
  LatentTaskOptions options;           // with defaults filled in
  std::vector<std::string> languages;  // codes, in the order of scores
  std::vector<LatentItem> items;
  std::map<std::string, std::int64_t> dropped;  // reason → how many words

  std::vector<Prompt> prompts() const;
};

/// Prompts and token sets. Words that lack a language, break a drop rule or have no tokens are
/// dropped and counted; an empty task is an Error that says why everything was dropped.
LatentTask make_latent_task(const WordList& words, const Tokenizer& tokenizer,
                            const LatentTaskOptions& options);

struct LatentOptions {
  std::vector<Site> sites;  // empty = default_lens_sites()
  bool energy = true;       // token energy: needs the Gram matrix of the unembedding
  std::uint64_t logit_bytes = std::uint64_t{256} << 20;
};

/// [I items, S sites, G languages], row-major.
struct LatentResults {
  std::vector<Site> sites;                      // [S]
  std::vector<std::string> item_ids;            // [I]
  std::vector<std::vector<std::string>> words;  // [I][G]
  std::vector<float> probability;               // [I, S, G] Σ p over the word's tokens
  std::vector<float> entropy;                   // [I, S] bits
  std::vector<float> energy;                    // [I, S] token energy; NaN if not asked for
  std::vector<std::int32_t> winner;             // [I, S] language with the largest probability
  std::int64_t unknown_prompts = 0;             // prompts of the run that are no item of the task

  std::int64_t items() const { return static_cast<std::int64_t>(item_ids.size()); }
};

/// Mean over items and half the width of its interval, 1.96·sd/√n with the n−1 standard deviation;
/// NaN with fewer than two items.
struct Curve {
  std::vector<double> mean, half_width;
};
/// Curves of values [items, columns].
Curve curve(std::span<const float> values, std::int64_t columns);

/// The Gram matrix ÛᵀÛ [d_model, d_model] of the unit-length unembedding rows U_i∘γ, and
/// ‖ÛᵀÛ‖_F²/V². Rows of zero length stay zero.
struct EnergyBasis {
  std::int64_t d_model = 0, d_vocab = 0;
  std::vector<double> gram;
  double norm = 0;  // sqrt(‖ÛᵀÛ‖_F² / V²)

  explicit EnergyBasis(const Readout& readout);
  /// E(h) = sqrt(mean over the vocabulary of (û·ĥ)²) / norm.
  double energy(std::span<const float> h) const;
};

/// P_lang per layer at the last given token of every item's prompt.
class LatentLanguage : public Probe {
 public:
  /// `readout` must outlive the probe.
  LatentLanguage(const ModelConfig& config, const Readout& readout,
                 std::shared_ptr<const LatentTask> task, LatentOptions options = {});
  ~LatentLanguage() override;

  std::string name() const override;
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  /// Prompts are matched with items by id; their token ids must agree.
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  void write(ResultFile& file) const override;

  const LatentResults& results() const { return results_; }
  const LatentTask& task() const { return *task_; }

 private:
  ModelConfig config_;
  const Readout* readout_;
  std::shared_ptr<const LatentTask> task_;
  LatentOptions options_;
  std::shared_ptr<const EnergyBasis> basis_;
  std::map<std::string, std::int64_t, std::less<>> index_;  // prompt id → item
  LatentResults results_;
};

/// [ours] Teacher-forced probability of whole words: P(word) = Π_i p_l(token_i | prompt,
/// tokens_<i). The seed paper's rule for words of several tokens is not published; this is reported
/// beside the prefix-set value, never instead of it.
///
/// The prompts of this probe are the items' prompts continued by the word, one per item and
/// language: word_prompts(). Ids "ITEM/LANGUAGE"; `given` is the length of the item's prompt.
std::vector<Prompt> word_prompts(const LatentTask& task, const Tokenizer& tokenizer);

class WordProbability : public Probe {
 public:
  WordProbability(const ModelConfig& config, const Readout& readout,
                  std::shared_ptr<const LatentTask> task, LatentOptions options = {});
  ~WordProbability() override;

  std::string name() const override;
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  void write(ResultFile& file) const override;

  /// log P(word) in nats, [I, S, G]; NaN where no prompt was observed.
  const std::vector<float>& logprob() const { return logprob_; }
  /// Tokens of each word in its context, [I, G]; 0 where no prompt was observed.
  const std::vector<std::int32_t>& lengths() const { return lengths_; }

 private:
  ModelConfig config_;
  const Readout* readout_;
  std::shared_ptr<const LatentTask> task_;
  LatentOptions options_;
  std::vector<Site> sites_;
  std::map<std::string, std::int64_t, std::less<>> index_;  // prompt id → item·G + language
  std::vector<float> logprob_;
  std::vector<std::int32_t> lengths_;
};

}  // namespace lamina
