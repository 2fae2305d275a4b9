// lamina info on a recording: where it comes from and what it holds.

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "lamina/core/recording.h"
#include "ui/table.h"
#include "ui/text.h"
#include "verbs/info.h"

namespace lamina::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Sizes {
  std::int64_t shortest = 0, longest = 0, generated = 0;
  std::uint64_t attention_cells = 0;  // Σ length² over prompts
};

Sizes prompt_sizes(const Recording& recording) {
  Sizes sizes;
  const auto& offsets = recording.offsets();
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
    const std::int64_t length = offsets[i + 1] - offsets[i];
    sizes.shortest = i == 0 ? length : std::min(sizes.shortest, length);
    sizes.longest = std::max(sizes.longest, length);
    sizes.generated += length - recording.prompts()[i].given;
    sizes.attention_cells += static_cast<std::uint64_t>(length * length);
  }
  return sizes;
}

std::uint64_t site_bytes(Site site, const Recording& recording, const Sizes& sizes) {
  const SiteShape shape = site_shape(site, recording.header().config);
  const std::uint64_t element = recording.header().store == StoreType::f32 ? 4 : 2;
  return element * (shape.attention
                        ? static_cast<std::uint64_t>(shape.heads) * sizes.attention_cells
                        : static_cast<std::uint64_t>(shape.row() * recording.tokens()));
}

}  // namespace

void info_recording(const std::filesystem::path& path, const InfoOptions& options, Output& out) {
  const Recording recording = Recording::open(path);
  const RecordingHeader& header = recording.header();
  const ModelConfig& config = header.config;
  const Sizes sizes = prompt_sizes(recording);
  std::uint64_t total = 0;
  for (Site site : recording.sites()) total += site_bytes(site, recording, sizes);

  if (options.json) {
    Json json;
    json["kind"] = "recording";
    json["path"] = path.string();
    json["model_id"] = header.model_id;
    json["model_sha256"] = header.model_sha256;
    json["tokenizer_sha256"] = header.tokenizer_sha256;
    json["prompts_sha256"] = header.prompts_sha256;
    json["family"] = config.family;
    json["n_layers"] = config.n_layers;
    json["d_model"] = config.d_model;
    json["d_vocab"] = config.d_vocab;
    json["store_dtype"] = store_type_name(header.store);
    json["prepend_bos"] = header.prepend_bos;
    json["seed"] = header.seed;
    json["created_utc"] = header.created_utc;
    json["tool_version"] = header.tool_version;
    json["argv"] = header.argv;
    json["prompts"] = recording.prompts().size();
    json["total_prompts"] = header.total_prompts;
    json["tokens"] = recording.tokens();
    json["generated_tokens"] = sizes.generated;
    json["topk"] = header.topk;
    json["activation_bytes"] = total;
    json["sites"] = Json::array();
    for (Site site : recording.sites()) {
      json["sites"].push_back({{"name", site_name(site)},
                               {"dimensions", site_dimensions(site)},
                               {"bytes", site_bytes(site, recording, sizes)}});
    }
    if (options.prompts) {
      for (const Prompt& prompt : recording.prompts()) {
        json["prompt_list"].push_back({{"id", prompt.id},
                                       {"text", prompt.text},
                                       {"ids", prompt.ids},
                                       {"given", prompt.given},
                                       {"target", prompt.target ? Json(*prompt.target) : Json()},
                                       {"labels", prompt.labels}});
      }
    }
    print_json(json, out);
    return;
  }

  Facts facts;
  facts.add("recording", path.string());
  facts.add("model", fmt::format("{} (family {}, {} layers, d_model {})", header.model_id,
                                 config.family, config.n_layers, config.d_model));
  facts.add("model sha256", header.model_sha256);
  facts.add("made", fmt::format("{} by lamina {}", header.created_utc, header.tool_version));
  facts.add("command", clip(escape_controls(header.argv), 120));
  const auto here = static_cast<std::int64_t>(recording.prompts().size());
  facts.add("prompts", here == header.total_prompts
                           ? grouped(here)
                           : fmt::format("{} of {}, from prompt {}", grouped(here),
                                         grouped(header.total_prompts), header.shard_first_prompt));
  facts.add(
      "tokens",
      fmt::format(
          "{} ({} to {} a prompt{})", grouped(recording.tokens()), sizes.shortest, sizes.longest,
          sizes.generated > 0 ? fmt::format("; {} generated", grouped(sizes.generated)) : ""));
  facts.add("first token", header.prepend_bos ? "BOS, put in front" : "as given");
  facts.add("stored as", std::string(store_type_name(header.store)));
  facts.add("activations",
            fmt::format("{} sites, {}", recording.sites().size(), bytes_text(total)));
  facts.add("logits",
            header.topk > 0
                ? fmt::format("top {} of every token, log-probability of the next", header.topk)
                : "none");
  out.write(facts.text());
  out.write("\n");
  if (options.sites) {
    Table table({"site", "shape", ">size"});
    for (Site site : recording.sites()) {
      table.row({site_name(site), shape_text(site, config),
                 bytes_text(site_bytes(site, recording, sizes))});
    }
    out.write(table.text());
  } else {
    print_sites(recording.sites(), config, false, out);
  }
  if (options.prompts) {
    Table table({">#", "id", ">tokens", "text"});
    for (std::size_t i = 0; i < recording.prompts().size(); ++i) {
      const Prompt& prompt = recording.prompts()[i];
      table.row({std::to_string(header.shard_first_prompt + static_cast<std::int64_t>(i)),
                 clip(escape_controls(prompt.id), 24), std::to_string(prompt.ids.size()),
                 clip(escape_controls(prompt.text), 80)});
    }
    out.print("\n{}", table.text());
  }
}

}  // namespace lamina::cli
