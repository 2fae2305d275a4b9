#include "lamina/probes/latent.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "lamina/core/error.h"
#include "lens/decode.h"
#include "lens/row_stats.h"

namespace lamina {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<Site> chosen_sites(const std::vector<Site>& asked, const ModelConfig& config) {
  std::vector<Site> sites = asked.empty() ? default_lens_sites(config) : asked;
  check_lens_sites(sites, config);
  std::sort(sites.begin(), sites.end(),
            [](Site a, Site b) { return std::pair(a.layer, a.kind) < std::pair(b.layer, b.kind); });
  sites.erase(std::unique(sites.begin(), sites.end()), sites.end());
  return sites;
}

void check_readout(const ModelConfig& config, const Readout& readout) {
  if (readout.d_model() == config.d_model && readout.d_vocab() == config.d_vocab) return;
  fail("latent: the activations are {} wide with {} tokens, the model that decodes them {} with {}",
       config.d_model, config.d_vocab, readout.d_model(), readout.d_vocab());
}

// Decodes `rows` of every site, few at a time, and calls use(row index, site index, logits) in
// parallel; `use` returns false for logits that are not finite.
template <class Use>
void for_logits(const ActivationBlock& block, std::span<const Site> sites,
                std::span<const std::int64_t> rows, const Readout& readout,
                std::uint64_t logit_bytes, Use&& use) {
  const std::int64_t v = readout.d_vocab();
  const auto count = static_cast<std::int64_t>(rows.size());
  const std::int64_t step = std::max<std::int64_t>(
      1, static_cast<std::int64_t>(logit_bytes) / (v * static_cast<std::int64_t>(sizeof(float))));
  RowDecoder decoder(readout, nullptr);
  std::vector<float> logits;
  // Site by site would be few rows at a time where a block has few items: rows of several sites
  // share one product. Cell c is row c % count at site c / count.
  const std::int64_t cells = count * static_cast<std::int64_t>(sites.size());
  for (std::int64_t begin = 0; begin < cells; begin += step) {
    const std::int64_t end = std::min(cells, begin + step);
    for (std::int64_t c = begin; c < end;) {
      const std::int64_t n = std::min(end - c, count - c % count);
      decoder.gather(block, sites[c / count], rows.subspan(c % count, n));
      c += n;
    }
    decoder.decode(logits);
    std::vector<std::uint8_t> valid(static_cast<std::size_t>(end - begin));
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t c = begin; c < end; ++c) {
      valid[c - begin] =
          use(c % count, c / count, std::span<const float>(logits).subspan((c - begin) * v, v));
    }
    for (std::int64_t c = begin; c < end; ++c) {
      if (valid[c - begin]) continue;
      fail("token row {} of the run's block at prompt {}: the logits at {} are not finite",
           rows[c % count], block.first_prompt, site_name(sites[c / count]));
    }
  }
}

void check_ids(std::span<const std::vector<std::int32_t>> sets, std::int64_t d_vocab,
               const std::string& item) {
  for (const auto& set : sets) {
    for (std::int32_t id : set) {
      if (id >= 0 && id < d_vocab) continue;
      fail("latent: item \"{}\" scores token {}, the model has {} tokens", item, id, d_vocab);
    }
  }
}

std::string_view kind_name(LatentKind kind) {
  switch (kind) {
    case LatentKind::translation:
      return "translation";
    case LatentKind::repetition:
      return "repetition";
    case LatentKind::cloze:
      break;
  }
  return "cloze";
}

std::string_view byte_tokens_name(ByteTokens rule) {
  switch (rule) {
    case ByteTokens::nonascii:
      return "nonascii";
    case ByteTokens::authors:
      return "authors";
    case ByteTokens::none:
      break;
  }
  return "none";
}

void write_task(ResultFile& file, const LatentTask& task) {
  const LatentTaskOptions& o = task.options;
  file.setting("kind", std::string(kind_name(o.kind)));
  file.setting("from", o.kind == LatentKind::cloze ? std::string() : o.from);
  file.setting("to", o.to);
  file.setting("pivot", o.pivot);
  file.setting("shots", o.shots);
  file.setting("seed", std::to_string(o.seed));
  file.setting("byte_tokens", std::string(byte_tokens_name(o.byte_tokens)));
  file.setting("forms", std::string(o.all_forms ? "all" : "first"));
  file.setting("spaced", std::string(o.spaced ? "yes" : "no"));
  file.setting("distinct", std::string(o.distinct ? "all languages" : "target and pivot"));
  file.axis("language", task.languages);
}

void write_layers(ResultFile& file, std::span<const Site> sites) {
  std::vector<std::string> labels, names;
  for (Site site : sites) {
    labels.push_back(lens_label(site));
    names.push_back(site_name(site));
  }
  file.axis("layer", labels);
  file.dataset("site", std::vector<std::string>{"layer"}, names,
               "the site that each layer entry reads", "");
}

void write_curve(ResultFile& file, const std::string& name, const std::vector<std::string>& dims,
                 std::span<const float> values, std::int64_t columns, const std::string& units) {
  const Curve c = curve(values, columns);
  file.dataset("mean_" + name, dims, c.mean, "mean over items", units);
  file.dataset("half_width_" + name, dims, c.half_width,
               "1.96 sd / sqrt(n), n-1 in the standard deviation", units);
}

}  // namespace

Curve curve(std::span<const float> values, std::int64_t columns) {
  Curve c;
  c.mean.assign(static_cast<std::size_t>(columns), 0.0);
  c.half_width.assign(static_cast<std::size_t>(columns), 0.0);
  const auto items = static_cast<std::int64_t>(values.size()) / columns;
  const auto n = static_cast<double>(items);
  for (std::int64_t j = 0; j < columns; ++j) {
    double sum = 0, squares = 0;
    for (std::int64_t i = 0; i < items; ++i) sum += values[i * columns + j];
    const double mean = sum / n;
    for (std::int64_t i = 0; i < items; ++i) {
      const double d = values[i * columns + j] - mean;
      squares += d * d;
    }
    c.mean[j] = mean;
    c.half_width[j] = 1.96 * std::sqrt(squares / (n - 1)) / std::sqrt(n);
  }
  return c;
}

LatentLanguage::LatentLanguage(const ModelConfig& config, const Readout& readout,
                               std::shared_ptr<const LatentTask> task, LatentOptions options)
    : config_(config), readout_(&readout), task_(std::move(task)), options_(std::move(options)) {
  check_readout(config_, readout);
  results_.sites = chosen_sites(options_.sites, config_);
  for (std::size_t i = 0; i < task_->items.size(); ++i) {
    const LatentItem& item = task_->items[i];
    check_ids(item.tokens, config_.d_vocab, item.prompt.id);
    if (!index_.emplace(item.prompt.id, static_cast<std::int64_t>(i)).second) {
      fail("latent: two items are called \"{}\"", item.prompt.id);
    }
  }
  if (options_.energy) basis_ = std::make_shared<const EnergyBasis>(readout);
}

LatentLanguage::~LatentLanguage() = default;

std::string LatentLanguage::name() const {
  return "latent";
}

std::vector<Site> LatentLanguage::sites(const ModelConfig&) const {
  return results_.sites;
}

std::unique_ptr<Probe> LatentLanguage::fresh() const {
  auto copy = std::make_unique<LatentLanguage>(*this);
  copy->results_ = LatentResults{};
  copy->results_.sites = results_.sites;
  return copy;
}

void LatentLanguage::observe(const ActivationBlock& block) {
  LatentResults& r = results_;
  const auto sites = static_cast<std::int64_t>(r.sites.size());
  const auto languages = static_cast<std::int64_t>(task_->languages.size());
  const std::int64_t first = r.items();
  std::vector<std::int64_t> rows;
  std::vector<const LatentItem*> items;
  for (std::size_t i = 0; i < block.prompts.size(); ++i) {
    const Prompt& prompt = block.prompts[i];
    const auto at = index_.find(prompt.id);
    if (at == index_.end()) {
      ++r.unknown_prompts;
      continue;
    }
    const LatentItem& item = task_->items[at->second];
    const std::vector<std::int32_t>& ids = item.prompt.ids;
    if (prompt.ids.size() < ids.size() || !std::equal(ids.begin(), ids.end(), prompt.ids.begin())) {
      fail(
          "prompt \"{}\" is not the task's prompt of that name: other words, shots, seed or "
          "tokenizer",
          prompt.id);
    }
    rows.push_back(block.batch.offsets[i] + static_cast<std::int64_t>(ids.size()) - 1);
    items.push_back(&item);
    r.item_ids.push_back(prompt.id);
    r.words.push_back(item.words);
  }
  const auto cells = static_cast<std::size_t>(r.items() * sites);
  r.probability.resize(cells * static_cast<std::size_t>(languages));
  r.entropy.resize(cells);
  r.energy.resize(cells, kNaN);
  r.winner.resize(cells);
  for_logits(block, r.sites, rows, *readout_, options_.logit_bytes,
             [&](std::int64_t row, std::int64_t site, std::span<const float> logits) {
               const std::int64_t cell = (first + row) * sites + site;
               const rows::Softmax p = rows::softmax(logits);
               r.entropy[cell] = static_cast<float>(p.entropy_bits());
               std::int64_t best = 0;
               for (std::int64_t g = 0; g < languages; ++g) {
                 double sum = 0;
                 for (std::int32_t id : items[row]->tokens[g]) {
                   sum += rows::exp_nonpositive(p.logprob(logits[id]));
                 }
                 r.probability[cell * languages + g] = static_cast<float>(sum);
                 if (r.probability[cell * languages + g] > r.probability[cell * languages + best]) {
                   best = g;
                 }
               }
               r.winner[cell] = static_cast<std::int32_t>(best);
               return p.valid();
             });
  if (!basis_) return;
  const auto count = static_cast<std::int64_t>(rows.size());
  std::vector<std::span<const float>> values;
  for (Site site : r.sites) values.push_back(block.at(site).values);
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t c = 0; c < count * sites; ++c) {
    r.energy[first * sites + c] = static_cast<float>(basis_->energy(
        values[c % sites].subspan(rows[c / sites] * config_.d_model, config_.d_model)));
  }
}

void LatentLanguage::merge(Probe& other) {
  LatentResults& from = dynamic_cast<LatentLanguage&>(other).results_;
  LatentResults& r = results_;
  if (r.sites != from.sites) fail("latent: results of different settings");
  const auto append = [](auto& to, auto& more) {
    to.insert(to.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
  };
  append(r.item_ids, from.item_ids);
  append(r.words, from.words);
  append(r.probability, from.probability);
  append(r.entropy, from.entropy);
  append(r.energy, from.energy);
  append(r.winner, from.winner);
  r.unknown_prompts += from.unknown_prompts;
  LatentResults empty;
  empty.sites = from.sites;
  from = std::move(empty);
}

void LatentLanguage::write(ResultFile& file) const {
  using Names = std::vector<std::string>;
  const LatentResults& r = results_;
  if (r.items() == 0) fail("latent: none of the run's prompts belongs to this task");
  const auto sites = static_cast<std::int64_t>(r.sites.size());
  const auto languages = static_cast<std::int64_t>(task_->languages.size());
  write_task(file, *task_);
  file.setting("items", r.items());
  file.setting("items_not_observed", static_cast<std::int64_t>(task_->items.size()) - r.items());
  file.setting("prompts_not_in_task", r.unknown_prompts);
  file.axis("item", r.item_ids);
  write_layers(file, r.sites);

  Names words, reasons;
  for (const auto& item : r.words) words.insert(words.end(), item.begin(), item.end());
  std::vector<std::int32_t> dropped;
  for (const auto& [reason, count] : task_->dropped) {
    reasons.push_back(reason);
    dropped.push_back(static_cast<std::int32_t>(count));
  }
  file.dataset("word", Names{"item", "language"}, words, "the word scored", "");
  if (!reasons.empty()) {
    file.axis("drop_reason", reasons);
    file.dataset("dropped", Names{"drop_reason"}, dropped, "words left out for this reason", "");
  }
  file.dataset("probability", Names{"item", "layer", "language"}, r.probability,
               "probability of the vocabulary entries that begin the word in this language", "");
  file.dataset("winner", Names{"item", "layer"}, r.winner,
               "index of the language with the largest probability; ties: the first", "");
  file.dataset("entropy", Names{"item", "layer"}, r.entropy, "entropy of the decoded distribution",
               "bits");
  std::vector<double> share(static_cast<std::size_t>(sites * languages), 0.0);
  for (std::int64_t c = 0; c < r.items() * sites; ++c) {
    share[c % sites * languages + r.winner[c]] += 1.0 / static_cast<double>(r.items());
  }
  const Names curves{"layer", "language"}, layer{"layer"};
  file.dataset("win_share", curves, share, "share of items that this language wins", "");
  write_curve(file, "probability", curves, r.probability, sites * languages, "");
  write_curve(file, "entropy", layer, r.entropy, sites, "bits");
  if (!basis_) return;
  file.setting("energy_norm", basis_->norm);
  file.dataset("energy", Names{"item", "layer"}, r.energy,
               "token energy of the residual: 1 = as much as the vocabulary has with itself", "");
  write_curve(file, "energy", layer, r.energy, sites, "");
}

WordProbability::WordProbability(const ModelConfig& config, const Readout& readout,
                                 std::shared_ptr<const LatentTask> task, LatentOptions options)
    : config_(config), readout_(&readout), task_(std::move(task)), options_(std::move(options)) {
  check_readout(config_, readout);
  sites_ = chosen_sites(options_.sites, config_);
  const std::size_t languages = task_->languages.size();
  for (std::size_t i = 0; i < task_->items.size(); ++i) {
    for (std::size_t g = 0; g < languages; ++g) {
      index_.emplace(task_->items[i].prompt.id + "/" + task_->languages[g],
                     static_cast<std::int64_t>(i * languages + g));
    }
  }
  logprob_.assign(task_->items.size() * sites_.size() * languages, kNaN);
  lengths_.assign(task_->items.size() * languages, 0);
}

WordProbability::~WordProbability() = default;

std::string WordProbability::name() const {
  return "latent_words";
}

std::vector<Site> WordProbability::sites(const ModelConfig&) const {
  return sites_;
}

std::unique_ptr<Probe> WordProbability::fresh() const {
  return std::make_unique<WordProbability>(config_, *readout_, task_, options_);
}

void WordProbability::observe(const ActivationBlock& block) {
  const auto sites = static_cast<std::int64_t>(sites_.size());
  const auto languages = static_cast<std::int64_t>(task_->languages.size());
  std::vector<std::int64_t> rows, owners;  // owner: item·G + language
  std::vector<std::int32_t> next;
  for (std::size_t i = 0; i < block.prompts.size(); ++i) {
    const Prompt& prompt = block.prompts[i];
    const auto at = index_.find(prompt.id);
    if (at == index_.end()) continue;
    const LatentItem& item = task_->items[at->second / languages];
    const auto given = static_cast<std::int64_t>(item.prompt.ids.size());
    const auto length = static_cast<std::int64_t>(prompt.ids.size());
    if (length <= given ||
        !std::equal(item.prompt.ids.begin(), item.prompt.ids.end(), prompt.ids.begin())) {
      fail("prompt \"{}\" does not continue the task's prompt \"{}\"", prompt.id, item.prompt.id);
    }
    lengths_[at->second] = static_cast<std::int32_t>(length - given);
    for (std::int64_t t = given; t < length; ++t) {
      rows.push_back(block.batch.offsets[i] + t - 1);
      owners.push_back(at->second);
      next.push_back(prompt.ids[t]);
    }
  }
  const auto count = static_cast<std::int64_t>(rows.size());
  std::vector<double> logprob(static_cast<std::size_t>(count * sites));
  for_logits(block, sites_, rows, *readout_, options_.logit_bytes,
             [&](std::int64_t row, std::int64_t site, std::span<const float> logits) {
               const rows::Softmax p = rows::softmax(logits);
               logprob[row * sites + site] = p.logprob(logits[next[row]]);
               return p.valid();
             });
  for (std::int64_t site = 0; site < sites; ++site) {
    for (std::int64_t row = 0; row < count;) {
      const std::int64_t owner = owners[row];
      double sum = 0;  // a word's tokens are neighbours
      for (; row < count && owners[row] == owner; ++row) sum += logprob[row * sites + site];
      const std::int64_t item = owner / languages, language = owner % languages;
      logprob_[(item * sites + site) * languages + language] = static_cast<float>(sum);
    }
  }
}

void WordProbability::merge(Probe& other) {
  auto& from = dynamic_cast<WordProbability&>(other);
  if (from.sites_ != sites_ || from.logprob_.size() != logprob_.size()) {
    fail("latent_words: results of different settings");
  }
  for (std::size_t i = 0; i < logprob_.size(); ++i) {
    if (std::isnan(logprob_[i])) logprob_[i] = from.logprob_[i];
  }
  for (std::size_t i = 0; i < lengths_.size(); ++i)
    lengths_[i] = std::max(lengths_[i], from.lengths_[i]);
  from.logprob_.assign(from.logprob_.size(), kNaN);
  from.lengths_.assign(from.lengths_.size(), 0);
}

void WordProbability::write(ResultFile& file) const {
  using Names = std::vector<std::string>;
  if (std::all_of(lengths_.begin(), lengths_.end(), [](std::int32_t n) { return n == 0; })) {
    fail("latent_words: none of the run's prompts continues an item of this task");
  }
  write_task(file, *task_);
  file.setting("rule", std::string("product over the word's tokens, teacher-forced; ours, not the "
                                   "paper's"));
  Names items, words;
  for (const LatentItem& item : task_->items) {
    items.push_back(item.prompt.id);
    words.insert(words.end(), item.words.begin(), item.words.end());
  }
  file.axis("item", items);
  write_layers(file, sites_);
  file.dataset("word", Names{"item", "language"}, words, "the word scored", "");
  file.dataset("tokens", Names{"item", "language"}, lengths_,
               "tokens of the word in its prompt; 0 = not observed", "");
  file.dataset("logprob", Names{"item", "layer", "language"}, logprob_,
               "log-probability of the whole word; NaN = not observed", "nats");
  std::vector<float> probability(logprob_.size());
  for (std::size_t i = 0; i < probability.size(); ++i) probability[i] = std::exp(logprob_[i]);
  write_curve(file, "probability", Names{"layer", "language"}, probability,
              static_cast<std::int64_t>(sites_.size() * task_->languages.size()), "");
}

}  // namespace lamina
