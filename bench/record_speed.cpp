// How fast activations reach the disk: RecordingWriter against plain write() of as many bytes (with
// and without reserving the space first, as the recorder does), all with fsync at the end.
//
//   record_speed FOLDER [MEGABYTES]

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>

#include "lamina/core/recording.h"

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double plain(const std::filesystem::path& path, std::size_t block, std::size_t blocks,
             bool reserve) {
  const std::vector<char> bytes(block, 'x');
  const auto start = Clock::now();
  const int file = ::open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0666);
  if (reserve && ::posix_fallocate(file, 0, static_cast<off_t>(block * blocks)) != 0) return 0;
  for (std::size_t i = 0; i < blocks; ++i) {
    if (::write(file, bytes.data(), block) != static_cast<ssize_t>(block)) return 0;
  }
  ::fsync(file);
  ::close(file);
  const double time = seconds_since(start);
  std::filesystem::remove(path);
  return time;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace lamina;
  if (argc < 2) return 2;
  const std::filesystem::path folder = argv[1];
  const std::size_t megabytes = argc > 2 ? std::stoul(argv[2]) : 1024;

  RecordingHeader header;
  header.config.family = "bench";
  header.config.n_layers = 24;
  header.config.d_model = 896;
  header.config.n_heads = header.config.n_kv_heads = 14;
  header.config.d_head = 64;
  header.config.d_mlp = 4864;
  header.config.d_vocab = 1000;
  for (std::int32_t layer = 0; layer < 24; ++layer)
    header.sites.push_back({SiteKind::resid_post, layer});
  constexpr std::int64_t kTokens = 256;
  const std::size_t prompt_bytes = 24 * 896 * 4 * kTokens;  // 22 MB
  std::vector<Prompt> prompts(std::max<std::size_t>(1, megabytes * 1'000'000 / prompt_bytes));
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    prompts[i].id = std::to_string(i);
    prompts[i].ids.assign(kTokens, 1);
    prompts[i].given = kTokens;
  }
  ActivationBlock block;
  block.batch.add(prompts[0].ids);
  for (Site site : header.sites) {
    ActivationBlock::Values values;
    values.shape = site_shape(site, header.config);
    values.values.assign(static_cast<std::size_t>(kTokens * values.shape.row()), 0.5f);
    block.sites.emplace(ActivationBlock::site_key(site), std::move(values));
  }

  const double total = static_cast<double>(prompts.size() * prompt_bytes) / 1e6;
  for (int round = 0; round < 3; ++round) {
    for (const bool reserve : {false, true}) {
      const double time = plain(folder / "plain", prompt_bytes, prompts.size(), reserve);
      fmt::print("plain write{} {:7.0f} MB in {:6.2f} s: {:6.0f} MB/s\n",
                 reserve ? ", reserved" : "          ", total, time, total / time);
    }
    for (StoreType store : {StoreType::f32, StoreType::f16, StoreType::bf16}) {
      header.store = store;
      const std::filesystem::path path = folder / "speed.h5";
      const auto start = Clock::now();
      RecordingWriter writer(path, header, prompts);
      for (std::size_t i = 0; i < prompts.size(); ++i) {
        block.first_prompt = static_cast<std::int64_t>(i);
        block.prompts = std::span(prompts).subspan(i, 1);
        writer.append(block);
      }
      writer.finish();
      const double time = seconds_since(start);
      const double stored = store == StoreType::f32 ? total : total / 2;
      const Recording recording = Recording::open(path);
      std::vector<float> rows(static_cast<std::size_t>(recording.tokens() * 896));
      const auto read_start = Clock::now();
      for (Site site : header.sites) recording.read_rows(site, 0, recording.tokens(), rows);
      const double read_time = seconds_since(read_start);
      fmt::print("recording, {:<5} {:7.0f} MB in {:6.2f} s: {:6.0f} MB/s; reading {:6.0f} MB/s\n",
                 store_type_name(store), stored, time, stored / time, stored / read_time);
      remove_recording(path);
    }
  }
  return 0;
}
