#include "verbs/cka_tables.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "ui/glyphs.h"
#include "ui/table.h"
#include "ui/text.h"

namespace lamina::cli {
namespace {

struct Named {
  const char* name;
  const std::vector<double>* values;
};

std::vector<Named> matrices(const CkaResults& r) {
  std::vector<Named> all;
  for (const Named& each : {Named{"linear", &r.linear}, Named{"debiased", &r.debiased},
                            Named{"debiased_error", &r.debiased_error}, Named{"rbf", &r.rbf},
                            Named{"rbf_debiased", &r.rbf_debiased}, Named{"svcca", &r.svcca},
                            Named{"pwcca", &r.pwcca}}) {
    if (!each.values->empty()) all.push_back(each);
  }
  return all;
}

// The one that is drawn: the debiased, or what was asked for.
Named main_matrix(const CkaResults& r) {
  const std::vector<Named> all = matrices(r);
  const auto found = std::find_if(all.begin(), all.end(), [](const Named& each) {
    return std::string_view(each.name) == "debiased";
  });
  return found == all.end() ? all.front() : *found;
}

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

std::string number(double v) {
  return std::isnan(v) ? "–" : fmt::format("{:.3f}", v);
}

std::string heat_map(const CkaResults& r, const std::vector<double>& m) {
  const std::vector<std::string>& others = r.self ? r.layers : r.layers_other;
  std::size_t width = 5;
  for (const std::string& name : r.layers) width = std::max(width, name.size());
  std::string out;
  for (std::int64_t i = 0; i < r.a(); ++i) {
    out += fmt::format("  {:>{}} ", r.layers[size(i)], width);
    for (std::int64_t j = 0; j < r.b(); ++j) {
      const char* cell = shade(m[size(i * r.b() + j)]);
      out += fmt::format("{}{}", cell, cell);  // a terminal's cells are twice as high as wide
    }
    out += "\n";
  }
  // Every fifth of the other layers is named below its column.
  std::string names(width + 3, ' ');
  for (std::int64_t j = 0; j < r.b(); j += 5) {
    names.resize(std::max(names.size(), width + 3 + size(2 * j)), ' ');
    names += others[size(j)] == "embed" ? "e" : others[size(j)];
  }
  return out + names + fmt::format("\n  {}\n", kShadeLegend);
}

std::string blocks_text(const CkaResults& r, const std::vector<double>& m, double least) {
  std::string out = fmt::format("  blocks, every pair at least {:g}:", least);
  const char* separator = " ";
  for (const auto& [first, last] : cka_blocks(m, r.a(), least)) {
    out += separator + r.layers[size(first)];
    if (last > first) out += "–" + r.layers[size(last)];
    separator = ", ";
  }
  return out + "\n";
}

std::string layers_text(const CkaResults& r, const Named& main) {
  const std::vector<Named> all = matrices(r);
  const std::vector<std::string>& others = r.self ? r.layers : r.layers_other;
  const bool aligned = !r.self && r.a() == r.b();
  std::vector<std::string> headings = {"layer"};
  if (r.self || aligned) {
    for (const Named& each : all) {
      headings.push_back(fmt::format(">{} {}", r.self ? "next:" : "same:", each.name));
    }
  }
  headings.insert(headings.end(), {">most alike", ">" + std::string(main.name)});
  Table table(headings);
  for (std::int64_t i = 0; i < r.a(); ++i) {
    std::vector<std::string> cells = {r.layers[size(i)]};
    if (r.self || aligned) {
      const std::int64_t j = r.self ? i + 1 : i;
      for (const Named& each : all) {
        cells.push_back(j < r.b() ? number((*each.values)[size(i * r.b() + j)]) : "");
      }
    }
    std::int64_t best = -1;
    for (std::int64_t j = 0; j < r.b(); ++j) {
      const double value = (*main.values)[size(i * r.b() + j)];
      if ((r.self && j == i) || std::isnan(value)) continue;
      if (best < 0 || value > (*main.values)[size(i * r.b() + best)]) best = j;
    }
    cells.push_back(best < 0 ? "–" : others[size(best)]);
    cells.push_back(best < 0 ? "–" : number((*main.values)[size(i * r.b() + best)]));
    table.row(cells);
  }
  return table.text(2);
}

}  // namespace

std::string cka_text(const CkaResults& r, const CkaOptions& options, double block) {
  const Named main = main_matrix(r);
  std::string out =
      fmt::format("{} {}", grouped(r.rows), options.pool == CkaPool::none ? "tokens" : "prompts");
  if (options.skip > 0) out += fmt::format(", first {} of each prompt skipped", options.skip);
  if (options.mode == CkaMode::minibatch) {
    out += fmt::format(", {} minibatches of {}", grouped(r.minibatches), options.minibatch);
  }
  out += fmt::format("\n\n  {}, {}\n", main.name,
                     r.self ? "layer by layer" : "layers down, the other's across");
  out += heat_map(r, *main.values);
  if (r.self) out += blocks_text(r, *main.values, block);
  return out + "\n" + layers_text(r, main);
}

void add_cka_json(nlohmann::ordered_json& json, const CkaResults& r, const CkaOptions& options) {
  json["mode"] = cka_mode_name(options.mode);
  json["rows"] = r.rows;
  if (options.mode == CkaMode::minibatch) {
    json["minibatches"] = r.minibatches;
    json["rows_left_out"] = r.rows_left_out;
  }
  json["layers"] = r.layers;
  if (!r.self) json["layers_other"] = r.layers_other;
  for (const Named& each : matrices(r)) {
    nlohmann::ordered_json& matrix = json[each.name];
    for (std::int64_t i = 0; i < r.a(); ++i) {
      const auto row = each.values->begin() + i * r.b();
      matrix.push_back(std::vector<double>(row, row + r.b()));
    }
  }
  if (!r.rbf.empty()) json["sample"] = r.sample;
  if (!r.components.empty()) json["components"] = r.components;
  if (!r.first_token.empty()) json["first_token"] = r.first_token;
  json["notes"] = r.notes;
}

}  // namespace lamina::cli
