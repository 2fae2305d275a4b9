#include "lamina/circuits/feature_stats.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "lamina/core/error.h"

namespace lamina {

std::int64_t SeenTokens::add(const ActivationBlock& block) {
  const std::int64_t first = tokens();
  for (std::int64_t p = 0; p < block.batch.prompts(); ++p) {
    starts_.push_back(first + block.batch.offsets[static_cast<std::size_t>(p)]);
    prompt_ids_.push_back(block.prompts[static_cast<std::size_t>(p)].id);
  }
  ids_.insert(ids_.end(), block.batch.ids.begin(), block.batch.ids.end());
  return first;
}

void SeenTokens::merge(const SeenTokens& other) {
  const std::int64_t first = tokens();
  for (std::int64_t start : other.starts_) starts_.push_back(first + start);
  prompt_ids_.insert(prompt_ids_.end(), other.prompt_ids_.begin(), other.prompt_ids_.end());
  ids_.insert(ids_.end(), other.ids_.begin(), other.ids_.end());
}

std::int64_t SeenTokens::prompt(std::int64_t token) const {
  return std::upper_bound(starts_.begin(), starts_.end(), token) - starts_.begin() - 1;
}

std::int64_t SeenTokens::position(std::int64_t token) const {
  return token - starts_.at(static_cast<std::size_t>(prompt(token)));
}

const std::string& SeenTokens::prompt_id(std::int64_t prompt) const {
  return prompt_ids_.at(static_cast<std::size_t>(prompt));
}

namespace {

std::string shown(std::span<const std::int32_t> ids, const Tokenizer* tokenizer) {
  if (tokenizer != nullptr) return tokenizer->decode(ids);
  return fmt::format("{}", fmt::join(ids, " "));
}

}  // namespace

std::string SeenTokens::text(std::int64_t token, const Tokenizer* tokenizer) const {
  const std::int32_t one[] = {id(token)};
  return shown(one, tokenizer);
}

std::string SeenTokens::context(std::int64_t token, std::int64_t width,
                                const Tokenizer* tokenizer) const {
  const auto p = static_cast<std::size_t>(prompt(token));
  const std::int64_t begin = starts_[p];
  const std::int64_t end = p + 1 < starts_.size() ? starts_[p + 1] : tokens();
  const std::int64_t from = std::max(begin, token - width), to = std::min(end, token + 1 + width);
  const auto part = [&](std::int64_t a, std::int64_t b) {
    return std::span(ids_).subspan(static_cast<std::size_t>(a), static_cast<std::size_t>(b - a));
  };
  // Decoded as a whole as far as the token: what a decoder does at a text's beginning (a blank
  // less) must not happen inside.
  const std::string before = shown(part(from, token), tokenizer);
  const std::string with = shown(part(from, token + 1), tokenizer);
  const std::string whole = shown(part(from, to), tokenizer);
  if (!with.starts_with(before) || !whole.starts_with(with)) {
    return before + "«" + shown(part(token, token + 1), tokenizer) + "»" +
           shown(part(token + 1, to), tokenizer);
  }
  return before + "«" + with.substr(before.size()) + "»" + whole.substr(with.size());
}

FeatureStats::FeatureStats(std::int64_t features, std::int64_t examples, bool keep_all)
    : examples_(examples),
      keep_all_(keep_all),
      count_(index(features)),
      sum_(index(features)),
      max_(index(features)),
      top_(index(features * examples)),
      kept_(index(features)) {}

void FeatureStats::offer(std::int64_t feature, Example example) {
  if (examples_ == 0) return;
  Example* top = top_.data() + feature * examples_;
  std::int32_t& kept = kept_[index(feature)];
  const auto before = [](const Example& a, const Example& b) {
    return a.value > b.value || (a.value == b.value && a.token < b.token);
  };
  if (kept == examples_ && !before(example, top[kept - 1])) return;
  if (kept < examples_) ++kept;
  std::int32_t i = kept - 1;
  for (; i > 0 && before(example, top[i - 1]); --i) top[i] = top[i - 1];
  top[i] = example;
}

void FeatureStats::add(const SparseRows& rows, std::span<const std::int64_t> tokens) {
  for (std::int64_t r = 0; r < rows.rows(); ++r) {
    for (std::int64_t e = rows.offsets[index(r)]; e < rows.offsets[index(r + 1)]; ++e) {
      const std::int32_t f = rows.feature[index(e)];
      const float v = rows.value[index(e)];
      ++count_[index(f)];
      sum_[index(f)] += v;
      max_[index(f)] = std::max(max_[index(f)], v);
      offer(f, {tokens[index(r)], v});
    }
    if (!keep_all_) continue;
    const std::int64_t first = rows.offsets[index(r)], last = rows.offsets[index(r + 1)];
    all_.feature.insert(all_.feature.end(), rows.feature.begin() + first,
                        rows.feature.begin() + last);
    all_.value.insert(all_.value.end(), rows.value.begin() + first, rows.value.begin() + last);
    all_.offsets.push_back(static_cast<std::int64_t>(all_.feature.size()));
    all_tokens_.push_back(tokens[index(r)]);
  }
  rows_ += rows.rows();
}

void FeatureStats::merge(const FeatureStats& other, std::int64_t first_token) {
  rows_ += other.rows_;
  for (std::int64_t f = 0; f < features(); ++f) {
    count_[index(f)] += other.count_[index(f)];
    sum_[index(f)] += other.sum_[index(f)];
    max_[index(f)] = std::max(max_[index(f)], other.max_[index(f)]);
    for (const Example& example : other.top(f)) {
      offer(f, {example.token + first_token, example.value});
    }
  }
  const auto entries = static_cast<std::int64_t>(all_.feature.size());
  all_.feature.insert(all_.feature.end(), other.all_.feature.begin(), other.all_.feature.end());
  all_.value.insert(all_.value.end(), other.all_.value.begin(), other.all_.value.end());
  for (std::int64_t r = 0; r < other.all_.rows(); ++r) {
    all_.offsets.push_back(entries + other.all_.offsets[index(r + 1)]);
    all_tokens_.push_back(other.all_tokens_[index(r)] + first_token);
  }
}

double FeatureStats::frequency(std::int64_t feature) const {
  return rows_ == 0 ? std::numeric_limits<double>::quiet_NaN()
                    : static_cast<double>(count(feature)) / static_cast<double>(rows_);
}

double FeatureStats::mean(std::int64_t feature) const {
  return sum_.at(index(feature)) / static_cast<double>(count(feature));
}

std::span<const FeatureStats::Example> FeatureStats::top(std::int64_t feature) const {
  return std::span(top_).subspan(index(feature * examples_),
                                 static_cast<std::size_t>(kept_.at(index(feature))));
}

std::int64_t FeatureStats::at_most(double frequency) const {
  std::int64_t n = 0;
  for (std::int64_t f = 0; f < features(); ++f) n += this->frequency(f) <= frequency;
  return n;
}

std::int64_t FeatureStats::above(double frequency) const {
  std::int64_t n = 0;
  for (std::int64_t f = 0; f < features(); ++f) n += this->frequency(f) > frequency;
  return n;
}

void FeatureStats::write(ResultFile& file, const SeenTokens& seen, const Tokenizer* tokenizer,
                         std::int64_t context) const {
  const std::int64_t n = features();
  std::vector<std::int64_t> ids(index(n));
  std::iota(ids.begin(), ids.end(), 0);
  file.axis("feature", ids);
  std::vector<double> frequencies, means, largest;
  for (std::int64_t f = 0; f < n; ++f) {
    frequencies.push_back(frequency(f));
    means.push_back(mean(f));
    largest.push_back(max(f));
  }
  const std::vector<std::string> feature = {"feature"};
  file.dataset("count", feature, std::span<const std::int64_t>(count_),
               "tokens at which the feature fires", "1");
  file.dataset("frequency", feature, std::span<const double>(frequencies),
               "share of the tokens at which the feature fires", "1");
  file.dataset("mean", feature, std::span<const double>(means),
               "mean activation where the feature fires, NaN if nowhere", "1");
  file.dataset("max", feature, std::span<const double>(largest), "largest activation", "1");
  if (examples_ > 0) {
    std::vector<std::int64_t> ranks(index(examples_));
    std::iota(ranks.begin(), ranks.end(), 1);
    file.axis("example", ranks);
    const std::vector<std::string> both = {"feature", "example"};
    const std::size_t cells = index(n * examples_);
    std::vector<float> value(cells, std::numeric_limits<float>::quiet_NaN());
    std::vector<std::int32_t> position(cells, -1);
    std::vector<std::string> prompt(cells), text(cells), around(cells);
    for (std::int64_t f = 0; f < n; ++f) {
      std::size_t cell = index(f * examples_);
      for (const Example& e : top(f)) {
        value[cell] = e.value;
        position[cell] = static_cast<std::int32_t>(seen.position(e.token));
        prompt[cell] = seen.prompt_id(seen.prompt(e.token));
        text[cell] = seen.text(e.token, tokenizer);
        around[cell] = seen.context(e.token, context, tokenizer);
        ++cell;
      }
    }
    file.dataset("top_value", both, std::span<const float>(value),
                 "activation at the tokens where the feature fires most", "1");
    file.dataset("top_token", both, std::span<const std::string>(text), "that token's text", "");
    file.dataset("top_context", both, std::span<const std::string>(around),
                 "that token, in «», among its neighbours", "");
    file.dataset("top_prompt", both, std::span<const std::string>(prompt), "its prompt's id", "");
    file.dataset("top_position", both, std::span<const std::int32_t>(position),
                 "its position in the prompt, -1 without one", "1");
  }
  if (keep_all_) write_activations(file, seen);
}

void FeatureStats::write_activations(ResultFile& file, const SeenTokens& seen) const {
  std::vector<std::int64_t> rows(index(all_.rows())), entries(all_.feature.size());
  std::iota(rows.begin(), rows.end(), 0);
  std::iota(entries.begin(), entries.end(), 0);
  file.axis("token", rows);
  file.axis("entry", entries);
  std::vector<std::string> prompt;
  std::vector<std::int32_t> position, id;
  for (std::int64_t token : all_tokens_) {
    prompt.push_back(seen.prompt_id(seen.prompt(token)));
    position.push_back(static_cast<std::int32_t>(seen.position(token)));
    id.push_back(seen.id(token));
  }
  const std::vector<std::string> token = {"token"}, entry = {"entry"};
  file.dataset("row_end", token, std::span(all_.offsets).subspan(1),
               "entries up to and including the token's: those of token t are row_end[t-1] … "
               "row_end[t]-1",
               "1");
  file.dataset("prompt_id", token, std::span<const std::string>(prompt), "the token's prompt", "");
  file.dataset("position", token, std::span<const std::int32_t>(position),
               "the token's position in its prompt", "1");
  file.dataset("token_id", token, std::span<const std::int32_t>(id), "the token", "");
  file.dataset("active_feature", entry, std::span<const std::int32_t>(all_.feature),
               "features that fire, ascending within a token", "");
  file.dataset("activation", entry, std::span<const float>(all_.value), "their activations", "1");
}

}  // namespace lamina
