#include "lamina/core/recording.h"

#include <algorithm>

#include "record/convert.h"
#include "record/index.h"
#include "record/paths.h"

namespace lamina {

using record::Slot;

namespace {

// Stored rows are read and expanded in pieces of about this size.
constexpr std::uint64_t kReadBytes = 16 << 20;

struct Part {
  h5::Object file;
  std::int64_t first_prompt = 0;  // within the recording
  std::int64_t first_token = 0;
  std::vector<std::int64_t> offsets;             // of its own token rows
  std::vector<std::uint64_t> attention_offsets;  // of its own attention values

  std::int64_t tokens() const { return offsets.back(); }
  std::int64_t prompts() const { return static_cast<std::int64_t>(offsets.size()) - 1; }
};

}  // namespace

struct Recording::Impl {
  std::filesystem::path path;
  RecordingHeader header;
  std::vector<Slot> slots;
  std::vector<Part> parts;
  std::vector<Prompt> prompts;
  std::vector<std::int64_t> offsets = {0};

  void add_part(h5::Object file);
  const Slot& slot(Site site) const;
  const Slot& logits(std::string_view path) const;
  void check_rows(std::int64_t first, std::int64_t count, std::string_view what) const;
  template <class Use>
  void for_parts(std::int64_t first, std::int64_t count, const Use& use) const;
  void read_floats(const Part& part, const Slot& slot, std::uint64_t first, std::uint64_t count,
                   float* out) const;
  void read_attention(const Slot& slot, std::int64_t prompt, float* out) const;
};

// Checks one file against the header and what came before it.
void Recording::Impl::add_part(h5::Object file) {
  h5::Lock lock;
  const RecordingHeader own = record::read_header(file);
  if (h5::read_integer_attribute(file, "complete") != 1) {
    fail("{}: the recording is not complete: {} prompts are stored; resume it", file.where,
         h5::read_integer_attribute(file, "committed_prompts"));
  }
  if (record::is_index(file)) fail("{}: a shard expected, found an index", file.where);
  if (parts.empty()) {
    header = own;
    slots = record::make_slots(header);
  } else if (const auto difference = record::run_difference(header, own); !difference.empty()) {
    fail("{}: the shard is of another run: {}", file.where, difference);
  }
  const auto expected = header.shard_first_prompt + static_cast<std::int64_t>(prompts.size());
  if (own.shard_first_prompt != expected) {
    fail("{}: the shard begins with prompt {}, {} expected", file.where, own.shard_first_prompt,
         expected);
  }
  record::Inputs inputs = record::read_inputs(file);
  Part part;
  part.first_prompt = static_cast<std::int64_t>(prompts.size());
  part.first_token = offsets.back();
  if (expected + static_cast<std::int64_t>(inputs.prompts.size()) > header.total_prompts) {
    fail("{}: it holds prompts {} to {}, the run has {}", file.where, expected,
         expected + static_cast<std::int64_t>(inputs.prompts.size()), header.total_prompts);
  }
  part.attention_offsets = {0};
  for (std::size_t i = 0; i < inputs.prompts.size(); ++i) {
    for (std::int32_t id : inputs.prompts[i].ids) {
      if (id < 0 || id >= header.config.d_vocab) {
        fail("{}: inputs/input_ids: token id {} of prompt {} is outside the vocabulary of {}",
             file.where, id, i, header.config.d_vocab);
      }
    }
    offsets.push_back(part.first_token + inputs.offsets[i + 1]);
    if (std::any_of(slots.begin(), slots.end(),
                    [](const Slot& s) { return s.kind == Slot::Kind::attention; })) {
      part.attention_offsets.push_back(
          part.attention_offsets.back() +
          record::attention_elements(header, inputs.offsets[i + 1] - inputs.offsets[i]));
    }
  }
  for (const Slot& slot : slots) record::open_rows(file, slot, header, inputs.offsets);
  std::move(inputs.prompts.begin(), inputs.prompts.end(), std::back_inserter(prompts));
  part.offsets = std::move(inputs.offsets);
  part.file = std::move(file);
  parts.push_back(std::move(part));
}

const Slot& Recording::Impl::slot(Site site) const {
  for (const Slot& slot : slots) {
    if (slot.kind != Slot::Kind::logits && slot.site == site) return slot;
  }
  std::string stored;
  for (Site have : header.sites) {
    if (stored.size() > 200) {
      stored += fmt::format(", … ({} sites)", header.sites.size());
      break;
    }
    if (!stored.empty()) stored += ", ";
    stored += site_name(have);
  }
  fail("{}: site {} was not recorded; it holds {}", path.string(), site_name(site),
       stored.empty() ? "no sites" : stored);
}

const Slot& Recording::Impl::logits(std::string_view dataset) const {
  return *std::find_if(slots.begin(), slots.end(),
                       [&](const Slot& slot) { return slot.path == dataset; });
}

void Recording::Impl::check_rows(std::int64_t first, std::int64_t count,
                                 std::string_view what) const {
  const std::int64_t tokens = offsets.back();
  if (first < 0 || count < 0 || first > tokens || count > tokens - first) {
    fail("{}: {}: {} token rows from {} asked for, it has {}", path.string(), what, count, first,
         tokens);
  }
}

// Calls use(part, first row in part, rows, rows already handled).
template <class Use>
void Recording::Impl::for_parts(std::int64_t first, std::int64_t count, const Use& use) const {
  std::int64_t done = 0;
  for (const Part& part : parts) {
    if (done == count) break;
    const std::int64_t begin = first + done - part.first_token;
    if (begin >= part.tokens()) continue;
    const std::int64_t rows = std::min(count - done, part.tokens() - begin);
    use(part, static_cast<std::uint64_t>(begin), static_cast<std::uint64_t>(rows),
        static_cast<std::size_t>(done));
    done += rows;
  }
}

void Recording::Impl::read_floats(const Part& part, const Slot& slot, std::uint64_t first,
                                  std::uint64_t count, float* out) const {
  const h5::Object dataset = h5::open_dataset(part.file, slot.path);
  if (slot.type == h5::Type::f32) {
    h5::read_rows(dataset, slot.type, first, count, out);
    return;
  }
  const std::uint64_t elements = slot.row_elements();
  const std::uint64_t step = std::max<std::uint64_t>(1, kReadBytes / slot.row_bytes());
  const auto stored =
      std::make_unique_for_overwrite<std::byte[]>(std::min(step, count) * slot.row_bytes());
  for (std::uint64_t done = 0; done < count; done += step) {
    const std::uint64_t rows = std::min(step, count - done);
    h5::read_rows(dataset, slot.type, first + done, rows, stored.get());
    record::decode(header.store, stored.get(), std::span(out + done * elements, rows * elements));
  }
}

void Recording::Impl::read_attention(const Slot& slot, std::int64_t prompt, float* out) const {
  const auto after =
      std::upper_bound(parts.begin(), parts.end(), prompt,
                       [](std::int64_t p, const Part& part) { return p < part.first_prompt; });
  const Part& part = *std::prev(after);
  const auto i = static_cast<std::size_t>(prompt - part.first_prompt);
  read_floats(part, slot, part.attention_offsets[i],
              part.attention_offsets[i + 1] - part.attention_offsets[i], out);
}

Recording::Recording() : impl_(std::make_unique<Impl>()) {}
Recording::~Recording() = default;
Recording::Recording(Recording&&) noexcept = default;
Recording& Recording::operator=(Recording&&) noexcept = default;

Recording Recording::open(const std::filesystem::path& path) {
  h5::Lock lock;
  namespace fs = std::filesystem;
  if (!fs::exists(path)) {
    for (const fs::path& part :
         {record::part_path(path), record::part_path(record::shard_path(path, 1)),
          record::shard_path(path, 1)}) {
      if (fs::exists(part)) {
        fail("{}: no such file, but an interrupted recording is there ({}): resume it",
             path.string(), part.string());
      }
    }
    fail("{}: no such file", path.string());
  }
  Recording recording;
  Impl& impl = *recording.impl_;
  impl.path = path;
  h5::Object file = h5::open_file(path.string(), false);
  const RecordingHeader header = record::read_header(file);
  if (!record::is_index(file)) {
    impl.add_part(std::move(file));
    return recording;
  }
  if (h5::read_integer_attribute(file, "complete") != 1) {
    fail("{}: the index is not complete", file.where);
  }
  for (const record::IndexEntry& entry : record::read_index(file)) {
    if (entry.file.is_absolute() || entry.file.empty()) {
      fail("{}: shards/file names '{}', a path relative to the index expected", file.where,
           entry.file.string());
    }
    const fs::path shard = path.parent_path() / entry.file;
    if (!fs::is_regular_file(shard)) {
      fail("{}: shard {} is missing", path.string(), shard.string());
    }
    const auto prompts = static_cast<std::int64_t>(impl.prompts.size());
    const std::int64_t tokens = impl.offsets.back();
    impl.add_part(h5::open_file(shard.string(), false));
    const Part& part = impl.parts.back();
    if (const auto difference = record::run_difference(header, impl.header); !difference.empty()) {
      fail("{}: shard {} is of another run: {}", path.string(), shard.string(), difference);
    }
    if (entry.first_prompt != header.shard_first_prompt + prompts ||
        entry.prompts != part.prompts() || entry.first_token != tokens ||
        entry.tokens != part.tokens()) {
      fail(
          "{}: shard {} has {} prompts and {} tokens from prompt {} and row {}, the index says "
          "{} and {} from {} and {}",
          path.string(), shard.string(), part.prompts(), part.tokens(),
          header.shard_first_prompt + prompts, tokens, entry.prompts, entry.tokens,
          entry.first_prompt, entry.first_token);
    }
  }
  return recording;
}

const std::filesystem::path& Recording::path() const {
  return impl_->path;
}
const RecordingHeader& Recording::header() const {
  return impl_->header;
}
const std::vector<Prompt>& Recording::prompts() const {
  return impl_->prompts;
}
const std::vector<std::int64_t>& Recording::offsets() const {
  return impl_->offsets;
}
std::int64_t Recording::tokens() const {
  return impl_->offsets.back();
}
const std::vector<Site>& Recording::sites() const {
  return impl_->header.sites;
}
bool Recording::has(Site site) const {
  return std::find(sites().begin(), sites().end(), site) != sites().end();
}

void Recording::read_rows(Site site, std::int64_t first, std::int64_t count,
                          std::span<float> out) const {
  const Slot& slot = impl_->slot(site);
  if (slot.kind != Slot::Kind::token) {
    fail("{}: site {} has no token rows; its values are per prompt", path().string(),
         site_name(site));
  }
  impl_->check_rows(first, count, slot.path);
  const std::uint64_t row = slot.row_elements();
  if (out.size() != static_cast<std::uint64_t>(count) * row) {
    fail("{}: {}: room for {} values expected, found {}", path().string(), slot.path,
         static_cast<std::uint64_t>(count) * row, out.size());
  }
  impl_->for_parts(
      first, count,
      [&](const Part& part, std::uint64_t begin, std::uint64_t rows, std::size_t done) {
        impl_->read_floats(part, slot, begin, rows, out.data() + done * row);
      });
}

std::vector<float> Recording::read_attention(Site site, std::int64_t prompt) const {
  const Slot& slot = impl_->slot(site);
  if (slot.kind != Slot::Kind::attention) {
    fail("{}: site {} has token rows, not attention values", path().string(), site_name(site));
  }
  if (prompt < 0 || prompt >= static_cast<std::int64_t>(prompts().size())) {
    fail("{}: prompt {} asked for, it has {}", path().string(), prompt, prompts().size());
  }
  const auto i = static_cast<std::size_t>(prompt);
  std::vector<float> values(
      record::attention_elements(impl_->header, offsets()[i + 1] - offsets()[i]));
  impl_->read_attention(slot, prompt, values.data());
  return values;
}

LogitSummary Recording::read_logits(std::int64_t first, std::int64_t count) const {
  LogitSummary logits;
  if (impl_->header.topk == 0) return logits;
  impl_->check_rows(first, count, "logits");
  logits.k = impl_->header.topk;
  const auto k = static_cast<std::size_t>(logits.k);
  logits.topk_ids.resize(static_cast<std::size_t>(count) * k);
  logits.topk_logprobs.resize(static_cast<std::size_t>(count) * k);
  logits.target_logprob.resize(static_cast<std::size_t>(count));
  impl_->for_parts(
      first, count,
      [&](const Part& part, std::uint64_t begin, std::uint64_t rows, std::size_t done) {
        const auto read = [&](const char* name, h5::Type type, void* out) {
          h5::read_rows(h5::open_dataset(part.file, name), type, begin, rows, out);
        };
        read("logits/topk_ids", h5::Type::i32, logits.topk_ids.data() + done * k);
        read("logits/topk_logprobs", h5::Type::f32, logits.topk_logprobs.data() + done * k);
        read("logits/target_logprob", h5::Type::f32, logits.target_logprob.data() + done);
      });
  return logits;
}

ActivationBlock Recording::read_block(std::span<const Site> sites, std::int64_t first,
                                      std::int64_t count) const {
  const auto all = static_cast<std::int64_t>(prompts().size());
  if (first < 0 || count < 0 || first > all || count > all - first) {
    fail("{}: {} prompts from {} asked for, it has {}", path().string(), count, first, all);
  }
  ActivationBlock block;
  block.first_prompt = impl_->header.shard_first_prompt + first;
  block.prompts = std::span(prompts()).subspan(static_cast<std::size_t>(first),
                                               static_cast<std::size_t>(count));
  for (const Prompt& prompt : block.prompts) block.batch.add(prompt.ids);
  const std::int64_t row = offsets()[static_cast<std::size_t>(first)];
  const std::int64_t rows = block.batch.tokens();
  for (Site site : sites) {
    ActivationBlock::Values values;
    values.shape = site_shape(site, impl_->header.config);
    const Slot& slot = impl_->slot(site);
    if (slot.kind == Slot::Kind::token) {
      values.values.resize(static_cast<std::size_t>(rows) * slot.row_elements());
      read_rows(site, row, rows, values.values);
    } else {
      values.offsets = {0};
      for (std::int64_t i = 0; i < count; ++i) {
        values.offsets.push_back(values.offsets.back() +
                                 static_cast<std::int64_t>(record::attention_elements(
                                     impl_->header, block.batch.length(i))));
      }
      values.values.resize(static_cast<std::size_t>(values.offsets.back()));
      for (std::int64_t i = 0; i < count; ++i) {
        impl_->read_attention(slot, first + i,
                              values.values.data() + values.offsets[static_cast<std::size_t>(i)]);
      }
    }
    block.sites.emplace(ActivationBlock::site_key(site), std::move(values));
  }
  block.logits = read_logits(row, rows);
  return block;
}

}  // namespace lamina
