#pragma once

#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "lamina/core/error.h"
#include "lamina/core/recording.h"

namespace lamina::testing {

namespace fs = std::filesystem;

/// A folder that is gone with the test.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (fs::temp_directory_path() / "lamina-record-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~TempFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  fs::path operator/(std::string_view name) const { return path_ / name; }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

/// Values that depend on nothing but where they stand.
inline float fake_value(std::uint64_t place) {
  std::uint64_t x = place * 0x9e3779b97f4a7c15u + 0x1234567;
  x ^= x >> 29;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 32;
  return static_cast<float>(static_cast<std::int32_t>(x)) * 0x1p-24f;  // ±128
}

/// A run without a model: prompts of given lengths, and blocks of made-up values.
struct FakeRun {
  RecordingHeader header;
  std::vector<Prompt> prompts;

  explicit FakeRun(std::vector<std::int64_t> lengths = {3, 1, 5, 2, 8, 1}) {
    header.tool_version = "0.1.0";
    header.argv = "lamina record model --prompts a.jsonl";
    header.created_utc = "2026-01-02T03:04:05Z";
    header.seed = 0xffff'ffff'ffff'fff0u;
    header.model_id = "fake";
    header.model_sha256 = std::string(64, 'a');
    header.tokenizer_sha256 = std::string(64, 'b');
    header.prompts_sha256 = std::string(64, 'c');
    header.prepend_bos = true;
    ModelConfig& c = header.config;
    c.family = "llama";
    c.n_layers = 2;
    c.d_model = 12;
    c.n_heads = 4;
    c.n_kv_heads = 2;
    c.d_head = 3;
    c.d_mlp = 20;
    c.d_vocab = 1000;
    c.positions = Positions::rotary;
    c.gated = true;
    header.sites = all_sites(c);
    header.topk = 3;
    header.total_prompts = static_cast<std::int64_t>(lengths.size());
    std::uint64_t place = 0;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      Prompt p;
      p.id = "p" + std::to_string(i);
      p.text = i % 3 == 1 ? "" : "text né " + std::to_string(i);
      for (std::int64_t t = 0; t < lengths[i]; ++t) {
        p.ids.push_back(static_cast<std::int32_t>(place++ * 7919 % 1000));
      }
      p.given = (lengths[i] + 1) / 2;
      if (i % 2 == 0) p.target = static_cast<std::int32_t>(i * 3);
      if (i % 2 == 1) p.labels["language"] = "français";
      if (i == 0) p.labels["empty"] = "";
      if (i % 4 == 2) p.labels["a/b%"] = "x" + std::to_string(i);
      prompts.push_back(std::move(p));
    }
  }

  /// The block of prompts first … first + count − 1.
  ActivationBlock block(std::int64_t first, std::int64_t count) const {
    ActivationBlock b;
    b.first_prompt = first;
    b.prompts = std::span(prompts).subspan(static_cast<std::size_t>(first),
                                           static_cast<std::size_t>(count));
    std::uint64_t token = 0;
    for (std::int64_t i = 0; i < first; ++i)
      token += prompts[static_cast<std::size_t>(i)].ids.size();
    for (const Prompt& p : b.prompts) b.batch.add(p.ids);
    const auto tokens = static_cast<std::uint64_t>(b.batch.tokens());
    for (Site site : header.sites) {
      ActivationBlock::Values v;
      v.shape = site_shape(site, header.config);
      const std::uint64_t key = ActivationBlock::site_key(site);
      if (v.shape.attention) {
        v.offsets = {0};
        for (std::int64_t i = 0; i < count; ++i) {
          const std::int64_t n = b.batch.length(i);
          const std::uint64_t base = key << 40 | static_cast<std::uint64_t>(first + i) << 24;
          for (std::int64_t j = 0; j < v.shape.heads * n * n; ++j) {
            const bool masked = j % n > j / n % n && site.kind == SiteKind::attn_scores;
            v.values.push_back(masked ? -std::numeric_limits<float>::infinity()
                                      : fake_value(base + static_cast<std::uint64_t>(j)));
          }
          v.offsets.push_back(static_cast<std::int64_t>(v.values.size()));
        }
      } else {
        const auto row = static_cast<std::uint64_t>(v.shape.row());
        v.values.resize(tokens * row);
        for (std::uint64_t j = 0; j < v.values.size(); ++j) {
          v.values[j] = fake_value((key << 40) + token * row + j);
        }
      }
      b.sites.emplace(ActivationBlock::site_key(site), std::move(v));
    }
    b.logits.k = header.topk;
    for (std::uint64_t t = 0; t < tokens && header.topk > 0; ++t) {
      for (std::int64_t k = 0; k < header.topk; ++k) {
        b.logits.topk_ids.push_back(static_cast<std::int32_t>((token + t) * 31 % 997 + k));
        b.logits.topk_logprobs.push_back(
            -fake_value((token + t) * 8 + static_cast<std::uint64_t>(k)));
      }
      b.logits.target_logprob.push_back(
          (token + t) % 3 == 0 ? std::numeric_limits<float>::quiet_NaN() : fake_value(token + t));
    }
    return b;
  }

  /// Records prompts from the writer's next one to `last`, `step` at a time.
  void append(RecordingWriter& writer, std::int64_t last, std::int64_t step) const {
    while (writer.next_prompt() < last) {
      const std::int64_t first = writer.next_prompt();
      writer.append(block(first, std::min(step, last - first)));
    }
  }

  void record(const fs::path& path, const WriterOptions& options = {},
              std::int64_t step = 2) const {
    RecordingWriter writer(path, header, prompts, options);
    append(
        writer,
        options.last_prompt < 0 ? static_cast<std::int64_t>(prompts.size()) : options.last_prompt,
        step);
    writer.finish();
  }
};

/// Bit equality, so that NaN equals itself.
inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), 4 * a.size()) == 0);
}

/// The message of the Error that `function` throws; "" if it throws none.
template <class Function>
std::string error_of(const Function& function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace lamina::testing
