// Labels as targets, and folds that never part what belongs together.

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <random>
#include <set>
#include <unordered_map>

#include "lamina/core/error.h"
#include "lamina/probes/linear_probe.h"
#include "probing/held_out.h"

namespace lamina {
namespace {

constexpr std::size_t kMostClasses = 256;

bool parse_number(const std::string& text, double& out) {
  const char* first = text.data() + (text.starts_with('+') ? 1 : 0);
  const auto [end, error] = std::from_chars(first, text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size() && std::isfinite(out);
}

// Numbers in their order, other labels in that of their bytes.
std::vector<std::string> sorted_classes(const std::set<std::string>& found) {
  std::vector<std::string> classes(found.begin(), found.end());
  double ignored = 0;
  if (std::all_of(classes.begin(), classes.end(),
                  [&](const std::string& c) { return parse_number(c, ignored); })) {
    std::stable_sort(classes.begin(), classes.end(), [](const auto& a, const auto& b) {
      double x = 0, y = 0;
      parse_number(a, x);
      parse_number(b, y);
      return x < y;
    });
  }
  return classes;
}

// The class of every unit, −1 for units with rows of several; empty for ridge.
std::vector<std::int32_t> unit_classes(const ProbeTargets& targets) {
  std::vector<std::int32_t> out(static_cast<std::size_t>(targets.units), -2);
  for (std::size_t r = 0; r < targets.label.size(); ++r) {
    std::int32_t& c = out[static_cast<std::size_t>(targets.unit[r])];
    c = c == -2 || c == targets.label[r] ? targets.label[r] : -1;
  }
  return targets.label.empty() ? std::vector<std::int32_t>() : out;
}

void check_classes(const ProbeTargets& targets, std::span<const std::int32_t> fold,
                   const LinearProbeOptions& options) {
  const auto folds = static_cast<std::size_t>(options.folds);
  const std::size_t left_out = options.strengths.size() > 1 ? 2 : 1;
  for (std::size_t c = 0; c < targets.classes.size(); ++c) {
    std::vector<std::int64_t> count(folds, 0);
    std::int64_t all = 0;
    for (std::size_t r = 0; r < fold.size(); ++r) {
      if (targets.label[r] != static_cast<std::int32_t>(c)) continue;
      ++count[static_cast<std::size_t>(fold[r])];
      ++all;
    }
    std::sort(count.rbegin(), count.rend());
    std::int64_t most = 0;
    for (std::size_t i = 0; i < left_out; ++i) most += count[i];
    if (most < all) continue;
    fail(
        "label '{}': its {} rows all stand in {} of {} folds, whose fits need the rest: more "
        "prompts with it are needed, or --group parts them unluckily (try another --seed)",
        targets.classes[c], all, left_out, folds);
  }
}

}  // namespace

std::string_view probe_kind_name(ProbeKind kind) {
  return kind == ProbeKind::ridge ? "ridge" : "logistic";
}

ProbeKind parse_probe_kind(std::string_view name) {
  if (name == "logistic") return ProbeKind::logistic;
  if (name == "ridge") return ProbeKind::ridge;
  fail_usage("kind '{}': logistic or ridge expected", name);
}

ProbeTargets probe_targets(std::span<const FeatureRow> rows, ProbeKind kind) {
  if (rows.empty()) fail("no prompt has the label: there is nothing to fit");
  ProbeTargets targets;
  std::unordered_map<std::string, std::int32_t> units;
  for (const FeatureRow& row : rows) {
    const auto [unit, fresh] = units.emplace(row.group, static_cast<std::int32_t>(units.size()));
    targets.unit.push_back(unit->second);
  }
  targets.units = static_cast<std::int32_t>(units.size());
  if (kind == ProbeKind::ridge) {
    for (const FeatureRow& row : rows) {
      double value = 0;
      if (!parse_number(row.label, value)) {
        fail("prompt '{}': label '{}', ridge regression needs a finite number", row.prompt_id,
             row.label);
      }
      targets.value.push_back(value);
    }
    const auto [low, high] = std::minmax_element(targets.value.begin(), targets.value.end());
    if (*low == *high) fail("all {} labels are {}: there is nothing to fit", rows.size(), *low);
    return targets;
  }
  std::set<std::string> found;
  for (const FeatureRow& row : rows) {
    found.insert(row.label);
    if (found.size() > kMostClasses) {
      fail("the label has more than {} values; numbers are fitted with --kind ridge", kMostClasses);
    }
  }
  if (found.size() < 2) {
    fail("all {} rows have the label '{}': two values are needed", rows.size(), *found.begin());
  }
  targets.classes = sorted_classes(found);
  std::map<std::string, std::int32_t> index;
  for (const std::string& c : targets.classes) {
    index.emplace(c, static_cast<std::int32_t>(index.size()));
  }
  for (const FeatureRow& row : rows) targets.label.push_back(index.at(row.label));
  return targets;
}

std::vector<std::int32_t> deal_folds(const ProbeTargets& targets,
                                     const LinearProbeOptions& options) {
  const std::int64_t least = options.strengths.size() > 1 ? 3 : 2;
  if (options.folds < least) {
    fail_usage("{} folds: at least {} expected{}", options.folds, least,
               least == 3 ? ", as the strength is chosen within the rows left in (--strength with "
                            "one value needs 2)"
                          : "");
  }
  if (targets.units < options.folds) {
    fail("{} prompts (or groups) with labels are fewer than {} folds; give --folds or more prompts",
         targets.units, options.folds);
  }
  std::vector<std::size_t> order(static_cast<std::size_t>(targets.units));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::mt19937_64 random(held_out::mix(options.seed, 0x666f6c6473));  // "folds"
  for (std::size_t i = order.size(); i > 1; --i) {
    const double u = static_cast<double>(random() >> 11) * 0x1.0p-53;
    std::swap(order[i - 1], order[static_cast<std::size_t>(u * static_cast<double>(i))]);
  }
  const std::vector<std::int32_t> classes = unit_classes(targets);
  if (!classes.empty()) {
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return classes[a] < classes[b]; });
  }
  std::vector<std::int32_t> of_unit(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    of_unit[order[i]] = static_cast<std::int32_t>(i % static_cast<std::size_t>(options.folds));
  }
  std::vector<std::int32_t> fold;
  for (std::int32_t unit : targets.unit) fold.push_back(of_unit[static_cast<std::size_t>(unit)]);
  if (options.kind == ProbeKind::logistic) check_classes(targets, fold, options);
  return fold;
}

}  // namespace lamina
