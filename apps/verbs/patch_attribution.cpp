#include "verbs/patch_attribution.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/backward_rules.h"

namespace lamina::cli {
namespace {

using Json = nlohmann::ordered_json;

BackwardRules rules_of(std::string_view method, const AttributionArgs& args) {
  BackwardRules rules = method == "relp" ? BackwardRules::relp() : BackwardRules{};
  rules.stabiliser = args.stabiliser;
  return parse_rules(args.rules, rules);
}

AttributionOptions options_of(std::string_view method, const AttributionArgs& args,
                              Direction direction) {
  AttributionOptions options;
  options.direction = direction;
  options.rules = rules_of(method, args);
  if (!args.at.empty()) {
    options.gradient_at_other = (args.at == "clean") == (direction == Direction::denoise);
  }
  if (method == "ig") {
    options.ig_path = args.ig_path == "inputs" ? IgPath::inputs : IgPath::node;
    options.ig_steps = args.ig_steps > 0                   ? args.ig_steps
                       : options.ig_path == IgPath::inputs ? 5
                                                           : 10;
  }
  options.conservation = method == "relp";
  return options;
}

// Tokens of a batch whose tape, recorded sites and logits take about `memory` bytes.
std::int64_t batch_tokens(const PatchJob& job) {
  const ModelConfig& config = job.forward.model().config();
  std::int64_t tokens = 0, longest = 0;
  for (const Pair& pair : job.pairs) {
    tokens += pair.tokens();
    longest = std::max(longest, pair.tokens());
  }
  std::vector<Site> sites;
  std::int64_t values = 0;
  for (const Node& node : job.nodes) {
    if (std::find(sites.rbegin(), sites.rend(), node.site) != sites.rend()) continue;
    sites.push_back(node.site);
    const SiteShape shape = site_shape(node.site, config);
    values += shape.attention ? config.n_heads * longest : shape.row();
  }
  const auto count = static_cast<std::int64_t>(job.pairs.size());
  // Both runs' values and their difference; logits and their gradient for each prompt.
  const std::int64_t floats =
      3 * values + 2 * config.d_vocab * count / std::max<std::int64_t>(tokens, 1);
  const std::uint64_t each = Tape::bytes_per_token(config) + RunState::bytes_per_token(config) +
                             static_cast<std::uint64_t>(floats) * sizeof(float);
  return static_cast<std::int64_t>(std::clamp<std::uint64_t>(job.options.memory / each, 1, 4096));
}

PatchResult run_attribution(const PatchJob& job, AttributionOptions options,
                            AttributionReport& report) {
  if (job.options.replacement != Replacement::other) {
    fail_usage("estimates are of --replace other; use --method exact for ablations");
  }
  options.batch_tokens = batch_tokens(job);
  const auto nodes = static_cast<std::int64_t>(job.nodes.size());
  if (job.options.progress) {
    options.progress = [&](std::int64_t done, std::int64_t total) {
      job.options.progress(done * nodes, total * nodes);
    };
  }
  const Attributed got =
      attribute_with_runs(job.forward, job.pairs, job.metric, job.nodes, options);
  const std::size_t pairs = job.pairs.size();
  PatchResult result;
  const bool denoise = options.direction == Direction::denoise;
  result.clean = denoise ? got.other : got.base;
  result.corrupted = denoise ? got.base : got.other;
  for (std::size_t i = 0; i < got.scores.size(); ++i) {
    result.patched.push_back(got.base[i % pairs] + got.scores[i]);
  }
  const Conservation& sums = got.conservation;
  for (std::size_t p = 0; p < sums.metric.size(); ++p) {
    auto& relevance = report.relevance[job.pairs[p].id];
    relevance = {.metric = sums.metric[p], .embed = sums.embed[p], .resid_pre = {}};
    for (std::size_t i = p; i < sums.resid_pre.size(); i += pairs) {
      relevance.resid_pre.push_back(sums.resid_pre[i]);
    }
  }
  return result;
}

// nullopt: all nodes.
std::optional<std::size_t> check_count(const std::string& text) {
  if (text == "all") return std::nullopt;
  std::size_t count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  if (error != std::errc() || end != text.data() + text.size() || count == 0) {
    fail_usage("--check: '{}', expected a number of nodes or all", text);
  }
  return count;
}

std::string value_text(const Agreement::Value& v) {
  if (std::isnan(v.value)) return "";
  if (std::isnan(v.low)) return fmt::format("{:.3f}", v.value);
  return fmt::format("{:.3f} [{:.3f}, {:.3f}]", v.value, v.low, v.high);
}

std::string part_name(const SiteAgreement& part) {
  return part.kind ? site_label(*part.kind) : "all";
}

// Σ over the pairs of relevance at each place: embedding, then in front of every layer.
struct RelevanceTotals {
  double metric = 0.0;
  std::vector<double> places;
};
RelevanceTotals totals(const AttributionReport& report) {
  RelevanceTotals out;
  for (const auto& [id, r] : report.relevance) {
    out.metric += r.metric;
    out.places.resize(r.resid_pre.size() + 1);
    out.places[0] += r.embed;
    for (std::size_t l = 0; l < r.resid_pre.size(); ++l) out.places[l + 1] += r.resid_pre[l];
  }
  return out;
}

std::string relevance_text(const AttributionReport& report) {
  const RelevanceTotals sums = totals(report);
  const auto count = static_cast<double>(report.relevance.size());
  const auto [low, high] = std::minmax_element(sums.places.begin() + 1, sums.places.end());
  return fmt::format(
      "mean of Σ x·ρ over the pairs: {:.4g} at the embedding, {:.4g} … {:.4g} in front of the "
      "layers; metric {:.4g}",
      sums.places[0] / count, *low / count, *high / count, sums.metric / count);
}

void add_rows(Table& table, const std::vector<SiteAgreement>& parts,
              Agreement SiteAgreement::*which, const char* over) {
  for (const SiteAgreement& part : parts) {
    const Agreement& a = part.*which;
    table.row({part_name(part), over, grouped(a.nodes), value_text(a.pearson),
               value_text(a.spearman), value_text(a.sign), value_text(a.top_k),
               std::to_string(a.k)});
  }
}

Json agreement_json(const Agreement& a) {
  const auto number = [](double v) { return std::isfinite(v) ? Json(v) : Json(); };
  const auto value = [&](const Agreement::Value& v) {
    return Json{{"value", number(v.value)}, {"low", number(v.low)}, {"high", number(v.high)}};
  };
  return {{"values", a.nodes},     {"pearson", value(a.pearson)}, {"spearman", value(a.spearman)},
          {"sign", value(a.sign)}, {"top_k", value(a.top_k)},     {"k", a.k}};
}

}  // namespace

bool is_attribution(std::string_view method) {
  return method == "atp" || method == "ig" || method == "relp";
}

void add_attribution_options(CLI::App& verb, AttributionArgs& args) {
  verb.add_option("--at", args.at,
                  "atp, relp: prompt whose gradient is taken (default: the one that is patched)")
      ->check(CLI::IsMember({"clean", "corrupted"}))
      ->option_text("PROMPT");
  verb.add_option("--rules", args.rules,
                  "atp, ig, relp: rules of the backward pass, of norm, activation, gate, pattern, "
                  "mlp (default: norm,activation,gate for relp, none for atp and ig)")
      ->delimiter(',')
      ->option_text("RULES");
  verb.add_option("--stabiliser", args.stabiliser,
                  "rule activation: how far x moves from 0 in act(x)/x (default 1e-6)")
      ->check(CLI::PositiveNumber)
      ->option_text("E");
  verb.add_option("--ig-path", args.ig_path,
                  "ig: walk at the node's own site (node, default) or at the embedding (inputs)")
      ->check(CLI::IsMember({"node", "inputs"}))
      ->option_text("PATH");
  verb.add_option("--ig-steps", args.ig_steps,
                  "ig: points of the path (default 10 at the node, 5 at the inputs)")
      ->check(CLI::Range(1, 100000))
      ->option_text("K");
  verb.add_option("--check", args.check,
                  "estimates: patch this many random nodes exactly, or all, and compare")
      ->option_text("N|all");
  verb.add_option("--check-top", args.top_k, "--check: overlap of the K largest (default 10)")
      ->check(CLI::Range(1, 1000000))
      ->option_text("K");
  verb.add_option("--resamples", args.resamples,
                  "--check: bootstrap resamples of the intervals (default 1000)")
      ->check(CLI::Range(0, 1000000))
      ->option_text("N");
}

void check_attribution_options(std::string_view method, const AttributionArgs& args) {
  const auto only = [&](bool given, std::string_view option, std::string_view methods, bool fits) {
    if (given && !fits)
      fail_usage("{} is an option of --method {}, not {}", option, methods, method);
  };
  const bool estimate = is_attribution(method), ig = method == "ig";
  only(!args.at.empty(), "--at", "atp or relp", estimate && !ig);
  only(!args.rules.empty(), "--rules", "atp, ig or relp", estimate);
  only(args.ig_steps > 0, "--ig-steps", "ig", ig);
  only(args.ig_path != "node", "--ig-path", "ig", ig);
  only(!args.check.empty(), "--check", "atp, ig or relp", estimate);
  if (!args.check.empty()) check_count(args.check);
  if (estimate) rules_of(method, args);
}

std::optional<PatchMethod> attribution_method(std::string_view name, const AttributionArgs& args,
                                              Direction direction, AttributionReport& report) {
  if (!is_attribution(name)) return std::nullopt;
  const AttributionOptions options = options_of(name, args, direction);
  const bool clean = options.gradient_at_other == (direction == Direction::denoise);
  report.settings.emplace_back("rules", rules_text(options.rules));
  if (options.ig_steps > 0) {
    report.settings.emplace_back("ig_path", args.ig_path);
    report.settings.emplace_back("ig_steps", fmt::format("{}", options.ig_steps));
  } else {
    report.settings.emplace_back("gradient_at", clean ? "clean" : "corrupted");
  }
  PatchMethod method;
  method.name = name;
  method.does = name == "relp" ? "estimate: relevance patching"
                : name == "ig" ? "estimate: integrated gradients"
                               : "estimate: attribution patching";
  method.exact = false;
  // Pairs of different lengths come in several jobs: one backward pass serves them all.
  auto backward = std::make_shared<std::optional<Backward>>();
  method.run = [options, backward, &report](const PatchJob& job) {
    if (!*backward) backward->emplace(job.forward.model());
    AttributionOptions here = options;
    here.backward = &**backward;
    return run_attribution(job, here, report);
  };
  return method;
}

void check_estimates(const AttributionArgs& args, Forward& forward, std::span<const Pair> pairs,
                     MetricKind metric, std::span<const Node> nodes, const PatchOptions& options,
                     Align align, const PatchResult& sweep, std::uint64_t seed,
                     AttributionReport& report) {
  if (args.check.empty()) return;
  const std::size_t count = check_count(args.check).value_or(nodes.size());
  report.checked = sample_nodes(nodes.size(), count, seed);
  std::vector<Node> some;
  for (const std::size_t n : report.checked) some.push_back(nodes[n]);
  ProgressLine progress("checking", "patches",
                        static_cast<std::int64_t>(some.size() * pairs.size()));
  PatchOptions here = options;
  here.progress = [&](std::int64_t done, std::int64_t) { progress.update(done); };
  const auto start = std::chrono::steady_clock::now();
  const PatchResult exact =
      run_method(patch_method("exact"), forward, pairs, metric, some, here, align);
  progress.finish();
  report.check_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const bool denoise = options.direction == Direction::denoise;
  const std::vector<double>& base = denoise ? sweep.corrupted : sweep.clean;
  std::vector<double> estimate;
  for (std::size_t i = 0; i < some.size() * pairs.size(); ++i) {
    const std::size_t node = report.checked[i / pairs.size()], pair = i % pairs.size();
    estimate.push_back(sweep.patched[node * pairs.size() + pair] - base[pair]);
    report.exact.push_back(exact.patched[i] - base[pair]);
  }
  report.agreement =
      agreement_by_site(some, estimate, report.exact, args.top_k, args.resamples, seed);
  report.settings.emplace_back(
      "check", fmt::format("{} of {} nodes patched exactly, seed {}, {} resamples of the nodes",
                           some.size(), nodes.size(), seed, args.resamples));
}

std::string attribution_text(const AttributionReport& report) {
  std::string out;
  if (!report.relevance.empty()) {
    out += "\n" + styled(Style::bold, "relevance") + "  " + relevance_text(report) + "\n";
  }
  if (!report.agreement.empty()) {
    out += "\n" +
           styled(Style::bold, fmt::format("agreement with exact patching of {} nodes ({})",
                                           grouped(std::ssize(report.checked)),
                                           duration_text(report.check_seconds))) +
           "\n";
    Table table({"site", "values", ">n", ">Pearson", ">Spearman", ">sign", ">top k", ">k"});
    add_rows(table, report.agreement, &SiteAgreement::by_node, "means over pairs");
    add_rows(table, report.agreement, &SiteAgreement::by_pair, "every pair");
    out += table.text(2);
    out += "  [95 % bootstrap interval over the values]\n";
  }
  return out;
}

void attribution_json(const AttributionReport& report, Json& json) {
  if (!report.relevance.empty()) {
    const RelevanceTotals sums = totals(report);
    const auto count = static_cast<double>(report.relevance.size());
    Json layers = Json::array();
    for (std::size_t l = 1; l < sums.places.size(); ++l) layers.push_back(sums.places[l] / count);
    json["relevance"] = {
        {"metric", sums.metric / count}, {"embed", sums.places[0] / count}, {"resid_pre", layers}};
  }
  if (!report.agreement.empty()) {
    json["check"] = {{"nodes", report.checked.size()}, {"seconds", report.check_seconds}};
    for (const SiteAgreement& part : report.agreement) {
      json["check"]["sites"].push_back({{"site", part_name(part)},
                                        {"by_node", agreement_json(part.by_node)},
                                        {"by_pair", agreement_json(part.by_pair)}});
    }
  }
}

namespace {

void write_relevance(const AttributionReport& report, std::span<const Pair> pairs,
                     ResultFile& file) {
  const std::size_t layers = report.relevance.begin()->second.resid_pre.size();
  std::vector<double> metric, embed, resid;
  for (const Pair& pair : pairs) {
    const auto& r = report.relevance.at(pair.id);
    metric.push_back(r.metric);
    embed.push_back(r.embed);
    resid.insert(resid.end(), r.resid_pre.begin(), r.resid_pre.end());
  }
  std::vector<std::int64_t> axis(layers);
  for (std::size_t l = 0; l < layers; ++l) axis[l] = static_cast<std::int64_t>(l);
  file.axis("relevance_layer", axis);
  const std::vector<std::string> by_pair{"pair"}, by_layer{"pair", "relevance_layer"};
  file.dataset("relevance_metric", by_pair, metric,
               "metric of the run where relevance starts: what it would sum to if none were lost",
               "metric");
  file.dataset("relevance_embed", by_pair, embed, "sum of value times relevance, embedding",
               "metric");
  file.dataset("relevance_resid_pre", by_layer, resid,
               "sum of value times relevance over the positions, in front of each layer", "metric");
}

void write_agreement(const AttributionReport& report, ResultFile& file) {
  std::vector<std::string> rows, over;
  std::vector<double> values;
  std::vector<std::int32_t> counts;
  for (const bool by_node : {true, false}) {
    for (const SiteAgreement& part : report.agreement) {
      const Agreement& a = by_node ? part.by_node : part.by_pair;
      rows.push_back(part_name(part) + (by_node ? " means" : " every pair"));
      counts.push_back(static_cast<std::int32_t>(std::min<std::int64_t>(a.nodes, INT32_MAX)));
      counts.push_back(static_cast<std::int32_t>(a.k));
      for (const auto& v : {a.pearson, a.spearman, a.sign, a.top_k}) {
        values.insert(values.end(), {v.value, v.low, v.high});
      }
    }
  }
  const std::vector<std::string> statistics{"pearson", "spearman", "sign", "top_k"};
  const std::vector<std::string> bounds{"value", "low", "high"}, sizes{"values", "k"};
  file.axis("check_part", rows);
  file.axis("check_statistic", statistics);
  file.axis("check_bound", bounds);
  file.axis("check_size", sizes);
  const std::vector<std::string> all{"check_part", "check_statistic", "check_bound"};
  const std::vector<std::string> sized{"check_part", "check_size"};
  file.dataset("check_agreement", all, values,
               "agreement of the estimates with exact patching, 95 % bootstrap intervals", "1");
  file.dataset("check_sizes", sized, counts, "values compared, and k of top_k", "1");
}

}  // namespace

void write_attribution(const AttributionReport& report, std::span<const Pair> pairs,
                       std::span<const Node> nodes, ResultFile& file) {
  if (!report.relevance.empty()) write_relevance(report, pairs, file);
  if (report.agreement.empty()) return;
  std::vector<std::string> names;
  for (const std::size_t n : report.checked) names.push_back(node_name(nodes[n]));
  file.axis("check_node", names);
  const std::vector<std::string> dims{"check_node", "pair"};
  file.dataset("check_exact", dims, report.exact,
               "exact patching of some nodes: patched metric − base metric", "metric");
  write_agreement(report, file);
}

}  // namespace lamina::cli
