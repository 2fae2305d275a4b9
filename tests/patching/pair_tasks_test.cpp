#include "lamina/patching/pair_tasks.h"

#include <algorithm>

#include "lamina/patching/metric.h"
#include "pairs/pair_drafts.h"
#include "patching/support.h"

namespace lamina {
namespace {

using testing::expect_message;
using testing::message_of;
using testing::TempDir;
using testing::TextFile;

const std::filesystem::path kData = std::filesystem::path(LAMINA_SOURCE_DIR) / "data";

const Model& organism() {
  static const Model model = Model::load(kData / "organism");
  return model;
}
const Tokenizer& tokenizer() {
  return *organism().tokenizer();
}

TaskLists shipped(const std::string& task) {
  if (task == "translation") {
    return translation_lists(read_word_list(kData / "words/concepts.json"), "fr", "en");
  }
  return read_task_lists(kData / "pairs" / (task + ".json"));
}

std::vector<MadePair> make(TaskLists lists, std::size_t count, PairTaskOptions options = {},
                           const Tokenizer& t = tokenizer()) {
  PairMaker maker(std::move(lists), t, t.vocab_size(), options);
  std::vector<MadePair> pairs;
  while (pairs.size() < count) {
    auto pair = maker.next();
    if (!pair) break;
    pairs.push_back(std::move(*pair));
  }
  return pairs;
}

std::vector<std::string> words(const Tokenizer& t, const std::vector<std::int32_t>& ids) {
  std::vector<std::string> out;
  for (std::int32_t id : ids) out.push_back(t.piece(id));
  return out;
}
std::vector<std::string> words(const std::vector<std::int32_t>& ids) {
  return words(tokenizer(), ids);
}

std::int64_t count(const std::vector<std::int32_t>& ids, std::int32_t id) {
  return std::count(ids.begin(), ids.end(), id);
}

class Tasks : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, Tasks,
                         ::testing::Values("ioi", "greater_than", "sva", "capitals", "translation"),
                         [](const auto& which) { return std::string(which.param); });

// What is written reads as the same pairs; no pair comes twice.
TEST_P(Tasks, WrittenPairsAreRead) {
  const auto made = make(shipped(GetParam()), 60);
  ASSERT_EQ(made.size(), 60u);
  std::string text;
  for (const MadePair& pair : made) text += pair.json + "\n";
  const TextFile file(text);
  const auto read = read_pairs(file.path, &tokenizer(), tokenizer().vocab_size());
  ASSERT_EQ(read.size(), made.size());
  std::set<std::pair<std::vector<std::int32_t>, std::vector<std::int32_t>>> different;
  for (std::size_t i = 0; i < read.size(); ++i) {
    EXPECT_EQ(read[i].id, made[i].pair.id);
    EXPECT_EQ(read[i].clean, made[i].pair.clean);
    EXPECT_EQ(read[i].corrupted, made[i].pair.corrupted);
    EXPECT_EQ(read[i].correct, made[i].pair.correct);
    EXPECT_EQ(read[i].wrong, made[i].pair.wrong);
    EXPECT_EQ(read[i].subject, made[i].pair.subject);
    EXPECT_EQ(read[i].clean.size(), read[i].corrupted.size());
    EXPECT_NE(read[i].clean, read[i].corrupted);
    ASSERT_TRUE(read[i].subject);
    // The first thing that differs is in the subject, or in front of it for IOI with all names new.
    EXPECT_GE(read[i].first_difference(), read[i].subject->first);
    EXPECT_LT(read[i].first_difference(), read[i].subject->second);
    different.emplace(read[i].clean, read[i].corrupted);
  }
  EXPECT_EQ(different.size(), read.size());
}

TEST_P(Tasks, TheSeedDecides) {
  const auto text = [&](std::uint64_t seed) {
    std::string out;
    for (const MadePair& p : make(shipped(GetParam()), 10, {.seed = seed})) out += p.json + "\n";
    return out;
  };
  EXPECT_EQ(text(4), text(4));
  EXPECT_NE(text(4), text(5));
}

// The organism was trained on such sentences; it must see the difference far more often than not.
TEST_P(Tasks, TheOrganismSolvesThem) {
  std::vector<Pair> pairs;
  for (MadePair& made : make(shipped(GetParam()), 40)) pairs.push_back(std::move(made.pair));
  Forward forward(organism());
  const auto clean = logit_differences(forward, pairs, false);
  const auto corrupted = logit_differences(forward, pairs, true);
  const auto positive = [](const std::vector<double>& values) {
    return std::count_if(values.begin(), values.end(), [](double v) { return v > 0; });
  };
  EXPECT_GE(positive(clean), 26);
  for (std::size_t i = 0; i < pairs.size(); ++i) EXPECT_NE(clean[i], corrupted[i]);
}

TEST(PairTasks, IoiFlip) {
  int abba = 0;
  for (const auto& [pair, json] : make(shipped("ioi"), 50)) {
    const std::int32_t object = pair.correct.at(0), subject = pair.wrong.at(0);
    EXPECT_EQ(count(pair.clean, object), 1);
    EXPECT_EQ(count(pair.clean, subject), 2);
    EXPECT_EQ(count(pair.corrupted, object), 2);
    EXPECT_EQ(count(pair.corrupted, subject), 1);
    const auto at = static_cast<std::size_t>(pair.subject->first);
    EXPECT_EQ(pair.subject->second, pair.subject->first + 1);
    EXPECT_EQ(pair.clean[at], subject);
    EXPECT_EQ(pair.corrupted[at], object);
    EXPECT_EQ(pair.first_difference(), pair.subject->first);
    const auto first = [&](std::int32_t id) {
      return std::find(pair.clean.begin(), pair.clean.end(), id);
    };
    const bool object_first = first(object) < first(subject);
    EXPECT_EQ(pair.id.find("abba") != std::string::npos, object_first) << pair.id;
    abba += object_first;
  }
  EXPECT_GT(abba, 10);
  EXPECT_LT(abba, 40);
}

TEST(PairTasks, IoiOrder) {
  for (const auto& [pair, json] : make(shipped("ioi"), 30, {.corruption = IoiCorruption::order})) {
    auto clean = pair.clean, corrupted = pair.corrupted;
    EXPECT_EQ(clean.back(), corrupted.back());
    std::vector<std::size_t> at;
    for (std::size_t i = 0; i < clean.size(); ++i) {
      if (clean[i] != corrupted[i]) at.push_back(i);
    }
    ASSERT_EQ(at.size(), 2u);
    EXPECT_EQ(clean[at[0]], corrupted[at[1]]);
    EXPECT_EQ(clean[at[1]], corrupted[at[0]]);
    EXPECT_EQ(count(clean, pair.wrong[0]), 2);
    EXPECT_EQ(count(corrupted, pair.wrong[0]), 2);
    EXPECT_FALSE(pair.subject);
  }
}

TEST(PairTasks, IoiAbc) {
  for (const auto& [pair, json] : make(shipped("ioi"), 30, {.corruption = IoiCorruption::abc})) {
    std::vector<std::int32_t> names;
    for (std::size_t i = 0; i < pair.clean.size(); ++i) {
      if (pair.clean[i] != pair.corrupted[i]) names.push_back(pair.corrupted[i]);
    }
    ASSERT_EQ(names.size(), 3u);
    std::sort(names.begin(), names.end());
    EXPECT_EQ(std::unique(names.begin(), names.end()), names.end());
    EXPECT_EQ(count(pair.corrupted, pair.correct[0]), 0);
    EXPECT_EQ(count(pair.corrupted, pair.wrong[0]), 0);
  }
}

TEST(PairTasks, GreaterThanInTwoDigits) {
  for (const auto& [pair, json] : make(shipped("greater_than"), 40)) {
    const auto clean = words(pair.clean), corrupted = words(pair.corrupted);
    const auto at = static_cast<std::size_t>(pair.first_difference());
    const int year = std::stoi(clean[at]);
    EXPECT_EQ(corrupted[at], "01");
    EXPECT_EQ(clean[at - 1], clean.back());  // the century is asked to go on
    EXPECT_EQ(pair.correct.size() + pair.wrong.size(), 100u);
    for (const std::string& later : words(pair.correct)) EXPECT_GT(std::stoi(later), year);
    for (const std::string& earlier : words(pair.wrong)) EXPECT_LE(std::stoi(earlier), year);
    EXPECT_EQ(pair.subject,
              std::pair(static_cast<std::int32_t>(at) - 1, static_cast<std::int32_t>(at) + 1));
  }
}

// A byte-level tokenizer of single characters and these longer tokens ("Ġ" is the blank).
Tokenizer characters_and(const std::vector<std::string>& longer) {
  std::string vocab = "\"Ġ\": 0, \"Ċ\": 1", merges;
  int id = 2;
  for (char c = '!'; c <= '~'; ++c) {
    const std::string name = c == '"' || c == '\\' ? std::string("\\") + c : std::string(1, c);
    vocab += fmt::format(", \"{}\": {}", name, id++);
  }
  std::set<std::string> known;
  for (const std::string& token : longer) {  // letter by letter from the left
    std::size_t end = token.starts_with("Ġ") ? 2 : 1;
    for (; end < token.size(); ++end) {
      const std::string left = token.substr(0, end), right = token.substr(end, 1);
      if (!known.insert(left + right).second) continue;
      vocab += fmt::format(", \"{}\": {}", left + right, id++);
      merges += fmt::format("{}\"{} {}\"", merges.empty() ? "" : ", ", left, right);
    }
  }
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
      "characters");
}

TEST(PairTasks, GreaterThanDigitByDigit) {
  const Tokenizer t = characters_and({});
  const auto made = make(shipped("greater_than"), 40, {}, t);
  ASSERT_EQ(made.size(), 40u);
  for (const auto& [pair, json] : made) {
    const auto at = static_cast<std::size_t>(pair.subject->first);
    ASSERT_EQ(pair.subject->second - pair.subject->first, 4);
    const std::string decade = t.piece(pair.clean[at + 2]);
    EXPECT_EQ(t.piece(pair.corrupted[at + 2]), "0");
    EXPECT_EQ(t.piece(pair.corrupted[at + 3]), "1");
    EXPECT_EQ(pair.correct.size() + pair.wrong.size(), 9u);
    for (const std::string& later : words(t, pair.correct)) EXPECT_GT(later, decade);
    for (const std::string& earlier : words(t, pair.wrong)) EXPECT_LT(earlier, decade);
  }
}

// Where century and answer would become one token, a pair says nothing about the model.
TEST(PairTasks, AnswersThatMergeAreLeftOut) {
  const Tokenizer t = characters_and({"83"});
  PairMaker maker(shipped("greater_than"), t, t.vocab_size());
  for (int i = 0; i < 30; ++i) {
    const auto made = maker.next();
    ASSERT_TRUE(made);
    EXPECT_NE(t.piece(made->pair.clean.back()), "8") << made->json;
  }
  const auto merged = maker.dropped().find("answers that merge with the prompt");
  ASSERT_NE(merged, maker.dropped().end());
  EXPECT_EQ(merged->second.words, std::set<std::string>{"3"});
}

TEST(PairTasks, AnswersOfSeveralTokensAreLeftOut) {
  const Tokenizer t = characters_and({});
  PairMaker maker(shipped("capitals"), t, t.vocab_size());
  EXPECT_FALSE(maker.next());
  const auto several = maker.dropped().at("answers that are not one token");
  EXPECT_GT(several.drafts, 10);
  EXPECT_TRUE(several.words.contains("Paris"));
  EXPECT_GT(maker.dropped().at("prompts of unequal lengths").drafts, 10);
  EXPECT_EQ(maker.drafts(), 5000);
}

// "is" is a token only without a blank in front, which is not what follows a word.
TEST(PairTasks, AnswersNeedTheirBlank) {
  const Tokenizer t = characters_and({"is"});
  const auto lists = [](std::string_view end) {
    return parse_task_lists(fmt::format(R"({{"task": "capitals", "templates": ["{{country}}{}"],
                         "lists": {{"country": [["a", "is"], ["b", "c"]]}}}})",
                                        end),
                            "own.json");
  };
  PairMaker maker(lists(" to"), t, t.vocab_size());
  EXPECT_FALSE(maker.next());
  EXPECT_EQ(maker.dropped().at("answers that are not one token").words,
            (std::set<std::string>{"c", "is"}));
}

// In a byte-level tokenizer the first name of a sentence has no blank; where it is several tokens,
// other names of together as many tokens would stand beside each other's places.
TEST(PairTasks, PromptsOfIoiAreAligned) {
  const TaskLists lists = parse_task_lists(
      R"({"task": "ioi", "templates": ["{A} and {B} met, {S} gave it to"],
          "lists": {"name": ["Mary", "Zo", "Flo", "John", "Ann", "Kim"]}})",
      "own.json");
  const Tokenizer t = characters_and({"ĠMary", "ĠZo", "ĠFlo", "ĠJohn", "ĠAnn", "ĠKim", "Mary"});
  for (const auto corruption : {IoiCorruption::order, IoiCorruption::abc}) {
    PairMaker maker(lists, t, t.vocab_size(), {.corruption = corruption});
    const std::size_t expected = corruption == IoiCorruption::order ? 2 : 3;
    while (const auto made = maker.next()) {
      std::size_t differing = 0;
      for (std::size_t i = 0; i < made->pair.clean.size(); ++i) {
        differing += made->pair.clean[i] != made->pair.corrupted[i];
      }
      EXPECT_EQ(differing, expected) << made->json;
    }
    EXPECT_GT(maker.dropped().at("names that are not one token each").drafts, 0);
  }
}

TEST(PairTasks, UnknownWordsAreLeftOut) {
  const Tokenizer letters = Tokenizer::load(kData / "planted/induction");
  PairMaker maker(shipped("sva"), letters, letters.vocab_size());
  EXPECT_FALSE(maker.next());
  ASSERT_EQ(maker.dropped().size(), 1u);
  EXPECT_TRUE(maker.dropped().at("words unknown to the tokenizer").words.contains("The"));
}

TEST(PairTasks, AgreementAcrossAnAttractor) {
  const TaskLists lists = shipped("sva");
  std::map<std::string, int> number;  // of every noun's form
  for (const auto& forms : lists.lists.at("noun")) number[forms[0]] = 0, number[forms[1]] = 1;
  int plural = 0;
  for (const auto& [pair, json] : make(lists, 40)) {
    const auto clean = words(pair.clean), corrupted = words(pair.corrupted);
    const auto at = static_cast<std::size_t>(pair.subject->first);
    const int n = number.at(clean[at]);
    EXPECT_EQ(number.at(corrupted[at]), 1 - n);
    bool attractor = false;
    for (std::size_t i = at + 1; i < clean.size(); ++i) {
      if (const auto noun = number.find(clean[i]); noun != number.end()) {
        EXPECT_EQ(noun->second, 1 - n) << json;
        attractor = true;
      }
    }
    EXPECT_TRUE(attractor);
    if (clean.back().starts_with("like")) {  // agrees with the attractor
      EXPECT_EQ(clean.back(), n == 1 ? "likes" : "like");
    }
    EXPECT_EQ(words(pair.correct), n == 0 ? (std::vector<std::string>{"is", "was"})
                                          : (std::vector<std::string>{"are", "were"}));
    plural += n;
  }
  EXPECT_GT(plural, 8);
  EXPECT_LT(plural, 32);
}

TEST(PairTasks, CapitalsBelongToTheirCountries) {
  const TaskLists lists = shipped("capitals");
  std::map<std::string, std::string> capital;
  for (const auto& forms : lists.lists.at("country")) capital[forms[0]] = forms[1];
  for (const auto& [pair, json] : make(lists, 40)) {
    const auto at = static_cast<std::size_t>(pair.subject->first);
    EXPECT_EQ(words(pair.correct).at(0), capital.at(words(pair.clean)[at]));
    EXPECT_EQ(words(pair.wrong).at(0), capital.at(words(pair.corrupted)[at]));
  }
}

TEST(PairTasks, TranslationShots) {
  const auto shots = [](std::int64_t n) {
    const auto made = make(shipped("translation"), 5, {.shots = n});
    EXPECT_EQ(made.size(), 5u);
    return made.at(0);
  };
  const MadePair none = shots(0), two = shots(2);
  EXPECT_EQ(none.pair.clean.size(), 10u);  // <bos> Français : " mot " - English : " without quotes
  EXPECT_EQ(two.pair.clean.size(), none.pair.clean.size() + 22);
  expect_message(message_of<UsageError>([&] { shots(200); }), "200 examples", "need 202 words");
  expect_message(message_of<UsageError>([&] { shots(-1); }), "-1 examples");
  expect_message(message_of<UsageError>([] {
                   translation_lists(read_word_list(kData / "words/concepts.json"), "fr", "fr");
                 }),
                 "fr to itself");
}

// One run a pair, the plain way.
TEST(PairTasks, LogitDifferencesAreThoseOfSingleRuns) {
  std::vector<Pair> pairs;
  for (MadePair& made : make(shipped("capitals"), 40)) pairs.push_back(std::move(made.pair));
  Forward forward(organism());
  const auto together = logit_differences(forward, pairs, true);
  ASSERT_EQ(together.size(), pairs.size());
  const Metric metric(MetricKind::logit_diff, pairs, organism().config().d_vocab);
  std::vector<float> logits(static_cast<std::size_t>(organism().config().d_vocab));
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    Batch batch;
    batch.add(pairs[i].corrupted);
    forward.run(batch);
    const std::vector<std::int64_t> last = {batch.tokens() - 1};
    forward.run_logits(last, logits);
    EXPECT_EQ(together[i], metric.value(static_cast<std::int64_t>(i), logits));
  }
}

TEST(Draw, IsTheSameEverywhere) {
  // The engine's values are fixed by the C++ standard: its 10000th from the default seed is
  // 9981545732273789042.
  Draw draw(5489);
  for (int i = 1; i < 10000; ++i) draw.below(1);
  EXPECT_EQ(draw.below(1000), 9981545732273789042U % 1000);
  EXPECT_EQ(Draw(1).distinct(5, 5).size(), 5u);
  auto all = Draw(1).distinct(50, 50);
  std::sort(all.begin(), all.end());
  for (std::size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], i);
}

struct BadLists {
  const char* name;
  std::string json;
  std::vector<std::string> parts;
};
void PrintTo(const BadLists& bad, std::ostream* out) {
  *out << bad.name;
}
class BadTask : public ::testing::TestWithParam<BadLists> {};

TEST_P(BadTask, IsRefused) {
  const std::string message = message_of([] { parse_task_lists(GetParam().json, "own.json"); });
  expect_message(message, "own.json: ");
  for (const std::string& part : GetParam().parts) expect_message(message, part);
}

std::string ioi(const std::string& text,
                const std::string& lists = R"("name": ["a", "b", "c", "d", "e", "f"])") {
  return R"({"task": "ioi", "templates": [")" + text + "\"], \"lists\": {" + lists + "}}";
}

INSTANTIATE_TEST_SUITE_P(
    PairTasks, BadTask,
    ::testing::Values(
        BadLists{"NotJson", "{", {"no valid JSON"}},
        BadLists{"Utf8", "\"\xff\"", {"not valid UTF-8"}},
        BadLists{"Array", "[]", {"an object expected, found array"}},
        BadLists{"Key", R"({"tasks": 1})", {"key \"tasks\" is not one of"}},
        BadLists{"Missing", R"({"task": "ioi"})", {"key templates is missing"}},
        BadLists{"Task",
                 R"({"task": "x", "templates": [], "lists": {}})",
                 {"task \"x\" is not one of ioi, greater_than, sva, capitals, translation"}},
        BadLists{"TemplatesType",
                 R"({"task": "ioi", "templates": "x", "lists": {}})",
                 {"templates: an array expected, found string"}},
        BadLists{"TemplateType",
                 R"({"task": "ioi", "templates": [1], "lists": {}})",
                 {"templates[0]: a string expected, found number"}},
        BadLists{
            "NoTemplate",
            R"({"task": "ioi", "templates": [], "lists": {"name": ["a","b","c","d","e","f"]}})",
            {"at least 1 template expected"}},
        BadLists{"NoList", ioi("{A} {B} {S}", ""), {"needs a list \"name\""}},
        BadLists{"Short",
                 ioi("{A} {B} {S}", R"("name": ["a", "b"])"),
                 {"list \"name\": at least 6 entries expected, found 2"}},
        BadLists{"Twice",
                 ioi("{A} {B} {S}", R"("name": ["a", "b", "a", "d", "e", "f"])"),
                 {"\"a\" occurs twice"}},
        BadLists{"Forms",
                 ioi("{A} {B} {S}", R"("name": ["a", "b", "c", "d", "e", ["f", "g"]])"),
                 {"1 forms of every entry expected, \"f\" has 2"}},
        BadLists{"NoForms",
                 ioi("{A} {B} {S}", R"("name": ["a", "b", "c", "d", "e", []])"),
                 {"1 forms of every entry expected"}},
        BadLists{"EntryType",
                 ioi("{A} {B} {S}", R"("name": [1])"),
                 {"list \"name\"[0]: a string expected, found number"}},
        BadLists{"EmptyWord", ioi("{A} {B} {S}", R"("name": [""])"), {"\"name\"[0] is empty"}},
        BadLists{"Control", ioi("{A} {B} {S}", R"("name": ["\u0007"])"), {"control character"}},
        BadLists{"SlotMissing", ioi("{A} {B}"), {"slot {S} is missing"}},
        BadLists{"SlotUnknown", ioi("{A} {B} {S} {thing}"), {"no list for the slot {thing}"}},
        BadLists{"Brace", ioi("{A} {B} {S} {"), {"braces that are no slot at byte 12"}},
        BadLists{"BraceTwice", ioi("{A} {B} {S} {{x}"), {"braces"}},
        BadLists{"BraceClosed", ioi("{A} {B} {S} }"), {"braces"}},
        BadLists{"BraceEmpty", ioi("{A} {B} {S} {}"), {"braces"}},
        BadLists{"SvaForms",
                 R"({"task": "sva", "templates": ["{noun}"],
                     "lists": {"noun": ["a", "b"], "answer": [["is", "are"]]}})",
                 {"list \"noun\": 2 forms of every entry expected, \"a\" has 1"}},
        BadLists{"SvaVerb",
                 R"({"task": "sva", "templates": ["{noun} {verb}"],
                     "lists": {"noun": [["a", "b"], ["c", "d"]], "answer": [["is", "are"]]}})",
                 {"no list for the slot {verb}"}}),
    [](const auto& which) { return which.param.name; });

TEST(PairTasks, FilesThatAreNone) {
  TempDir folder;
  expect_message(message_of([&] { read_task_lists(folder.path() / "none.json"); }),
                 "none.json: cannot open");
  expect_message(message_of([&] { read_task_lists(folder.path()); }), "found a folder");
  expect_message(message_of<UsageError>([] { parse_ioi_corruption("cba"); }), "flip, order, abc");
}

}  // namespace
}  // namespace lamina
