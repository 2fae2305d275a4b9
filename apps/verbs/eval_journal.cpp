#include "verbs/eval_journal.h"

#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <system_error>

#include "lamina/core/error.h"

namespace lamina::cli {
namespace {

using Json = nlohmann::json;

// JSON has no NaN: null. Other doubles come back as they went.
Json numbers(std::span<const double> values) {
  Json out = Json::array();
  for (double v : values) out.push_back(std::isfinite(v) ? Json(v) : Json());
  return out;
}

std::vector<double> read_numbers(const Json& json) {
  std::vector<double> out;
  for (const Json& v : json) {
    out.push_back(v.is_null() ? std::numeric_limits<double>::quiet_NaN() : v.get<double>());
  }
  return out;
}

// An answer may end within a character, which JSON cannot hold: byte values.
Json bytes(const std::string& text) {
  Json out = Json::array();
  for (char c : text) out.push_back(static_cast<unsigned char>(c));
  return out;
}

std::string read_bytes(const Json& json) {
  std::string out;
  for (const Json& c : json) out += static_cast<char>(c.get<std::uint8_t>());
  return out;
}

Json part_json(std::int64_t run, const ChoicePart& part) {
  Json out = {{"run", run},
              {"first", part.first},
              {"count", part.count},
              {"text", numbers(part.text_logprob)},
              {"letter", numbers(part.letter_logprob)},
              {"usage", numbers(part.question_usage)}};
  out["answers"] = Json::array();
  for (const std::string& answer : part.generated) out["answers"].push_back(bytes(answer));
  out["used"] = Json::array();
  for (const VoidCounts& counts : part.used) {
    out["used"].push_back(
        {{"layers", counts.layers}, {"tokens", counts.tokens}, {"active", counts.active}});
  }
  return out;
}

ChoicePart read_part(const Json& json) {
  ChoicePart part;
  part.first = json.at("first").get<std::int64_t>();
  part.count = json.at("count").get<std::int64_t>();
  part.text_logprob = read_numbers(json.at("text"));
  part.letter_logprob = read_numbers(json.at("letter"));
  part.question_usage = read_numbers(json.at("usage"));
  for (const Json& answer : json.at("answers")) part.generated.push_back(read_bytes(answer));
  for (const Json& used : json.at("used")) {
    VoidCounts& counts = part.used.emplace_back();
    counts.alphas = 1;
    counts.layers = used.at("layers").get<std::int64_t>();
    counts.tokens = used.at("tokens").get<std::array<std::int64_t, 2>>();
    counts.active = used.at("active").get<std::vector<std::int64_t>>();
  }
  return part;
}

}  // namespace

EvalJournal::EvalJournal(const std::filesystem::path& output, const std::string& fingerprint,
                         bool resume, bool force)
    : path_(output.string() + ".part") {
  std::error_code ignored;
  const bool there = std::filesystem::exists(path_, ignored);
  if (there && !resume && !force) {
    fail("{}: an interrupted evaluation is there: go on with --resume, or start anew with --force",
         path_.string());
  }
  if (there && resume) {
    // A torn last line goes before new ones are added behind it.
    std::filesystem::resize_file(path_, static_cast<std::uintmax_t>(read(fingerprint)));
  }
  file_ = std::fopen(path_.c_str(), there && resume ? "ab" : "wb");
  if (file_ == nullptr) fail("{}: cannot be written", path_.string());
  if (!(there && resume)) {
    write_line(
        Json({{"format", "lamina-eval-journal"}, {"version", 1}, {"evaluation", fingerprint}})
            .dump());
  }
}

EvalJournal::~EvalJournal() {
  if (file_ != nullptr) std::fclose(file_);
}

// Returns how many bytes hold whole lines.
std::int64_t EvalJournal::read(const std::string& fingerprint) {
  std::ifstream in(path_, std::ios::binary);
  std::int64_t whole = 0, number = 0;
  for (std::string line; std::getline(in, line); ++number) {
    if (in.eof()) break;  // no newline behind it: cut off
    const Json json = Json::parse(line, nullptr, false);
    if (number == 0) {
      if (!json.is_object() || json.value("format", "") != "lamina-eval-journal") {
        fail("{}: expected an interrupted evaluation, found something else", path_.string());
      }
      if (json.value("evaluation", "") != fingerprint) {
        fail(
            "{}: cannot resume: it belongs to an evaluation with another model, task or options "
            "(--force starts anew)",
            path_.string());
      }
    } else {
      try {
        ChoicePart part = read_part(json);
        const std::pair key(json.at("run").get<std::int64_t>(), part.first);
        parts_[key] = std::move(part);
      } catch (const Json::exception&) {
        fail("{}, line {}: answers of an evaluation expected, found something else", path_.string(),
             number + 1);
      }
    }
    whole += static_cast<std::int64_t>(line.size()) + 1;
  }
  if (number == 0) fail("{}: cannot resume: it is empty; remove it", path_.string());
  return whole;
}

const ChoicePart* EvalJournal::find(std::int64_t run, std::int64_t first) const {
  const auto found = parts_.find({run, first});
  return found == parts_.end() ? nullptr : &found->second;
}

std::int64_t EvalJournal::questions() const {
  std::int64_t count = 0;
  for (const auto& [key, part] : parts_) count += part.count;
  return count;
}

void EvalJournal::keep(std::int64_t run, const ChoicePart& part) {
  write_line(part_json(run, part).dump());
}

void EvalJournal::write_line(const std::string& line) {
  const std::string text = line + "\n";
  if (std::fwrite(text.data(), 1, text.size(), file_) != text.size() || std::fflush(file_) != 0) {
    fail("{}: writing failed: {}", path_.string(), std::generic_category().message(errno));
  }
}

void EvalJournal::remove() {
  std::fclose(file_);
  file_ = nullptr;
  std::error_code ignored;
  std::filesystem::remove(path_, ignored);
}

}  // namespace lamina::cli
