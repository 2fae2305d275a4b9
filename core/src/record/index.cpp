#include "record/index.h"

namespace lamina::record {
namespace {

h5::Object make_virtual_rows(const h5::Object& file, const Slot& slot, const h5::Dims& dims,
                             std::span<const IndexEntry> entries,
                             std::span<const std::uint64_t> attention_starts) {
  const std::string where = fmt::format("{}: {}", file.where, slot.path);
  h5::Handle create(h5::check(H5Pcreate(H5P_DATASET_CREATE), where, "make dataset properties"));
  h5::Handle space(h5::check(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr),
                             where, "make its extent"));
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const bool attention = slot.kind == Slot::Kind::attention;
    h5::Dims start(dims.size(), 0), count = dims;
    start[0] = attention ? attention_starts[i] : static_cast<hsize_t>(entries[i].first_token);
    count[0] = attention ? attention_starts[i + 1] - attention_starts[i]
                         : static_cast<hsize_t>(entries[i].tokens);
    h5::Handle source(
        h5::check(H5Screate_simple(static_cast<int>(count.size()), count.data(), nullptr), where,
                  "make a shard's extent"));
    h5::check(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr, count.data(),
                                  nullptr),
              where, "select a shard's rows");
    h5::check(H5Pset_virtual(create.get(), space.get(), entries[i].file.c_str(),
                             ("/" + slot.path).c_str(), source.get()),
              where, "map a shard's rows");
  }
  h5::check(H5Sselect_all(space.get()), where, "select everything");
  h5::Handle links(h5::check(H5Pcreate(H5P_LINK_CREATE), where, "make link properties"));
  H5Pset_create_intermediate_group(links.get(), 1);
  h5::Handle type = h5::make_type(slot.type);
  return {h5::Handle(h5::check(H5Dcreate2(file.id(), slot.path.c_str(), type.get(), space.get(),
                                          links.get(), create.get(), H5P_DEFAULT),
                               where, "create the virtual dataset")),
          where};
}

}  // namespace

void write_index(const fs::path& path, const RecordingHeader& header, std::span<const Slot> slots,
                 std::span<const Prompt> prompts, std::span<const IndexEntry> entries) {
  h5::Lock lock;
  const fs::path part = fs::path(path.string() + ".index.part");
  std::vector<std::uint64_t> attention_starts = {0};
  std::size_t next = 0;
  for (const IndexEntry& entry : entries) {
    std::uint64_t elements = attention_starts.back();
    for (std::int64_t i = 0; i < entry.prompts; ++i, ++next) {
      elements += attention_elements(header, static_cast<std::int64_t>(prompts[next].ids.size()));
    }
    attention_starts.push_back(elements);
  }
  h5::Object file = h5::create_file(part.string());
  write_skeleton(
      file, header, slots, prompts, entries.front().first_prompt,
      [&](const h5::Object& at, const Slot& slot, const h5::Dims& dims, const h5::Dims&) {
        return make_virtual_rows(at, slot, dims, entries, attention_starts);
      });
  std::vector<std::string> names;
  std::vector<std::int64_t> first_prompts, counts, first_tokens, tokens;
  for (const IndexEntry& entry : entries) {
    names.push_back(entry.file.string());
    first_prompts.push_back(entry.first_prompt);
    counts.push_back(entry.prompts);
    first_tokens.push_back(entry.first_token);
    tokens.push_back(entry.tokens);
  }
  const h5::Dims size = {entries.size()};
  h5::Scales scales;
  scales.add_index(h5::make_group(file, "shards"), "shard", "shard", size[0]);
  const std::string shard[] = {"shard"};
  scales.attach(h5::write_texts(file, "shards/file", size, names), shard);
  const auto add = [&](const char* name, const std::vector<std::int64_t>& values) {
    scales.attach(h5::write_dataset(file, name, h5::Type::i64, size, values.data()), shard);
  };
  add("shards/first_prompt", first_prompts);
  add("shards/prompts", counts);
  add("shards/first_token", first_tokens);
  add("shards/tokens", tokens);
  scales.finish();
  h5::update_attribute(file, "committed_prompts", static_cast<std::int64_t>(prompts.size()));
  h5::update_attribute(file, "complete", 1);
  h5::flush(file);
  h5::close_file(file);
  rename_durably(part, path);
}

bool is_index(const h5::Object& file) {
  return h5::exists(file, "shards");
}

std::vector<IndexEntry> read_index(const h5::Object& file) {
  h5::Lock lock;
  const h5::Object at = h5::open_dataset(file, "shards/file");
  const std::vector<std::string> names = h5::read_texts(at);
  if (names.empty()) fail("{}: at least 1 shard expected, found none", at.where);
  const auto column = [&](const char* path) {
    const h5::Object dataset = h5::open_dataset(file, path);
    std::vector<std::int64_t> values = h5::read_i64(dataset);
    if (values.size() != names.size()) {
      fail("{}: {} entries expected, found {}", dataset.where, names.size(), values.size());
    }
    return values;
  };
  const auto first_prompts = column("shards/first_prompt"), prompts = column("shards/prompts");
  const auto first_tokens = column("shards/first_token"), tokens = column("shards/tokens");
  std::vector<IndexEntry> entries;
  for (std::size_t i = 0; i < names.size(); ++i) {
    entries.push_back({names[i], first_prompts[i], prompts[i], first_tokens[i], tokens[i]});
  }
  return entries;
}

}  // namespace lamina::record
