#include "lamina/core/prompts.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "files/file_text.h"
#include "files/strict_json.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

using files::quote;
using nlohmann::json;

// A line longer than this is some other file.
constexpr std::size_t kMaxLine = std::size_t{64} << 20;

/// Turns one line into a prompt; every message begins with "file, line N".
class LineReader {
 public:
  LineReader(const Tokenizer* tokenizer, std::int64_t d_vocab, const PromptOptions& options,
             std::string where, std::int64_t number)
      : tokenizer_(tokenizer),
        d_vocab_(d_vocab),
        options_(options),
        where_(std::move(where)),
        number_(number) {}

  Prompt text_line(const std::string& line) const {
    Prompt prompt;
    prompt.id = std::to_string(number_);
    set_text(prompt, line, "");
    return prompt;
  }

  Prompt json_line(const std::string& line) const {
    const json object = files::parse_strict_json(line, where_, 8);
    if (!object.is_object()) bad("", "an object", object);
    Prompt prompt;
    prompt.id = std::to_string(number_);
    for (const auto& [key, value] : object.items()) {
      if (key != "text" && key != "ids" && key != "id" && key != "target" && key != "labels") {
        fail("{}: key {} is not one of text, ids, id, target, labels", where_, quote(key));
      }
    }
    if (object.contains("text") == object.contains("ids")) {
      fail("{}: exactly one of the keys text and ids expected, found {}", where_,
           object.contains("text") ? "both" : "neither");
    }
    if (object.contains("text")) set_text(prompt, text(object["text"], "text"), "key text: ");
    if (object.contains("ids")) set_ids(prompt, object["ids"]);
    prompt.given = static_cast<std::int64_t>(prompt.ids.size());
    if (object.contains("id")) set_id(prompt, object["id"]);
    if (object.contains("labels")) set_labels(prompt, object["labels"]);
    if (object.contains("target")) set_target(prompt, object["target"]);
    return prompt;
  }

 private:
  [[noreturn]] void bad(std::string_view key, std::string_view expected, const json& found) const {
    fail("{}: {}{}{}{} expected, found {} {}", where_, key.empty() ? "" : "key ", key,
         key.empty() ? "" : ": ", expected, found.type_name(),
         quote(found.dump(-1, ' ', false, json::error_handler_t::replace)));
  }

  std::string text(const json& value, std::string_view key) const {
    if (!value.is_string()) bad(key, "a string", value);
    const auto& out = value.get_ref<const std::string&>();
    if (const auto zero = out.find('\0'); zero != out.npos) {
      fail("{}: key {}: zero byte at byte {} of {}", where_, key, zero, out.size());
    }
    return out;
  }

  const Tokenizer& tokenizer(std::string_view what) const {
    if (tokenizer_ == nullptr) {
      fail("{}: {} needs a tokenizer and the model comes without one: give token ids", where_,
           what);
    }
    return *tokenizer_;
  }

  void set_text(Prompt& prompt, std::string value, std::string_view key) const {
    if (value.empty()) fail("{}: {}the text is empty", where_, key);
    try {
      prompt.ids = tokenizer("text").encode(value, options_.bos, options_.parse_special);
    } catch (const Error& error) {
      const std::string_view message = error.what();
      if (message.starts_with(where_)) throw;
      fail("{}: {}{}", where_, key, message);
    }
    if (prompt.ids.empty()) fail("{}: {}the text {} gives no tokens", where_, key, quote(value));
    for (std::int32_t id : prompt.ids) check_id(id, "text");
    prompt.given = static_cast<std::int64_t>(prompt.ids.size());
    prompt.text = std::move(value);
  }

  void check_id(std::int64_t id, std::string_view what) const {
    if (id < 0 || id >= d_vocab_) {
      fail("{}: key {}: token id {} is outside the model's vocabulary (0 to {})", where_, what, id,
           d_vocab_ - 1);
    }
  }

  std::int32_t token_id(const json& value, std::string_view key) const {
    if (!value.is_number_integer()) bad(key, "a token id", value);
    // An unsigned number above the signed range would come out negative.
    if (value.is_number_unsigned() &&
        value.get<std::uint64_t>() >= static_cast<std::uint64_t>(d_vocab_)) {
      fail("{}: key {}: token id {} is outside the model's vocabulary (0 to {})", where_, key,
           value.get<std::uint64_t>(), d_vocab_ - 1);
    }
    const auto id = value.get<std::int64_t>();
    check_id(id, key);
    return static_cast<std::int32_t>(id);
  }

  void set_ids(Prompt& prompt, const json& value) const {
    if (!value.is_array()) bad("ids", "an array of token ids", value);
    if (value.empty()) fail("{}: key ids: at least 1 token id expected, found 0", where_);
    for (const json& id : value) prompt.ids.push_back(token_id(id, "ids"));
  }

  void set_id(Prompt& prompt, const json& value) const {
    if (value.is_number_integer()) {
      prompt.id = value.dump();
      return;
    }
    prompt.id = text(value, "id");
    if (prompt.id.empty()) fail("{}: key id: the id is empty", where_);
  }

  void set_labels(Prompt& prompt, const json& value) const {
    if (!value.is_object()) bad("labels", "an object of strings", value);
    for (const auto& [name, label] : value.items()) {
      if (name.empty() || name.find('\0') != name.npos) {
        fail("{}: key labels: label name {} is empty or has a zero byte", where_, quote(name));
      }
      const std::string key = "labels." + name;
      if (label.is_number() || label.is_boolean()) {
        prompt.labels[name] = label.dump();
      } else {
        prompt.labels[name] = text(label, key);
      }
    }
  }

  void set_target(Prompt& prompt, const json& value) const {
    if (!value.is_string()) {
      prompt.target = token_id(value, "target");
      return;
    }
    const std::string target = text(value, "target");
    if (target.empty()) fail("{}: key target: the text is empty", where_);
    // A target stands in the middle of a text: no BOS, and it is what it says, never a special
    // token.
    const std::vector<std::int32_t> ids =
        tokenizer("a target text").encode(target, Bos::never, false);
    if (ids.empty()) fail("{}: key target: the text {} gives no tokens", where_, quote(target));
    check_id(ids[0], "target");
    prompt.target = ids[0];
    if (ids.size() > 1 && !prompt.labels.emplace("target_text", target).second) {
      fail("{}: key labels: the label target_text is kept for targets of several tokens", where_);
    }
  }

  const Tokenizer* tokenizer_;
  std::int64_t d_vocab_;
  const PromptOptions& options_;
  std::string where_;
  std::int64_t number_;
};

bool is_blank(std::string_view line) {
  return line.find_first_not_of(" \t\v\f") == line.npos;
}

}  // namespace

std::vector<Prompt> read_prompts(const std::filesystem::path& path, const Tokenizer* tokenizer,
                                 std::int64_t d_vocab, const PromptOptions& options) {
  const std::string file = path.string();
  const std::string kind = path.extension().string();
  const bool as_json = kind == ".jsonl" || kind == ".json";
  if (!as_json && kind != ".txt") {
    fail("{}: prompts come as .txt (a text a line) or .jsonl (an object a line), found '{}'", file,
         kind);
  }
  if (std::filesystem::is_directory(path)) fail("{}: a file expected, found a folder", file);
  std::ifstream stream(path, std::ios::binary);
  if (!stream) fail("{}: cannot open the file: {}", file, std::strerror(errno));

  std::vector<Prompt> prompts;
  std::unordered_map<std::string, std::int64_t> seen;  // id → line
  std::string line;
  for (std::int64_t number = 1; std::getline(stream, line); ++number) {
    if (number == 1 && line.starts_with("\xef\xbb\xbf")) line.erase(0, 3);
    if (!line.empty() && line.back() == '\r') line.pop_back();
    std::string where = fmt::format("{}, line {}", file, number);
    if (line.size() > kMaxLine) {
      fail("{}: {} bytes, at most {} expected", where, line.size(), kMaxLine);
    }
    if (const auto zero = line.find('\0'); zero != line.npos) {
      fail("{}: zero byte at byte {} of {}", where, zero, line.size());
    }
    if (!files::valid_utf8(line)) fail("{}: not valid UTF-8: {}", where, quote(line));
    if (as_json && is_blank(line)) continue;
    const LineReader reader(tokenizer, d_vocab, options, where, number);
    Prompt prompt = as_json ? reader.json_line(line) : reader.text_line(line);
    const auto [earlier, is_new] = seen.emplace(prompt.id, number);
    if (!is_new) {
      fail("{}: prompt id {} was given in line {} already", where, quote(prompt.id),
           earlier->second);
    }
    prompts.push_back(std::move(prompt));
  }
  if (stream.bad()) fail("{}: cannot read the file: {}", file, std::strerror(errno));
  if (prompts.empty()) fail("{}: at least 1 prompt expected, found none", file);
  return prompts;
}

std::vector<Prompt> text_prompts(std::span<const std::string> texts, const Tokenizer& tokenizer,
                                 const PromptOptions& options) {
  std::vector<Prompt> prompts;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const std::string where = fmt::format("text {}", i);
    if (texts[i].find('\0') != std::string::npos) fail("{}: it has a zero byte", where);
    if (!files::valid_utf8(texts[i])) fail("{}: not valid UTF-8: {}", where, quote(texts[i]));
    const LineReader reader(&tokenizer, tokenizer.vocab_size(), options, where,
                            static_cast<std::int64_t>(i));
    prompts.push_back(reader.text_line(texts[i]));
  }
  return prompts;
}

}  // namespace lamina
