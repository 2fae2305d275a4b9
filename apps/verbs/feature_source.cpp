#include "verbs/feature_source.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "lamina/core/error.h"
#include "ui/terminal.h"
#include "ui/text.h"

namespace lamina::cli {

void add_feature_options(CLI::App& verb, FeatureInputs& inputs, const char* group_help) {
  verb.add_option("recordings", inputs.source.recordings, "recordings to read")
      ->option_text("RECORDING...");
  verb.add_option("--model", inputs.source.model, "model to run now over --prompts")
      ->option_text("MODEL");
  add_prompt_options(verb, inputs.prompts);
  verb.add_option("--generate", inputs.sampling.max_new,
                  "with --model: tokens to add to every prompt first (default 0)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  add_sampling_options(verb, inputs.sampling);
  verb.add_option("--sites", inputs.sites, "places to read (default: resid_post of all layers)")
      ->delimiter(',')
      ->option_text("GLOB...");
  if (group_help != nullptr) {
    verb.add_option("--group", inputs.group, group_help)->option_text("NAME");
  }
  verb.add_flag("--skip-unlabelled", inputs.skip_unlabelled, "leave prompts without the label out");
  verb.add_option("--memory", inputs.memory, "most bytes of features held at a time (default 1G)")
      ->option_text("BYTES");
}

FeatureSource::FeatureSource(const FeatureInputs& inputs, const Globals& globals)
    : inputs_(inputs) {
  const std::vector<std::string>& paths = inputs.source.recordings;
  if (paths.empty()) {
    if (inputs.source.model.empty()) {
      fail_usage("nothing to read; give recordings, or --model and prompts");
    }
    live_ = std::make_unique<OpenedSource>(inputs.source);
    prompts_ = load_prompts(inputs.prompts, live_->model());
    if (inputs.sampling.max_new > 0) {
      generate_with_progress(live_->forward(), prompts_, inputs.sampling, 0, globals);
    }
    return;
  }
  if (has_prompts(inputs.prompts) || inputs.sampling.max_new > 0 || !inputs.source.model.empty()) {
    fail_usage(
        "recordings are read without a model: --model, prompts and --generate go without "
        "recordings");
  }
  for (const std::string& path : paths) {
    recordings_.push_back(Recording::open(path));
    const RecordingHeader& first = recordings_.front().header();
    const RecordingHeader& header = recordings_.back().header();
    if (header.model_sha256 != first.model_sha256) {
      fail("{}: it was recorded from a model with SHA-256 {}, {} from one with {}", path,
           header.model_sha256, paths.front(), first.model_sha256);
    }
  }
}

const ModelConfig& FeatureSource::config() const {
  return live_ ? live_->model().config() : recordings_.front().header().config;
}

const std::string& FeatureSource::model_sha256() const {
  return live_ ? live_->model().sha256() : recordings_.front().header().model_sha256;
}

std::vector<Site> FeatureSource::sites() const {
  if (inputs_.sites.empty()) {
    const std::string every[] = {"resid_post"};
    return match_sites(every, config());
  }
  return match_sites(inputs_.sites, config());
}

std::set<std::string> FeatureSource::label_names() const {
  std::set<std::string> names;
  const auto add = [&](std::span<const Prompt> prompts) {
    for (const Prompt& prompt : prompts) {
      for (const auto& [name, value] : prompt.labels) names.insert(name);
    }
  };
  if (live_) add(prompts_);
  for (const Recording& recording : recordings_) add(recording.prompts());
  return names;
}

std::vector<FeatureRow> FeatureSource::rows(const FeatureOptions& options) const {
  // A label that no prompt has is mistyped rather than missing.
  for (const std::string& label : {options.label, options.group}) {
    const std::set<std::string> names = label_names();
    if (label.empty() || names.contains(label)) continue;
    fail("no prompt has the label '{}'; {}", label,
         names.empty() ? "the prompts have no labels"
                       : fmt::format("there are {}", fmt::join(names, ", ")));
  }
  std::vector<FeatureRow> rows;
  std::int64_t number = 0;
  const auto add = [&](std::span<const Prompt> prompts) {
    for (const Prompt& prompt : prompts) {
      for (FeatureRow& row : feature_rows(prompt, number, options)) rows.push_back(std::move(row));
      ++number;
    }
  };
  if (live_) add(prompts_);
  for (const Recording& recording : recordings_) add(recording.prompts());
  return rows;
}

std::vector<std::vector<Site>> FeatureSource::groups(const FeatureOptions& options) const {
  const std::uint64_t most = parse_bytes(inputs_.memory, "--memory");
  const std::uint64_t count = rows(options).size();
  std::vector<std::vector<Site>> out;
  std::uint64_t held = 0;
  for (const Site site : options.sites) {
    const SiteShape shape = site_shape(site, config());
    const auto width = static_cast<std::uint64_t>(shape.attention ? 1 : shape.row());
    const std::uint64_t bytes = count * width * sizeof(float);
    if (bytes > most) {
      fail(
          "{}: {} rows of {} values take {}, --memory allows {}: read fewer tokens (--position), "
          "or allow more",
          site_name(site), grouped(static_cast<std::int64_t>(count)), width, bytes_text(bytes),
          bytes_text(most));
    }
    // A recording is read site by site in any case: that costs nothing more.
    if (out.empty() || !live_ || held + bytes > most) {
      out.emplace_back();
      held = 0;
    }
    out.back().push_back(site);
    held += bytes;
  }
  return out;
}

void FeatureSource::read(
    const FeatureOptions& options,
    const std::function<void(const Features& features, std::size_t site)>& use) {
  const auto parts = groups(options);
  if (live_ && parts.size() > 1) {
    info("the features of {} sites do not fit into --memory: the model runs {} times",
         options.sites.size(), parts.size());
  }
  for (const Recording& recording : recordings_) {
    for (const Site site : options.sites) {
      if (recording.has(site)) continue;
      fail("{}: {} was not recorded (record it with --sites {})", recording.path().string(),
           site_name(site), site_name(site));
    }
  }
  for (const auto& sites : parts) {
    FeatureOptions some = options;
    some.sites = sites;
    Features features(config(), some);
    if (live_) {
      live_->run(features, prompts_, "reading");
    } else {
      Probe* const probes[] = {&features};
      for (const Recording& recording : recordings_) run_probes(probes, recording);
    }
    for (std::size_t s = 0; s < sites.size(); ++s) use(features, s);
  }
}

std::map<std::string, std::string> FeatureSource::provenance(const Globals& globals) const {
  if (live_) return live_->provenance(globals);
  auto attributes = cli::provenance(globals);
  attributes["model_id"] = recordings_.front().header().model_id;
  attributes["model_sha256"] = model_sha256();
  std::string inputs;
  for (const Recording& recording : recordings_) {
    inputs += (inputs.empty() ? "" : "\n") + recording.path().string();
  }
  attributes["recordings"] = inputs;
  return attributes;
}

}  // namespace lamina::cli
