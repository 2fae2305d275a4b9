// Chat templates against transformers' apply_chat_template (make_chat_goldens.py).

#include "lamina/core/chat.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "lamina/core/tokenizer.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

using Json = nlohmann::json;

std::vector<ChatMessage> messages_of(const Json& list) {
  std::vector<ChatMessage> messages;
  for (const Json& m : list) messages.push_back({m["role"], m["content"]});
  return messages;
}

void compare(const std::filesystem::path& path) {
  std::ifstream file(path);
  const Json goldens = Json::parse(file);
  ASSERT_GE(goldens.size(), 4U);
  for (const Json& golden : goldens) {
    SCOPED_TRACE(golden["name"].get<std::string>() + ": " + golden["messages"].dump());
    const auto chat =
        ChatTemplate::from_text(golden["template"].get<std::string>(),
                                golden["bos"].get<std::string>(), golden["eos"].get<std::string>());
    ASSERT_TRUE(chat.has_value());
    const std::vector<ChatMessage> messages = messages_of(golden["messages"]);
    if (golden["text"].is_null()) {
      EXPECT_THROW(chat->render(messages, true), Error);
    } else {
      EXPECT_EQ(chat->render(messages, true), golden["text"].get<std::string>());
    }
  }
}

TEST(Chat, EqualsApplyChatTemplate) {
  compare(std::filesystem::path(LAMINA_SOURCE_DIR) / "tests/tokenizer/chat_goldens.json");
}

// For whoever holds the model files: make_chat_goldens.py --real.
TEST(Chat, EqualsRealTemplates) {
  const char* path = std::getenv("LAMINA_CHAT_GOLDENS");
  if (path == nullptr) GTEST_SKIP() << "LAMINA_CHAT_GOLDENS names no file";
  compare(path);
}

TEST(Chat, OtherTemplatesAreNotGuessedAt) {
  EXPECT_FALSE(ChatTemplate::from_text("", "", "").has_value());
  EXPECT_FALSE(ChatTemplate::from_text("{{ '<|user|>' + messages[0] }}", "", "").has_value());
}

TEST(Chat, RolesMustAlternate) {
  const ChatTemplate chat = ChatTemplate::of(ChatFormat::chatml, "", "");
  using Messages = std::vector<ChatMessage>;
  EXPECT_THROW(chat.render(Messages{}, true), Error);
  EXPECT_THROW(chat.render(Messages{{"system", "a"}}, true), Error);
  EXPECT_THROW(chat.render(Messages{{"assistant", "a"}}, true), Error);
  EXPECT_THROW(chat.render(Messages{{"user", "a"}, {"user", "b"}}, true), Error);
  EXPECT_THROW(chat.render(Messages{{"user", "a"}, {"system", "b"}}, true), Error);
  EXPECT_EQ(chat.render(Messages{{"user", "a"}}, false), "<|im_start|>user\na<|im_end|>\n");
}

TEST(Chat, Names) {
  for (ChatFormat f : {ChatFormat::chatml, ChatFormat::llama2, ChatFormat::llama3,
                       ChatFormat::mistral, ChatFormat::gemma}) {
    EXPECT_EQ(parse_chat_format(chat_format_name(f)), f);
  }
  EXPECT_THROW(parse_chat_format("alpaca"), UsageError);
}

constexpr const char* kTokenizer = R"({"model": {"type": "WordLevel", "vocab": {"a": 0, "<s>": 1,
  "</s>": 2, "<unk>": 3}, "unk_token": "<unk>"}, "pre_tokenizer": {"type": "WhitespaceSplit"},
  "added_tokens": [{"id": 1, "content": "<s>", "special": true},
  {"id": 2, "content": "</s>", "special": true}]})";

TEST(Chat, IsReadFromAFolder) {
  const testing::TempDir folder;
  const auto write = [&](const char* name, const std::string& text) {
    std::ofstream(folder.path() / name) << text;
  };
  write("tokenizer.json", kTokenizer);
  const Tokenizer tokenizer = Tokenizer::load(folder.path());
  const auto load = [&] { return ChatTemplate::load(folder.path(), tokenizer); };
  EXPECT_FALSE(load().has_value());
  write("tokenizer_config.json", R"({"chat_template": "<|im_start|>"})");
  EXPECT_EQ(load().value().format(), ChatFormat::chatml);
  write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "<|im_start|>"},
    {"name": "default", "template": "[INST] <<SYS>>"}]})");
  EXPECT_EQ(load().value().format(), ChatFormat::llama2);
  const ChatMessage question{"user", "a"};
  EXPECT_EQ(load().value().render({&question, 1}, true), "<s>[INST] a [/INST]");
  write("chat_template.jinja", "<start_of_turn>");
  EXPECT_EQ(load().value().format(), ChatFormat::gemma);
  write("tokenizer_config.json", "{");
  std::filesystem::remove(folder.path() / "chat_template.jinja");
  EXPECT_THROW(load(), Error);
}

}  // namespace
}  // namespace lamina
