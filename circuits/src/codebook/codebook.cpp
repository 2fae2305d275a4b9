#include "lamina/circuits/codebook.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lamina/core/error.h"
#include "lamina/core/math.h"
#include "lamina/core/result_reader.h"
#include "lamina/internal/product.h"
#include "transcoder/row_sums.h"

namespace lamina {
namespace {

std::size_t at(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

double norm(const float* x, std::int64_t width) {
  double sum = 0;
  for (std::int64_t i = 0; i < width; ++i) sum += double{x[i]} * x[i];
  return std::sqrt(sum);
}

}  // namespace

SparseRows Codebook::encode(std::span<const float> x) const {
  constexpr std::int64_t kCodes = 256, kRows = 256;
  const std::int64_t rows = static_cast<std::int64_t>(x.size()) / width, k = nearest, n = size();
  if (x.size() != at(rows * width)) {
    fail_usage("codebook: {} values, expected rows of {}", x.size(), width);
  }
  if (k < 1 || k > n) fail_usage("codebook: nearest codes: expected 1 to {}, got {}", n, k);
  std::vector<internal::Operand> blocks;  // codes of unit length
  std::vector<float> unit(at(kCodes * width));
  for (std::int64_t first = 0; first < n; first += kCodes) {
    const std::int64_t count = std::min(kCodes, n - first);
    for (std::int64_t c = 0; c < count; ++c) {
      const float* code = codes.data() + (first + c) * width;
      const double length = norm(code, width);
      for (std::int64_t i = 0; i < width; ++i) {
        unit[at(c * width + i)] = length > 0 ? static_cast<float>(code[i] / length) : 0.0F;
      }
    }
    blocks.emplace_back(count, width).set(unit.data(), count);
  }
  SparseRows out;
  out.feature.resize(at(rows * k));
  out.value.resize(out.feature.size());
  std::vector<float> cosine(at(std::min(rows, kRows) * n));
  for (std::int64_t begin = 0; begin < rows; begin += kRows) {
    const std::int64_t count = std::min(kRows, rows - begin);
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      internal::product(x.data() + begin * width, width, count, blocks[b],
                        cosine.data() + b * at(kCodes), n);
    }
#pragma omp parallel for schedule(static)
    for (std::int64_t r = 0; r < count; ++r) {
      const double length = norm(x.data() + (begin + r) * width, width);
      const auto scale = static_cast<float>(length > 0 ? 1 / length : 0);
      const std::span<float> row = std::span(cosine).subspan(at(r * n), at(n));
      for (float& v : row) v *= scale;
      const std::span<std::int32_t> id = std::span(out.feature).subspan(at((begin + r) * k), at(k));
      const std::span<float> value = std::span(out.value).subspan(at((begin + r) * k), at(k));
      math::top_k(row, id, value);
      // Ascending ids; k is small.
      for (std::size_t i = 1; i < id.size(); ++i) {
        for (std::size_t j = i; j > 0 && id[j] < id[j - 1]; --j) {
          std::swap(id[j], id[j - 1]);
          std::swap(value[j], value[j - 1]);
        }
      }
    }
  }
  for (std::int64_t r = 1; r <= rows; ++r) out.offsets.push_back(r * k);
  return out;
}

void Codebook::decode(const SparseRows& z, std::span<float> y) const {
  if (y.size() != at(z.rows() * width)) {
    fail_usage("codebook: {} values to fill, expected {} rows of {}", y.size(), z.rows(), width);
  }
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < z.rows(); ++r) {
    float* out = y.data() + r * width;
    std::fill_n(out, width, 0.0F);
    const std::int64_t first = z.offsets[at(r)], last = z.offsets[at(r + 1)];
    for (std::int64_t e = first; e < last; ++e) {
      const float* code = codes.data() + std::int64_t{z.feature[at(e)]} * width;
      for (std::int64_t i = 0; i < width; ++i) out[i] += code[i];
    }
    for (std::int64_t i = 0; i < width; ++i) out[i] /= static_cast<float>(last - first);
  }
}

CodebookEval::CodebookEval(const Codebook& codebook, const Tokenizer* tokenizer,
                           std::vector<double> mean, const CodebookEvalOptions& options)
    : codebook_(&codebook),
      tokenizer_(tokenizer),
      mean_(std::move(mean)),
      options_(options),
      stats_(codebook.size(), options.examples, false) {
  if (codebook.nearest < 1 || codebook.nearest > codebook.size()) {
    fail_usage("codebook: nearest codes: expected 1 to {}, got {}", codebook.size(),
               codebook.nearest);
  }
  if (mean_.size() != at(codebook.width)) {
    fail("codebook: mean of {} values, expected {}", mean_.size(), codebook.width);
  }
}

std::unique_ptr<Probe> CodebookEval::fresh() const {
  return std::make_unique<CodebookEval>(*codebook_, tokenizer_, mean_, options_);
}

void CodebookEval::observe(const ActivationBlock& block) {
  const std::int64_t first = seen_.add(block), width = codebook_->width;
  const std::vector<std::int64_t> rows = rows::counted(block.batch, options_.skip);
  const std::vector<float> x = rows::gather(block, codebook_->site, width, rows, "codebook");
  const SparseRows z = codebook_->encode(x);
  std::vector<float> y(x.size());
  codebook_->decode(z, y);
  std::vector<std::int64_t> tokens;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    tokens.push_back(first + rows[r]);
    const std::size_t d = at(width);
    rows::add(sums_, std::span(x).subspan(r * d, d), std::span(y).subspan(r * d, d), mean_);
    for (std::int64_t e = z.offsets[r]; e < z.offsets[r + 1]; ++e) {
      const auto code = static_cast<std::uint64_t>(z.feature[at(e)]);
      const auto token = static_cast<std::uint32_t>(seen_.id(tokens.back()));
      ++pairs_[code << 32 | token];
    }
  }
  if (!std::isfinite(sums_.error)) fail("codebook: an activation is not finite");
  sums_.tokens += static_cast<std::int64_t>(rows.size());
  sums_.active += static_cast<std::int64_t>(z.feature.size());
  stats_.add(z, tokens);
}

void CodebookEval::merge(Probe& other) {
  auto& from = dynamic_cast<CodebookEval&>(other);
  const std::int64_t first = seen_.tokens();
  seen_.merge(from.seen_);
  rows::add(sums_, from.sums_);
  stats_.merge(from.stats_, first);
  for (const auto& [pair, count] : from.pairs_) pairs_[pair] += count;
}

std::vector<std::vector<CodebookEval::TokenCount>> CodebookEval::top_tokens() const {
  std::vector<std::vector<TokenCount>> top(at(codebook_->size()));
  for (const auto& [pair, count] : pairs_) {
    top[pair >> 32].push_back({static_cast<std::int32_t>(pair & 0xffffffffU), count});
  }
  for (auto& tokens : top) {
    std::sort(tokens.begin(), tokens.end(), [](const TokenCount& a, const TokenCount& b) {
      return a.count != b.count ? a.count > b.count : a.token < b.token;
    });
    if (tokens.size() > at(options_.top_tokens)) {
      tokens.resize(at(options_.top_tokens));
    }
  }
  return top;
}

double CodebookEval::perplexity() const {
  double total = 0, entropy = 0;
  for (std::int64_t c = 0; c < stats_.features(); ++c)
    total += static_cast<double>(stats_.count(c));
  for (std::int64_t c = 0; c < stats_.features(); ++c) {
    const double share = static_cast<double>(stats_.count(c)) / total;
    if (share > 0) entropy -= share * std::log(share);
  }
  return std::exp(entropy);
}

void CodebookEval::write(ResultFile& file) const {
  const Codebook& book = *codebook_;
  file.setting("site", site_name(book.site));
  file.setting("nearest", book.nearest);
  file.setting("metric", std::string("codes: Euclidean k-means; nearest: cosine; rebuilt: mean"));
  file.setting("tokens", sums_.tokens);
  file.setting("skip", options_.skip);
  file.setting("unused", unused());
  file.setting("perplexity", perplexity());
  file.setting("explained_variance", sums_.explained_variance());
  file.setting("explained_variance_per_token", sums_.explained_variance_rows());
  file.setting("mse", sums_.mse(book.width));
  file.setting("normalized_mse", sums_.normalized_mse());
  file.setting("cosine", sums_.mean_cosine());
  file.setting("norm_ratio", sums_.mean_norm_ratio());
  stats_.write(file, seen_, tokenizer_, options_.context, "code");
  std::vector<std::int64_t> values(at(book.width)), ranks(at(options_.top_tokens));
  std::iota(values.begin(), values.end(), 0);
  std::iota(ranks.begin(), ranks.end(), 1);
  file.axis("value", values);
  const std::vector<std::string> code_value = {"code", "value"}, code_rank = {"code", "rank"};
  file.dataset("codes", code_value, std::span<const float>(book.codes), "the codes", "1");
  if (ranks.empty()) return;
  file.axis("rank", ranks);
  const std::size_t cells = at(book.size()) * ranks.size();
  std::vector<std::int32_t> id(cells, -1);
  std::vector<std::int64_t> count(cells);
  std::vector<std::string> text(cells);
  const auto top = top_tokens();
  for (std::size_t c = 0; c < top.size(); ++c) {
    for (std::size_t i = 0; i < top[c].size(); ++i) {
      const std::size_t cell = c * ranks.size() + i;
      id[cell] = top[c][i].token;
      count[cell] = top[c][i].count;
      const std::int32_t one[] = {top[c][i].token};
      text[cell] = tokenizer_ != nullptr ? tokenizer_->decode(one) : std::to_string(one[0]);
    }
  }
  file.dataset("frequent_token", code_rank, std::span<const std::string>(text),
               "tokens at which the code fires most often", "");
  file.dataset("frequent_token_id", code_rank, std::span<const std::int32_t>(id),
               "their ids, -1 without one", "");
  file.dataset("frequent_token_count", code_rank, std::span<const std::int64_t>(count), "how often",
               "1");
}

Codebook read_codebook(const std::filesystem::path& path) {
  const ResultReader file(path, "codebook");
  Codebook book;
  const std::string site = file.text_setting("site");
  try {
    book.site = parse_dictionary_place(site).site;
  } catch (const UsageError& error) {
    fail("{}: site: {}", path.string(), error.what());
  }
  std::vector<std::int64_t> shape;
  book.codes = file.floats("codes", shape);
  if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1) {
    fail("{}: codes: expected a matrix, found {} dimensions", path.string(), shape.size());
  }
  book.width = shape[1];
  book.nearest = file.integer_setting("nearest");
  if (book.nearest < 1 || book.nearest > shape[0]) {
    fail("{}: nearest: expected 1 to {}, found {}", path.string(), shape[0], book.nearest);
  }
  for (float v : book.codes) {
    if (!std::isfinite(v)) {
      fail("{}: codes hold {}, expected finite values", path.string(), v);
    }
  }
  return book;
}

}  // namespace lamina
