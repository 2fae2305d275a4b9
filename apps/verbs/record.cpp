// lamina record: a forward pass over prompts, its activations to HDF5.

#include <algorithm>
#include <charconv>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "inputs.h"
#include "lamina/core/error.h"
#include "lamina/core/recording.h"
#include "lamina/core/sha256.h"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

struct Args {
  std::string model;
  PromptInputs prompts;
  OutputOptions output;
  std::vector<std::string> sites = {"resid_pre:0", "resid_post"};
  std::string dtype = "f32";
  std::int64_t topk = 5;
  Sampling sampling;
  std::string shard;
  std::string shard_size = "4G";
  bool resume = false;
  bool dry_run = false;
  bool json = false;
  std::int64_t batch_tokens = 1024;
};

struct Range {
  std::int64_t first = 0, last = 0;
};

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// "2/5" of `total` prompts: the second of five runs of nearly equal length.
Range parse_shard(const std::string& text, std::int64_t total) {
  if (text.empty()) return {0, total};
  std::int64_t part = 0, parts = 0;
  const char* end = text.data() + text.size();
  const auto a = std::from_chars(text.data(), end, part);
  const bool slash = a.ec == std::errc{} && a.ptr != end && *a.ptr == '/';
  const auto b = slash ? std::from_chars(a.ptr + 1, end, parts) : a;
  if (!slash || b.ec != std::errc{} || b.ptr != end || part < 1 || parts < part) {
    fail_usage("--shard is '{}', expected I/N with 1 ≤ I ≤ N", text);
  }
  if (parts > total) fail("--shard {}: there are only {} prompts", text, total);
  const auto start = [&](std::int64_t i) { return total / parts * i + std::min(i, total % parts); };
  return {start(part - 1), start(part)};
}

// Fingerprint of what is being run: the given ids of every prompt, and how they are continued.
// The same for every shard of a run and for a resumed one.
std::string inputs_fingerprint(std::span<const Prompt> prompts, const Sampling& sampling,
                               std::uint64_t seed) {
  Sha256 hash;
  for (const Prompt& prompt : prompts) {
    std::string line = prompt.id;
    line += '\0';
    for (std::int64_t i = 0; i < prompt.given; ++i) {
      line += fmt::format("{} ", prompt.ids[static_cast<std::size_t>(i)]);
    }
    hash.update(line + "\n");
  }
  if (sampling.max_new > 0) {
    hash.update(fmt::format("generate {} temperature {} top_p {} seed {}", sampling.max_new,
                            sampling.temperature, sampling.top_p, seed));
  }
  return hash.hex();
}

std::uint64_t site_bytes(Site site, const ModelConfig& config,
                         std::span<const std::int64_t> lengths, std::uint64_t element) {
  const SiteShape shape = site_shape(site, config);
  std::uint64_t values = 0;
  for (std::int64_t length : lengths) {
    values += static_cast<std::uint64_t>(shape.attention ? shape.heads * length * length
                                                         : shape.row() * length);
  }
  return values * element;
}

// What a run would write and need, with its time scaled up from one timed batch.
void print_plan(Forward& forward, std::span<const Prompt> prompts, const Args& args,
                const std::vector<Site>& sites, StoreType store, const LiveOptions& live) {
  const ModelConfig& config = forward.model().config();
  const std::uint64_t element = store == StoreType::f32 ? 4 : 2;
  std::vector<std::int64_t> lengths;
  std::int64_t tokens = 0;
  for (const Prompt& prompt : prompts) {
    lengths.push_back(static_cast<std::int64_t>(prompt.ids.size()) + args.sampling.max_new);
    tokens += lengths.back();
  }

  std::vector<Prompt> sample;
  std::int64_t sample_tokens = 0;
  for (const Prompt& prompt : prompts) {
    if (sample_tokens >= live.batch_tokens) break;
    sample.push_back(prompt);
    sample_tokens += static_cast<std::int64_t>(prompt.ids.size());
  }
  std::uint64_t block_bytes = 0;
  LiveOptions timed = live;
  timed.first_prompt = 0;
  timed.last_prompt = static_cast<std::int64_t>(sample.size());
  const auto start = Clock::now();
  run_live(forward, sample, sites, timed, [&](const ActivationBlock& block) {
    std::uint64_t bytes = 0;
    for (const auto& [key, values] : block.sites) bytes += values.values.size() * sizeof(float);
    block_bytes = std::max(block_bytes, bytes);
  });
  const double seconds = seconds_since(start);

  Output out;
  Table table({"site", "shape", ">rows", ">size"});
  std::uint64_t total = 0;
  for (Site site : sites) {
    const std::uint64_t bytes = site_bytes(site, config, lengths, element);
    total += bytes;
    const bool attention = site_shape(site, config).attention;
    const std::string dims = fmt::format("{}", site_name(site));
    table.row({dims,
               attention ? "[head, query, key] a prompt"
                         : fmt::format("[token, {}]", site_shape(site, config).row()),
               grouped(attention ? static_cast<std::int64_t>(prompts.size()) : tokens),
               bytes_text(bytes)});
  }
  out.write(table.text());
  if (args.topk > 0) total += static_cast<std::uint64_t>(tokens * (args.topk * 8 + 4));
  // Workspace of a pass: the widest rows of a block, a few copies.
  const auto width = static_cast<std::uint64_t>(4 * config.d_model + config.d_attn() +
                                                2 * config.d_kv() + 3 * config.d_mlp);
  const std::uint64_t work = width * static_cast<std::uint64_t>(live.batch_tokens) * sizeof(float);
  const std::uint64_t memory =
      forward.model().weight_bytes() + 2 * block_bytes + work + WriterOptions{}.queue_bytes;
  Facts facts;
  facts.add("prompts", grouped(static_cast<std::int64_t>(prompts.size())));
  facts.add("tokens", grouped(tokens) + (args.sampling.max_new > 0 ? " at most" : ""));
  facts.add("file", fmt::format("{} as {}", bytes_text(total), store_type_name(store)));
  facts.add("memory", fmt::format("about {}, {} of it weights", bytes_text(memory),
                                  bytes_text(forward.model().weight_bytes())));
  facts.add("time", fmt::format("about {} (measured: {} tokens in {})",
                                duration_text(seconds * static_cast<double>(tokens) /
                                              static_cast<double>(sample_tokens)),
                                grouped(sample_tokens), duration_text(seconds)));
  out.print("\n{}", facts.text());
  out.close();
}

int run_record(const Args& args, const Globals& globals) {
  const StoreType store = parse_store_type(args.dtype);
  const std::uint64_t shard_bytes = parse_bytes(args.shard_size, "--shard-size");
  const std::filesystem::path path = args.output.path;
  if (!args.dry_run) {
    if (path.empty()) fail_usage("the output is missing; give -o FILE");
    check_writable(path, args.output.force || args.resume);
  }
  const auto load_start = Clock::now();
  const Model model = load_model(args.model);
  const double load_seconds = seconds_since(load_start);
  std::vector<Prompt> prompts = load_prompts(args.prompts, model);
  const std::vector<Site> sites = match_sites(args.sites, model.config());
  const auto total = static_cast<std::int64_t>(prompts.size());
  const Range range = parse_shard(args.shard, total);
  const std::span<Prompt> own = std::span(prompts).subspan(
      static_cast<std::size_t>(range.first), static_cast<std::size_t>(range.last - range.first));
  Forward forward(model);

  LiveOptions live;
  live.batch_tokens = args.batch_tokens;
  live.topk = args.topk;
  if (args.dry_run) {
    print_plan(forward, own, args, sites, store, live);
    return 0;
  }

  RecordingHeader header;
  header.tool_version = LAMINA_VERSION;
  header.argv = globals.argv;
  header.created_utc = now_utc();
  header.seed = globals.seed;
  header.model_id = model.id();
  header.model_sha256 = model.sha256();
  if (model.tokenizer() != nullptr) header.tokenizer_sha256 = model.tokenizer()->sha256();
  header.config = model.config();
  header.prepend_bos = prepends_bos(args.prompts, model);
  header.prompts_sha256 = inputs_fingerprint(prompts, args.sampling, globals.seed);
  header.store = store;
  header.sites = sites;
  header.topk = std::min(args.topk, model.config().d_vocab);
  header.total_prompts = total;
  header.shard_first_prompt = range.first;

  if (args.sampling.max_new > 0) {
    generate_with_progress(forward, own, args.sampling, range.first, globals);
  }
  if (args.output.force && !args.resume) remove_recording(path);
  WriterOptions options;
  options.shard_bytes = shard_bytes;
  options.resume = args.resume;
  options.first_prompt = range.first;
  options.last_prompt = range.last;
  // Only now that everything else was found to be right.
  if (args.output.force && !args.resume) remove_recording(path);
  const auto record_start = Clock::now();
  RecordingWriter writer(path, header, prompts, options);
  live.first_prompt = writer.next_prompt();
  live.last_prompt = range.last;
  if (live.first_prompt > range.first) {
    info("going on after {} of {} prompts", grouped(live.first_prompt - range.first),
         grouped(range.last - range.first));
  }
  const auto left =
      std::span(prompts).subspan(static_cast<std::size_t>(live.first_prompt),
                                 static_cast<std::size_t>(range.last - live.first_prompt));
  ProgressLine progress("recording", "tokens", total_tokens(left));
  live.progress = [&](std::int64_t, std::int64_t tokens) { progress.update(tokens); };
  run_live(forward, prompts, sites, live,
           [&](const ActivationBlock& block) { writer.append(block); });
  writer.finish();
  progress.finish();
  info("wrote {}: {} prompts, {} tokens, {} sites", path.string(),
       grouped(range.last - range.first), grouped(total_tokens(own)), sites.size());
  if (args.json) {
    const nlohmann::json summary = {
        {"output", path.string()},
        {"prompts", range.last - range.first},
        {"tokens", total_tokens(own)},
        {"sites", sites.size()},
        {"seconds", {{"load", load_seconds}, {"record", seconds_since(record_start)}}}};
    Output out;
    out.print("{}\n", summary.dump());
    out.close();
  }
  return 0;
}

}  // namespace

void register_record(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand("record", "run a model over prompts, store its activations");
  verb->group("Record");
  verb->add_option("model", args->model, "model folder, GGUF file, or a shipped model's name")
      ->required()
      ->option_text("MODEL");
  add_prompt_options(*verb, args->prompts);
  add_output_options(*verb, args->output, "the recording to write");
  verb->add_option("--sites", args->sites,
                   "places to record: names, globs, shorthand such as resid_post or z:3 "
                   "(default: resid_pre:0 resid_post)")
      ->delimiter(',')
      ->option_text("GLOB...");
  verb->add_option("--dtype", args->dtype, "stored type: f32 (default), f16, bf16")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->option_text("TYPE");
  verb->add_option("--topk", args->topk,
                   "most likely next tokens to keep (default 5; 0: no logits)")
      ->check(CLI::Range(0, 100000))
      ->option_text("K");
  verb->add_option("--generate", args->sampling.max_new,
                   "continue every prompt by up to N tokens first")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  add_sampling_options(*verb, args->sampling);
  verb->add_option("--shard", args->shard,
                   "record only the I-th of N parts of the prompts; see merge")
      ->option_text("I/N");
  verb->add_option("--shard-size", args->shard_size, "begin a new file at this size (default 4G)")
      ->option_text("BYTES");
  verb->add_flag("--resume", args->resume, "go on with an interrupted recording");
  verb->add_flag("--dry-run", args->dry_run,
                 "say what would be written, and how long it would take");
  verb->add_flag("--json", args->json, "print a summary with the seconds taken as JSON");
  verb->add_option("--batch-tokens", args->batch_tokens, "tokens of a forward pass (default 1024)")
      ->check(CLI::Range(1, 1 << 24))
      ->option_text("N");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] { return run_record(*args, globals); };
  });
}

}  // namespace lamina::cli
