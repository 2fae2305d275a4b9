#include "verbs/depth_against.h"

#include <array>
#include <fstream>
#include <functional>

#include "lamina/core/error.h"
#include "ui/terminal.h"

namespace lamina::cli {
namespace {

constexpr std::int64_t kBatchTokens = 1024;

bool is_hdf5(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::array<char, 8> start{};
  file.read(start.data(), start.size());
  return file && std::string_view(start.data(), start.size()) == "\x89HDF\r\n\x1a\n";
}

// The activations of any prompts of a run, from wherever they are.
class Side {
 public:
  Side(std::vector<const Recording*> recordings) : recordings_(std::move(recordings)) {
    for (const Recording* recording : recordings_) {
      for (const Prompt& prompt : recording->prompts()) prompts_.push_back(prompt);
      ends_.push_back(static_cast<std::int64_t>(prompts_.size()));
    }
  }
  Side(Forward& forward, std::vector<Prompt> prompts)
      : forward_(&forward), prompts_(std::move(prompts)) {
    ends_.push_back(static_cast<std::int64_t>(prompts_.size()));
  }

  const std::vector<Prompt>& prompts() const { return prompts_; }
  /// One past the last prompt that can stand in a block with prompt `first`.
  std::int64_t end(std::int64_t first) const { return *upper(first); }

  void read(std::span<const Site> sites, std::int64_t first, std::int64_t count,
            const BlockConsumer& consume) {
    if (forward_ != nullptr) {
      LiveOptions options;
      options.batch_tokens = options.block_bytes = std::int64_t{1} << 60;  // one block
      options.first_prompt = first;
      options.last_prompt = first + count;
      run_live(*forward_, prompts_, sites, options, consume);
      return;
    }
    const auto which = static_cast<std::size_t>(upper(first) - ends_.begin());
    const Recording& recording = *recordings_[which];
    for (Site site : sites) {
      if (recording.has(site)) continue;
      fail("{}: the maps need {}, which was not recorded (record it with --sites {})",
           recording.path().string(), site_name(site), site_name(site));
    }
    ActivationBlock block =
        recording.read_block(sites, first - (which > 0 ? ends_[which - 1] : 0), count);
    block.first_prompt = first;  // of the run, as if the recordings were one
    consume(block);
  }

 private:
  std::vector<std::int64_t>::const_iterator upper(std::int64_t prompt) const {
    return std::upper_bound(ends_.begin(), ends_.end(), prompt);
  }

  Forward* forward_ = nullptr;
  std::vector<const Recording*> recordings_;
  std::vector<Prompt> prompts_;
  std::vector<std::int64_t> ends_;
};

void check_same_prompts(const Side& source, const Side& target, const std::string& against) {
  if (source.prompts().size() != target.prompts().size()) {
    fail("{}: it holds {} prompts, the source {}", against, target.prompts().size(),
         source.prompts().size());
  }
  for (std::size_t p = 0; p < source.prompts().size(); ++p) {
    const Prompt &a = source.prompts()[p], &b = target.prompts()[p];
    if (a.ids == b.ids) continue;
    fail("{}: prompt {} (\"{}\", {} tokens) is not that of the source (\"{}\", {} tokens)", against,
         p, b.id, b.ids.size(), a.id, a.ids.size());
  }
}

}  // namespace

AgainstResult map_against(OpenedSource& source, std::span<const Prompt> prompts,
                          const std::string& against, const LinearMapOptions& options) {
  std::vector<const Recording*> recordings;
  for (const Recording& recording : source.recordings()) recordings.push_back(&recording);
  Side from =
      source.live() ? Side(source.forward(), {prompts.begin(), prompts.end()}) : Side(recordings);
  std::optional<Recording> recording;
  std::optional<Model> model;
  std::optional<Forward> forward;
  std::optional<Side> to;
  AgainstResult result;
  if (is_hdf5(against)) {
    recording = Recording::open(against);
    const RecordingHeader& header = recording->header();
    result = {{}, header.config, header.model_id, header.model_sha256};
    to.emplace(std::vector<const Recording*>{&*recording});
  } else {
    model = load_model(against);
    forward.emplace(*model);
    result = {{}, model->config(), model->id(), model->sha256()};
    for (const Prompt& prompt : from.prompts()) {
      for (std::int32_t id : prompt.ids) {
        if (id < result.config.d_vocab) continue;
        fail("{}: prompt \"{}\" has token id {}, its vocabulary {} tokens", against, prompt.id, id,
             result.config.d_vocab);
      }
    }
    to.emplace(*forward, from.prompts());
  }
  check_same_prompts(from, *to, against);

  const auto count = static_cast<std::int64_t>(from.prompts().size());
  const PairPass pass = [&](std::span<const Site> source_sites, std::span<const Site> target_sites,
                            const PairConsumer& consume) {
    ProgressLine progress("mapping", "tokens", total_tokens(from.prompts()));
    std::int64_t done = 0;
    for (std::int64_t first = 0; first < count;) {
      const std::int64_t end = std::min(from.end(first), to->end(first));
      std::int64_t last = first, tokens = 0;
      while (last < end) {
        const auto length =
            static_cast<std::int64_t>(from.prompts()[static_cast<std::size_t>(last)].ids.size());
        if (last > first && tokens + length > kBatchTokens) break;
        tokens += length;
        ++last;
      }
      from.read(source_sites, first, last - first, [&](const ActivationBlock& a) {
        to->read(target_sites, first, last - first,
                 [&](const ActivationBlock& b) { consume(a, b); });
      });
      done += tokens;
      progress.update(done);
      first = last;
    }
    progress.finish();
  };
  result.maps = fit_linear_maps(source.model().config(), result.config, pass, options);
  return result;
}

}  // namespace lamina::cli
