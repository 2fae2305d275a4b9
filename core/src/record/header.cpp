#include <algorithm>
#include <limits>
#include <tuple>
#include <unordered_map>

#include "record/layout.h"

namespace lamina {

std::string_view store_type_name(StoreType type) {
  switch (type) {
    case StoreType::f16:
      return "f16";
    case StoreType::bf16:
      return "bf16";
    default:
      return "f32";
  }
}

StoreType parse_store_type(std::string_view name) {
  for (StoreType type : {StoreType::f32, StoreType::f16, StoreType::bf16}) {
    if (name == store_type_name(type)) return type;
  }
  fail_usage("store type '{}' is not one of f32, f16, bf16", name);
}

}  // namespace lamina

namespace lamina::record {
namespace {

// Every name a site of a model with these sizes can have. Which of them exist depends on facts that
// a recording does not store (norms, positions), so they are not asked for here.
std::unordered_map<std::string, Site> site_names(std::int64_t layers) {
  std::unordered_map<std::string, Site> names;
  for (int kind = 0; kind <= static_cast<int>(SiteKind::ln_final_normalized); ++kind) {
    const auto k = static_cast<SiteKind>(kind);
    if (site_name({k, 0}) == site_name({k, 1})) {
      names[site_name({k, -1})] = {k, -1};
    } else {
      for (std::int32_t layer = 0; layer < layers; ++layer)
        names[site_name({k, layer})] = {k, layer};
    }
  }
  return names;
}

// Sites in the order of a forward pass.
bool fires_before(Site a, Site b) {
  const auto place = [](Site site) {
    const int group = site.layer >= 0 ? 1 : site.kind >= SiteKind::ln_final_scale ? 2 : 0;
    return std::tuple(group, site.layer, site.kind);
  };
  return place(a) < place(b);
}

void read_sites(const h5::Object& file, RecordingHeader& header) {
  const auto names = site_names(header.config.n_layers);
  for (const char* path : {"activations", "attention"}) {
    if (!h5::exists(file, path)) continue;
    const h5::Object group = h5::open_group(file, path);
    for (const std::string& name : h5::children(group, names.size())) {
      const auto found = names.find(name);
      if (found == names.end()) {
        fail("{}: '{}' is no site of a model of {} layers", group.where, name,
             header.config.n_layers);
      }
      const bool attention = std::string_view(path) == "attention";
      if (site_shape(found->second, header.config).attention != attention) {
        fail("{}: site '{}' does not belong in this group", group.where, name);
      }
      header.sites.push_back(found->second);
    }
  }
  std::sort(header.sites.begin(), header.sites.end(), fires_before);
}

}  // namespace

RecordingHeader read_header(const h5::Object& file) {
  h5::Lock lock;
  if (!h5::has_attribute(file, "format")) {
    fail("{}: this HDF5 file is no recording (attribute format is missing)", file.where);
  }
  if (const std::string format = h5::read_text_attribute(file, "format"); format != kFormat) {
    fail("{}: format '{}' expected, found '{}'", file.where, kFormat, format);
  }
  if (const auto version = h5::read_integer_attribute(file, "format_version");
      version != kFormatVersion) {
    fail("{}: format version {} can be read, found version {}", file.where, kFormatVersion,
         version);
  }
  RecordingHeader header;
  const auto text = [&](const char* name) { return h5::read_text_attribute(file, name); };
  const auto size = [&](const char* name, std::int64_t least, std::int64_t most) {
    const std::int64_t value = h5::read_integer_attribute(file, name);
    if (value < least || value > most) {
      fail("{}: attribute {} is {}, {} to {} expected", file.where, name, value, least, most);
    }
    return value;
  };
  constexpr std::int64_t kAny = std::numeric_limits<std::int64_t>::max();
  header.created_utc = text("created_utc");
  header.tool_version = text("tool_version");
  header.argv = text("argv");
  header.seed = h5::read_unsigned_attribute(file, "seed");
  header.model_id = text("model_id");
  header.model_sha256 = text("model_sha256");
  header.tokenizer_sha256 = text("tokenizer_sha256");
  header.prompts_sha256 = text("prompts_sha256");
  ModelConfig& c = header.config;
  c.family = text("family");
  c.n_layers = size("n_layers", 1, kMaxLayers);
  c.d_model = size("d_model", 1, kMaxWidth);
  c.n_heads = size("n_heads", 1, kMaxWidth);
  c.n_kv_heads = size("n_kv_heads", 1, kMaxWidth);
  c.d_head = size("d_head", 1, kMaxWidth);
  c.d_mlp = size("d_mlp", 0, kMaxWidth);
  c.d_vocab = size("d_vocab", 1, kMaxWidth);
  const std::string place = text("norm_place");
  const auto known = std::find(kNormPlaces.begin(), kNormPlaces.end(), place);
  if (known == kNormPlaces.end()) {
    fail("{}: attribute norm_place is '{}', none, pre, post or sandwich expected", file.where,
         place);
  }
  c.norm_place = static_cast<NormPlace>(known - kNormPlaces.begin());
  c.causal = size("causal", 0, 1) != 0;
  // Not in the first recordings, whose models had neither.
  if (h5::has_attribute(file, "embed_norm")) c.embed_norm = size("embed_norm", 0, 1) != 0;
  if (h5::has_attribute(file, "n_types")) c.n_types = size("n_types", 0, kMaxWidth);
  const std::string store = text("store_dtype");
  try {
    header.store = parse_store_type(store);
  } catch (const UsageError&) {
    fail("{}: attribute store_dtype is '{}', f32, f16 or bf16 expected", file.where, store);
  }
  header.prepend_bos = size("prepend_bos", 0, 1) != 0;
  header.topk = size("topk", 0, kMaxWidth);
  header.total_prompts = size("total_prompts", 1, kAny);
  header.shard_first_prompt = size("shard_first_prompt", 0, header.total_prompts - 1);
  read_sites(file, header);
  return header;
}

std::string run_difference(const RecordingHeader& a, const RecordingHeader& b) {
  const auto differ = [](const char* name, const auto& x, const auto& y) -> std::string {
    if (x == y) return "";
    return fmt::format("{} is '{}' in one and '{}' in the other", name, x, y);
  };
  const auto names = [](const std::vector<Site>& sites) {
    std::string out;
    for (Site site : sites) {
      if (out.size() > 160) return out + fmt::format(", … ({} sites)", sites.size());
      if (!out.empty()) out += ", ";
      out += site_name(site);
    }
    return out;
  };
  std::vector<Site> a_sites = a.sites, b_sites = b.sites;
  std::sort(a_sites.begin(), a_sites.end(), fires_before);
  std::sort(b_sites.begin(), b_sites.end(), fires_before);
  std::string sites;
  if (a_sites != b_sites) {
    std::vector<Site> only_a, only_b;
    std::set_difference(a_sites.begin(), a_sites.end(), b_sites.begin(), b_sites.end(),
                        std::back_inserter(only_a), fires_before);
    std::set_difference(b_sites.begin(), b_sites.end(), a_sites.begin(), a_sites.end(),
                        std::back_inserter(only_b), fires_before);
    sites = fmt::format("sites differ: [{}] only in one, [{}] only in the other", names(only_a),
                        names(only_b));
  }
  const ModelConfig& x = a.config;
  const ModelConfig& y = b.config;
  for (const std::string& difference :
       {differ("model_sha256", a.model_sha256, b.model_sha256),
        differ("tokenizer_sha256", a.tokenizer_sha256, b.tokenizer_sha256),
        differ("prompts_sha256", a.prompts_sha256, b.prompts_sha256),
        differ("total_prompts", a.total_prompts, b.total_prompts),
        differ("store_dtype", store_type_name(a.store), store_type_name(b.store)),
        differ("topk", a.topk, b.topk), differ("seed", a.seed, b.seed),
        differ("prepend_bos", a.prepend_bos, b.prepend_bos), differ("family", x.family, y.family),
        differ("n_layers", x.n_layers, y.n_layers), differ("d_model", x.d_model, y.d_model),
        differ("n_heads", x.n_heads, y.n_heads), differ("n_kv_heads", x.n_kv_heads, y.n_kv_heads),
        differ("d_head", x.d_head, y.d_head), differ("d_mlp", x.d_mlp, y.d_mlp),
        differ("d_vocab", x.d_vocab, y.d_vocab), sites}) {
    if (!difference.empty()) return difference;
  }
  return "";
}

Inputs read_inputs(const h5::Object& file) {
  h5::Lock lock;
  const auto at = [&](const char* path) { return h5::open_dataset(file, path); };
  Inputs inputs;
  const h5::Object offsets = at("inputs/offsets");
  inputs.offsets = h5::read_i64(offsets);
  if (inputs.offsets.size() < 2) {
    fail("{}: at least 2 entries expected, found {}", offsets.where, inputs.offsets.size());
  }
  const std::vector<std::int32_t> ids = h5::read_i32(at("inputs/input_ids"));
  if (inputs.offsets.front() != 0) {
    fail("{}: entry 0 is {}, 0 expected", offsets.where, inputs.offsets.front());
  }
  for (std::size_t i = 1; i < inputs.offsets.size(); ++i) {
    if (inputs.offsets[i] <= inputs.offsets[i - 1]) {
      fail("{}: entry {} is {}, more than {} expected", offsets.where, i, inputs.offsets[i],
           inputs.offsets[i - 1]);
    }
  }
  if (static_cast<std::uint64_t>(inputs.offsets.back()) != ids.size()) {
    fail("{}: the last entry is {}, inputs/input_ids has {} tokens", offsets.where,
         inputs.offsets.back(), ids.size());
  }
  const std::size_t count = inputs.offsets.size() - 1;
  const auto expect_size = [](const h5::Object& dataset, std::size_t expected, std::size_t found) {
    if (expected != found) {
      fail("{}: {} entries expected, found {}", dataset.where, expected, found);
    }
  };
  const h5::Object phase_at = at("inputs/phase");
  const std::vector<std::uint8_t> phase = h5::read_u8(phase_at);
  expect_size(phase_at, ids.size(), phase.size());
  const h5::Object positions_at = at("inputs/position_ids");
  const std::vector<std::int32_t> positions = h5::read_i32(positions_at);
  expect_size(positions_at, ids.size(), positions.size());
  const h5::Object targets_at = at("inputs/target");
  const std::vector<std::int32_t> targets = h5::read_i32(targets_at);
  expect_size(targets_at, count, targets.size());
  const h5::Object texts_at = at("inputs/text");
  std::vector<std::string> texts = h5::read_texts(texts_at);
  expect_size(texts_at, count, texts.size());
  const h5::Object names_at = at("inputs/prompt_id");
  std::vector<std::string> names = h5::read_texts(names_at);
  expect_size(names_at, count, names.size());

  inputs.prompts.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    Prompt& prompt = inputs.prompts[i];
    const auto first = static_cast<std::size_t>(inputs.offsets[i]);
    const auto last = static_cast<std::size_t>(inputs.offsets[i + 1]);
    prompt.id = std::move(names[i]);
    prompt.text = std::move(texts[i]);
    prompt.ids.assign(ids.begin() + inputs.offsets[i], ids.begin() + inputs.offsets[i + 1]);
    for (std::size_t t = first; t < last; ++t) {
      if (phase[t] > 1 || (t > first && phase[t] < phase[t - 1])) {
        fail("{}: entry {} is {} after {}: 0 for given tokens, then 1 for generated ones expected",
             phase_at.where, t, phase[t], t > first ? phase[t - 1] : 0);
      }
      prompt.given += phase[t] == 0;
      if (positions[t] != static_cast<std::int32_t>(t - first)) {
        fail("{}: entry {} is {}, {} expected", positions_at.where, t, positions[t], t - first);
      }
    }
    if (targets[i] < -1) {
      fail("{}: entry {} is {}, a token id or -1 expected", targets_at.where, i, targets[i]);
    }
    if (targets[i] >= 0) prompt.target = targets[i];
  }
  if (h5::exists(file, "inputs/labels")) {
    const h5::Object labels = h5::open_group(file, "inputs/labels");
    for (const std::string& link : h5::children(labels, 1 << 16)) {
      const h5::Object dataset = h5::open_dataset(labels, link);
      std::string label = h5::read_text_attribute(dataset, "label");
      std::vector<std::string> values = h5::read_texts(dataset);
      expect_size(dataset, count, values.size());
      const h5::Object mask = h5::open_dataset(file, "inputs/label_present/" + link);
      const std::vector<std::uint8_t> present = h5::read_u8(mask);
      expect_size(mask, count, present.size());
      for (std::size_t i = 0; i < count; ++i) {
        if (present[i] != 0) inputs.prompts[i].labels[label] = std::move(values[i]);
      }
    }
  }
  return inputs;
}

}  // namespace lamina::record
