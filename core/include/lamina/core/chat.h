#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace lamina {

class Tokenizer;

/// One turn. role: "system" (only as the first), "user" or "assistant".
struct ChatMessage {
  std::string role, content;
};

/// The ways of writing a conversation that are known here.
enum class ChatFormat : std::uint8_t { chatml, llama2, llama3, mistral, gemma };
std::string_view chat_format_name(ChatFormat format);
/// UsageError listing the names if `name` is none of them.
ChatFormat parse_chat_format(std::string_view name);

/// How an instruction-tuned model wants a conversation written. The Jinja text of a model file is
/// not run: it says which format it is, and in which variant, and the format is written in C++.
/// The strings are those of transformers' apply_chat_template (tests/tokenizer/make_chat_goldens.py
/// and what it leaves out are in docs/evaluation.md).
class ChatTemplate {
 public:
  /// From the text of a chat_template; nullopt if it is of none of the formats.
  static std::optional<ChatTemplate> from_text(std::string_view jinja, std::string_view bos,
                                               std::string_view eos);
  /// The usual variant of a format.
  static ChatTemplate of(ChatFormat format, std::string_view bos, std::string_view eos);
  /// From what comes with a model: a folder's chat_template.jinja or tokenizer_config.json, or a
  /// GGUF file's tokenizer.chat_template. nullopt if it has none, or none that is known.
  static std::optional<ChatTemplate> load(const std::filesystem::path& model,
                                          const Tokenizer& tokenizer);

  ChatFormat format() const { return format_; }
  /// The conversation, begin-of-sequence included: encode it with Bos::never and special tokens
  /// parsed. `reply`: ends where the assistant begins to speak. Error for roles that do not
  /// alternate or that the format lacks.
  std::string render(std::span<const ChatMessage> messages, bool reply) const;
  /// The special token that ends a turn ("<|im_end|>").
  std::string_view turn_end() const;

 private:
  ChatTemplate(ChatFormat format, std::string_view bos, std::string_view eos)
      : format_(format), bos_(bos), eos_(eos) {}

  ChatFormat format_;
  std::string bos_, eos_;
  std::string default_system_;  // chatml: spoken if the conversation has no system message
  bool dated_system_ = false;   // llama3: 3.1 and later always begin with a dated system message
  bool takes_system_ = true;    // gemma 1 and 2 and the first mistral ones refuse it
  // mistral: blanks inside [INST] … [/INST], before the answer and after its end
  std::string after_open_ = " ", before_close_ = " ", before_answer_, after_end_;
  bool trims_answer_ = false;
};

}  // namespace lamina
