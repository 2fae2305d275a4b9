#include "verbs/depth_tables.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"

namespace lamina::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string number(double value) {
  return std::isnan(value) ? "" : short_number(value);
}
std::string cosine(double value) {
  return std::isnan(value) ? "" : fmt::format("{:+.3f}", value);
}
std::string percent(double share) {
  return std::isnan(share) ? "" : fmt::format("{:.1f}%", 100 * share);
}

// One column of the table: of streams (embed, 0 …) or of layers.
struct Column {
  std::string heading;
  bool per_stream;
  std::vector<std::string> cells;
};

template <class Values, class Format>
void add(std::vector<Column>& columns, const char* heading, bool per_stream, const Values& values,
         Format format) {
  Column column{heading, per_stream, {}};
  for (const auto& value : values) column.cells.push_back(format(value));
  columns.push_back(std::move(column));
}

std::vector<Column> layer_columns(const DepthProbes& probes) {
  std::vector<Column> columns;
  if (probes.growth) {
    const GrowthResults r = probes.growth->results();
    add(columns, ">norm", true, r.norm, number);
    add(columns, ">max", true, r.norm_max, number);
    add(columns, ">growth", true, r.growth, number);
  }
  if (probes.contributions) {
    const ContributionResults r = probes.contributions->results();
    add(columns, ">attn", false, r.attn_ratio, number);
    add(columns, ">mlp", false, r.mlp_ratio, number);
    add(columns, ">block", false, r.block_ratio, number);
    add(columns, ">cos attn", false, r.attn_cos, cosine);
    add(columns, ">cos mlp", false, r.mlp_cos, cosine);
    add(columns, ">cos block", false, r.block_cos, cosine);
    add(columns, ">cos h", false, r.stream_cos, cosine);
  }
  if (probes.sparsity) {
    const SparsityResults r = probes.sparsity->results();
    add(columns, ">active", false, r.active, percent);
    add(columns, ">never", false, r.never, [](std::int64_t n) { return grouped(n); });
  }
  if (probes.magnitudes) {
    const MagnitudeResults r = probes.magnitudes->results();
    const std::vector<double> last(r.top_share.end() - static_cast<std::ptrdiff_t>(r.layers),
                                   r.top_share.end());
    add(columns, ">top 10%", false, last, percent);
  }
  if (probes.coding_rate) {
    add(columns, ">rate", true, probes.coding_rate->results().rate, number);
  }
  if (probes.exit) {
    const ExitResults& r = probes.exit->results();
    add(columns, ">same", true, r.agreement(), percent);
    add(columns, ">exit", true, r.exit_share(), percent);
    if (r.targets > 0) add(columns, ">right", true, r.accuracy(), percent);
  }
  return columns;
}

const char* explain(const std::string& heading) {
  static const std::pair<const char*, const char*> kMeanings[] = {
      {">norm", "norm of the stream leaving the layer, mean over tokens; max: the largest"},
      {">growth", "variance of its coordinates over that of the embedding"},
      {">attn",
       "attn, mlp, block: what is added over the stream it is added to; cos …: their "
       "cosine"},
      {">cos h", "cosine of the stream leaving and entering"},
      {">active", "share of MLP activations beyond the threshold; never: neurons without any"},
      {">top 10%", "share of the output magnitude that the largest tenth of the units has"},
      {">rate", "coding rate of the stream, nats"},
      {">same",
       "share of tokens whose most probable next token is the model's already; exit: from "
       "here on"},
      {">right", "share of targets that are the most probable token"},
  };
  for (const auto& [name, meaning] : kMeanings) {
    if (heading == name) return meaning;
  }
  return nullptr;
}

// "24" or "24-27".
std::string blocks(std::int64_t first, std::int64_t n) {
  return n == 1 ? std::to_string(first) : fmt::format("{}-{}", first, first + n - 1);
}

std::string angular_text(const AngularResults& r) {
  std::string out = "blocks over which the stream turns least (angle/pi), best to prune first\n ";
  const std::int64_t shown = std::min<std::int64_t>(8, std::max<std::int64_t>(1, r.layers / 2));
  for (std::int64_t n = 1; n <= shown; ++n) {
    const auto i = static_cast<std::size_t>(n - 1);
    out += fmt::format(" {}: {} ({:.3f}){}", n, blocks(r.first[i], n), r.least[i],
                       n < shown ? "," : "\n");
  }
  return out;
}

std::string maps_text(const LinearMapResults& r, const std::string& against) {
  std::string out =
      styled(Style::bold, fmt::format("linear maps to {}: fitted on {} tokens, "
                                      "error on {} held-out tokens",
                                      against, grouped(r.fit_tokens), grouped(r.held_tokens))) +
      "\n";
  Table table({">layer there", ">best here", ">error", ">of the mean"});
  const auto label = [](std::int64_t s) { return s == 0 ? "embed" : std::to_string(s - 1); };
  const std::vector<std::int32_t> best = r.best();
  for (std::int64_t t = 0; t < r.targets; ++t) {
    const std::int64_t s = best[static_cast<std::size_t>(t)];
    table.row({label(t), label(s), number(r.error[static_cast<std::size_t>(s * r.targets + t)]),
               number(r.mean_error[static_cast<std::size_t>(t)])});
  }
  return out + table.text(2);
}

// JSON has no NaN.
Json values(const std::vector<double>& numbers) {
  Json out = Json::array();
  for (double value : numbers) out.push_back(std::isfinite(value) ? Json(value) : Json());
  return out;
}
Json matrix(const std::vector<double>& numbers, std::int64_t columns) {
  Json out = Json::array();
  for (std::size_t i = 0; i < numbers.size(); i += static_cast<std::size_t>(columns)) {
    const auto row = numbers.begin() + static_cast<std::ptrdiff_t>(i);
    out.push_back(values({row, row + columns}));
  }
  return out;
}

Json contributions_json(const ContributionResults& r) {
  Json json;
  json["attn_norm"] = values(r.attn_norm);
  json["mlp_norm"] = values(r.mlp_norm);
  json["block_norm"] = values(r.block_norm);
  json["attn_ratio"] = values(r.attn_ratio);
  json["mlp_ratio"] = values(r.mlp_ratio);
  json["block_ratio"] = values(r.block_ratio);
  json["attn_cos"] = values(r.attn_cos);
  json["mlp_cos"] = values(r.mlp_cos);
  json["block_cos"] = values(r.block_cos);
  json["stream_cos"] = values(r.stream_cos);
  return json;
}

Json growth_json(const GrowthResults& r) {
  Json json;
  json["norm"] = values(r.norm);
  json["norm_max"] = values(r.norm_max);
  json["rms"] = values(r.rms);
  json["variance"] = values(r.variance);
  json["pooled_variance"] = values(r.pooled_variance);
  json["growth"] = values(r.growth);
  return json;
}

Json exit_json(const ExitResults& r) {
  Json json;
  json["tokens"] = r.tokens;
  json["targets"] = r.targets;
  json["agreement"] = values(r.agreement());
  json["accuracy"] = values(r.accuracy());
  json["exit_share"] = values(r.exit_share());
  json["mean_exit"] = values({r.mean_exit()})[0];
  return json;
}

Json magnitudes_json(const MagnitudeResults& r) {
  Json json;
  for (std::int64_t o = 0; o < r.outputs; ++o) {
    const auto from = static_cast<std::ptrdiff_t>(o * r.layers);
    const auto part = [&](const std::vector<double>& all) {
      return values({all.begin() + from, all.begin() + from + r.layers});
    };
    Json& entry = json[kMagnitudeOutputs[static_cast<std::size_t>(o)]];
    entry["top_tenth"] = part(r.top_share);
    entry["half_units"] = part(r.half_share);
  }
  return json;
}

}  // namespace

std::vector<Probe*> DepthProbes::all() const {
  std::vector<Probe*> out;
  const auto add = [&](Probe* probe) {
    if (probe != nullptr) out.push_back(probe);
  };
  add(contributions.get());
  add(growth.get());
  add(angular.get());
  add(exit.get());
  add(sparsity.get());
  add(magnitudes.get());
  add(coding_rate.get());
  return out;
}

std::string depth_text(const DepthReport& report) {
  std::string out =
      styled(Style::bold, fmt::format("depth of {}: {} prompts, {} tokens", report.model,
                                      grouped(report.prompts), grouped(report.tokens))) +
      "\n";
  const std::vector<Column> columns = layer_columns(report.probes);
  if (!columns.empty()) {
    std::vector<std::string> headings = {">layer"};
    for (const Column& column : columns) headings.push_back(column.heading);
    Table table(headings);
    for (std::int64_t s = 0; s <= report.layers; ++s) {
      std::vector<std::string> row = {s == 0 ? "embed" : std::to_string(s - 1)};
      for (const Column& column : columns) {
        const std::int64_t at = column.per_stream ? s : s - 1;
        row.push_back(at < 0 ? "" : column.cells[static_cast<std::size_t>(at)]);
      }
      table.row(row);
    }
    out += table.text(2);
    for (const Column& column : columns) {
      if (const char* meaning = explain(column.heading)) {
        out += fmt::format("  {}: {}\n", column.heading.substr(1), meaning);
      }
    }
  }
  if (report.probes.exit) {
    const ExitResults& r = report.probes.exit->results();
    out += fmt::format("early exit: {} tokens read, on average at stream {:.1f} of {}\n",
                       grouped(r.tokens), r.mean_exit(), report.layers);
  }
  if (report.probes.angular) out += angular_text(report.probes.angular->results());
  if (report.maps) out += maps_text(*report.maps, report.against);
  return out;
}

Json depth_json(const DepthReport& report) {
  Json json;
  json["model"] = report.model;
  json["layers"] = report.layers;
  json["prompts"] = report.prompts;
  json["tokens"] = report.tokens;
  const DepthProbes& probes = report.probes;
  if (probes.contributions)
    json["contributions"] = contributions_json(probes.contributions->results());
  if (probes.growth) json["growth"] = growth_json(probes.growth->results());
  if (probes.angular) {
    const AngularResults r = probes.angular->results();
    json["angular"]["distance"] = matrix(r.distance, r.layers);
    json["angular"]["prune_first"] = r.first;
    json["angular"]["prune_distance"] = values(r.least);
  }
  if (probes.exit) json["exit"] = exit_json(probes.exit->results());
  if (probes.sparsity) {
    const SparsityResults r = probes.sparsity->results();
    json["sparsity"]["threshold"] = probes.sparsity->options().threshold;
    json["sparsity"]["relative"] = probes.sparsity->options().relative;
    json["sparsity"]["active"] = values(r.active);
    json["sparsity"]["never_active"] = r.never;
  }
  if (probes.magnitudes) json["magnitudes"] = magnitudes_json(probes.magnitudes->results());
  if (probes.coding_rate) json["coding_rate"] = values(probes.coding_rate->results().rate);
  if (report.maps) {
    Json& maps = json["linear_map"];
    maps["against"] = report.against;
    maps["fit_tokens"] = report.maps->fit_tokens;
    maps["held_tokens"] = report.maps->held_tokens;
    maps["error"] = matrix(report.maps->error, report.maps->targets);
    maps["mean_error"] = values(report.maps->mean_error);
    maps["best_source"] = report.maps->best();
  }
  return json;
}

}  // namespace lamina::cli
