#include <algorithm>

#include "impl.h"
#include "lamina/core/error.h"
#include "lamina/core/run.h"
#include "run_impl.h"

namespace lamina {

using training::size;

namespace {

std::vector<DictionaryPlace> places_of(std::span<const TranscoderConfig> configs) {
  std::vector<DictionaryPlace> places;
  for (const TranscoderConfig& c : configs) {
    for (const DictionaryPlace& place : {c.input, c.output}) {
      if (std::find(places.begin(), places.end(), place) == places.end()) places.push_back(place);
    }
  }
  return places;
}

std::vector<std::int64_t> widths_of(const Model& model, std::span<const DictionaryPlace> places) {
  std::vector<std::int64_t> widths;
  for (const DictionaryPlace& place : places) {
    const SiteShape shape = site_shape(place.site, model.config());
    if (shape.attention) {
      fail_usage("{} has a value per pair of tokens; dictionaries read rows of tokens",
                 site_name(place.site));
    }
    widths.push_back(shape.row());
  }
  return widths;
}

std::vector<TranscoderTrainer> trainers_of(std::span<const TranscoderConfig> configs,
                                           const TrainingOptions& options) {
  std::vector<TranscoderTrainer> trainers;
  training::Random seeds(options.seed);
  seeds.next();  // the buffer's
  for (const TranscoderConfig& c : configs) {
    TrainingOptions own = options;
    own.seed = seeds.next();
    trainers.emplace_back(c, own);
  }
  return trainers;
}

}  // namespace

TrainingRun::TrainingRun(const Model& model, std::vector<TranscoderConfig> configs,
                         const TrainingOptions& options) {
  if (configs.empty()) fail_usage("training: no dictionary was asked for");
  const std::vector<DictionaryPlace> places = places_of(configs);
  std::vector<std::int64_t> widths = widths_of(model, places);
  std::vector<std::size_t> inputs, outputs;
  for (const TranscoderConfig& c : configs) {
    check_training(options, c);
    const auto column = [&](const DictionaryPlace& place, std::int64_t width) {
      const auto at =
          static_cast<std::size_t>(std::find(places.begin(), places.end(), place) - places.begin());
      if (widths[at] != width) {
        fail_usage("{}: {} is {} wide in this model, expected {}", c.name,
                   dictionary_place_name(place), widths[at], width);
      }
      return at;
    };
    inputs.push_back(column(c.input, c.d_in));
    outputs.push_back(column(c.output, c.d_out));
  }
  for (const DictionaryPlace& place : places) {  // refused now rather than after a forward pass
    std::vector<float> row(size(site_shape(place.site, model.config()).row()));
    apply_place(model, place, row);
  }
  std::vector<TranscoderTrainer> trainers = trainers_of(configs, options);
  impl_ =
      std::make_unique<Impl>(Impl{model, std::move(configs), options, places, std::move(inputs),
                                  std::move(outputs), std::move(trainers),
                                  training::ShuffleBuffer(std::move(widths), options.buffer_rows,
                                                          training::Random(options.seed).next())});
  for (std::size_t i = 1; i < impl_->trainers.size(); ++i) {
    impl_->trainers[i].share_workspace(impl_->trainers[0]);
  }
}

TrainingRun::~TrainingRun() = default;

std::vector<Site> TrainingRun::sites() const {
  std::vector<Site> sites;
  for (const DictionaryPlace& place : impl_->places) {
    if (std::find(sites.begin(), sites.end(), place.site) == sites.end()) {
      sites.push_back(place.site);
    }
  }
  return sites;
}

std::uint64_t TrainingRun::bytes() const {
  double floats = 0;
  for (const TranscoderConfig& c : impl_->configs) {
    const double skip = c.skip ? static_cast<double>(c.d_in) * static_cast<double>(c.d_out) : 0;
    floats += 3 * (static_cast<double>(c.features) * static_cast<double>(c.d_in + c.d_out) + skip);
    floats = std::max(floats, static_cast<double>(c.features * impl_->options.batch));
  }
  for (const DictionaryPlace& place : impl_->places) {
    floats += static_cast<double>(impl_->options.buffer_rows) *
              static_cast<double>(site_shape(place.site, impl_->model.config()).row());
  }
  return static_cast<std::uint64_t>(4 * floats);
}

void TrainingRun::on_step(Progress progress) {
  impl_->progress = std::move(progress);
}

void TrainingRun::checkpoint(const std::filesystem::path& path, std::int64_t every,
                             const std::map<std::string, std::string>& identity) {
  impl_->checkpoint_path = path;
  impl_->checkpoint_every = every;
  impl_->identity = identity;
}

void TrainingRun::resume(const std::filesystem::path& path) {
  impl_->load(path);
}

std::int64_t TrainingRun::position() const {
  return impl_->position;
}

void TrainingRun::Impl::drain() {
  while (!done()) {
    if (steps() == 0 && (buffer.full() || flushing)) {
      for (std::size_t i = 0; i < trainers.size(); ++i) {
        trainers[i].center(buffer.first_rows(inputs[i]), buffer.first_rows(outputs[i]));
      }
    }
    if (!buffer.take(options.batch, flushing, batch)) return;
    for (std::size_t i = 0; i < trainers.size(); ++i) {
      curve.push_back(trainers[i].step(batch[inputs[i]], batch[outputs[i]]));
    }
    if (progress) progress(steps(), std::span(curve).last(trainers.size()));
    if (checkpoint_every > 0 && steps() % checkpoint_every == 0) save();
  }
}

bool TrainingRun::observe(const ActivationBlock& block, std::int64_t first) {
  Impl& m = *impl_;
  m.drain();  // what a resumed run had begun to take
  if (m.done()) return true;
  const std::int64_t tokens = block.batch.tokens();
  std::vector<std::vector<float>> applied(m.places.size());
  std::vector<const float*> columns;
  std::vector<std::int64_t> widths;
  for (std::size_t c = 0; c < m.places.size(); ++c) {
    const ActivationBlock::Values& values = block.at(m.places[c].site);
    const std::int64_t width = site_shape(m.places[c].site, m.model.config()).row();
    if (values.shape.attention || std::ssize(values.values) != tokens * width) {
      fail("{}: {} values for {} tokens of {} each", site_name(m.places[c].site),
           values.values.size(), tokens, width);
    }
    columns.push_back(values.values.data());
    widths.push_back(width);
    if (m.places[c].norm_weights) {
      applied[c] = values.values;
      apply_place(m.model, m.places[c], applied[c]);
      columns.back() = applied[c].data();
    }
  }
  std::vector<const float*> row(columns.size());
  for (std::int64_t p = 0; p < block.batch.prompts(); ++p) {
    const std::int64_t begin = block.batch.offsets[size(p)];
    const std::int64_t end = begin + block.batch.length(p);
    for (std::int64_t t = std::max(begin, first); t < end; ++t) {
      ++m.position;
      if (t - begin < m.options.skip_first) continue;
      for (std::size_t c = 0; c < columns.size(); ++c) row[c] = columns[c] + t * widths[c];
      m.buffer.push(row);
      if (!m.buffer.full()) continue;
      m.drain();
      if (m.done()) return true;
    }
  }
  return false;
}

void TrainingRun::flush() {
  Impl& m = *impl_;
  if (!m.flushing) m.drain();
  m.flushing = true;
  m.drain();
}

bool TrainingRun::done() const {
  return impl_->done();
}

const TrainingOptions& TrainingRun::options() const {
  return impl_->options;
}

std::int64_t TrainingRun::steps() const {
  return impl_->steps();
}

std::vector<Transcoder> TrainingRun::transcoders() const {
  std::vector<Transcoder> all;
  for (const TranscoderTrainer& t : impl_->trainers) all.push_back(t.transcoder());
  return all;
}

std::span<const TrainingStep> TrainingRun::last() const {
  const std::size_t n = impl_->trainers.size();
  return std::span(impl_->curve).last(std::min(n, impl_->curve.size()));
}

std::int64_t training_rows(std::span<const Prompt> prompts, std::int64_t skip_first) {
  std::int64_t rows = 0;
  for (const Prompt& p : prompts) {
    rows += std::max<std::int64_t>(std::ssize(p.ids) - skip_first, 0);
  }
  return rows;
}

namespace {

struct Enough {};  // ends a live pass when the steps are done

void check_rows(std::int64_t rows, std::int64_t skip_first) {
  if (rows == 0) {
    fail("training: there are no tokens to train on ({} left out of every prompt)", skip_first);
  }
}

// Passes over a stream of `tokens` tokens, from where the run is. pass(offset) feeds it to its end
// or until the run is done.
template <class Pass>
void repeat(TrainingRun& run, std::int64_t tokens, std::int64_t epochs, const Pass& pass) {
  while (!run.done()) {
    if (epochs > 0 && run.position() >= tokens * epochs) {
      run.flush();
      return;
    }
    pass(run.position() % tokens);
  }
}

}  // namespace

void train_recorded(TrainingRun& run, std::span<const Recording> recordings, std::int64_t epochs) {
  constexpr std::int64_t kBlockTokens = 8192;
  const std::vector<Site> sites = run.sites();
  std::int64_t tokens = 0, rows = 0;
  for (const Recording& recording : recordings) {
    tokens += recording.tokens();
    rows += training_rows(recording.prompts(), run.options().skip_first);
    for (Site site : sites) {
      if (recording.has(site)) continue;
      fail("{}: the recording does not hold {}; record it with --sites {}",
           recording.path().string(), site_name(site), site_name(site));
    }
  }
  check_rows(rows, run.options().skip_first);
  repeat(run, tokens, epochs, [&](std::int64_t offset) {
    for (const Recording& recording : recordings) {
      if (offset >= recording.tokens()) {
        offset -= recording.tokens();
        continue;
      }
      const std::vector<std::int64_t>& offsets = recording.offsets();
      std::int64_t next =
          std::upper_bound(offsets.begin(), offsets.end(), offset) - offsets.begin() - 1;
      const auto prompts = static_cast<std::int64_t>(recording.prompts().size());
      while (next < prompts) {
        const std::int64_t begin = next;
        for (++next; next < prompts; ++next) {
          if (offsets[size(next + 1)] - offsets[size(begin)] > kBlockTokens) break;
        }
        const ActivationBlock block = recording.read_block(sites, begin, next - begin);
        if (run.observe(block, std::max<std::int64_t>(offset - offsets[size(begin)], 0))) return;
      }
      offset = 0;
    }
  });
}

void train_live(TrainingRun& run, Forward& forward, std::span<const Prompt> prompts,
                std::int64_t epochs) {
  std::vector<std::int64_t> offsets = {0};
  for (const Prompt& p : prompts) offsets.push_back(offsets.back() + std::ssize(p.ids));
  check_rows(training_rows(prompts, run.options().skip_first), run.options().skip_first);
  repeat(run, offsets.back(), epochs, [&](std::int64_t offset) {
    LiveOptions options;
    options.first_prompt =
        std::upper_bound(offsets.begin(), offsets.end(), offset) - offsets.begin() - 1;
    try {
      run_live(forward, prompts, run.sites(), options, [&](const ActivationBlock& block) {
        const std::int64_t begin = offsets[size(block.first_prompt)];
        if (run.observe(block, std::max<std::int64_t>(offset - begin, 0))) throw Enough{};
      });
    } catch (const Enough&) {
    }
  });
}

}  // namespace lamina
