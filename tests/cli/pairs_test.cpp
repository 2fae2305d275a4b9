// lamina pairs as a user types it.

#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/command.h"

namespace lamina::test {
namespace {

using Json = nlohmann::json;

class PairsVerb : public Cli {
 protected:
  static std::vector<Json> lines(const std::string& text) {
    std::vector<Json> out;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) out.push_back(Json::parse(line));
    return out;
  }
};

TEST_F(PairsVerb, EveryTask) {
  for (const char* task : {"ioi", "greater_than", "sva", "capitals", "translation"}) {
    const auto pairs = lines(lamina("-q pairs " + std::string(task) + " --model organism -n 7"));
    ASSERT_EQ(pairs.size(), 7U) << task;
    for (const Json& pair : pairs) {
      EXPECT_NE(pair["clean"], pair["corrupted"]);
      EXPECT_FALSE(pair["correct"].empty());
      EXPECT_FALSE(pair["wrong"].empty());
    }
  }
}

TEST_F(PairsVerb, SeedThreadsAndFile) {
  const std::string verb = "pairs ioi --model organism -n 20 --solved ";
  const std::string first = lamina("-q --threads 1 --seed 3 " + verb);
  EXPECT_EQ(lamina("-q --threads 2 --seed 3 " + verb), first);
  EXPECT_NE(lamina("-q --seed 4 " + verb), first);
  const Outcome written = shell("lamina --seed 3 " + verb + "-o ioi.jsonl");
  EXPECT_EQ(written.code, 0);
  EXPECT_EQ(written.out, "");
  EXPECT_EQ(read_file(folder() / "ioi.jsonl"), first);
  EXPECT_NE(written.err.find("solved 20 of "), std::string::npos) << written.err;
  EXPECT_NE(written.err.find("words unknown to the tokenizer (Albert, "), std::string::npos);
  EXPECT_NE(written.err.find("wrote ioi.jsonl: 20 pairs"), std::string::npos);
  expect_error("-q --seed 3 " + verb + "-o ioi.jsonl", 1, "ioi.jsonl");
  EXPECT_EQ(lamina("-q --seed 3 " + verb + "-o ioi.jsonl --force"), "");
}

// --solved leaves out what the model gets wrong and keeps the rest, in order.
TEST_F(PairsVerb, SolvedIsASubset) {
  const auto all = lines(lamina("-q pairs sva --model organism -n 60"));
  const auto solved = lines(lamina("-q pairs sva --model organism -n 30 --solved"));
  ASSERT_EQ(solved.size(), 30U);
  std::size_t at = 0, skipped = 0;
  for (const Json& pair : solved) {
    while (at < all.size() && all[at] != pair) ++at, ++skipped;
    ASSERT_LT(at, all.size()) << pair;
    ++at;
  }
  EXPECT_GT(skipped, 0U);  // it does not solve all of them
}

TEST_F(PairsVerb, OwnListsAndLanguages) {
  write("own.json",
        R"({"task": "capitals", "templates": ["The capital of {country} is"],
            "lists": {"country": [["France", "Paris"], ["Spain", "Madrid"], ["Zorblax", "Zorb"]]}})");
  const Outcome outcome = shell("lamina pairs capitals --model organism --lists own.json -n 5");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(lines(outcome.out).size(), 2U);  // either of the two against the other
  EXPECT_NE(outcome.err.find("(Zorblax)"), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("2 pairs instead of 5: there are no more"), std::string::npos);

  const auto german =
      lines(lamina("-q pairs translation --model organism --from en --to de --shots 1 -n 3"));
  const auto clean = german.at(0)["clean"].get<std::string>();
  EXPECT_TRUE(clean.starts_with("English : \" ")) << clean;
  EXPECT_TRUE(clean.ends_with("- Deutsch : \"")) << clean;
  EXPECT_EQ(std::count(clean.begin(), clean.end(), '-'), 2);

  const auto abc = lines(lamina("-q pairs ioi --model organism --corruption abc -n 2"));
  const auto name = abc.at(0)["correct"][0].get<std::string>();
  EXPECT_EQ(abc.at(0)["corrupted"].get<std::string>().find(name), std::string::npos);
}

TEST_F(PairsVerb, Mistakes) {
  expect_error("pairs", 2, "see `lamina pairs --help`");
  expect_error("pairs ioi", 2, "--model is required");
  expect_error("pairs oii --model organism", 2, "oii");
  expect_error("pairs ioi --model organism -n 0", 2, "--count");
  expect_error("pairs ioi --model organism --corruption none", 2, "none");
  expect_error("pairs translation --model organism --shots -1", 2, "--shots");
  expect_error("pairs translation --model organism --from xx", 2, "no language \"xx\"");
  expect_error("pairs translation --model organism --from en --to en", 2, "en to itself");
  expect_error("pairs translation --model organism --words a --lists b", 2, "excludes");
  expect_error("pairs ioi --model nowhere", 1, "nowhere");
  expect_error("pairs ioi --model organism --lists none.json", 1, "none.json: cannot open");
  write("sva.json", read_file(LAMINA_SOURCE_DIR "/data/pairs/sva.json"));
  expect_error("pairs ioi --model organism --lists sva.json", 1, "task ioi expected, found sva");
  expect_error("pairs ioi --model planted/induction", 1,
               "planted/induction: no pair of the task ioi fits the tokenizer; left out: 5000 "
               "drafts: words unknown to the tokenizer");
  write("small.json",
        R"({"task": "capitals", "templates": ["The capital of {country} is"],
            "lists": {"country": [["France", "Spain"], ["Spain", "Italy"]]}})");
  expect_error("-q pairs capitals --model organism --solved --lists small.json", 1,
               "the model solves none of ");
}

}  // namespace
}  // namespace lamina::test
