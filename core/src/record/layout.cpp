#include "record/layout.h"

#include <algorithm>
#include <set>

#include "record/convert.h"
#include "record/labels.h"

namespace lamina::record {
namespace {

constexpr std::uint64_t kChunkBytes = 1 << 20;

h5::Dims chunk_of(const Slot& slot, const h5::Dims& dims) {
  h5::Dims chunk = dims;
  const std::uint64_t row = std::max<std::uint64_t>(1, slot.row_bytes());
  chunk[0] = std::clamp<std::uint64_t>(kChunkBytes / row, 1, std::max<hsize_t>(1, dims[0]));
  return chunk;
}

void describe(const h5::Object& dataset, std::string_view semantics, std::string_view units) {
  h5::write_attribute(dataset, "semantics", semantics);
  h5::write_attribute(dataset, "units", units);
}

void write_header(const h5::Object& file, const RecordingHeader& header,
                  std::int64_t first_prompt) {
  const ModelConfig& c = header.config;
  const auto text = [&](const char* name, std::string_view value) {
    h5::write_attribute(file, name, value);
  };
  const auto number = [&](const char* name, std::int64_t value) {
    h5::write_attribute(file, name, value);
  };
  text("format", kFormat);
  number("format_version", kFormatVersion);
  number("complete", 0);
  number("committed_prompts", 0);
  text("created_utc", header.created_utc);
  text("tool_version", header.tool_version);
  text("argv", header.argv);
  h5::write_attribute(file, "seed", header.seed);
  text("model_id", header.model_id);
  text("model_sha256", header.model_sha256);
  text("tokenizer_sha256", header.tokenizer_sha256);
  text("prompts_sha256", header.prompts_sha256);
  text("family", c.family);
  number("n_layers", c.n_layers);
  number("d_model", c.d_model);
  number("n_heads", c.n_heads);
  number("n_kv_heads", c.n_kv_heads);
  number("d_head", c.d_head);
  number("d_mlp", c.d_mlp);
  number("d_vocab", c.d_vocab);
  text("norm_place", kNormPlaces[static_cast<std::size_t>(c.norm_place)]);
  number("causal", c.causal ? 1 : 0);
  number("embed_norm", c.embed_norm ? 1 : 0);
  number("n_types", c.n_types);
  text("compute_dtype", "f32");
  text("store_dtype", store_type_name(header.store));
  number("prepend_bos", header.prepend_bos ? 1 : 0);
  text("weights_processing", "none");
  number("topk", header.topk);
  number("total_prompts", header.total_prompts);
  number("shard_first_prompt", first_prompt);
}

void write_inputs(const h5::Object& file, h5::Scales& scales, std::span<const Prompt> prompts,
                  const std::vector<std::int64_t>& offsets) {
  const auto count = static_cast<hsize_t>(prompts.size());
  const auto tokens = static_cast<hsize_t>(offsets.back());
  std::vector<std::int32_t> ids, positions, targets;
  std::vector<std::uint8_t> phase;
  std::vector<std::string> texts, names;
  std::set<std::string> label_names;
  for (const Prompt& prompt : prompts) {
    ids.insert(ids.end(), prompt.ids.begin(), prompt.ids.end());
    for (std::size_t t = 0; t < prompt.ids.size(); ++t) {
      positions.push_back(static_cast<std::int32_t>(t));
      phase.push_back(static_cast<std::int64_t>(t) < prompt.given ? 0 : 1);
    }
    targets.push_back(prompt.target.value_or(-1));
    texts.push_back(prompt.text);
    names.push_back(prompt.id);
    for (const auto& [label, value] : prompt.labels) label_names.insert(label);
  }
  const std::string token[] = {"token"};
  const std::string prompt[] = {"prompt"};
  const std::string edge[] = {"prompt_edge"};
  const auto add = [&](h5::Object dataset, std::span<const std::string> dims,
                       std::string_view semantics) {
    describe(dataset, semantics, "1");
    scales.attach(dataset, dims);
  };
  using h5::Type;
  add(h5::write_dataset(file, "inputs/input_ids", Type::i32, {tokens}, ids.data()), token,
      "token ids, prompt after prompt");
  add(h5::write_dataset(file, "inputs/offsets", Type::i64, {count + 1}, offsets.data()), edge,
      "prompt i owns the token rows offsets[i] to offsets[i+1] - 1");
  add(h5::write_dataset(file, "inputs/position_ids", Type::i32, {tokens}, positions.data()), token,
      "position of the token in its prompt, from 0");
  add(h5::write_dataset(file, "inputs/phase", Type::u8, {tokens}, phase.data()), token,
      "0: token of the given prompt, 1: generated");
  add(h5::write_dataset(file, "inputs/target", Type::i32, {count}, targets.data()), prompt,
      "token expected after the last given one, -1 if none was named");
  add(h5::write_texts(file, "inputs/text", {count}, texts), prompt,
      "text of the prompt, empty if it was given as token ids");
  add(h5::write_texts(file, "inputs/prompt_id", {count}, names), prompt, "name of the prompt");
  h5::make_group(file, "inputs/labels");
  h5::make_group(file, "inputs/label_present");
  for (const std::string& label : label_names) {
    std::vector<std::string> values;
    std::vector<std::uint8_t> present;
    for (const Prompt& p : prompts) {
      const auto found = p.labels.find(label);
      present.push_back(found != p.labels.end());
      values.push_back(found == p.labels.end() ? "" : found->second);
    }
    const std::string link = label_link(label);
    h5::Object dataset = h5::write_texts(file, "inputs/labels/" + link, {count}, values);
    h5::write_attribute(dataset, "label", label);
    add(std::move(dataset), prompt, "label given with the prompt, empty where absent");
    add(h5::write_dataset(file, "inputs/label_present/" + link, Type::u8, {count}, present.data()),
        prompt, "1 where the prompt has the label, 0 where it is absent");
  }
}

}  // namespace

std::uint64_t Slot::row_elements() const {
  std::uint64_t product = 1;
  for (hsize_t dim : row) product = checked_mul(product, dim, path);
  return product;
}

std::vector<Slot> make_slots(const RecordingHeader& header) {
  std::vector<Slot> slots;
  for (Site site : header.sites) {
    const SiteShape shape = site_shape(site, header.config);
    Slot slot;
    slot.site = site;
    slot.type = element_type(header.store);
    slot.semantics = site_semantics(site, header.config);
    const std::string name = site_name(site);
    if (shape.attention) {
      slot.kind = Slot::Kind::attention;
      slot.path = fmt::format("attention/{}/values", name);
    } else {
      slot.path = fmt::format("activations/{}", name);
      if (shape.heads > 0) slot.row.push_back(static_cast<hsize_t>(shape.heads));
      slot.row.push_back(static_cast<hsize_t>(shape.width));
      slot.dimensions = site_dimensions(site);
    }
    slots.push_back(std::move(slot));
  }
  if (header.topk > 0) {
    const auto k = static_cast<hsize_t>(header.topk);
    const auto add = [&](const char* path, h5::Type type, bool top, const char* semantics) {
      Slot slot;
      slot.semantics = semantics;
      slot.kind = Slot::Kind::logits;
      slot.path = path;
      slot.type = type;
      if (top) slot.row = {k}, slot.dimensions = {"k"};
      slots.push_back(std::move(slot));
    };
    add("logits/topk_ids", h5::Type::i32, true, "ids of the largest logits, largest first");
    add("logits/topk_logprobs", h5::Type::f32, true, "log-probabilities of topk_ids");
    add("logits/target_logprob", h5::Type::f32, false,
        "log-probability of the following token; at a prompt's last token of its target, NaN "
        "without one");
  }
  return slots;
}

std::uint64_t prompt_bytes(const RecordingHeader& header, std::span<const Slot> slots,
                           std::int64_t length) {
  std::uint64_t bytes = 0;
  for (const Slot& slot : slots) {
    const std::uint64_t rows = slot.kind == Slot::Kind::attention
                                   ? attention_elements(header, length)
                                   : static_cast<std::uint64_t>(length);
    bytes = checked_add(bytes, checked_mul(rows, slot.row_bytes(), slot.path), slot.path);
  }
  return bytes;
}

h5::Object make_real_rows(const h5::Object& file, const Slot& slot, const h5::Dims& dims,
                          const h5::Dims& chunk) {
  return h5::create_dataset(file, slot.path, {slot.type, dims, chunk, true});
}

void write_skeleton(const h5::Object& file, const RecordingHeader& header,
                    std::span<const Slot> slots, std::span<const Prompt> prompts,
                    std::int64_t first_prompt, const MakeRows& make_rows) {
  h5::Lock lock;
  write_header(file, header, first_prompt);

  std::vector<std::int64_t> offsets = {0}, attention_offsets = {0};
  for (const Prompt& prompt : prompts) {
    const auto length = static_cast<std::int64_t>(prompt.ids.size());
    offsets.push_back(offsets.back() + length);
    attention_offsets.push_back(attention_offsets.back() +
                                static_cast<std::int64_t>(attention_elements(header, length)));
  }

  h5::Scales scales;
  const auto count = static_cast<hsize_t>(prompts.size());
  scales.add_index(file, "token", "token", static_cast<hsize_t>(offsets.back()));
  scales.add_index(file, "prompt", "prompt", count, first_prompt);
  scales.add_index(file, "prompt_edge", "prompt_edge", count + 1);
  write_inputs(file, scales, prompts, offsets);
  h5::make_group(file, "activations");
  h5::make_group(file, "attention");

  for (const Slot& slot : slots) {
    std::vector<std::string> names = {"token"};
    h5::Dims dims = {static_cast<hsize_t>(offsets.back())};
    if (slot.kind == Slot::Kind::attention) {
      const std::string group = fmt::format("attention/{}", site_name(slot.site));
      const std::string element = group + "/element";
      dims[0] = static_cast<hsize_t>(attention_offsets.back());
      names[0] = element;
      scales.add_bare(h5::make_group(file, group), "element", element, dims[0]);
      h5::Object starts = h5::write_dataset(file, group + "/offsets", h5::Type::i64, {count + 1},
                                            attention_offsets.data());
      describe(starts,
               "prompt i owns values[offsets[i]] to values[offsets[i+1] - 1], its [head, query, "
               "key] array in row-major order",
               "1");
      const std::string edge[] = {"prompt_edge"};
      scales.attach(starts, edge);
    }
    for (std::size_t i = 0; i < slot.row.size(); ++i) {
      if (!scales.has(slot.dimensions[i])) {
        scales.add_index(file, slot.dimensions[i], slot.dimensions[i], slot.row[i]);
      }
      names.push_back(slot.dimensions[i]);
      dims.push_back(slot.row[i]);
    }
    h5::Object rows = make_rows(file, slot, dims, chunk_of(slot, dims));
    const bool log_probability = slot.kind == Slot::Kind::logits && slot.type == h5::Type::f32;
    describe(rows, slot.semantics, log_probability ? "nats" : "1");
    if (slot.kind != Slot::Kind::logits) h5::write_attribute(rows, "site", site_name(slot.site));
    if (slot.kind == Slot::Kind::attention) {
      h5::write_attribute(rows, "element_dimensions", "head, query, key");
    }
    scales.attach(rows, names);
  }
  scales.finish();
}

h5::Object open_rows(const h5::Object& file, const Slot& slot, const RecordingHeader& header,
                     std::span<const std::int64_t> offsets) {
  h5::Object dataset = h5::open_dataset(file, slot.path);
  h5::expect_type(dataset, slot.type);
  h5::Dims dims = {static_cast<hsize_t>(offsets.back())};
  if (slot.kind == Slot::Kind::attention) {
    const h5::Object starts =
        h5::open_dataset(file, fmt::format("attention/{}/offsets", site_name(slot.site)));
    const std::vector<std::int64_t> stored = h5::read_i64(starts);
    if (stored.size() != offsets.size()) {
      fail("{}: {} entries expected, found {}", starts.where, offsets.size(), stored.size());
    }
    std::int64_t expected = 0;
    for (std::size_t i = 0; i < stored.size(); ++i) {
      if (i > 0) {
        expected +=
            static_cast<std::int64_t>(attention_elements(header, offsets[i] - offsets[i - 1]));
      }
      if (stored[i] != expected) {
        fail("{}: entry {} is {}, {} heads of the prompts' lengths ask for {}", starts.where, i,
             stored[i], header.config.n_heads, expected);
      }
    }
    dims[0] = static_cast<hsize_t>(expected);
  }
  dims.insert(dims.end(), slot.row.begin(), slot.row.end());
  h5::expect_dims(dataset, dims);
  return dataset;
}

}  // namespace lamina::record
