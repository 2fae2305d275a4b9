// lamina codebook.

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/command.h"

namespace lamina::test {
namespace {

using nlohmann::json;

class CodebookVerb : public Cli {
 protected:
  const std::string live_ = std::string("-q codebook --model organism --prompts ") + kPrompts +
                            " --site resid_post:2 --codes 40 --rows 300 --skip 1 ";
};

TEST_F(CodebookVerb, LiveRecordedAndAnyThreadCountAgree) {
  const std::string live = lamina(live_ + "--json");
  const json j = json::parse(live);
  EXPECT_EQ(j["codes"], 40);
  EXPECT_EQ(j["fit"]["rows"], 300);
  EXPECT_GT(j["explained_variance"].get<double>(), 0.2);
  EXPECT_GT(j["cosine"].get<double>(), 0.5);
  EXPECT_EQ(lamina("--threads 1 " + live_ + "--json"), live);
  EXPECT_EQ(lamina("--threads 2 " + live_ + "--json"), live);
  EXPECT_NE(lamina("--seed 3 " + live_ + "--json"), live);
  lamina(std::string("-q record organism --prompts ") + kPrompts + " -o r.h5 --sites resid_post:2");
  EXPECT_EQ(lamina("-q codebook r.h5 --site resid_post:2 --codes 40 --rows 300 --skip 1 --json"),
            live);
}

TEST_F(CodebookVerb, AppliesCodesOfAFile) {
  const json fitted = json::parse(lamina(live_ + "--nearest 2 -o c.h5 --json"));
  json applied = json::parse(lamina(std::string("-q codebook --model organism --prompts ") +
                                    kPrompts + " --apply c.h5 --skip 1 --json"));
  json same = fitted;
  same.erase("fit");
  EXPECT_EQ(applied, same);
  const std::string text = lamina(std::string("-q codebook --model organism --prompts ") +
                                  kPrompts + " --apply c.h5 --skip 1 -o d.h5 --show 3");
  EXPECT_NE(text.find("40, nearest 2"), std::string::npos) << text;
  EXPECT_NE(text.find("fires most often at"), std::string::npos) << text;
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 7 + 1 + 1 + 3) << text;
}

TEST_F(CodebookVerb, MistakesAreOneLine) {
  expect_error("codebook", 2, "nothing to read");
  expect_error("-q codebook --model organism --text the --codes 4", 2, "--site is required");
  expect_error("-q codebook --model organism --text the --site resid_post:2", 2,
               "--codes is required");
  expect_error("-q codebook --model organism --text the --site resid_post:2 --codes 4", 1,
               "4 codes asked for, expected 1 to the number of rows");
  expect_error("-q codebook --model organism --text the --site pattern:2 --codes 1", 2,
               "its values are no vectors of tokens");
  expect_error("-q codebook --model organism --text the --apply no.h5", 1, "no.h5");
  expect_error("-q codebook --model organism --text the --apply no.h5 --codes 4", 2,
               "--codes and --apply were both given");
  lamina("-q lens --model organism --text the -o lens.h5");
  expect_error("-q codebook --model organism --text the --apply lens.h5", 1,
               "lens.h5: it holds no analysis 'codebook'");
}

}  // namespace
}  // namespace lamina::test
