// lamina info on a results file: what made it, and the datasets of its analyses.

#include <nlohmann/json.hpp>

#include "lamina/core/results_info.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/info.h"

namespace lamina::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string shape_text(const ResultDataset& dataset) {
  std::string out;
  for (const auto& [name, size] : dataset.dimensions) {
    out += fmt::format("{}{}{}", out.empty() ? "" : ", ", name.empty() ? "" : name + " ", size);
  }
  return out;
}

// A command line or a list of files can be long.
std::string short_value(const std::string& value) {
  return clip(escape_controls(value), 100);
}

Json results_json(const std::filesystem::path& path, const ResultsInfo& info) {
  Json json;
  json["kind"] = "results";
  json["path"] = path.string();
  for (const auto& [name, value] : info.provenance) json["provenance"][name] = value;
  json["analyses"] = Json::object();
  for (const ResultAnalysis& analysis : info.analyses) {
    Json& out = json["analyses"][analysis.name];
    out["settings"] = Json::object();
    for (const auto& [name, value] : analysis.settings) out["settings"][name] = value;
    out["datasets"] = Json::object();
    for (const ResultDataset& dataset : analysis.datasets) {
      Json entry = {{"type", dataset.type}, {"dimensions", Json::array()}};
      for (const auto& [name, size] : dataset.dimensions) {
        entry["dimensions"].push_back({{"name", name}, {"size", size}});
      }
      entry["axis"] = dataset.axis;
      entry["description"] = dataset.description;
      entry["units"] = dataset.units;
      out["datasets"][dataset.name] = entry;
    }
  }
  return json;
}

}  // namespace

void info_results(const std::filesystem::path& path, const InfoOptions& options, Output& out) {
  const ResultsInfo info = read_results_info(path);
  if (options.json) {
    print_json(results_json(path, info), out);
    return;
  }
  Facts facts;
  facts.add("results", path.string());
  for (const auto& [name, value] : info.provenance) {
    if (name != "format" && name != "format_version") facts.add(name, short_value(value));
  }
  out.write(facts.text());
  for (const ResultAnalysis& analysis : info.analyses) {
    out.print("\n{}\n", styled(Style::bold, "/analyses/" + analysis.name));
    Facts settings;
    for (const auto& [name, value] : analysis.settings) settings.add(name, short_value(value));
    out.write(settings.text(2));
    Table table({"dataset", "dimensions", "units", "meaning"});
    for (const ResultDataset& dataset : analysis.datasets) {
      if (dataset.axis) continue;
      table.row({dataset.name, shape_text(dataset), dataset.units, dataset.description});
    }
    if (!table.empty()) out.print("{}", table.text(2));
  }
}

}  // namespace lamina::cli
