// lamina info: what a model, a recording or a tokenizer is.

#include "verbs/info.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "lamina/core/gguf.h"
#include "lamina/core/inspect.h"
#include "lamina/core/results_info.h"
#include "lamina/core/safetensors.h"
#include "lamina/core/tokenizer.h"
#include "paths.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

using Json = nlohmann::ordered_json;

struct TypeCount {
  std::size_t tensors = 0;
  std::uint64_t bytes = 0;
};

std::map<std::string, TypeCount> count_types(const TensorStore& store) {
  std::map<std::string, TypeCount> counts;
  for (const TensorInfo& tensor : store.tensors()) {
    TypeCount& count = counts[std::string(dtype_name(tensor.dtype))];
    ++count.tensors;
    count.bytes += tensor.bytes.size();
  }
  return counts;
}

Json tokenizer_json(const Tokenizer& tokenizer) {
  Json json;
  json["vocab_size"] = tokenizer.vocab_size();
  json["adds_bos"] = tokenizer.adds_bos();
  json["bos_id"] = tokenizer.bos_id() ? Json(*tokenizer.bos_id()) : Json();
  json["eos_id"] = tokenizer.eos_id() ? Json(*tokenizer.eos_id()) : Json();
  json["sha256"] = tokenizer.sha256();
  return json;
}

std::string tokenizer_text(const Tokenizer& tokenizer) {
  const auto named = [&](const char* what, std::optional<std::int32_t> id) {
    return id ? fmt::format(", {} {} {}", what, *id, quoted_piece(tokenizer.piece(*id)))
              : fmt::format(", no {}", what);
  };
  return fmt::format("{} entries{}{}{}", grouped(tokenizer.vocab_size()),
                     named("BOS", tokenizer.bos_id()), tokenizer.adds_bos() ? " (added)" : "",
                     named("EOS", tokenizer.eos_id()));
}

// A metadata value on one line; long arrays by their length.
Json gguf_json(const GgufValue& value) {
  return std::visit(
      [](const auto& v) -> Json {
        using T = std::decay_t<decltype(v)>;
        if constexpr (requires { typename T::value_type; } && !std::is_same_v<T, std::string>) {
          if (v.size() > 16) return fmt::format("[{} values]", v.size());
          Json list = Json::array();
          for (auto&& item : v) list.push_back(static_cast<typename T::value_type>(item));
          return list;
        } else {
          return v;
        }
      },
      value);
}

bool has_tokenizer(const std::filesystem::path& path, const GgufFile* gguf) {
  if (gguf != nullptr) return gguf->metadata.has("tokenizer.ggml.model");
  return std::filesystem::exists(path / "tokenizer.json");
}

}  // namespace

void print_json(const nlohmann::ordered_json& json, Output& out) {
  out.write(json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

std::string shape_text(Site site, const ModelConfig& config) {
  const SiteShape shape = site_shape(site, config);
  if (shape.attention) return fmt::format("[{} heads, query, key]", shape.heads);
  if (shape.heads > 0) return fmt::format("[token, {}, {}]", shape.heads, shape.width);
  return fmt::format("[token, {}]", shape.width);
}

void print_sites(std::span<const Site> sites, const ModelConfig& config, bool meaning,
                 Output& out) {
  // One line a kind: the layers that have it, folded into ranges.
  std::vector<SiteKind> order;
  std::map<SiteKind, std::vector<std::int32_t>> layers;
  for (Site site : sites) {
    if (!layers.contains(site.kind)) order.push_back(site.kind);
    layers[site.kind].push_back(site.layer);
  }
  std::vector<std::string> headings = {"site", "layers", "shape"};
  if (meaning) headings.push_back("meaning");
  Table table(headings);
  for (SiteKind kind : order) {
    std::vector<std::int32_t>& of = layers[kind];
    std::sort(of.begin(), of.end());
    std::string name = site_name({kind, of.front()});
    std::string ranges;
    if (of.front() >= 0) {
      const std::string number = fmt::format("blocks.{}.", of.front());
      name = "blocks.*." + name.substr(number.size());
      for (std::size_t i = 0; i < of.size();) {
        std::size_t end = i;
        while (end + 1 < of.size() && of[end + 1] == of[end] + 1) ++end;
        ranges += fmt::format("{}{}", ranges.empty() ? "" : ",", of[i]);
        if (end > i) ranges += fmt::format("-{}", of[end]);
        i = end + 1;
      }
    }
    const Site first{kind, of.front()};
    table.row(
        {name, ranges, shape_text(first, config), meaning ? site_semantics(first, config) : ""});
  }
  out.write(table.text());
}

void info_model(const std::filesystem::path& path, const InfoOptions& options, Output& out) {
  std::optional<GgufFile> gguf;
  if (file_kind(path) == FileKind::gguf) gguf = open_gguf(path);
  const ModelSummary model = inspect_model(path);
  const ModelConfig& config = model.config;
  std::optional<Tokenizer> tokenizer;
  if (has_tokenizer(path, gguf ? &*gguf : nullptr)) tokenizer = Tokenizer::load(path);
  const auto types = gguf ? count_types(gguf->store) : count_types(open_safetensors(path));
  const std::vector<Site> sites = all_sites(config);

  if (options.json) {
    Json json;
    json["kind"] = "model";
    json["path"] = path.string();
    json["format"] = gguf ? "gguf" : "safetensors";
    json["family"] = config.family;
    json["n_layers"] = config.n_layers;
    json["d_model"] = config.d_model;
    json["n_heads"] = config.n_heads;
    json["n_kv_heads"] = config.n_kv_heads;
    json["d_head"] = config.d_head;
    json["d_mlp"] = config.d_mlp;
    json["d_vocab"] = config.d_vocab;
    json["n_ctx"] = config.n_ctx;
    json["parameters"] = model.parameters;
    json["memory_bytes"] = model.memory_bytes;
    json["file_bytes"] = model.file_bytes;
    for (const auto& [name, count] : types) {
      json["element_types"][name] = {{"tensors", count.tensors}, {"bytes", count.bytes}};
    }
    json["description"] = describe(config);
    json["tokenizer"] = tokenizer ? tokenizer_json(*tokenizer) : Json();
    for (Site site : sites) {
      json["sites"].push_back({{"name", site_name(site)},
                               {"dimensions", site_dimensions(site)},
                               {"semantics", site_semantics(site, config)}});
    }
    if (gguf) {
      json["gguf_version"] = gguf->version;
      for (const auto& [key, value] : gguf->metadata.values()) json["gguf"][key] = gguf_json(value);
    }
    print_json(json, out);
    return;
  }

  Facts facts;
  facts.add("model", path.string());
  const std::string description = describe(config);
  for (std::size_t at = 0; at < description.size();) {
    const std::size_t end = std::min(description.find('\n', at), description.size());
    const std::string line = description.substr(at, end - at);
    const std::size_t colon = line.find(": ");
    if (colon != std::string::npos) facts.add(line.substr(0, colon), line.substr(colon + 2));
    at = end + 1;
  }
  facts.add("parameters",
            fmt::format("{} ({})", short_number(static_cast<double>(model.parameters)),
                        grouped(static_cast<std::int64_t>(model.parameters))));
  facts.add("files", fmt::format("{} {}, {}", model.files.size(), gguf ? "GGUF" : "safetensors",
                                 bytes_text(model.file_bytes)));
  std::string type_text;
  for (const auto& [name, count] : types) {
    type_text += fmt::format("{}{} × {}", type_text.empty() ? "" : ", ", count.tensors, name);
  }
  facts.add("stored as", type_text);
  facts.add("memory",
            fmt::format("{} of fp32 weights when loaded", bytes_text(model.memory_bytes)));
  facts.add("tokenizer", tokenizer ? tokenizer_text(*tokenizer) : "none");
  out.write(facts.text());
  out.write("\n");
  if (options.sites) {
    Table table({"site", "shape", "meaning"});
    for (Site site : sites) {
      table.row({site_name(site), shape_text(site, config), site_semantics(site, config)});
    }
    out.write(table.text());
  } else {
    print_sites(sites, config, true, out);
  }
  if (gguf) {
    Table table({"GGUF metadata", "value"});
    for (const auto& [key, value] : gguf->metadata.values()) {
      table.row(
          {key, clip(gguf_json(value).dump(-1, ' ', false, Json::error_handler_t::replace), 80)});
    }
    out.print("\n{}", table.text());
  }
}

void info_tokenizer(const std::filesystem::path& path, const InfoOptions& options, Output& out) {
  const Tokenizer tokenizer = Tokenizer::load(path);
  if (options.json) {
    Json json;
    json["kind"] = "tokenizer";
    json["path"] = path.string();
    json.update(tokenizer_json(tokenizer));
    print_json(json, out);
    return;
  }
  Facts facts;
  facts.add("tokenizer", path.string());
  facts.add("vocabulary", tokenizer_text(tokenizer));
  facts.add("sha256", tokenizer.sha256());
  out.write(facts.text());
}

void register_info(CLI::App& app, Globals& globals) {
  struct Args {
    std::string target;
    std::string output;
    bool force = false;
    InfoOptions options;
  };
  auto args = std::make_shared<Args>();
  CLI::App* verb =
      app.add_subcommand("info", "say what a model, recording, results file or tokenizer is");
  verb->group("Look");
  verb->add_option("file", args->target,
                   "model folder, GGUF file, recording, results file or tokenizer.json")
      ->required()
      ->option_text("FILE|MODEL");
  verb->add_flag("--sites", args->options.sites, "list every site, layer by layer");
  verb->add_flag("--prompts", args->options.prompts, "list every prompt of a recording");
  verb->add_flag("--json", args->options.json, "print JSON");
  verb->add_option("-o,--output", args->output, "write to FILE instead of standard output")
      ->option_text("FILE");
  verb->add_flag("--force", args->force, "overwrite the output file");
  verb->callback([args, &globals] {
    globals.action = [args] {
      const std::filesystem::path path = resolve_model(args->target);
      const FileKind kind = file_kind(path);
      Output out(args->output, args->force);
      switch (kind) {
        case FileKind::model_folder:
        case FileKind::gguf:
          info_model(path, args->options, out);
          break;
        case FileKind::hdf5:
          if (is_results_file(path)) {
            info_results(path, args->options, out);
          } else {
            info_recording(path, args->options, out);
          }
          break;
        case FileKind::tokenizer_json:
          info_tokenizer(path, args->options, out);
          break;
        case FileKind::safetensors:
          fail("{}: one file of weights; give the model's folder, which also holds config.json",
               path.string());
        case FileKind::other:
          fail("{}: neither a model folder nor a GGUF, HDF5 or tokenizer.json file", path.string());
      }
      out.close();
      return 0;
    };
  });
}

}  // namespace lamina::cli
