#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_set>

#include "lamina/core/recording.h"
#include "record/convert.h"
#include "record/index.h"
#include "record/shard.h"

namespace lamina {

namespace fs = std::filesystem;
using record::ShardRange;
using record::ShardWriter;
using record::Slot;

namespace {

/// Uninitialised bytes that are used again and again.
struct Buffer {
  std::unique_ptr<std::byte[]> data;
  std::size_t capacity = 0;
};

/// What the writer thread does next: rows of one slot, or the note that a file's first `prompts`
/// prompts have been queued entirely.
struct Job {
  std::size_t shard = 0;
  std::size_t slot = 0;
  std::uint64_t first = 0, count = 0;
  Buffer buffer;
  std::size_t bytes = 0;
  std::int64_t prompts = -1;  // ≥ 0: a note
};

}  // namespace

struct RecordingWriter::Impl {
  fs::path path;
  RecordingHeader header;
  std::vector<Prompt> run;            // only the range's prompts are looked at
  std::vector<std::int64_t> offsets;  // of the whole run's token rows
  std::vector<std::uint64_t> attention_offsets;
  WriterOptions options;
  std::vector<Slot> slots;
  std::optional<record::FileLock> lock;

  std::vector<ShardRange> shards;
  bool single = false;  // the only shard is NAME itself
  bool finished = false;
  std::int64_t next = 0;
  std::size_t next_shard = 0;

  // Shared with the writer thread.
  std::mutex mutex;
  std::condition_variable work, room;
  std::deque<Job> queue;
  std::vector<Buffer> spare;
  std::size_t queued_bytes = 0, spare_bytes = 0;
  bool closing = false, finishing = false;
  std::exception_ptr failure;
  std::optional<ShardWriter> open;  // the writer thread's own while it runs
  std::size_t open_index = 0;
  std::thread thread;

  Impl(const fs::path& output, const RecordingHeader& run_header, std::span<const Prompt> prompts,
       const WriterOptions& writer_options)
      : path(output),
        header(run_header),
        run(prompts.begin(), prompts.end()),
        options(writer_options),
        lock(std::in_place, output) {
    check_request();
    slots = record::make_slots(header);
    prepare();
    if (finished) return;
    if (next < options.last_prompt) {
      open_shard(next_shard);
      next = shards[next_shard].first + open->committed();
      if (next == shards[next_shard].last && !single) close_open_shard();
    }
    thread = std::thread([this] { serve(); });
  }

  ~Impl() { stop(); }

  void check_request();
  void prepare();
  void find_shards();
  void open_shard(std::size_t index);
  void close_open_shard();
  void serve();
  void do_job(Job& job);
  void stop();
  void rethrow();
  Buffer take(std::size_t bytes);
  void push(Job job);
  void give_back(Job& job);
  void append(const ActivationBlock& block);
  void check_block(const ActivationBlock& block) const;
  void push_rows(const ActivationBlock& block, std::size_t slot, std::size_t shard,
                 std::int64_t first, std::int64_t last);
  void finish();
  void write_manifest();
};

void RecordingWriter::Impl::check_request() {
  const std::string name = path.string();
  if (run.empty()) fail("{}: a recording needs at least one prompt", name);
  const auto count = static_cast<std::int64_t>(run.size());
  header.total_prompts = count;
  if (options.last_prompt < 0) options.last_prompt = count;
  if (options.first_prompt < 0 || options.first_prompt >= options.last_prompt ||
      options.last_prompt > count) {
    fail("{}: prompts {} to {} asked for, the run has {}", name, options.first_prompt,
         options.last_prompt, count);
  }
  if (options.shard_bytes == 0) fail("{}: a shard of 0 bytes holds nothing", name);
  if (header.sites.empty() && header.topk == 0) {
    fail("{}: neither a site nor a logit summary was asked for", name);
  }
  std::unordered_set<std::uint32_t> sites;
  for (Site site : header.sites) {
    if (!sites.insert(ActivationBlock::site_key(site)).second) {
      fail("{}: site {} was asked for twice", name, site_name(site));
    }
  }
  offsets = {0};
  attention_offsets = {0};
  for (std::size_t i = 0; i < run.size(); ++i) {
    const Prompt& prompt = run[i];
    const auto length = static_cast<std::int64_t>(prompt.ids.size());
    if (length == 0) fail("{}: prompt {} ('{}') has no tokens", name, i, prompt.id);
    if (prompt.given < 0 || prompt.given > length) {
      fail("{}: prompt {} ('{}') has {} tokens, of which {} are said to be given", name, i,
           prompt.id, length, prompt.given);
    }
    offsets.push_back(offsets.back() + length);
    attention_offsets.push_back(attention_offsets.back() +
                                record::attention_elements(header, length));
  }
}

// Looks at what is on the disk already and plans the files of the run.
void RecordingWriter::Impl::prepare() {
  const auto there = [](const fs::path& file) { return fs::exists(fs::symlink_status(file)); };
  next = options.first_prompt;
  fs::path interrupted;
  for (const fs::path& file : {record::part_path(path), record::shard_path(path, 1),
                               record::part_path(record::shard_path(path, 1))}) {
    if (there(file)) interrupted = file;
  }
  if (!options.resume) {
    if (there(path)) fail("{}: the file exists; a recording never overwrites one", path.string());
    if (!interrupted.empty()) {
      fail("{}: an interrupted recording is there ({}): resume it or remove it first",
           path.string(), interrupted.string());
    }
  } else if (there(path)) {
    const Recording done = Recording::open(path);
    if (const auto difference = record::run_difference(done.header(), header);
        !difference.empty()) {
      fail("{}: cannot resume: it is finished and of another run: {}", path.string(), difference);
    }
    const std::int64_t first = done.header().shard_first_prompt;
    const std::int64_t last = first + static_cast<std::int64_t>(done.prompts().size());
    if (first != options.first_prompt || last != options.last_prompt) {
      fail("{}: cannot resume: it is finished with prompts {} to {}, asked for {} to {}",
           path.string(), first, last, options.first_prompt, options.last_prompt);
    }
    next = options.last_prompt;
    finished = true;
    return;
  } else {
    find_shards();
  }
  if (shards.empty()) {
    shards = record::plan_shards(header, slots, run, options.first_prompt, options.last_prompt,
                                 options.shard_bytes);
    single = shards.size() == 1;
  } else if (!single && shards.back().last < options.last_prompt) {
    for (ShardRange& range : record::plan_shards(header, slots, run, shards.back().last,
                                                 options.last_prompt, options.shard_bytes)) {
      shards.push_back(std::move(range));
    }
  }
  for (std::size_t i = 0; i < shards.size(); ++i) {
    shards[i].path = single ? path : record::shard_path(path, i + 1);
  }
  next_shard = 0;
  while (next_shard < shards.size() && shards[next_shard].complete) {
    next = shards[next_shard++].last;
  }
}

// Finished shards, then the open one. An open one that cannot be read is given up.
void RecordingWriter::Impl::find_shards() {
  const auto range_of = [&](const h5::Object& file, const fs::path& name, std::int64_t first) {
    const RecordingHeader stored = record::read_header(file);
    if (const auto difference = record::run_difference(stored, header); !difference.empty()) {
      fail("{}: cannot resume: another run's recording: {}", file.where, difference);
    }
    const record::Inputs inputs = record::read_inputs(file);
    const std::int64_t last = first + static_cast<std::int64_t>(inputs.prompts.size());
    if (stored.shard_first_prompt != first || last > options.last_prompt) {
      fail("{}: cannot resume: it holds prompts {} to {} of the run, asked for {} to {}",
           file.where, stored.shard_first_prompt,
           stored.shard_first_prompt + static_cast<std::int64_t>(inputs.prompts.size()), first,
           options.last_prompt);
    }
    record::expect_inputs(file, inputs,
                          std::span(run).subspan(static_cast<std::size_t>(first),
                                                 static_cast<std::size_t>(last - first)));
    return ShardRange{name, first, last, false};
  };
  const auto open_part = [&](const fs::path& name, std::int64_t first) {
    const fs::path part = record::part_path(name);
    if (!fs::exists(part)) return false;
    h5::Object file;
    try {
      file = h5::open_file(part.string(), true);
      record::read_header(file);
      record::read_inputs(file);
    } catch (const h5::SystemError&) {
      throw;  // locked, unreadable …: the file may be whole
    } catch (const Error&) {
      // Damaged beyond what a killed process leaves: lose this file's prompts, and only those.
      file = {};
      fs::rename(part, fs::path(part.string() + ".damaged"));
      return false;
    }
    shards.push_back(range_of(file, name, first));
    return true;
  };
  std::int64_t first = options.first_prompt;
  if (open_part(path, first)) {
    single = true;
    if (shards[0].last != options.last_prompt) {
      fail("{}: cannot resume: it holds prompts {} to {} of the run, asked for {} to {}",
           record::part_path(path).string(), shards[0].first, shards[0].last, first,
           options.last_prompt);
    }
    return;
  }
  while (first < options.last_prompt) {
    const fs::path name = record::shard_path(path, shards.size() + 1);
    if (!fs::exists(name)) {
      open_part(name, first);
      return;
    }
    const h5::Object file = h5::open_file(name.string(), false);
    shards.push_back(range_of(file, name, first));
    if (h5::read_integer_attribute(file, "complete") != 1) {
      fail("{}: the shard is not complete", file.where);
    }
    shards.back().complete = true;
    first = shards.back().last;
  }
}

void RecordingWriter::Impl::open_shard(std::size_t index) {
  const ShardRange& range = shards[index];
  open.emplace(fs::exists(record::part_path(range.path))
                   ? ShardWriter::resume(range, header, slots, run)
                   : ShardWriter::create(range, header, slots, run));
  open_index = index;
}

void RecordingWriter::Impl::close_open_shard() {
  open->finish();
  open.reset();
  shards[open_index].complete = true;
}

// ---- the writer thread

void RecordingWriter::Impl::do_job(Job& job) {
  if (!open) open_shard(job.shard);
  if (job.prompts < 0) {
    open->write(job.slot, job.first, job.count, job.buffer.data.get());
    return;
  }
  const bool whole = job.prompts == shards[job.shard].last - shards[job.shard].first;
  if (whole && !single) {  // a single file is the recording: finish() completes it
    close_open_shard();
  } else {
    open->written(job.prompts, options.flush_bytes);
  }
}

void RecordingWriter::Impl::serve() {
  std::int64_t noted = -1;  // prompts of the open file that are written but perhaps not flushed
  std::unique_lock hold(mutex);
  for (;;) {
    work.wait(hold, [&] { return closing || !queue.empty(); });
    if (queue.empty()) break;
    Job job = std::move(queue.front());
    queue.pop_front();
    const bool idle = failure != nullptr;  // after a failure only the queue is emptied
    hold.unlock();
    std::exception_ptr caught;
    if (!idle) {
      try {
        do_job(job);
        if (job.prompts >= 0) noted = open ? job.prompts : -1;
      } catch (...) {
        caught = std::current_exception();
      }
    }
    hold.lock();
    if (caught) failure = caught;
    hold.unlock();
    give_back(job);
    hold.lock();
  }
  if (open && !failure) {
    try {
      if (finishing) {
        close_open_shard();
      } else if (noted > 0) {
        open->written(noted, 0);
      }
    } catch (...) {
      failure = std::current_exception();
    }
  }
  open.reset();
}

void RecordingWriter::Impl::stop() {
  if (!thread.joinable()) return;
  {
    const std::lock_guard hold(mutex);
    closing = true;
  }
  work.notify_all();
  thread.join();
}

void RecordingWriter::Impl::rethrow() {
  std::exception_ptr caught;
  {
    const std::lock_guard hold(mutex);
    caught = failure;
  }
  if (caught) std::rethrow_exception(caught);
}

// ---- the caller's side

Buffer RecordingWriter::Impl::take(std::size_t bytes) {
  std::unique_lock hold(mutex);
  room.wait(hold, [&] {
    return queued_bytes == 0 || queued_bytes + bytes <= options.queue_bytes || failure;
  });
  if (failure) std::rethrow_exception(failure);
  queued_bytes += bytes;
  const auto fits = std::find_if(spare.begin(), spare.end(), [&](const Buffer& buffer) {
    return buffer.capacity >= bytes && buffer.capacity / 2 <= bytes;
  });
  if (fits != spare.end()) {
    Buffer buffer = std::move(*fits);
    spare_bytes -= buffer.capacity;
    spare.erase(fits);
    return buffer;
  }
  // None fits: drop those that nobody asked for lately, rather than keep every size that ever was.
  while (!spare.empty() && spare_bytes + queued_bytes > options.queue_bytes) {
    spare_bytes -= spare.front().capacity;
    spare.erase(spare.begin());
  }
  hold.unlock();
  return {std::make_unique_for_overwrite<std::byte[]>(bytes), bytes};
}

// Ends a job: its buffer becomes free, and whoever waits for room looks again.
void RecordingWriter::Impl::give_back(Job& job) {
  {
    const std::lock_guard hold(mutex);
    queued_bytes -= job.bytes;
    if (job.buffer.data && spare_bytes + job.buffer.capacity <= options.queue_bytes) {
      spare_bytes += job.buffer.capacity;
      spare.push_back(std::move(job.buffer));
    }
  }
  room.notify_all();
}

void RecordingWriter::Impl::push(Job job) {
  {
    const std::lock_guard hold(mutex);
    queue.push_back(std::move(job));
  }
  work.notify_one();
}

void RecordingWriter::Impl::check_block(const ActivationBlock& block) const {
  const auto count = static_cast<std::int64_t>(block.prompts.size());
  const std::int64_t first = block.first_prompt;
  if (first != next)
    fail("{}: prompt {} must come next, the block begins with {}", path.string(), next, first);
  if (count == 0 || count > options.last_prompt - first || block.batch.prompts() != count) {
    fail("{}: a block of {} prompts ({} in its batch) at prompt {}, the recording ends at {}",
         path.string(), count, block.batch.prompts(), first, options.last_prompt);
  }
  const std::int64_t start = offsets[static_cast<std::size_t>(first)];
  for (std::int64_t i = 0; i < count; ++i) {
    const auto& ids = run[static_cast<std::size_t>(first + i)].ids;
    const std::int64_t at = block.batch.offsets[static_cast<std::size_t>(i)];
    if (at != offsets[static_cast<std::size_t>(first + i)] - start ||
        block.batch.length(i) != static_cast<std::int64_t>(ids.size()) ||
        !std::equal(ids.begin(), ids.end(), block.batch.ids.begin() + at)) {
      fail("{}: prompt {} of the block has other tokens than the run's", path.string(), first + i);
    }
  }
  const std::int64_t tokens = block.batch.tokens();
  const auto expect = [&](const std::string& what, std::uint64_t expected, std::size_t found) {
    if (expected != found) {
      fail("{}: {}: {} values expected in a block of {} tokens, found {}", path.string(), what,
           expected, tokens, found);
    }
  };
  for (const Slot& slot : slots) {
    const std::uint64_t rows = static_cast<std::uint64_t>(tokens) * slot.row_elements();
    if (slot.kind == Slot::Kind::token) {
      expect(site_name(slot.site), rows, block.at(slot.site).values.size());
    } else if (slot.kind == Slot::Kind::attention) {
      const ActivationBlock::Values& values = block.at(slot.site);
      const auto* at = &attention_offsets[static_cast<std::size_t>(first)];
      expect(site_name(slot.site), at[count] - at[0], values.values.size());
      expect(site_name(slot.site) + " offsets", static_cast<std::uint64_t>(count) + 1,
             values.offsets.size());
      for (std::int64_t i = 0; i <= count; ++i) {
        if (values.offsets[static_cast<std::size_t>(i)] !=
            static_cast<std::int64_t>(at[i] - at[0])) {
          fail("{}: {}: offset {} is {}, {} expected", path.string(), site_name(slot.site), i,
               values.offsets[static_cast<std::size_t>(i)], at[i] - at[0]);
        }
      }
    }
  }
  if (header.topk > 0) {
    if (block.logits.k != header.topk) {
      fail("{}: logit summary of {} entries expected, found {}", path.string(), header.topk,
           block.logits.k);
    }
    const auto all = static_cast<std::uint64_t>(tokens) * static_cast<std::uint64_t>(header.topk);
    expect("topk_ids", all, block.logits.topk_ids.size());
    expect("topk_logprobs", all, block.logits.topk_logprobs.size());
    expect("target_logprob", static_cast<std::uint64_t>(tokens),
           block.logits.target_logprob.size());
  }
}

// Queues one slot's values of prompts first … last − 1, all of them in one shard.
void RecordingWriter::Impl::push_rows(const ActivationBlock& block, std::size_t slot_index,
                                      std::size_t shard, std::int64_t first, std::int64_t last) {
  const Slot& slot = slots[slot_index];
  const auto at = [](std::int64_t i) { return static_cast<std::size_t>(i); };
  const bool attention = slot.kind == Slot::Kind::attention;
  const auto row_of = [&](std::int64_t prompt) {
    return attention ? attention_offsets[at(prompt)]
                     : static_cast<std::uint64_t>(offsets[at(prompt)]);
  };
  const std::uint64_t begin = row_of(first), count = row_of(last) - begin;
  const std::size_t skip = (begin - row_of(block.first_prompt)) * slot.row_elements();
  const std::size_t values = count * slot.row_elements();

  Job job;
  job.shard = shard;
  job.slot = slot_index;
  job.first = begin - row_of(shards[shard].first);
  job.count = count;
  job.bytes = values * h5::type_size(slot.type);
  job.buffer = take(job.bytes);
  std::byte* out = job.buffer.data.get();
  if (slot.kind == Slot::Kind::logits) {
    const LogitSummary& logits = block.logits;
    const void* from = slot.type == h5::Type::i32
                           ? static_cast<const void*>(logits.topk_ids.data() + skip)
                       : slot.row.empty() ? logits.target_logprob.data() + skip
                                          : logits.topk_logprobs.data() + skip;
    std::memcpy(out, from, job.bytes);
  } else {
    const std::vector<float>& all = block.at(slot.site).values;
    const std::span<const float> part(all.data() + skip, values);
    const std::int64_t bad = record::encode(header.store, part, out);
    if (bad >= 0) {
      give_back(job);
      // Which prompt and token the value belongs to.
      const std::uint64_t row = begin + static_cast<std::uint64_t>(bad) / slot.row_elements();
      std::int64_t prompt = first;
      while (row >= row_of(prompt + 1)) ++prompt;
      const auto length = static_cast<std::uint64_t>(run[at(prompt)].ids.size());
      const std::uint64_t within = row - row_of(prompt);
      fail(
          "{}: site {}, prompt {} ('{}'), token {}: value {:g} is beyond f16's ±65504; store f32 "
          "or bf16",
          path.string(), site_name(slot.site), prompt, run[at(prompt)].id,
          attention ? within / length % length : within, part[static_cast<std::size_t>(bad)]);
    }
  }
  push(std::move(job));
}

void RecordingWriter::Impl::append(const ActivationBlock& block) {
  rethrow();
  if (finished) fail("{}: the recording is finished", path.string());
  check_block(block);
  const std::int64_t end = block.first_prompt + static_cast<std::int64_t>(block.prompts.size());
  while (next < end) {
    while (next >= shards[next_shard].last) ++next_shard;
    const std::int64_t last = std::min(end, shards[next_shard].last);
    for (std::size_t slot = 0; slot < slots.size(); ++slot) {
      push_rows(block, slot, next_shard, next, last);
    }
    Job note;
    note.shard = next_shard;
    note.prompts = last - shards[next_shard].first;
    push(std::move(note));
    next = last;
  }
}

void RecordingWriter::Impl::write_manifest() {
  std::vector<record::IndexEntry> entries;
  const std::int64_t start = offsets[static_cast<std::size_t>(options.first_prompt)];
  for (const ShardRange& shard : shards) {
    const std::int64_t first_token = offsets[static_cast<std::size_t>(shard.first)];
    const std::int64_t last_token = offsets[static_cast<std::size_t>(shard.last)];
    entries.push_back({shard.path.filename(), shard.first, shard.last - shard.first,
                       first_token - start, last_token - first_token});
  }
  record::write_index(
      path, header, slots,
      std::span(run).subspan(static_cast<std::size_t>(options.first_prompt),
                             static_cast<std::size_t>(options.last_prompt - options.first_prompt)),
      entries);
}

void RecordingWriter::Impl::finish() {
  if (finished) return;
  if (next != options.last_prompt) {
    fail("{}: prompt {} must come next, the recording ends at {}", path.string(), next,
         options.last_prompt);
  }
  rethrow();
  {
    const std::lock_guard hold(mutex);
    finishing = true;
  }
  stop();
  rethrow();
  if (!single) write_manifest();
  finished = true;
  lock.reset();
}

void remove_recording(const std::filesystem::path& path) {
  const record::FileLock lock(path);
  for (const fs::path& file : record::recording_files(path)) fs::remove(file);
}

RecordingWriter::RecordingWriter(const std::filesystem::path& path, const RecordingHeader& header,
                                 std::span<const Prompt> prompts, const WriterOptions& options)
    : impl_(std::make_unique<Impl>(path, header, prompts, options)) {}
RecordingWriter::~RecordingWriter() = default;
std::int64_t RecordingWriter::next_prompt() const {
  return impl_->next;
}
void RecordingWriter::append(const ActivationBlock& block) {
  impl_->append(block);
}
void RecordingWriter::finish() {
  impl_->finish();
}

}  // namespace lamina
