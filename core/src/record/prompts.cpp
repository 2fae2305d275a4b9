#include "lamina/core/prompts.h"

#include <array>
#include <unordered_map>

#include "lamina/core/error.h"
#include "lamina/internal/file_text.h"
#include "lamina/internal/line_reader.h"

namespace lamina {
namespace {

using files::quote;

constexpr std::array<std::string_view, 5> kKeys = {"text", "ids", "id", "target", "labels"};

/// Turns one line into a prompt.
class PromptReader : public LineReader {
 public:
  PromptReader(const Tokenizer* tokenizer, std::int64_t d_vocab, const PromptOptions& options,
               std::string where, std::int64_t number)
      : LineReader(tokenizer, d_vocab, options, std::move(where)), number_(number) {}

  Prompt text_line(const std::string& line) const {
    Prompt prompt;
    prompt.id = std::to_string(number_);
    set_text(prompt, line, "");
    return prompt;
  }

  Prompt json_line(const std::string& line) const {
    const Json found = object(line, kKeys);
    Prompt prompt;
    prompt.id = std::to_string(number_);
    if (found.contains("text") == found.contains("ids")) {
      fail("{}: exactly one of the keys text and ids expected, found {}", where_,
           found.contains("text") ? "both" : "neither");
    }
    if (found.contains("text")) set_text(prompt, text(found["text"], "text"), "key text: ");
    if (found.contains("ids")) prompt.ids = token_ids(found["ids"], "ids");
    prompt.given = static_cast<std::int64_t>(prompt.ids.size());
    if (found.contains("id")) prompt.id = name(found["id"], "id");
    if (found.contains("labels")) set_labels(prompt, found["labels"]);
    if (found.contains("target")) set_target(prompt, found["target"]);
    return prompt;
  }

 private:
  void set_text(Prompt& prompt, std::string value, std::string_view label) const {
    prompt.ids = encode_prompt(value, label);
    prompt.given = static_cast<std::int64_t>(prompt.ids.size());
    prompt.text = std::move(value);
  }

  void set_labels(Prompt& prompt, const Json& value) const {
    if (!value.is_object()) bad("labels", "an object of strings", value);
    for (const auto& [name, label] : value.items()) {
      if (name.empty() || name.find('\0') != name.npos) {
        fail("{}: key labels: label name {} is empty or has a zero byte", where_, quote(name));
      }
      const std::string key = "labels." + name;
      if (label.is_number() || label.is_boolean()) {
        prompt.labels[name] = label.dump();
      } else if (label.is_array()) {  // one value per token, kept as JSON
        for (const Json& entry : label) {
          if (entry.is_object() || entry.is_array()) bad(key, "an array of plain values", label);
        }
        prompt.labels[name] = label.dump();
      } else {
        prompt.labels[name] = text(label, key);
      }
    }
  }

  void set_target(Prompt& prompt, const Json& value) const {
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

  std::int64_t number_;
};

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
  std::vector<Prompt> prompts;
  std::unordered_map<std::string, std::int64_t> seen;  // id → line
  for_each_line(path, [&](const std::string& line, std::int64_t number, const std::string& where) {
    if (as_json && is_blank(line)) return;
    const PromptReader reader(tokenizer, d_vocab, options, where, number);
    Prompt prompt = as_json ? reader.json_line(line) : reader.text_line(line);
    const auto [earlier, is_new] = seen.emplace(prompt.id, number);
    if (!is_new) {
      fail("{}: prompt id {} was given in line {} already", where, quote(prompt.id),
           earlier->second);
    }
    prompts.push_back(std::move(prompt));
  });
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
    const PromptReader reader(&tokenizer, tokenizer.vocab_size(), options, where,
                              static_cast<std::int64_t>(i));
    prompts.push_back(reader.text_line(texts[i]));
  }
  return prompts;
}

std::vector<Prompt> cut_prompts(std::vector<Prompt> prompts, std::int64_t most,
                                std::optional<std::int32_t> bos) {
  if (most < 2)
    fail_usage("prompts are to be cut into pieces of {} tokens, at least 2 needed", most);
  std::vector<Prompt> out;
  for (Prompt& prompt : prompts) {
    const auto length = static_cast<std::int64_t>(prompt.ids.size());
    if (length <= most) {
      out.push_back(std::move(prompt));
      continue;
    }
    const std::int64_t head = bos && prompt.ids.front() == *bos ? 1 : 0;
    std::int64_t number = 0;
    for (std::int64_t at = head; at < length; at += most - head) {
      const std::int64_t end = std::min(length, at + most - head);
      Prompt piece;
      piece.id = fmt::format("{}#{}", prompt.id, ++number);
      piece.labels = prompt.labels;
      if (head > 0) piece.ids.push_back(*bos);
      piece.ids.insert(piece.ids.end(), prompt.ids.begin() + at, prompt.ids.begin() + end);
      piece.given = static_cast<std::int64_t>(piece.ids.size());
      if (end == length) piece.target = prompt.target;
      out.push_back(std::move(piece));
    }
  }
  return out;
}

}  // namespace lamina
