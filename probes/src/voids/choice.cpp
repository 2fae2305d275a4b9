#include "lamina/probes/choice.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "lamina/core/error.h"

namespace lamina {
namespace {

constexpr std::string_view kInstruction = "Answer with the letter of the right option.";

std::string letter_of(std::int64_t option) {
  return std::string(1, static_cast<char>('A' + option));
}

// The question, with its options if `listed`.
std::string body(const Question& question, bool listed, bool chat) {
  std::string out = question.context.empty() ? "" : question.context + "\n\n";
  out += (chat ? "" : "Question: ") + question.text + "\n";
  if (!listed) {
    if (chat) out.pop_back();
    return out;
  }
  for (std::size_t i = 0; i < question.options.size(); ++i) {
    out += fmt::format("{}. {}\n", letter_of(static_cast<std::int64_t>(i)), question.options[i]);
  }
  if (chat) out += kInstruction;
  return out;
}

std::string answer(const Question& question, bool listed, std::int64_t option) {
  return listed ? letter_of(option) : question.options[static_cast<std::size_t>(option)];
}

// Everything up to where the answer begins.
std::string prompt_text(const Question& question, bool listed, const ChoiceFormat& format) {
  if (format.chat != nullptr) {
    std::vector<ChatMessage> messages;
    for (const Question& example : format.examples) {
      messages.push_back({"user", body(example, listed, true)});
      messages.push_back({"assistant", answer(example, listed, example.right)});
    }
    messages.push_back({"user", body(question, listed, true)});
    return format.chat->render(messages, true);
  }
  std::string out;
  for (const Question& example : format.examples) {
    out +=
        body(example, listed, false) + "Answer: " + answer(example, listed, example.right) + "\n\n";
  }
  return out + body(question, listed, false) + "Answer:";
}

// A chat's answer begins a line or follows a closing mark; a plain one follows a blank. Formats
// that put the blank in front of the answer themselves do so in the answer's turn.
std::string_view gap(const ChoiceFormat& format) {
  if (format.chat == nullptr) return " ";
  const ChatFormat kind = format.chat->format();
  return kind == ChatFormat::llama2 || kind == ChatFormat::mistral ? " " : "";
}

std::vector<std::int32_t> encode(const std::string& text, const Tokenizer& tokenizer,
                                 const ChoiceFormat& format) {
  if (format.chat != nullptr) return tokenizer.encode(text, Bos::never, true);
  // An end-of-sequence token behind the text, as some tokenizers put, must not stand before an
  // answer.
  const bool bos = tokenizer.adds_bos() && tokenizer.bos_id().has_value();
  return tokenizer.encode(text, bos ? Bos::always : Bos::never, false);
}

// Tokenizes prompt + answer as one text and parts them where the first of all answers begins to
// differ from the prompt: a token may span both.
Continuations continuations(const std::string& prompt, const std::vector<std::string>& answers,
                            const Tokenizer& tokenizer, const ChoiceFormat& format) {
  const std::vector<std::int32_t> alone = encode(prompt, tokenizer, format);
  std::size_t shared = alone.size();
  std::vector<std::vector<std::int32_t>> whole;
  for (const std::string& text : answers) {
    whole.push_back(encode(prompt + text, tokenizer, format));
    const auto parted =
        std::mismatch(alone.begin(), alone.end(), whole.back().begin(), whole.back().end());
    shared = std::min(shared, static_cast<std::size_t>(parted.first - alone.begin()));
    shared = std::min(shared, whole.back().size() - 1);
  }
  Continuations out;
  out.prefix.assign(alone.begin(), alone.begin() + static_cast<std::ptrdiff_t>(shared));
  for (const auto& ids : whole) {
    out.options.emplace_back(ids.begin() + static_cast<std::ptrdiff_t>(shared), ids.end());
  }
  return out;
}

void check_fits(const Question& question, const Continuations& c, std::int64_t n_ctx,
                std::int64_t more) {
  if (c.prefix.empty()) fail("question '{}': its prompt has no tokens", question.id);
  std::size_t longest = 0;
  for (const auto& option : c.options) longest = std::max(longest, option.size());
  const auto tokens = static_cast<std::int64_t>(c.prefix.size() +
                                                std::max(longest, static_cast<std::size_t>(more)));
  if (tokens > n_ctx) {
    fail("question '{}' needs {} tokens; the model's context holds {}", question.id, tokens, n_ctx);
  }
}

}  // namespace

std::string choice_wording(bool chat) {
  return chat ? fmt::format(
                    "text: user turn '[CONTEXT\\n\\n]QUESTION', reply OPTION; letter: user turn "
                    "'[CONTEXT\\n\\n]QUESTION\\nA. OPTION\\n… {}', reply LETTER",
                    kInstruction)
              : "text: '[CONTEXT\\n\\n]Question: QUESTION\\nAnswer:' + ' OPTION'; letter: "
                "'[CONTEXT\\n\\n]Question: QUESTION\\nA. OPTION\\n…Answer:' + ' LETTER'";
}

std::vector<ChoicePrompt> choice_prompts(const Task& task, const Tokenizer& tokenizer,
                                         const ChoiceFormat& format, std::int64_t n_ctx,
                                         std::int64_t max_new) {
  std::vector<ChoicePrompt> out;
  const std::string before(gap(format));
  for (const Question& question : task.questions) {
    std::vector<std::string> texts, letters;
    for (std::size_t i = 0; i < question.options.size(); ++i) {
      texts.push_back(before + question.options[i]);
      letters.push_back(before + letter_of(static_cast<std::int64_t>(i)));
    }
    const std::string listed = prompt_text(question, true, format);
    ChoicePrompt& prompt = out.emplace_back();
    prompt.text = continuations(prompt_text(question, false, format), texts, tokenizer, format);
    prompt.letter = continuations(listed, letters, tokenizer, format);
    prompt.listed = encode(listed, tokenizer, format);
    check_fits(question, prompt.text, n_ctx, 0);
    check_fits(question, prompt.letter, n_ctx,
               max_new + static_cast<std::int64_t>(prompt.listed.size()) -
                   static_cast<std::int64_t>(prompt.letter.prefix.size()));
  }
  return out;
}

std::optional<std::int64_t> answer_letter(std::string_view answer, std::int64_t options) {
  const auto beside = [](unsigned char c) {
    return c >= 0x80 || (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
  };
  for (std::size_t i = 0; i < answer.size(); ++i) {
    const std::int64_t option = answer[i] - 'A';
    if (option < 0 || option >= options) continue;
    const bool before = i > 0 && beside(static_cast<unsigned char>(answer[i - 1]));
    const bool after = i + 1 < answer.size() && beside(static_cast<unsigned char>(answer[i + 1]));
    if (!before && !after) return option;
  }
  return std::nullopt;
}

Interval wilson(std::int64_t right, std::int64_t all) {
  if (all == 0) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    return {nan, nan};
  }
  constexpr double kZ = 1.959963984540054;  // 97.5 % point of the normal distribution
  const auto n = static_cast<double>(all);
  const double p = static_cast<double>(right) / n;
  const double centre = p + kZ * kZ / (2 * n);
  const double half = kZ * std::sqrt(p * (1 - p) / n + kZ * kZ / (4 * n * n));
  const double scale = 1 + kZ * kZ / n;
  return {std::max(0.0, (centre - half) / scale), std::min(1.0, (centre + half) / scale)};
}

}  // namespace lamina
