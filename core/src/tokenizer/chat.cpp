#include "lamina/core/chat.h"

#include <array>
#include <fstream>
#include <iterator>

#include "lamina/core/error.h"
#include "lamina/core/gguf.h"
#include "lamina/core/tokenizer.h"
#include "lamina/internal/strict_json.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 5> kNames = {"chatml", "llama2", "llama3", "mistral",
                                                    "gemma"};
constexpr std::uintmax_t kLargestFile = std::uintmax_t{16} << 20;

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != text.npos;
}

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlank = " \t\n\r\f\v";
  const std::size_t first = text.find_first_not_of(kBlank);
  if (first == text.npos) return {};
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

// The system message that a ChatML template speaks by itself: literal text between the system
// header and the end mark, where other templates go on with an expression. In Jinja a line break in
// a string is the two characters \n; a file may also hold a real one.
std::string default_system(std::string_view jinja) {
  constexpr std::string_view kHead = "<|im_start|>system", kEnd = "<|im_end|>";
  for (std::size_t at = jinja.find(kHead); at != jinja.npos; at = jinja.find(kHead, at + 1)) {
    std::string_view rest = jinja.substr(at + kHead.size());
    if (rest.starts_with("\\n")) {
      rest.remove_prefix(2);
    } else if (rest.starts_with("\n")) {
      rest.remove_prefix(1);
    } else {
      continue;
    }
    const std::string_view text = rest.substr(0, rest.find(kEnd));
    if (text.size() == rest.size() || text.empty()) continue;
    if (text.find_first_of("'\"{}\\") == text.npos) return std::string(text);
  }
  return {};
}

std::string read_text(const fs::path& path) {
  std::error_code error;
  const std::uintmax_t size = fs::file_size(path, error);
  if (error) fail("{}: {}", path.string(), error.message());
  if (size > kLargestFile) {
    fail("{}: {} bytes; expected at most {}", path.string(), size, kLargestFile);
  }
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// tokenizer_config.json: a text, or a list of named ones, of which "default" is meant.
std::optional<std::string> config_template(const fs::path& path) {
  const nlohmann::json root = files::parse_strict_json(read_text(path), path.string());
  if (!root.is_object()) return std::nullopt;
  const auto found = root.find("chat_template");
  if (found == root.end()) return std::nullopt;
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_array()) return std::nullopt;
  for (const auto& entry : *found) {
    if (entry.is_object() && entry.value("name", "") == "default" && entry.contains("template") &&
        entry["template"].is_string()) {
      return entry["template"].get<std::string>();
    }
  }
  return std::nullopt;
}

std::optional<std::string> template_text(const fs::path& model) {
  if (!fs::is_directory(model)) {
    return open_gguf(model).metadata.find_text("tokenizer.chat_template");
  }
  if (fs::exists(model / "chat_template.jinja")) return read_text(model / "chat_template.jinja");
  if (fs::exists(model / "tokenizer_config.json")) {
    return config_template(model / "tokenizer_config.json");
  }
  return std::nullopt;
}

}  // namespace

std::string_view chat_format_name(ChatFormat format) {
  return kNames[static_cast<std::size_t>(format)];
}

ChatFormat parse_chat_format(std::string_view name) {
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<ChatFormat>(i);
  }
  fail_usage("chat format '{}': expected one of {}", name, fmt::join(kNames, ", "));
}

ChatTemplate ChatTemplate::of(ChatFormat format, std::string_view bos, std::string_view eos) {
  ChatTemplate out(format, bos, eos);
  if (format == ChatFormat::mistral) {  // version 3 of the tokenizer
    out.before_close_ = "";
    out.before_answer_ = " ";
    out.trims_answer_ = true;
  }
  return out;
}

std::optional<ChatTemplate> ChatTemplate::from_text(std::string_view jinja, std::string_view bos,
                                                    std::string_view eos) {
  if (contains(jinja, "<|im_start|>")) {
    ChatTemplate out(ChatFormat::chatml, bos, eos);
    out.default_system_ = default_system(jinja);
    return out;
  }
  if (contains(jinja, "<start_of_turn>")) {
    ChatTemplate out(ChatFormat::gemma, bos, eos);
    out.takes_system_ = contains(jinja, "first_user_prefix");
    return out;
  }
  if (contains(jinja, "<|start_header_id|>")) {
    ChatTemplate out(ChatFormat::llama3, bos, eos);
    out.dated_system_ = contains(jinja, "Cutting Knowledge Date");
    return out;
  }
  if (!contains(jinja, "[INST]")) return std::nullopt;
  if (contains(jinja, "<<SYS>>")) return ChatTemplate(ChatFormat::llama2, bos, eos);
  ChatTemplate out(ChatFormat::mistral, bos, eos);
  const auto either = [&](std::string text) {  // in either kind of quotes
    if (contains(jinja, text)) return true;
    for (char& c : text) {
      if (c == '\'') c = '"';
    }
    return contains(jinja, text);
  };
  out.takes_system_ = contains(jinja, "system_message");
  out.after_open_ = either("[INST] '") ? " " : "";
  out.before_close_ = either("' [/INST]") ? " " : "";
  out.before_answer_ = either("' ' + message['content']") ? " " : "";
  out.after_end_ = either("eos_token + ' '") ? " " : "";
  out.trims_answer_ = either("message['content']|trim + eos_token") ||
                      either("message['content'] | trim + eos_token");
  return out;
}

std::optional<ChatTemplate> ChatTemplate::load(const std::filesystem::path& model,
                                               const Tokenizer& tokenizer) {
  const std::optional<std::string> text = template_text(model);
  if (!text) return std::nullopt;
  const auto name = [&](std::optional<std::int32_t> id) {
    return id ? tokenizer.piece(*id) : std::string();
  };
  return from_text(*text, name(tokenizer.bos_id()), name(tokenizer.eos_id()));
}

std::string_view ChatTemplate::turn_end() const {
  switch (format_) {
    case ChatFormat::chatml:
      return "<|im_end|>";
    case ChatFormat::llama3:
      return "<|eot_id|>";
    case ChatFormat::gemma:
      return "<end_of_turn>";
    case ChatFormat::llama2:
    case ChatFormat::mistral:
      return eos_;
  }
  return {};
}

std::string ChatTemplate::render(std::span<const ChatMessage> messages, bool reply) const {
  const auto name = chat_format_name(format_);
  const bool has_system = !messages.empty() && messages.front().role == "system";
  const std::string system = has_system ? messages.front().content : std::string();
  const std::span<const ChatMessage> turns = messages.subspan(has_system ? 1 : 0);
  if (turns.empty()) fail("{} conversation: it has no turns", name);
  for (std::size_t i = 0; i < turns.size(); ++i) {
    const std::string_view expected = i % 2 == 0 ? "user" : "assistant";
    if (turns[i].role != expected) {
      fail("{} conversation: turn {} is spoken by '{}', expected '{}'", name, i, turns[i].role,
           expected);
    }
  }
  if (has_system && !takes_system_) {
    fail("{} conversation: this model's template takes no system message", name);
  }

  std::string out;
  switch (format_) {
    case ChatFormat::chatml: {
      const auto add = [&](std::string_view role, std::string_view content) {
        out += fmt::format("<|im_start|>{}\n{}<|im_end|>\n", role, content);
      };
      if (has_system || !default_system_.empty()) {
        add("system", has_system ? system : default_system_);
      }
      for (const ChatMessage& turn : turns) add(turn.role, turn.content);
      if (reply) out += "<|im_start|>assistant\n";
      break;
    }
    case ChatFormat::llama3: {
      const auto add = [&](std::string_view role, std::string_view content) {
        out += fmt::format("<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>", role, content);
      };
      out = bos_;
      if (dated_system_) {
        // The date that the templates fall back to: today's would make every run another one.
        add("system", fmt::format("Cutting Knowledge Date: December 2023\n"
                                  "Today Date: 26 Jul 2024\n\n{}",
                                  trimmed(system)));
      } else if (has_system) {
        add("system", trimmed(system));
      }
      for (const ChatMessage& turn : turns) add(turn.role, trimmed(turn.content));
      if (reply) out += "<|start_header_id|>assistant<|end_header_id|>\n\n";
      break;
    }
    case ChatFormat::llama2:
      for (std::size_t i = 0; i < turns.size(); ++i) {
        std::string content = turns[i].content;
        if (i == 0 && has_system)
          content = fmt::format("<<SYS>>\n{}\n<</SYS>>\n\n{}", system, content);
        if (turns[i].role == "user") {
          out += fmt::format("{}[INST] {} [/INST]", bos_, trimmed(content));
        } else {
          out += fmt::format(" {} {}", trimmed(content), eos_);
        }
      }
      break;
    case ChatFormat::mistral:
      out = bos_;
      for (std::size_t i = 0; i < turns.size(); ++i) {
        const std::string& content = turns[i].content;
        if (turns[i].role == "user") {
          const bool last = i + 1 == turns.size();
          out += fmt::format("[INST]{}{}{}{}[/INST]", after_open_,
                             last && has_system ? system + "\n\n" : "", content, before_close_);
        } else {
          out += fmt::format("{}{}{}{}", before_answer_,
                             trims_answer_ ? trimmed(content) : std::string_view(content), eos_,
                             after_end_);
        }
      }
      break;
    case ChatFormat::gemma:
      out = bos_;
      for (std::size_t i = 0; i < turns.size(); ++i) {
        out += fmt::format("<start_of_turn>{}\n{}{}<end_of_turn>\n",
                           turns[i].role == "user" ? "user" : "model",
                           i == 0 && has_system ? system + "\n\n" : "", trimmed(turns[i].content));
      }
      if (reply) out += "<start_of_turn>model\n";
      break;
  }
  return out;
}

}  // namespace lamina
