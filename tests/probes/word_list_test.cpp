#include "lamina/probes/word_list.h"

#include <gtest/gtest.h>

#include "lamina/core/error.h"

namespace lamina {
namespace {

constexpr const char* kGood = R"({
  "languages": {"en": "English", "fr": "Français", "zh": "中文"},
  "words": [{"id": "cat", "kind": "noun", "en": ["cat"], "fr": ["chat", "minou"], "zh": "猫"},
            {"id": "dog", "en": ["dog"], "fr": ["chien"]}],
  "cloze": [{"id": "cat", "en": "A \"___\" says miaow. Answer: \"cat\".", "zh": "\"_\"。答案：\"猫\"。"}]})";

TEST(WordList, Reads) {
  const WordList list = parse_word_list(kGood, "words.json");
  ASSERT_EQ(list.words.size(), 2U);
  EXPECT_EQ(*list.words[0].form("fr"), "chat");
  EXPECT_EQ(list.words[0].forms.at("fr").size(), 2U);
  EXPECT_EQ(*list.words[0].form("zh"), "猫");
  EXPECT_EQ(list.words[1].form("zh"), nullptr);
  EXPECT_EQ(list.language("fr").name, "Français");
  ASSERT_EQ(list.cloze.size(), 1U);
  EXPECT_TRUE(list.cloze[0].sentence.contains("zh"));
  EXPECT_THROW(list.language("xx"), UsageError);
}

// Each refusal is one line that names the file.
TEST(WordList, RefusesBrokenFiles) {
  const std::string head = R"({"languages": {"en": "English"}, "words": )";
  const std::vector<std::string> bad = {
      "",
      "{",
      "[]",
      "{}",
      R"({"languages": {}})",
      R"({"languages": {"en": "English"}})",
      R"({"languages": ["en"], "words": []})",
      R"({"languages": {"en": 3}, "words": [{"id": "a", "en": ["a"]}]})",
      R"({"languages": {"en": "E", "en": "E"}, "words": [{"id": "a", "en": ["a"]}]})",
      R"({"languages": {"id": "E"}, "words": [{"id": "a", "en": ["a"]}]})",
      head + "[]}",
      head + "{}}",
      head + "[3]}",
      head + R"([{"en": ["a"]}]})",
      head + R"([{"id": "", "en": ["a"]}]})",
      head + R"([{"id": 5, "en": ["a"]}]})",
      head + R"([{"id": "a", "en": []}]})",
      head + R"([{"id": "a", "en": [""]}]})",
      head + R"([{"id": "a", "en": [7]}]})",
      head + R"([{"id": "a", "en": {}}]})",
      head + R"([{"id": "a", "en": ["say \"hi\""]}]})",
      head + R"([{"id": "a", "en": ["two\nlines"]}]})",
      head + R"([{"id": "a", "en": ["a"]}, {"id": "a", "en": ["b"]}]})",
      head + R"([{"id": "a", "id": "b", "en": ["a"]}]})",
      head + "[{\"id\": \"a\", \"en\": [\"\xff\"]}]}",
      head + std::string(2000, '[') + std::string(2000, ']') + "}",
      R"({"languages": {"en": "E"}, "cloze": [{"id": "a", "en": "no answer"}]})",
      R"({"languages": {"en": "E"}, "cloze": [{"id": "a", "en": "one \" quote"}]})",
      R"({"languages": {"en": "E"}, "cloze": [{"id": "a", "en": "empty \"\"."}]})",
      R"({"languages": {"en": "E"}, "cloze": [{"id": "a", "en": "\""}]})",
  };
  for (const std::string& text : bad) {
    try {
      parse_word_list(text, "words.json");
      ADD_FAILURE() << "read: " << text.substr(0, 100);
    } catch (const Error& e) {
      const std::string what = e.what();
      EXPECT_EQ(what.rfind("words.json: ", 0), 0U) << what;
      EXPECT_EQ(what.find('\n'), std::string::npos) << what;
      EXPECT_LT(what.size(), 400U);
    }
  }
  // Every truncation of a good file is refused, never read in part.
  const std::string good = kGood;
  for (std::size_t n = 0; n < good.size(); ++n) {
    EXPECT_THROW(parse_word_list(good.substr(0, n), "words.json"), Error) << n;
  }
}

}  // namespace
}  // namespace lamina
