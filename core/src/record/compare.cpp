#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "record/layout.h"

namespace lamina {
namespace {

constexpr std::uint64_t kPieceBytes = 32 << 20;

/// Follows one site through both recordings.
struct Comparison {
  SiteDifference result;
  double largest = 0;  // largest finite |a|
  double tolerance = 0;

  // NaN and infinities agree only with themselves (bit for bit; any NaN with any NaN).
  static double distance(float a, float b) {
    if (a == b || (std::isnan(a) && std::isnan(b))) return 0;
    const double d = std::fabs(static_cast<double>(a) - static_cast<double>(b));
    return std::isnan(d) ? std::numeric_limits<double>::infinity() : d;
  }

  void measure(std::span<const float> a, std::span<const float> b) {
    for (std::size_t i = 0; i < a.size(); ++i) {
      if (std::isfinite(a[i])) largest = std::max(largest, std::fabs(double{a[i]}));
      result.max_abs = std::max(result.max_abs, distance(a[i], b[i]));
    }
  }
  // The first place beyond the tolerance; −1 if there is none here.
  std::int64_t first_beyond(std::span<const float> a, std::span<const float> b) const {
    for (std::size_t i = 0; i < a.size(); ++i) {
      const bool beyond =
          tolerance > 0 ? distance(a[i], b[i]) > tolerance * largest
                        : std::bit_cast<std::uint32_t>(a[i]) != std::bit_cast<std::uint32_t>(b[i]);
      if (beyond) return static_cast<std::int64_t>(i);
    }
    return -1;
  }
};

/// Calls use(a's values, b's values, first token row, values per row) over a site until it returns
/// false. Attention sites: one prompt at a time, a row being one query of one head.
template <class Use>
void over_site(const Recording& a, const Recording& b, Site site, const Use& use) {
  const SiteShape shape = site_shape(site, a.header().config);
  if (shape.attention) {
    for (std::size_t p = 0; p < a.prompts().size(); ++p) {
      const auto prompt = static_cast<std::int64_t>(p);
      const std::vector<float> x = a.read_attention(site, prompt),
                               y = b.read_attention(site, prompt);
      if (!use(x, y, a.offsets()[p], std::int64_t{0}, a.offsets()[p + 1] - a.offsets()[p])) return;
    }
    return;
  }
  const std::int64_t row = shape.row();
  const std::int64_t step =
      std::max<std::int64_t>(1, static_cast<std::int64_t>(kPieceBytes / 4) / row);
  std::vector<float> x, y;
  for (std::int64_t first = 0; first < a.tokens(); first += step) {
    const std::int64_t count = std::min(step, a.tokens() - first);
    x.resize(static_cast<std::size_t>(count * row));
    y.resize(x.size());
    a.read_rows(site, first, count, x);
    b.read_rows(site, first, count, y);
    if (!use(x, y, first, row, std::int64_t{0})) return;
  }
}

SiteDifference compare_site(const Recording& a, const Recording& b, Site site, double tolerance) {
  Comparison comparison;
  comparison.result.site = site;
  comparison.tolerance = tolerance;
  over_site(a, b, site, [&](const auto& x, const auto& y, auto...) {
    comparison.measure(x, y);
    return true;
  });
  SiteDifference& result = comparison.result;
  result.relative = result.max_abs == 0       ? 0
                    : comparison.largest == 0 ? std::numeric_limits<double>::infinity()
                                              : result.max_abs / comparison.largest;
  over_site(
      a, b, site,
      [&](const auto& x, const auto& y, std::int64_t token, std::int64_t row, std::int64_t length) {
        const std::int64_t at = comparison.first_beyond(x, y);
        if (at < 0) return true;
        // Attention [head, query, key]: the token is the query, the column head · length + key.
        result.token = row > 0 ? token + at / row : token + at / length % length;
        result.column = row > 0 ? at % row : at / (length * length) * length + at % length;
        result.a = x[static_cast<std::size_t>(at)];
        result.b = y[static_cast<std::size_t>(at)];
        return false;
      });
  return result;
}

bool compare_logits(const Recording& a, const Recording& b, double tolerance,
                    std::vector<std::string>& notes) {
  const std::int64_t k = a.header().topk;
  if (k == 0 || k != b.header().topk) return true;
  const std::int64_t step = std::max<std::int64_t>(1, (std::int64_t{1} << 22) / k);
  for (std::int64_t first = 0; first < a.tokens(); first += step) {
    const std::int64_t count = std::min(step, a.tokens() - first);
    const LogitSummary x = a.read_logits(first, count), y = b.read_logits(first, count);
    const auto note = [&](const char* what, std::int64_t token, auto p, auto q) {
      notes.push_back(fmt::format("logits/{}: token {}: {} and {}", what, token, p, q));
      return false;
    };
    for (std::size_t i = 0; i < x.topk_ids.size(); ++i) {
      const auto token = first + static_cast<std::int64_t>(i) / k;
      // Within a tolerance, near ties may change places: then only the values count.
      if (tolerance == 0 && x.topk_ids[i] != y.topk_ids[i]) {
        return note("topk_ids", token, x.topk_ids[i], y.topk_ids[i]);
      }
      const double scale = std::max(1.0, std::fabs(double{x.topk_logprobs[i]}));
      if (Comparison::distance(x.topk_logprobs[i], y.topk_logprobs[i]) > tolerance * scale) {
        return note("topk_logprobs", token, x.topk_logprobs[i], y.topk_logprobs[i]);
      }
    }
    for (std::size_t i = 0; i < x.target_logprob.size(); ++i) {
      const double scale = std::max(1.0, std::fabs(double{x.target_logprob[i]}));
      if (Comparison::distance(x.target_logprob[i], y.target_logprob[i]) > tolerance * scale) {
        return note("target_logprob", first + static_cast<std::int64_t>(i), x.target_logprob[i],
                    y.target_logprob[i]);
      }
    }
  }
  return true;
}

// Notes where the inputs part; true if the rows can be compared one by one.
bool compare_inputs(const Recording& a, const Recording& b, RecordingDifference& out) {
  if (a.prompts().size() != b.prompts().size()) {
    out.notes.push_back(fmt::format("prompts: {} and {}", a.prompts().size(), b.prompts().size()));
    return false;
  }
  for (std::size_t i = 0; i < a.prompts().size(); ++i) {
    const Prompt& x = a.prompts()[i];
    const Prompt& y = b.prompts()[i];
    if (x.ids != y.ids) {
      const auto [p, q] = std::mismatch(x.ids.begin(), x.ids.end(), y.ids.begin(), y.ids.end());
      out.notes.push_back(
          fmt::format("prompt {}: token ids differ from position {} on (lengths {} "
                      "and {})",
                      i, p - x.ids.begin(), x.ids.size(), y.ids.size()));
      return false;
    }
  }
  for (std::size_t i = 0; i < a.prompts().size(); ++i) {
    const Prompt& x = a.prompts()[i];
    const Prompt& y = b.prompts()[i];
    const char* what = x.id != y.id           ? "id"
                       : x.text != y.text     ? "text"
                       : x.given != y.given   ? "number of given tokens"
                       : x.target != y.target ? "target"
                       : x.labels != y.labels ? "labels"
                                              : nullptr;
    if (what == nullptr) continue;
    out.notes.push_back(fmt::format("prompt {}: {} differs", i, what));
    out.equal = false;
    break;
  }
  return true;
}

}  // namespace

RecordingDifference compare_recordings(const Recording& a, const Recording& b, double tolerance) {
  RecordingDifference out;
  if (const std::string difference = record::run_difference(a.header(), b.header());
      !difference.empty()) {
    out.notes.push_back(difference);
  }
  // Other models or runs may well hold equal values; only the same sites make equal recordings.
  out.equal = a.sites() == b.sites() && a.header().topk == b.header().topk;
  if (!compare_inputs(a, b, out)) {
    out.equal = false;
    return out;
  }
  for (Site site : b.sites()) {
    if (!a.has(site))
      out.notes.push_back(fmt::format("{} only in {}", site_name(site), b.path().string()));
  }
  for (Site site : a.sites()) {
    if (!b.has(site)) {
      out.notes.push_back(fmt::format("{} only in {}", site_name(site), a.path().string()));
      continue;
    }
    const SiteShape x = site_shape(site, a.header().config),
                    y = site_shape(site, b.header().config);
    if (x.heads != y.heads || x.width != y.width) {
      out.notes.push_back(fmt::format("{}: rows of {}×{} and {}×{} values", site_name(site),
                                      x.heads, x.width, y.heads, y.width));
      out.equal = false;
      continue;
    }
    out.sites.push_back(compare_site(a, b, site, tolerance));
    if (out.sites.back().token >= 0) out.equal = false;
  }
  if (!compare_logits(a, b, tolerance, out.notes)) out.equal = false;
  return out;
}

}  // namespace lamina
