#include "lamina/core/prompts.h"

#include <fstream>

#include "expect_run.h"

namespace lamina {
namespace {

using testing::error_of;
using testing::TempFolder;

// A byte-level tokenizer with the letters a–z, the space (Ġ), and two merges.
const Tokenizer& tokenizer() {
  static const Tokenizer made = [] {
    std::string vocab;
    int id = 0;
    for (char c = 'a'; c <= 'z'; ++c) vocab += fmt::format("\"{}\": {}, ", c, id++);
    vocab += "\"Ġ\": 26, \"ab\": 27, \"Ġab\": 28";
    return Tokenizer::from_json(
        R"({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                              "use_regex": true},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                        "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null,
                      "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": false,
                      "byte_fallback": false, "vocab": {)" +
            vocab + R"(}, "merges": ["a b", "Ġ ab"]}})",
        "test tokenizer");
  }();
  return made;
}

struct Text {
  TempFolder folder;
  std::filesystem::path path;
  Text(std::string_view name, std::string_view text) : path(folder / name) {
    std::ofstream(path, std::ios::binary) << text;
  }
};

std::vector<Prompt> read(std::string_view name, std::string_view text, bool with_tokenizer = true) {
  const Text file(name, text);
  return read_prompts(file.path, with_tokenizer ? &tokenizer() : nullptr, 29);
}

TEST(Prompts, TextFile) {
  const auto prompts = read("p.txt",
                            "\xef\xbb\xbf"
                            "cab\r\nx ab\n");
  ASSERT_EQ(prompts.size(), 2u);
  EXPECT_EQ(prompts[0].id, "1");
  EXPECT_EQ(prompts[0].text, "cab");
  EXPECT_EQ(prompts[0].ids, (std::vector<std::int32_t>{2, 27}));
  EXPECT_EQ(prompts[0].given, 2);
  EXPECT_FALSE(prompts[0].target);
  EXPECT_EQ(prompts[1].ids, (std::vector<std::int32_t>{23, 28}));
}

TEST(Prompts, JsonLines) {
  const auto prompts = read("p.jsonl",
                            "{\"text\": \"cab\", \"id\": \"first\", \"target\": \" ab\", "
                            "\"labels\": {\"language\": \"fr\", \"n\": 3, \"empty\": \"\", "
                            "\"tags\": [\"N\", null, 2]}}\n\n"
                            "{\"ids\": [0, 28], \"target\": 5}\n"
                            "{\"text\": \"a\", \"target\": \"cab\", \"id\": 7}");
  ASSERT_EQ(prompts.size(), 3u);
  EXPECT_EQ(prompts[0].id, "first");
  EXPECT_EQ(prompts[0].target, 28);
  EXPECT_EQ(prompts[0].labels,
            (std::map<std::string, std::string>{
                {"language", "fr"}, {"n", "3"}, {"empty", ""}, {"tags", R"(["N",null,2])"}}));
  EXPECT_EQ(prompts[1].id, "3");  // its line
  EXPECT_EQ(prompts[1].text, "");
  EXPECT_EQ(prompts[1].ids, (std::vector<std::int32_t>{0, 28}));
  EXPECT_EQ(prompts[1].given, 2);
  EXPECT_EQ(prompts[1].target, 5);
  EXPECT_EQ(prompts[2].id, "7");
  EXPECT_EQ(prompts[2].target, 2);  // "c", the first of several
  EXPECT_EQ(prompts[2].labels.at("target_text"), "cab");
  EXPECT_EQ(read("p.json", "{\"ids\": [0]}", false).size(), 1u);  // no tokenizer needed
}

TEST(Prompts, Texts) {
  const std::vector<std::string> texts = {"cab", "ab"};
  const auto prompts = text_prompts(texts, tokenizer());
  EXPECT_EQ(prompts[0].id, "0");
  EXPECT_EQ(prompts[1].id, "1");
  EXPECT_EQ(prompts[1].ids, (std::vector<std::int32_t>{27}));
  EXPECT_HAS(error_of([] {
               const std::vector<std::string> bad = {"a", ""};
               text_prompts(bad, tokenizer());
             }),
             "text 1: the text is empty");
  EXPECT_HAS(error_of([] {
               const std::vector<std::string> bad = {"a\xff"};
               text_prompts(bad, tokenizer());
             }),
             "text 0: not valid UTF-8");
}

struct BadFile {
  const char* name;
  const char* file;
  std::string text;
  const char* message;
};

class BadPrompts : public ::testing::TestWithParam<BadFile> {};

TEST_P(BadPrompts, AreRefused) {
  const BadFile& bad = GetParam();
  const std::string message = error_of([&] { read(bad.file, bad.text); });
  EXPECT_HAS(message, bad.message);
  EXPECT_HAS(message, bad.file);
  EXPECT_EQ(message.find('\n'), std::string::npos);
}

const std::string kGood = "{\"ids\": [1]}\n";

INSTANTIATE_TEST_SUITE_P(
    Prompts, BadPrompts,
    ::testing::Values(
        BadFile{"Kind", "p.csv", "a", "prompts come as .txt"},
        BadFile{"Empty", "p.txt", "", "at least 1 prompt expected, found none"},
        BadFile{"OnlyBlank", "p.jsonl", "\n \n", "at least 1 prompt expected, found none"},
        BadFile{"EmptyLine", "p.txt", "a\n\nb\n", "line 2: the text is empty"},
        BadFile{"Utf8", "p.txt", "a\nb\xff\n", "line 2: not valid UTF-8: \"b\\xff\""},
        BadFile{"Utf8Json", "p.jsonl", "{\"text\": \"\xc3\"}", "line 1: not valid UTF-8"},
        BadFile{"Zero", "p.txt", std::string("a\0b", 3), "line 1: zero byte at byte 1 of 3"},
        BadFile{"NotJson", "p.jsonl", kGood + "{\"ids\": [1]", "line 2: no valid JSON at byte"},
        BadFile{"NotAnObject", "p.jsonl", "[1]", "line 1: an object expected, found array \"[1]\""},
        BadFile{"UnknownKey", "p.jsonl", "{\"prompt\": \"a\"}",
                "key \"prompt\" is not one of text, ids, id, target, labels"},
        BadFile{"TwiceTheKey", "p.jsonl", "{\"ids\": [1], \"ids\": [2]}",
                "line 1: key \"ids\" appears twice"},
        BadFile{"TwiceTheLabel", "p.jsonl",
                "{\"ids\": [1], \"labels\": {\"a\": \"\", \"a\": \"\"}}",
                "key \"a\" appears twice"},
        BadFile{"Neither", "p.jsonl", "{\"id\": \"x\"}",
                "exactly one of the keys text and ids expected, found neither"},
        BadFile{"Both", "p.jsonl", "{\"text\": \"a\", \"ids\": [1]}", "found both"},
        BadFile{"TextType", "p.jsonl", "{\"text\": 5}",
                "key text: a string expected, found number \"5\""},
        BadFile{"TextEmpty", "p.jsonl", "{\"text\": \"\"}", "key text: the text is empty"},
        BadFile{"TextZero", "p.jsonl", "{\"text\": \"a\\u0000\"}", "key text: zero byte at byte 1"},
        BadFile{"IdsType", "p.jsonl", "{\"ids\": \"1\"}",
                "key ids: an array of token ids expected, found string"},
        BadFile{"IdsEmpty", "p.jsonl", "{\"ids\": []}", "at least 1 token id expected, found 0"},
        BadFile{"IdReal", "p.jsonl", "{\"ids\": [1.5]}",
                "key ids: a token id expected, found number \"1.5\""},
        BadFile{"IdOutside", "p.jsonl", kGood + "{\"ids\": [0, 29]}",
                "line 2: key ids: token id 29 is outside the model's vocabulary (0 to 28)"},
        BadFile{"IdNegative", "p.jsonl", "{\"ids\": [-1]}", "token id -1 is outside"},
        BadFile{"IdHuge", "p.jsonl", "{\"ids\": [18446744073709551615]}",
                "token id 18446744073709551615 is outside"},
        BadFile{"SameId", "p.jsonl", "{\"ids\": [1], \"id\": \"x\"}\n{\"ids\": [1], \"id\": \"x\"}",
                "line 2: prompt id \"x\" was given in line 1 already"},
        BadFile{"IdOfAnotherLine", "p.jsonl", "{\"ids\": [1], \"id\": \"2\"}\n{\"ids\": [1]}",
                "line 2: prompt id \"2\" was given in line 1 already"},
        BadFile{"IdType", "p.jsonl", "{\"ids\": [1], \"id\": null}",
                "key id: a string expected, found null"},
        BadFile{"IdEmpty", "p.jsonl", "{\"ids\": [1], \"id\": \"\"}", "key id: the id is empty"},
        BadFile{"LabelsType", "p.jsonl", "{\"ids\": [1], \"labels\": [\"a\"]}",
                "key labels: an object of strings expected, found array"},
        BadFile{"LabelType", "p.jsonl", "{\"ids\": [1], \"labels\": {\"a\": {}}}",
                "key labels.a: a string expected, found object"},
        BadFile{"LabelEntries", "p.jsonl", "{\"ids\": [1], \"labels\": {\"a\": [[1]]}}",
                "key labels.a: an array of plain values expected, found array"},
        BadFile{"LabelName", "p.jsonl", "{\"ids\": [1], \"labels\": {\"\": \"a\"}}",
                "label name \"\" is empty"},
        BadFile{"TargetType", "p.jsonl", "{\"ids\": [1], \"target\": [1]}",
                "key target: a token id expected, found array"},
        BadFile{"TargetOutside", "p.jsonl", "{\"ids\": [1], \"target\": 29}",
                "key target: token id 29 is outside"},
        BadFile{"TargetEmpty", "p.jsonl", "{\"ids\": [1], \"target\": \"\"}",
                "key target: the text is empty"},
        BadFile{"TargetTextTaken", "p.jsonl",
                "{\"ids\": [1], \"target\": \"cab\", \"labels\": {\"target_text\": \"x\"}}",
                "target_text is kept"},
        BadFile{"Deep", "p.jsonl", "{\"ids\": " + std::string(50, '[') + std::string(50, ']') + "}",
                "nested deeper"}),
    [](const auto& which) { return which.param.name; });

TEST(Prompts, FilesThatAreNone) {
  TempFolder folder;
  EXPECT_HAS(error_of([&] { read_prompts(folder / "none.txt", nullptr, 10); }),
             "none.txt: cannot open the file: No such file or directory");
  std::filesystem::create_directory(folder / "a.txt");
  EXPECT_HAS(error_of([&] { read_prompts(folder / "a.txt", nullptr, 10); }),
             "a.txt: a file expected, found a folder");
  EXPECT_HAS(error_of([&] { read("p.txt", "a", false); }), "text needs a tokenizer");
  EXPECT_HAS(error_of([&] { read("p.jsonl", "{\"ids\": [1], \"target\": \"a\"}", false); }),
             "a target text needs a tokenizer");
}

}  // namespace
}  // namespace lamina
