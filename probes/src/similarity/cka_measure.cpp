// Similarities within one source and between two.

#include <algorithm>

#include "lamina/core/error.h"
#include "similarity/cka_engine.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

// Prompts of one source under one numbering, and their blocks.
class Reader {
 public:
  Reader(const CkaSource& source, const CkaOptions& options)
      : source_(source), side_(cka::make_side(source.config(), options)) {
    for (std::span<const Prompt> part : source.all_prompts()) {
      for (const Prompt& prompt : part) prompts_.push_back(&prompt);
    }
    for (const Recording& recording : source.recordings) {
      const RecordingHeader &first = source.recordings.front().header(),
                            &header = recording.header();
      if (header.model_sha256 != first.model_sha256) {
        fail("{}: it was recorded from a model with SHA-256 {}, {} from one with {}",
             recording.path().string(), header.model_sha256,
             source.recordings.front().path().string(), first.model_sha256);
      }
      for (Site site : side_.sites) {
        if (recording.has(site)) continue;
        fail("{}: cka needs {}, which was not recorded (record it with --sites {})",
             recording.path().string(), site_name(site), site_name(site));
      }
    }
  }

  const cka::Side& side() const { return side_; }
  const std::vector<const Prompt*>& prompts() const { return prompts_; }
  bool live() const { return source_.recordings.empty(); }
  std::uint64_t bytes(std::int64_t prompt) const {
    return static_cast<std::uint64_t>(side_.count() * side_.width) * sizeof(float) *
           prompts_[size(prompt)]->ids.size();
  }

  /// Blocks of prompts first … last − 1, in order.
  void read(std::int64_t first, std::int64_t last, const BlockConsumer& consume) const {
    if (live()) {
      LiveOptions options;
      options.first_prompt = first;
      options.last_prompt = last;
      run_live(*source_.forward, source_.prompts, side_.sites, options, consume);
      return;
    }
    std::int64_t before = 0;
    for (const Recording& recording : source_.recordings) {
      const auto here = static_cast<std::int64_t>(recording.prompts().size());
      const std::int64_t begin = std::max(first, before) - before;
      const std::int64_t end = std::min(last - before, here);
      if (begin < end) consume(recording.read_block(side_.sites, begin, end - begin));
      before += here;
    }
  }

 private:
  const CkaSource& source_;
  cka::Side side_;
  std::vector<const Prompt*> prompts_;
};

// Rows that stand beside one another must be about the same input.
void check_aligned(const Reader& a, const Reader& b, const CkaSource& first,
                   const CkaSource& second, const CkaOptions& options) {
  if (a.prompts().size() != b.prompts().size()) {
    fail("cka: {} has {} prompts, {} has {}; the same number expected", first.name,
         a.prompts().size(), second.name, b.prompts().size());
  }
  if (options.pool != CkaPool::none) return;
  for (std::size_t p = 0; p < a.prompts().size(); ++p) {
    const std::size_t in_a = a.prompts()[p]->ids.size(), in_b = b.prompts()[p]->ids.size();
    if (in_a == in_b) continue;
    fail(
        "cka: prompt {} ('{}') has {} tokens in {} and {} in {}; compare one row per prompt "
        "instead (--pool mean or last)",
        p, a.prompts()[p]->id, in_a, first.name, in_b, second.name);
  }
}

constexpr std::uint64_t kBlockBytes = std::uint64_t{64} << 20;

}  // namespace

const ModelConfig& CkaSource::config() const {
  if (!recordings.empty()) return recordings.front().header().config;
  if (forward == nullptr) fail("cka: the source {} has neither recordings nor a model", name);
  return forward->model().config();
}

std::vector<std::span<const Prompt>> CkaSource::all_prompts() const {
  if (recordings.empty()) return {prompts};
  std::vector<std::span<const Prompt>> all;
  for (const Recording& recording : recordings) all.push_back(recording.prompts());
  return all;
}

CkaResults measure_cka(const CkaSource& a, const CkaSource* b, const CkaOptions& options,
                       const Progress& progress) {
  cka::check_options(options);
  std::vector<Reader> readers;
  readers.emplace_back(a, options);
  if (b != nullptr) {
    readers.emplace_back(*b, options);
    check_aligned(readers[0], readers[1], a, *b, options);
  }
  std::vector<cka::Side> sides;
  bool live = false;
  for (const Reader& reader : readers) {
    sides.push_back(reader.side());
    live = live || reader.live();
  }

  std::vector<std::vector<cka::Pair>> passes(1);
  if (options.mode == CkaMode::exact) passes = cka::Engine::plan(sides, options);
  // Of all pairs in one pass: the engine then says what is wrong.
  if (live && passes.size() > 1) passes = {{}};

  std::int64_t streams = 0;
  for (const cka::Side& side : sides) streams += side.count();
  cka::Tables tables(streams);
  const auto prompts = static_cast<std::int64_t>(readers[0].prompts().size());
  std::optional<CkaResults> sampled;
  CkaResults results;
  std::int64_t tokens = 0;
  for (std::size_t pass = 0; pass < passes.size(); ++pass) {
    cka::Engine engine(sides, options, passes[pass], pass == 0);
    for (std::int64_t next = 0; next < prompts;) {
      const std::int64_t first = next;
      std::uint64_t bytes = 0;
      for (; next < prompts; ++next) {
        std::uint64_t more = 0;
        for (const Reader& reader : readers) more += reader.bytes(next);
        if (next > first && bytes + more > kBlockBytes) break;
        bytes += more;
        tokens += static_cast<std::int64_t>(readers[0].prompts()[size(next)]->ids.size());
      }
      for (std::size_t side = 0; side < readers.size(); ++side) {
        readers[side].read(first, next,
                           [&](const ActivationBlock& block) { engine.add(side, block); });
      }
      if (progress) progress(next, tokens / static_cast<std::int64_t>(passes.size()));
    }
    engine.finish();
    if (options.mode == CkaMode::exact) engine.reduce(tables);
    if (pass + 1 < passes.size()) {
      if (pass == 0 && options.measures.rbf) sampled = engine.results(&tables);
      continue;
    }
    results = engine.results(options.mode == CkaMode::exact ? &tables : nullptr);
  }
  if (sampled) {
    results.sample = sampled->sample;
    results.rbf = std::move(sampled->rbf);
    results.rbf_debiased = std::move(sampled->rbf_debiased);
    results.sigma = std::move(sampled->sigma);
    results.sigma_other = std::move(sampled->sigma_other);
  }
  return results;
}

}  // namespace lamina
