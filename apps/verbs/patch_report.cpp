#include "verbs/patch_report.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"

namespace lamina::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kMapColumns = 26;

double mean(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

std::string cell(double value) {
  if (std::isnan(value)) return "";
  if (std::abs(value) < 0.005) return ".";
  return fmt::format("{:.2f}", value);
}

std::string dim_label(const PatchDim& dim, std::size_t i) {
  return dim.labels.empty() ? std::to_string(dim.values[i]) : dim.labels[i];
}

// Index along every dimension of node i of a grid.
std::vector<std::size_t> coordinates(const PatchGrid& grid, std::size_t i) {
  std::vector<std::size_t> at(grid.dims.size());
  for (std::size_t d = grid.dims.size(); d-- > 0;) {
    at[d] = i % grid.dims[d].values.size();
    i /= grid.dims[d].values.size();
  }
  return at;
}

std::string node_label(const PatchGrid& grid, std::size_t i) {
  const std::vector<std::size_t> at = coordinates(grid, i);
  std::string out = grid.label;
  for (std::size_t d = 0; d < at.size(); ++d) {
    const PatchDim& dim = grid.dims[d];
    out += fmt::format("  {} {}", dim.name, dim.values[at[d]]);
    if (!dim.labels.empty()) out += " " + dim.labels[at[d]];
  }
  return out;
}

// Rows by the first dimension, columns by the second, as in the papers' figures.
std::string map_text(const PatchReport& report, const PatchGrid& grid) {
  const PatchDim& rows = grid.dims[0];
  const std::size_t columns = grid.dims.size() > 1 ? grid.dims[1].values.size() : 1;
  std::vector<std::string> headings = {rows.name};
  for (std::size_t c = 0; c < columns; ++c) {
    headings.push_back(">" + (grid.dims.size() > 1 ? dim_label(grid.dims[1], c) : "score"));
  }
  Table table(headings);
  for (std::size_t r = 0; r < rows.values.size(); ++r) {
    std::vector<std::string> line = {dim_label(rows, r)};
    for (std::size_t c = 0; c < columns; ++c) {
      line.push_back(cell(report.scores[grid.first + r * columns + c]));
    }
    table.row(line);
  }
  return table.text(2);
}

struct Ranked {
  const PatchGrid* grid;
  std::size_t index;  // in the grid
  double score, effect;
};

// The largest effects by magnitude, first node first among equals.
std::vector<Ranked> ranked(const PatchReport& report, std::int64_t show) {
  std::vector<Ranked> all;
  for (const PatchGrid& grid : report.grids) {
    for (std::size_t i = 0; i < grid.count(); ++i) {
      const std::size_t n = grid.first + i;
      if (std::isfinite(report.effect[n]) && report.effect[n] != 0.0) {
        all.push_back({&grid, i, report.scores[n], report.effect[n]});
      }
    }
  }
  std::stable_sort(all.begin(), all.end(), [](const Ranked& a, const Ranked& b) {
    return std::abs(a.effect) > std::abs(b.effect);
  });
  if (std::ssize(all) > show) all.resize(static_cast<std::size_t>(show));
  return all;
}

}  // namespace

void PatchReport::summarise() {
  const std::size_t pairs = base.size(), nodes = pairs == 0 ? 0 : patched.size() / pairs;
  for (std::size_t n = 0; n < nodes; ++n) {
    double moved = 0.0, whole = 0.0;
    std::size_t count = 0;
    for (std::size_t p = 0; p < pairs; ++p) {
      const double value = patched[n * pairs + p];
      if (std::isnan(value)) continue;
      ++count;
      moved += value - base[p];
      whole += other.empty() ? base[p] : other[p] - base[p];
    }
    const double nan = std::numeric_limits<double>::quiet_NaN();
    effect.push_back(count == 0 ? nan : moved / static_cast<double>(count));
    // Runs that do not differ leave nothing to divide by; 0 divided by a negative number is −0.
    scores.push_back(count == 0 || whole == 0.0 ? nan : moved == 0.0 ? 0.0 : moved / whole);
  }
}

std::string site_label(SiteKind kind) {
  std::string name = site_name({kind, 0});
  if (name.starts_with("blocks.0.")) name.erase(0, 9);
  if (name.starts_with("attn.")) name.erase(0, 5);
  if (const auto hook = name.find("hook_"); hook != std::string::npos) name.erase(hook, 5);
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
}

std::vector<std::string> position_labels(std::span<const Pair> pairs, const Tokenizer* tokenizer,
                                         std::int64_t n) {
  std::vector<std::string> labels;
  for (std::int64_t t = 0; t < n; ++t) {
    const auto at = static_cast<std::size_t>(t);
    const std::int32_t id = pairs.front().clean[at];
    const bool agree = std::all_of(pairs.begin(), pairs.end(), [&](const Pair& pair) {
      return pair.clean[at] == id && pair.corrupted[at] == id;
    });
    if (!agree) {
      labels.emplace_back("*");
    } else if (tokenizer == nullptr) {
      labels.push_back(std::to_string(id));
    } else {
      std::string piece = quoted_piece(tokenizer->piece(id));
      labels.push_back(piece.substr(1, piece.size() - 2));
    }
  }
  return labels;
}

std::string patch_text(const PatchReport& report, std::int64_t show) {
  Facts facts;
  for (const auto& [name, value] : report.settings) facts.add(name, value);
  facts.add(report.base_name,
            fmt::format("mean {:.4g}, the run that is patched", mean(report.base)));
  if (!report.other.empty()) {
    facts.add(report.other_name, fmt::format("mean {:.4g}", mean(report.other)));
  }
  facts.add("runs", fmt::format("{} patched, {} that cannot change anything left out, {}",
                                grouped(report.runs), grouped(report.skipped),
                                duration_text(report.seconds)));
  std::string out = styled(Style::bold, report.title) + "\n" + facts.text(2) + "\n";
  out += report.score + "\n";
  for (const PatchGrid& grid : report.grids) {
    const bool fits = grid.dims.size() <= 2 &&
                      (grid.dims.size() < 2 || grid.dims[1].values.size() <= kMapColumns);
    if (!fits) continue;
    out += "\n" + styled(Style::bold, fmt::format("{}: score", grid.label)) + "\n";
    out += map_text(report, grid);
  }
  const std::vector<Ranked> top = ranked(report, show);
  if (top.empty() && show > 0) {
    out += "\nno node had any effect\n";
  } else if (!top.empty()) {
    out += "\n" + styled(Style::bold, fmt::format("the {} largest effects", top.size())) + "\n";
    Table table({"node", ">score", ">effect"});
    for (const Ranked& r : top) {
      table.row({node_label(*r.grid, r.index),
                 std::isnan(r.score) ? "" : fmt::format("{:.3f}", r.score),
                 fmt::format("{:+.4g}", r.effect)});
    }
    out += table.text(2);
  }
  return out;
}

Json patch_json(const PatchReport& report, std::int64_t show) {
  const auto number = [](double value) { return std::isfinite(value) ? Json(value) : Json(); };
  Json json;
  json["title"] = report.title;
  for (const auto& [name, value] : report.settings) json["settings"][name] = value;
  json["pairs"] = report.pair_ids.size();
  json["base"] = {{"run", report.base_name}, {"mean", mean(report.base)}};
  if (!report.other.empty()) {
    json["other"] = {{"run", report.other_name}, {"mean", mean(report.other)}};
  }
  json["runs"] = report.runs;
  json["skipped"] = report.skipped;
  json["seconds"] = report.seconds;
  json["score"] = report.score;
  json["sites"] = Json::array();
  for (const PatchGrid& grid : report.grids) {
    Json site = {{"site", grid.label}, {"dims", Json::array()}};
    for (const PatchDim& dim : grid.dims) {
      site["dims"].push_back({{"name", dim.name}, {"values", dim.values}});
    }
    for (std::size_t i = 0; i < grid.count(); ++i) {
      site["score"].push_back(number(report.scores[grid.first + i]));
      site["effect"].push_back(number(report.effect[grid.first + i]));
    }
    json["sites"].push_back(std::move(site));
  }
  json["top"] = Json::array();
  for (const Ranked& r : ranked(report, show)) {
    Json entry = {{"site", r.grid->label}};
    const std::vector<std::size_t> at = coordinates(*r.grid, r.index);
    for (std::size_t d = 0; d < at.size(); ++d) {
      entry[r.grid->dims[d].name] = r.grid->dims[d].values[at[d]];
    }
    entry["score"] = number(r.score);
    entry["effect"] = number(r.effect);
    json["top"].push_back(std::move(entry));
  }
  return json;
}

void write_patch(const PatchReport& report, ResultFile& file) {
  file.group("patch");
  file.setting("title", report.title);
  file.setting("score", report.score);
  file.setting("base_run", report.base_name);
  for (const auto& [name, value] : report.settings) file.setting(name, value);
  file.setting("runs", report.runs);
  file.setting("skipped", report.skipped);
  file.axis("pair", report.pair_ids);
  const std::vector<std::string> by_pair = {"pair"};
  const std::size_t pairs = report.pair_ids.size();
  file.dataset(report.base_name, by_pair, report.base,
               "metric of the " + report.base_name + " run, which is patched", "metric");
  if (!report.other.empty()) {
    file.dataset(report.other_name, by_pair, report.other,
                 "metric of the " + report.other_name + " run", "metric");
  }
  // Sites share an axis where their values are the same.
  std::map<std::string, std::vector<std::int64_t>> axes;
  for (const PatchGrid& grid : report.grids) {
    std::vector<std::string> names = {"pair"};
    for (const PatchDim& dim : grid.dims) {
      std::string name = dim.name;
      if (axes.contains(name) && axes[name] != dim.values) name = grid.label + "_" + dim.name;
      if (!axes.contains(name)) {
        axes[name] = dim.values;
        file.axis(name, dim.values);
        if (!dim.labels.empty()) {
          const std::vector<std::string> along = {name};
          file.dataset(name + "_label", along, dim.labels, "what the table calls it", "");
        }
      }
      names.push_back(name);
    }
    const std::size_t nodes = grid.count();
    std::vector<double> patched(nodes * pairs);
    for (std::size_t i = 0; i < nodes; ++i) {
      for (std::size_t p = 0; p < pairs; ++p) {
        patched[p * nodes + i] = report.patched[(grid.first + i) * pairs + p];
      }
    }
    file.dataset(grid.label + "_patched", names, patched,
                 "metric of the run with this node patched; NaN where the prompt has no such node",
                 "metric");
    names.erase(names.begin());
    const auto part = [&](const std::vector<double>& values) {
      return std::span(values).subspan(grid.first, nodes);
    };
    file.dataset(grid.label + "_effect", names, part(report.effect),
                 "mean of patched − " + report.base_name + " over the pairs", "metric");
    file.dataset(grid.label + "_score", names, part(report.scores), report.score, "1");
  }
}

}  // namespace lamina::cli
