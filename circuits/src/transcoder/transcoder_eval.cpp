#include "lamina/circuits/transcoder_eval.h"

#include <algorithm>
#include <cmath>

#include "lamina/core/error.h"

namespace lamina {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

double ratio(double a, double b) {
  return b == 0 ? kNaN : a / b;
}

// Rows of a block that are not among the first `skip` of their prompt.
std::vector<std::int64_t> counted_rows(const Batch& batch, std::int64_t skip) {
  std::vector<std::int64_t> rows;
  for (std::int64_t p = 0; p < batch.prompts(); ++p) {
    for (std::int64_t r = batch.offsets[size(p)] + skip; r < batch.offsets[size(p + 1)]; ++r) {
      rows.push_back(r);
    }
  }
  return rows;
}

// A site's values at these rows, [rows, width].
std::vector<float> gather(const ActivationBlock& block, Site site, std::int64_t width,
                          std::span<const std::int64_t> rows, const std::string& name) {
  const ActivationBlock::Values& from = block.at(site);
  if (from.shape.attention || from.shape.row() != width) {
    fail("{}: it has {} values at {}, the activations have {}", name, width, site_name(site),
         from.shape.attention ? 0 : from.shape.row());
  }
  std::vector<float> out;
  out.reserve(rows.size() * size(width));
  for (std::int64_t r : rows) {
    const auto first = from.values.begin() + r * width;
    out.insert(out.end(), first, first + width);
  }
  return out;
}

void add_row(ReconstructionSums& sums, std::span<const float> y, std::span<const float> rebuilt,
             std::span<const double> mean) {
  double error = 0, variance = 0, squares = 0, rebuilt_squares = 0, dot = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double a = y[i], b = rebuilt[i];
    error += (a - b) * (a - b);
    variance += (a - mean[i]) * (a - mean[i]);
    squares += a * a;
    rebuilt_squares += b * b;
    dot += a * b;
  }
  sums.error += error;
  sums.variance += variance;
  sums.squares += squares;
  if (variance > 0) {
    sums.row_explained += 1 - error / variance;
    ++sums.varying_rows;
  }
  if (squares > 0 && rebuilt_squares > 0) {
    sums.cosine += dot / std::sqrt(squares * rebuilt_squares);
    sums.norm_ratio += std::sqrt(rebuilt_squares / squares);
    ++sums.directed_rows;
  }
}

void add_sums(ReconstructionSums& to, const ReconstructionSums& from) {
  to.tokens += from.tokens;
  to.active += from.active;
  to.error += from.error;
  to.variance += from.variance;
  to.squares += from.squares;
  to.row_explained += from.row_explained;
  to.varying_rows += from.varying_rows;
  to.cosine += from.cosine;
  to.norm_ratio += from.norm_ratio;
  to.directed_rows += from.directed_rows;
}

void check_options(const TranscoderEvalOptions& o) {
  if (o.skip < 0) fail_usage("tokens to skip: expected 0 or more, got {}", o.skip);
  if (!(o.dead >= 0 && o.dead < 1)) {
    fail_usage("frequency of dead features: expected 0 to 1, got {}", o.dead);
  }
  if (!(o.dense > o.dead && o.dense <= 1)) {
    fail_usage(
        "frequency of dense features: expected more than that of dead ones, {}, to 1, got {}",
        o.dead, o.dense);
  }
  if (o.examples < 0 || o.examples > 1000) {
    fail_usage("examples per feature: expected 0 to 1000, got {}", o.examples);
  }
  if (o.context < 0 || o.context > 1000) {
    fail_usage("tokens of context: expected 0 to 1000, got {}", o.context);
  }
}

void add_unique(std::vector<Site>& sites, Site site) {
  if (std::find(sites.begin(), sites.end(), site) == sites.end()) sites.push_back(site);
}

}  // namespace

OutputMeans::OutputMeans(std::vector<TranscoderConfig> dictionaries, std::int64_t skip)
    : dictionaries_(std::move(dictionaries)), skip_(skip) {
  for (const TranscoderConfig& c : dictionaries_) sums_.emplace_back(size(c.d_out));
}

std::vector<Site> OutputMeans::sites(const ModelConfig&) const {
  std::vector<Site> sites;
  for (const TranscoderConfig& c : dictionaries_) add_unique(sites, c.output.site);
  return sites;
}

std::unique_ptr<Probe> OutputMeans::fresh() const {
  return std::make_unique<OutputMeans>(dictionaries_, skip_);
}

void OutputMeans::observe(const ActivationBlock& block) {
  const std::vector<std::int64_t> rows = counted_rows(block.batch, skip_);
  tokens_ += static_cast<std::int64_t>(rows.size());
  for (std::size_t i = 0; i < dictionaries_.size(); ++i) {
    const TranscoderConfig& c = dictionaries_[i];
    const std::vector<float> y = gather(block, c.output.site, c.d_out, rows, c.name);
    for (std::size_t v = 0; v < y.size(); ++v) sums_[i][v % size(c.d_out)] += y[v];
  }
}

void OutputMeans::merge(Probe& other) {
  auto& from = dynamic_cast<OutputMeans&>(other);
  tokens_ += from.tokens_;
  for (std::size_t i = 0; i < sums_.size(); ++i) {
    for (std::size_t v = 0; v < sums_[i].size(); ++v) sums_[i][v] += from.sums_[i][v];
  }
}

void OutputMeans::write(ResultFile&) const {}

std::vector<std::vector<double>> OutputMeans::means() const {
  if (tokens_ == 0) fail("no token to evaluate: every prompt has at most {} tokens", skip_);
  std::vector<std::vector<double>> means = sums_;
  for (auto& mean : means) {
    for (double& v : mean) v /= static_cast<double>(tokens_);
  }
  return means;
}

double ReconstructionSums::l0() const {
  return ratio(static_cast<double>(active), static_cast<double>(tokens));
}
double ReconstructionSums::explained_variance() const {
  return 1 - ratio(error, variance);
}
double ReconstructionSums::explained_variance_rows() const {
  return ratio(row_explained, static_cast<double>(varying_rows));
}
double ReconstructionSums::mse(std::int64_t width) const {
  return ratio(error, static_cast<double>(tokens) * static_cast<double>(width));
}
double ReconstructionSums::normalized_mse() const {
  return ratio(error, squares);
}
double ReconstructionSums::mean_cosine() const {
  return ratio(cosine, static_cast<double>(directed_rows));
}
double ReconstructionSums::mean_norm_ratio() const {
  return ratio(norm_ratio, static_cast<double>(directed_rows));
}

TranscoderEval::TranscoderEval(std::vector<const Transcoder*> dictionaries, const Model* model,
                               const Tokenizer* tokenizer, std::vector<std::vector<double>> means,
                               const TranscoderEvalOptions& options)
    : dictionaries_(std::move(dictionaries)),
      model_(model),
      tokenizer_(tokenizer),
      means_(std::move(means)),
      options_(options),
      sums_(dictionaries_.size()) {
  check_options(options_);
  if (dictionaries_.empty()) fail_usage("no dictionary to evaluate");
  for (std::size_t i = 0; i < dictionaries_.size(); ++i) {
    const TranscoderConfig& c = dictionaries_[i]->config;
    if (means_.at(i).size() != size(c.d_out)) {
      fail("{}: means of {} values, expected {}", c.name, means_[i].size(), c.d_out);
    }
    if (model_ == nullptr && (c.input.norm_weights || c.output.norm_weights)) {
      fail_usage("{}: it reads {}, for which the model is needed", c.name,
                 dictionary_place_name(c.input));
    }
    features_.emplace_back(c.features, options_.examples, options_.store_features);
  }
}
TranscoderEval::~TranscoderEval() = default;

std::vector<Site> TranscoderEval::sites(const ModelConfig&) const {
  std::vector<Site> sites;
  for (const Transcoder* t : dictionaries_) {
    add_unique(sites, t->config.input.site);
    add_unique(sites, t->config.output.site);
  }
  return sites;
}

std::unique_ptr<Probe> TranscoderEval::fresh() const {
  return std::make_unique<TranscoderEval>(dictionaries_, model_, tokenizer_, means_, options_);
}

void TranscoderEval::observe(const ActivationBlock& block) {
  const std::int64_t first = seen_.add(block);
  const std::vector<std::int64_t> rows = counted_rows(block.batch, options_.skip);
  std::vector<std::int64_t> tokens;
  for (std::int64_t r : rows) tokens.push_back(first + r);
  for (std::size_t i = 0; i < dictionaries_.size(); ++i) {
    const Transcoder& t = *dictionaries_[i];
    const TranscoderConfig& c = t.config;
    std::vector<float> x = gather(block, c.input.site, c.d_in, rows, c.name);
    if (c.input.norm_weights) apply_place(*model_, c.input, x);
    const std::vector<float> y =
        c.output == c.input ? x : gather(block, c.output.site, c.d_out, rows, c.name);
    const SparseRows z = t.encode(x);
    std::vector<float> rebuilt(y.size());
    t.decode(z, x, rebuilt);
    ReconstructionSums& sums = sums_[i];
    const std::size_t d = size(c.d_out);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      add_row(sums, std::span(y).subspan(r * d, d), std::span(rebuilt).subspan(r * d, d),
              means_[i]);
    }
    if (!std::isfinite(sums.error)) {
      fail("{}: its reconstruction of {} is not finite", c.name, dictionary_place_name(c.output));
    }
    sums.tokens += static_cast<std::int64_t>(rows.size());
    sums.active += static_cast<std::int64_t>(z.feature.size());
    features_[i].add(z, tokens);
  }
}

void TranscoderEval::merge(Probe& other) {
  auto& from = dynamic_cast<TranscoderEval&>(other);
  const std::int64_t first = seen_.tokens();
  seen_.merge(from.seen_);
  for (std::size_t i = 0; i < sums_.size(); ++i) {
    add_sums(sums_[i], from.sums_[i]);
    features_[i].merge(from.features_[i], first);
  }
}

std::int64_t TranscoderEval::tokens() const {
  return sums_.front().tokens;
}
std::int64_t TranscoderEval::dead(std::size_t dictionary) const {
  return features_.at(dictionary).at_most(options_.dead);
}
std::int64_t TranscoderEval::dense(std::size_t dictionary) const {
  return features_.at(dictionary).above(options_.dense);
}

void TranscoderEval::write(ResultFile& file) const {
  const std::size_t n = dictionaries_.size();
  file.setting("tokens", tokens());
  file.setting("skip", options_.skip);
  file.setting("dead", options_.dead);
  file.setting("dense", options_.dense);
  file.setting("examples", options_.examples);
  file.setting("defaults", std::string("[ours] dead 0, dense 0.1, examples 5"));
  std::vector<std::string> names, reads, rebuilds, activation;
  std::vector<std::int64_t> index, features, dead_count, dense_count;
  for (std::size_t i = 0; i < n; ++i) {
    const TranscoderConfig& c = dictionaries_[i]->config;
    index.push_back(static_cast<std::int64_t>(i));
    names.push_back(c.name);
    reads.push_back(dictionary_place_name(c.input));
    rebuilds.push_back(dictionary_place_name(c.output));
    activation.emplace_back(feature_activation_name(c.activation));
    features.push_back(c.features);
    dead_count.push_back(dead(i));
    dense_count.push_back(dense(i));
  }
  file.axis("dictionary", index);
  const std::vector<std::string> one = {"dictionary"};
  const auto texts = [&](const char* name, const std::vector<std::string>& values,
                         const char* what) {
    file.dataset(name, one, std::span<const std::string>(values), what, "");
  };
  const auto counts = [&](const char* name, const std::vector<std::int64_t>& values,
                          const char* what) {
    file.dataset(name, one, std::span<const std::int64_t>(values), what, "1");
  };
  const auto numbers = [&](const char* name, const char* what, const char* units,
                           const auto& value) {
    std::vector<double> values;
    for (std::size_t i = 0; i < n; ++i) values.push_back(value(i));
    file.dataset(name, one, std::span<const double>(values), what, units);
  };
  texts("name", names, "its name: file or folder");
  texts("reads", reads, "the place it reads");
  texts("rebuilds", rebuilds, "the place it rebuilds");
  texts("activation", activation, "its activation function");
  counts("features", features, "features it has");
  counts("dead", dead_count, "features that fire at a share of tokens of at most `dead`");
  counts("dense", dense_count, "features that fire at a share of tokens above `dense`");
  numbers("l0", "active features per token", "1", [&](std::size_t i) { return sums_[i].l0(); });
  numbers("explained_variance",
          "1 - sum |y - rebuilt|^2 / sum |y - mean|^2, sums over tokens (total)", "1",
          [&](std::size_t i) { return sums_[i].explained_variance(); });
  numbers("explained_variance_per_token", "mean over tokens of 1 - |y - rebuilt|^2 / |y - mean|^2",
          "1", [&](std::size_t i) { return sums_[i].explained_variance_rows(); });
  numbers("mse", "mean over tokens and values of (y - rebuilt)^2", "1",
          [&](std::size_t i) { return sums_[i].mse(dictionaries_[i]->config.d_out); });
  numbers("normalized_mse", "sum |y - rebuilt|^2 / sum |y|^2", "1",
          [&](std::size_t i) { return sums_[i].normalized_mse(); });
  numbers("cosine", "mean over tokens of cos(y, rebuilt)", "1",
          [&](std::size_t i) { return sums_[i].mean_cosine(); });
  numbers("norm_ratio", "mean over tokens of |rebuilt| / |y|", "1",
          [&](std::size_t i) { return sums_[i].mean_norm_ratio(); });
  if (losses_.size() == n) {
    file.setting("loss_tokens", losses_.front().tokens);
    numbers("ce_original", "cross-entropy of the next token", "nats",
            [&](std::size_t i) { return losses_[i].original; });
    numbers("ce_spliced", "the same with the reconstruction in the place it rebuilds", "nats",
            [&](std::size_t i) { return losses_[i].spliced; });
    numbers("ce_zero", "the same with zeros in that place", "nats",
            [&](std::size_t i) { return losses_[i].zero; });
    numbers("ce_score", "(zero - spliced) / (zero - original)", "1",
            [&](std::size_t i) { return losses_[i].score(); });
  }
  for (std::size_t i = 0; i < n; ++i) write_features(file, i);
}

void TranscoderEval::write_features(ResultFile& file, std::size_t dictionary) const {
  file.group(fmt::format("transcoder_features_{}", dictionary));
  file.setting("dictionary", static_cast<std::int64_t>(dictionary));
  file.setting("name", dictionaries_[dictionary]->config.name);
  features_[dictionary].write(file, seen_, tokenizer_, options_.context);
}

}  // namespace lamina
