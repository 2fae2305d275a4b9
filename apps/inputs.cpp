#include "inputs.h"

#include <charconv>
#include <chrono>
#include <ctime>

#include "lamina/core/error.h"
#include "paths.h"
#include "ui/terminal.h"
#include "ui/text.h"

namespace lamina::cli {
namespace {

Bos parse_bos(const std::string& word) {
  return word == "always" ? Bos::always : word == "never" ? Bos::never : Bos::model;
}

}  // namespace

void add_prompt_options(CLI::App& verb, PromptInputs& inputs) {
  CLI::Option* file = verb.add_option("--prompts", inputs.file,
                                      "prompts: one a line (.txt) or JSON objects (.jsonl)")
                          ->option_text("FILE");
  verb.add_option("--text", inputs.texts, "prompts given here")
      ->option_text("TEXT...")
      ->excludes(file);
  verb.add_option("--bos", inputs.bos,
                  "beginning-of-sequence token: as the model says (default), always, never")
      ->check(CLI::IsMember({"model", "always", "never"}))
      ->option_text("WHEN");
}

bool has_prompts(const PromptInputs& inputs) {
  return !inputs.file.empty() || !inputs.texts.empty();
}

bool prepends_bos(const PromptInputs& inputs, const Model& model) {
  if (model.tokenizer() == nullptr) return false;
  const Bos bos = parse_bos(inputs.bos);
  return bos == Bos::always || (bos == Bos::model && model.tokenizer()->adds_bos());
}

std::vector<Prompt> load_prompts(const PromptInputs& inputs, const Model& model) {
  if (!has_prompts(inputs)) fail_usage("prompts are missing; give --prompts FILE or --text TEXT");
  const PromptOptions options{parse_bos(inputs.bos), true};
  std::vector<Prompt> prompts;
  if (!inputs.file.empty()) {
    prompts = read_prompts(inputs.file, model.tokenizer(), model.config().d_vocab, options);
    if (prompts.empty()) fail("{}: it holds no prompts", inputs.file);
  } else {
    if (model.tokenizer() == nullptr) {
      fail("{}: the model has no tokenizer; give token ids in a --prompts FILE.jsonl", model.id());
    }
    prompts = text_prompts(inputs.texts, *model.tokenizer(), options);
  }
  if (inputs.piece > 0) {
    const std::optional<std::int32_t> bos =
        model.tokenizer() == nullptr ? std::nullopt : model.tokenizer()->bos_id();
    prompts = cut_prompts(std::move(prompts), inputs.piece, bos);
  }
  for (const Prompt& prompt : prompts) {
    if (static_cast<std::int64_t>(prompt.ids.size()) > model.config().n_ctx) {
      fail("prompt '{}' has {} tokens; the model's context holds {}", prompt.id, prompt.ids.size(),
           model.config().n_ctx);
    }
  }
  return prompts;
}

void add_sampling_options(CLI::App& verb, Sampling& sampling) {
  verb.add_option("--temperature", sampling.temperature, "0 (default) takes the most likely token")
      ->check(CLI::NonNegativeNumber)
      ->option_text("T");
  verb.add_option("--top-p", sampling.top_p,
                  "sample from the most likely tokens that hold this share")
      ->check(CLI::Range(0.0, 1.0))
      ->option_text("P");
}

void generate_with_progress(Forward& forward, std::span<Prompt> prompts, const Sampling& sampling,
                            std::int64_t first, const Globals& globals, const Hooks* hooks) {
  const std::int64_t context = forward.model().config().n_ctx;
  for (const Prompt& prompt : prompts) {
    const auto length = static_cast<std::int64_t>(prompt.ids.size());
    if (length + sampling.max_new > context) {
      fail("prompt '{}' has {} tokens and {} more were asked for; the model's context holds {}",
           prompt.id, length, sampling.max_new, context);
    }
  }
  GenerateOptions options;
  options.max_new_tokens = sampling.max_new;
  options.temperature = sampling.temperature;
  options.top_p = sampling.top_p;
  options.seed = globals.seed;
  options.first_prompt = first;
  options.hooks = hooks;
  ProgressLine progress("generating", "tokens",
                        static_cast<std::int64_t>(prompts.size()) * sampling.max_new);
  options.progress = [&](std::int64_t, std::int64_t tokens) { progress.update(tokens); };
  generate(forward, prompts, options);
  progress.finish();
}

void add_output_options(CLI::App& verb, OutputOptions& options, const std::string& what) {
  verb.add_option("-o,--output", options.path, what)->option_text("FILE");
  verb.add_flag("--force", options.force, "overwrite the output file");
}

void remove_recording(const std::filesystem::path& path) {
  std::filesystem::path stem = path.filename();
  if (stem.extension() == ".h5") stem.replace_extension();
  const std::string shard = stem.string() + ".shard-";
  const auto folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  std::vector<std::filesystem::path> old;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::string name = entry.path().filename().string();
    for (const std::string_view end : {".new", ".part"}) {
      if (name.ends_with(end)) name.resize(name.size() - end.size());
    }
    // NAME.h5, and NAME.shard-0001.h5 …
    const bool numbered = name.starts_with(shard) && name.ends_with(".h5") &&
                          name.find_first_not_of("0123456789", shard.size()) == name.size() - 3;
    if (name == path.filename().string() || numbered) old.push_back(entry.path());
  }
  for (const auto& file : old) std::filesystem::remove(file);
}

Model load_model(const std::string& typed) {
  const auto path = resolve_model(typed);
  const auto start = std::chrono::steady_clock::now();
  Model model = Model::load(path);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  message(LogLevel::debug, fmt::format("loaded {} in {} ({} of weights)", path.string(),
                                       duration_text(seconds), bytes_text(model.weight_bytes())));
  return model;
}

std::uint64_t parse_bytes(const std::string& text, std::string_view option) {
  std::uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, value);
  const std::string_view unit(parsed.ptr, static_cast<std::size_t>(end - parsed.ptr));
  int shift = -1;
  if (unit.empty()) shift = 0;
  if (unit == "k" || unit == "K") shift = 10;
  if (unit == "M") shift = 20;
  if (unit == "G") shift = 30;
  if (unit == "T") shift = 40;
  if (parsed.ec != std::errc{} || shift < 0 || value == 0 || value > (~std::uint64_t{0} >> shift)) {
    fail_usage("{} is '{}', expected a number of bytes such as 500M or 4G", option, text);
  }
  return value << shift;
}

std::string now_utc() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", parts.tm_year + 1900, parts.tm_mon + 1,
                     parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec);
}

std::map<std::string, std::string> provenance(const Globals& globals) {
  return {{"tool_version", LAMINA_VERSION},
          {"argv", globals.argv},
          {"created_utc", now_utc()},
          {"seed", std::to_string(globals.seed)}};
}

std::int64_t total_tokens(std::span<const Prompt> prompts) {
  std::int64_t total = 0;
  for (const Prompt& prompt : prompts) total += static_cast<std::int64_t>(prompt.ids.size());
  return total;
}

}  // namespace lamina::cli
