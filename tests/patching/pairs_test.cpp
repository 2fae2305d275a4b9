#include "lamina/patching/pairs.h"

#include "patching/support.h"

namespace lamina {
namespace {

using testing::expect_message;
using testing::message_of;
using testing::TextFile;
using Ids = std::vector<std::int32_t>;

// Byte-level BPE over printable ASCII: " Mary", " John" and "Mary" are tokens, "18" and "35" too.
const Tokenizer& bytes() {
  static const Tokenizer made = [] {
    std::string vocab = "\"Ġ\": 0";
    int id = 1;
    for (char c = '!'; c <= '~'; ++c) {
      const std::string name = c == '"' || c == '\\' ? std::string("\\") + c : std::string(1, c);
      vocab += fmt::format(", \"{}\": {}", name, id++);
    }
    std::string merges;
    const auto merge = [&](std::string_view a, std::string_view b) {
      vocab += fmt::format(", \"{}{}\": {}", a, b, id++);
      merges += fmt::format("{}\"{} {}\"", merges.empty() ? "" : ", ", a, b);
    };
    merge("M", "a"), merge("r", "y"), merge("Ma", "ry"), merge("Ġ", "Mary");  // 95 … 98
    merge("J", "o"), merge("h", "n"), merge("Jo", "hn"), merge("Ġ", "John");  // 99 … 102
    merge("1", "8"), merge("3", "5"), merge("Ġ", "18"), merge("c", "a");      // 103 … 106
    merge("ca", "t"), merge("Ġ", "cat");                                      // 107, 108
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
            vocab + "}, \"merges\": [" + merges + "]}}",
        "test tokenizer");
  }();
  return made;
}

const Tokenizer& organism() {
  static const Tokenizer made = Tokenizer::load(LAMINA_SOURCE_DIR "/data/organism");
  return made;
}

std::vector<Pair> read(std::string_view text, const Tokenizer* tokenizer = nullptr,
                       std::int64_t d_vocab = 50) {
  const TextFile file(text);
  return read_pairs(file.path, tokenizer, d_vocab);
}

std::string piece(const Tokenizer& tokenizer, std::optional<std::int32_t> id) {
  return id ? tokenizer.piece(*id) : "none";
}

TEST(Pairs, Ids) {
  const auto pairs = read(
      "\xef\xbb\xbf{\"clean\": [1, 2, 3], \"corrupted\": [1, 4, 3], \"correct\": [7, 8], "
      "\"wrong\": [9], \"subject\": [1, 2], \"id\": \"first\"}\r\n\n"
      "{\"clean\": [5], \"corrupted\": [5], \"correct\": [7]}\n"
      "{\"clean\": [1, 2], \"corrupted\": [1, 9, 2], \"map\": [0, 2], \"correct\": [0], \"wrong\": "
      "[], \"id\": 17}");
  ASSERT_EQ(pairs.size(), 3u);
  EXPECT_EQ(pairs[0].id, "first");
  EXPECT_EQ(pairs[0].clean, (Ids{1, 2, 3}));
  EXPECT_EQ(pairs[0].corrupted, (Ids{1, 4, 3}));
  EXPECT_EQ(pairs[0].correct, (Ids{7, 8}));
  EXPECT_EQ(pairs[0].wrong, Ids{9});
  EXPECT_EQ(pairs[0].subject, std::pair(1, 2));
  EXPECT_EQ(pairs[0].first_difference(), 1);
  EXPECT_EQ(pairs[0].corrupted_position(2), 2);
  EXPECT_EQ(pairs[1].id, "3");  // its line
  EXPECT_EQ(pairs[1].first_difference(), pairs[1].tokens());
  EXPECT_FALSE(pairs[1].subject);
  EXPECT_TRUE(pairs[1].wrong.empty());
  EXPECT_EQ(pairs[2].id, "17");
  EXPECT_EQ(pairs[2].token_map, (Ids{0, 2}));
  EXPECT_EQ(pairs[2].corrupted_position(1), 2);
  EXPECT_EQ(pairs[2].first_difference(), 1);  // the same token, but elsewhere

  const Batch clean = clean_batch(pairs), corrupted = corrupted_batch(pairs);
  EXPECT_EQ(clean.ids, (Ids{1, 2, 3, 5, 1, 2}));
  EXPECT_EQ(clean.offsets, (std::vector<std::int64_t>{0, 3, 4, 6}));
  EXPECT_EQ(corrupted.ids, (Ids{1, 4, 3, 5, 1, 9, 2}));
  EXPECT_EQ(corrupted.offsets, (std::vector<std::int64_t>{0, 3, 4, 7}));
}

TEST(Pairs, WordsOfAByteLevelTokenizer) {
  const auto pairs = read(
      "{\"clean\": \"a Mary\", \"corrupted\": \"a John\", \"correct\": [\"Mary\", \"x\"], "
      "\"wrong\": [\" John\", 101, 7], \"subject\": \"Mary\"}",
      &bytes(), 109);
  EXPECT_EQ(pairs[0].clean.size(), 2u);
  EXPECT_EQ(piece(bytes(), pairs[0].correct[0]), " Mary");
  EXPECT_EQ(piece(bytes(), pairs[0].correct[1]), "x");  // no token " x"
  EXPECT_EQ(pairs[0].subject, std::pair(1, 2));
}

TEST(Pairs, WordsOfTheOrganism) {
  for (const char* task : {"ioi", "greater_than", "sva", "capitals", "translation"}) {
    const auto path = std::filesystem::path(LAMINA_SOURCE_DIR) / "data/organism/pairs" /
                      (std::string(task) + ".jsonl");
    const auto pairs = read_pairs(path, &organism(), organism().vocab_size());
    EXPECT_EQ(pairs.size(), 40u) << task;
    for (const Pair& pair : pairs) {
      EXPECT_EQ(pair.clean.size(), pair.corrupted.size());
      EXPECT_LT(pair.first_difference(), pair.tokens());
      EXPECT_FALSE(pair.wrong.empty());
    }
  }
}

TEST(Pairs, TheWordThatFollows) {
  const auto find = [](std::string_view last, std::string_view answer) {
    return piece(bytes(), find_answer(bytes(), *bytes().find_piece(last), answer));
  };
  EXPECT_EQ(find("o", "Mary"), " Mary");   // a word follows a word
  EXPECT_EQ(find("o", " Mary"), " Mary");  // as written
  EXPECT_EQ(find("\"", "Mary"), "Mary");   // behind an opening quote or bracket
  EXPECT_EQ(find("(", "cat"), "cat");
  EXPECT_EQ(find(" ", "cat"), "cat");
  EXPECT_EQ(find(" 18", "35"), "35");  // digits go on
  EXPECT_EQ(find("o", "18"), " 18");
  EXPECT_EQ(find("1", "18"), "18");
  EXPECT_EQ(find("(", " 18"), " 18");
  EXPECT_EQ(find("o", "John Mary"), "none");
  EXPECT_EQ(find("o", " x"), "none");
  EXPECT_EQ(find("o", ""), "none");
  EXPECT_EQ(piece(bytes(), find_answer(bytes(), 100000, "Mary")), " Mary");  // an id of no word

  const std::int32_t last = *organism().find_piece("to");
  EXPECT_EQ(piece(organism(), find_answer(organism(), last, "Mary")), "Mary");
  EXPECT_EQ(piece(organism(), find_answer(organism(), last, " Mary")), "Mary");
  EXPECT_EQ(piece(organism(), find_answer(organism(), last, "Zorblax")), "none");
  EXPECT_EQ(piece(organism(), find_answer(organism(), last, "<unk>")), "none");
}

TEST(Pairs, Spans) {
  const Tokenizer& t = bytes();
  const Ids ids = t.encode("cats: a cat (cat) Mary cat x y");
  const auto text = [&](std::string_view subject) {
    const auto span = find_span(t, ids, subject);
    if (!span) return std::string("none");
    std::string out = std::to_string(span->first) + ":";
    for (std::int32_t i = span->first; i < span->second; ++i) out += t.piece(ids[i]);
    return out;
  };
  EXPECT_EQ(text("cats"), "0:cats");
  EXPECT_EQ(text("Mary"), "10: Mary");
  EXPECT_EQ(text(" Mary cat "), "10: Mary cat");
  EXPECT_EQ(text("y"), "15:y");  // not the end of Mary; its blank is a token of its own
  EXPECT_EQ(text("ary"), "none");
  EXPECT_EQ(text("Mary Mary"), "none");
  EXPECT_EQ(text(" "), "none");
  EXPECT_EQ(text(""), "none");
  const Ids words = organism().encode("The capital of France is");
  EXPECT_EQ(find_span(organism(), words, "France"), std::pair(4, 5));  // behind <bos>
  EXPECT_FALSE(find_span(organism(), words, "<bos>"));
}

struct BadFile {
  const char* name;
  std::string text;
  std::vector<std::string> parts;  // of the message, beside the file's name
};

void PrintTo(const BadFile& bad, std::ostream* out) {
  *out << bad.name;
}

class BadPairs : public ::testing::TestWithParam<BadFile> {};

TEST_P(BadPairs, AreRefused) {
  const BadFile& bad = GetParam();
  const std::string message = message_of([&] { read(bad.text); });
  expect_message(message, "pairs.jsonl");
  for (const std::string& part : bad.parts) expect_message(message, part);
}

// A good line with some keys replaced or added; a value of "" takes the key out.
std::string line(std::initializer_list<std::pair<std::string, std::string>> changes) {
  std::vector<std::pair<std::string, std::string>> keys = {
      {"clean", "[1, 2, 3]"}, {"corrupted", "[1, 4, 3]"}, {"correct", "[7]"}, {"wrong", "[9]"}};
  for (const auto& change : changes) {
    const auto at =
        std::find_if(keys.begin(), keys.end(), [&](auto& k) { return k.first == change.first; });
    if (at == keys.end()) {
      keys.push_back(change);
    } else {
      at->second = change.second;
    }
  }
  std::string out;
  for (const auto& [key, value] : keys) {
    if (!value.empty()) out += fmt::format("{}\"{}\": {}", out.empty() ? "{" : ", ", key, value);
  }
  return out + "}\n";
}

INSTANTIATE_TEST_SUITE_P(
    Pairs, BadPairs,
    ::testing::Values(
        BadFile{"Empty", "", {"at least 1 pair expected, found none"}},
        BadFile{"Blank", "\n  \n", {"at least 1 pair expected, found none"}},
        BadFile{"NotJson", line({}) + "{\"clean\": [1]", {"line 2: no valid JSON at byte"}},
        BadFile{"TwoObjects", "{} {}", {"line 1: no valid JSON"}},
        BadFile{"NotAnObject", "[1]", {"line 1: an object expected, found array \"[1]\""}},
        BadFile{"Deep",
                "{\"clean\": " + std::string(60, '[') + std::string(60, ']') + "}",
                {"line 1", "nested deeper"}},
        BadFile{"Utf8", "{\"id\": \"\xff\"}", {"line 1: not valid UTF-8", "\\xff"}},
        BadFile{"Zero", std::string("{\0}", 3), {"line 1: zero byte at byte 1"}},
        BadFile{"HugeNumber", line({{"clean", "[1e999]"}}), {"line 1"}},
        BadFile{"UnknownKey",
                line({{"answer", "1"}}),
                {"line 1: key \"answer\" is not one of clean, corrupted, correct, wrong, id, map, "
                 "subject"}},
        BadFile{"KeyTwice", "{\"clean\": [1], \"clean\": [1]}", {"key \"clean\" appears twice"}},
        BadFile{"NoClean", line({{"clean", ""}}), {"line 1: key clean is missing"}},
        BadFile{"NoCorrupted", line({{"corrupted", ""}}), {"key corrupted is missing"}},
        BadFile{"NoCorrect", line({{"correct", ""}}), {"key correct is missing"}},
        BadFile{"CleanType",
                line({{"clean", "5"}}),
                {"key clean: a text or an array of token ids expected, found number \"5\""}},
        BadFile{"CleanEmpty",
                line({{"clean", "[]"}}),
                {"key clean: at least 1 token id expected, found 0"}},
        BadFile{"CleanReal",
                line({{"clean", "[1.5, 2, 3]"}}),
                {"key clean: a token id expected, found number \"1.5\""}},
        BadFile{"CleanOutside",
                line({{"clean", "[1, 2, 50]"}}),
                {"key clean: token id 50 is outside the model's vocabulary (0 to 49)"}},
        BadFile{"CleanNegative", line({{"clean", "[-1, 2, 3]"}}), {"token id -1 is outside"}},
        BadFile{"CleanHuge",
                line({{"clean", "[18446744073709551615, 2, 3]"}}),
                {"token id 18446744073709551615 is outside"}},
        BadFile{"TextNoTokenizer", line({{"clean", "\"a b c\""}}), {"text needs a tokenizer"}},
        BadFile{"Unequal",
                line({{"corrupted", "[1, 4]"}}),
                {"clean and corrupted must have the same number of tokens (or a map), found 3 and "
                 "2: [1, 2, 3] and [1, 4]"}},
        BadFile{"CorrectType",
                line({{"correct", "7"}}),
                {"key correct: an array of answers expected, found number \"7\""}},
        BadFile{"CorrectEmpty",
                line({{"correct", "[]"}}),
                {"key correct: at least 1 answer expected, found 0"}},
        BadFile{"AnswerType",
                line({{"correct", "[null]"}}),
                {"key correct: an answer as text or token id expected, found null"}},
        BadFile{"AnswerOutside", line({{"wrong", "[50]"}}), {"key wrong: token id 50 is outside"}},
        BadFile{
            "AnswerText", line({{"wrong", "[\"a\"]"}}), {"an answer as text needs a tokenizer"}},
        BadFile{"AnswerTwice",
                line({{"correct", "[7, 8, 7]"}}),
                {"key correct: answer 7 is given twice"}},
        BadFile{"BothSides",
                line({{"wrong", "[9, 7]"}}),
                {"line 1: answer 7 is both correct and wrong"}},
        BadFile{"MapType", line({{"map", "3"}}), {"key map: an array of positions expected"}},
        BadFile{"MapLength",
                line({{"map", "[0, 1]"}}),
                {"key map: a position for each of the 3 clean tokens expected, found 2"}},
        BadFile{"MapItem",
                line({{"map", "[0, 1, \"x\"]"}}),
                {"key map: a position in the corrupted prompt expected, found string"}},
        BadFile{"MapOutside",
                line({{"map", "[0, 1, 3]"}}),
                {"key map: a position in the corrupted prompt expected from 0 to 2, found 3"}},
        BadFile{"MapNegative", line({{"map", "[0, 1, -1]"}}), {"from 0 to 2, found -1"}},
        BadFile{"MapHuge",
                line({{"map", "[0, 1, 18446744073709551615]"}}),
                {"found 18446744073709551615"}},
        BadFile{"MapTwice",
                line({{"map", "[0, 1, 1]"}}),
                {"key map: position 1 stands for two clean tokens"}},
        BadFile{"MapLongerThanCorrupted",
                line({{"map", "[0, 1, 2]"}, {"corrupted", "[1, 4]"}}),
                {"from 0 to 1, found 2"}},
        BadFile{"SubjectType",
                line({{"subject", "1"}}),
                {"key subject: a text or [first, one past the last token] expected"}},
        BadFile{"SubjectThree", line({{"subject", "[0, 1, 2]"}}), {"key subject"}},
        BadFile{"SubjectOutside", line({{"subject", "[0, 4]"}}), {"from 0 to 3, found 4"}},
        BadFile{"SubjectFirstOutside", line({{"subject", "[3, 3]"}}), {"from 0 to 2, found 3"}},
        BadFile{"SubjectBackwards",
                line({{"subject", "[2, 1]"}}),
                {"the end must be behind the first token, found [2, 1]"}},
        BadFile{"SubjectEmpty", line({{"subject", "[1, 1]"}}), {"found [1, 1]"}},
        BadFile{
            "SubjectText", line({{"subject", "\"x\""}}), {"a subject as text needs a tokenizer"}},
        BadFile{"IdType", line({{"id", "null"}}), {"key id: a string expected, found null"}},
        BadFile{"IdEmpty", line({{"id", "\"\""}}), {"key id: the id is empty"}},
        BadFile{"IdTwice",
                line({{"id", "\"x\""}}) + line({{"id", "\"x\""}}),
                {"line 2: pair id \"x\" was given in line 1 already"}},
        BadFile{"IdOfALine",
                line({{"id", "2"}}) + line({}),
                {"line 2: pair id \"2\" was given in line 1 already"}}),
    [](const auto& which) { return which.param.name; });

TEST(Pairs, WordsThatDoNotFit) {
  const auto message = [](const Tokenizer& t, std::string_view text) {
    return message_of([&] { read(text, &t, t.vocab_size()); });
  };
  const Tokenizer& o = organism();
  expect_message(
      message(bytes(), "{\"clean\": \"a Mary\", \"corrupted\": \"a Maru\", \"correct\": [\"x\"]}"),
      "pairs.jsonl, line 1", "found 2 and 5", "\" Mary\"", "\"u\"");
  expect_message(
      message(bytes(), "{\"clean\": \"a\", \"corrupted\": \"b\", \"correct\": [\"Maru\"]}"),
      "key correct: the answer \"Maru\" must be 1 token, found 3: [", "\"Ma\"", "\"r\"");
  expect_message(message(bytes(),
                         "{\"clean\": \"a Mary\", \"corrupted\": \"a John\", \"correct\": [\"x\"], "
                         "\"subject\": \"ary\"}"),
                 "key subject: no tokens of the clean prompt spell \"ary\"", "\" Mary\"");
  expect_message(message(bytes(), "{\"clean\": \"a\", \"corrupted\": \"é\", \"correct\": [\"x\"]}"),
                 "line 1: key corrupted: ");
  expect_message(message(o,
                         "{\"clean\": \"Mary gave\", \"corrupted\": \"Zorblax gave\", "
                         "\"correct\": [\"John\"]}"),
                 "key corrupted: the tokenizer does not know \"Zorblax\"");
  expect_message(message(o,
                         "{\"clean\": \"Mary gave\", \"corrupted\": \"John gave\", "
                         "\"correct\": [\"Zorblax\"]}"),
                 "key correct: the tokenizer does not know the answer \"Zorblax\"");
  expect_message(message(o,
                         "{\"clean\": \"Mary gave\", \"corrupted\": \"John gave\", "
                         "\"correct\": [\"John\"], \"wrong\": [\"Mary\", \"John\"]}"),
                 "answer", "\"John\" is both correct and wrong");
  expect_message(
      message(o, "{\"clean\": \"\", \"corrupted\": \"John gave\", \"correct\": [\"John\"]}"),
      "key clean: the text is empty");
  expect_message(message(o, "{\"clean\": \"Mary\", \"corrupted\": \"John\", \"correct\": [\"\"]}"),
                 "key correct: an answer is empty");
}

TEST(Pairs, FilesThatAreNone) {
  testing::TempDir folder;
  expect_message(message_of([&] { read_pairs(folder.path() / "none.jsonl", nullptr, 10); }),
                 "none.jsonl: cannot open the file: No such file or directory");
  expect_message(message_of([&] { read_pairs(folder.path(), nullptr, 10); }),
                 "a file expected, found a folder");
}

// Cut anywhere, or with any byte replaced, a file is read or refused with an Error, never worse.
TEST(Pairs, BrokenBytesAreRefusedOrRead) {
  const std::string good = line({{"subject", "[0, 1]"}, {"map", "[0, 1, 2]"}, {"id", "\"é\""}});
  ASSERT_EQ(read(good).size(), 1u);
  int refused = 0;
  const auto attempt = [&](const std::string& text) {
    try {
      for (const Pair& pair : read(text)) {
        ASSERT_FALSE(pair.correct.empty());
        for (std::int32_t to : pair.token_map) {
          ASSERT_LT(static_cast<std::size_t>(to), pair.corrupted.size());
        }
      }
    } catch (const Error& error) {
      ++refused;
      ASSERT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos);
    }
  };
  for (std::size_t cut = 0; cut + 2 < good.size(); ++cut) attempt(good.substr(0, cut));
  EXPECT_EQ(refused, static_cast<int>(good.size()) - 2);
  for (std::size_t i = 0; i < good.size(); ++i) {
    for (char byte : {'\0', '\n', '"', '[', '9', '-', '\xff', ','}) {
      std::string broken = good;
      broken[i] = byte;
      attempt(broken);
    }
  }
}

}  // namespace
}  // namespace lamina
