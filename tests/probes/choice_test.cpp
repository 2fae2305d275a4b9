// Multiple-choice files, and their evaluation against passes made one by one without a cache.

#include "lamina/probes/choice.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "lamina/core/error.h"
#include "lamina/core/math.h"
#include "lamina/core/threads.h"
#include "lamina/probes/choice_eval.h"
#include "support/tiny_model.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using testing::TempDir;

class TaskFile : public ::testing::Test {
 protected:
  Task read(const std::string& text) {
    std::ofstream(folder_.path() / "task.jsonl") << text;
    return read_task(folder_.path() / "task.jsonl");
  }
  void expect_error(const std::string& text, const std::string& part) {
    try {
      read(text);
      ADD_FAILURE() << "accepted: " << text;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos)
          << "expected …" << part << "…\ngot " << e.what();
    }
  }
  TempDir folder_;
};

TEST_F(TaskFile, OurLayout) {
  const Task task = read(
      "{\"id\": \"x\", \"topic\": \"t\", \"context\": \"c\", \"question\": \"q?\", \"options\": "
      "[\"a\", \"b\", \"c\"], \"answer\": \"C\"}\n\n"
      "{\"question\": \"r?\", \"options\": [\"a\", \"b\"], \"answer\": 0}\n");
  EXPECT_EQ(task.layout, TaskLayout::lamina);
  ASSERT_EQ(task.questions.size(), 2U);
  EXPECT_EQ(task.questions[0].id, "x");
  EXPECT_EQ(task.questions[0].subject, "t");
  EXPECT_EQ(task.questions[0].context, "c");
  EXPECT_EQ(task.questions[0].right, 2);
  EXPECT_EQ(task.questions[1].id, "3");  // the line
  EXPECT_EQ(task.questions[1].right, 0);
}

TEST_F(TaskFile, Mmlu) {
  const Task task = read(
      "{\"question\": \"q\", \"choices\": [\"a\", \"b\", \"c\", \"d\"], \"answer\": 3, "
      "\"subject\": \"law\"}\n"
      "{\"question\": \"r\", \"choices\": [\"a\", \"b\", \"c\", \"d\"], \"answer\": \"b\", "
      "\"subject\": \"law\"}\n");
  EXPECT_EQ(task.layout, TaskLayout::mmlu);
  EXPECT_EQ(task.questions[0].right, 3);
  EXPECT_EQ(task.questions[1].right, 1);
  EXPECT_EQ(task.questions[0].subject, "law");
}

TEST_F(TaskFile, Arc) {
  const Task task = read(
      "{\"id\": \"M1\", \"question\": {\"stem\": \"q\", \"choices\": [{\"text\": \"a\", \"label\": "
      "\"1\"}, {\"text\": \"b\", \"label\": \"2\"}]}, \"answerKey\": \"2\"}\n"
      "{\"id\": \"M2\", \"question\": \"r\", \"choices\": {\"text\": [\"a\", \"b\", \"c\"], "
      "\"label\": [\"A\", \"B\", \"C\"]}, \"answerKey\": \"A\"}\n");
  EXPECT_EQ(task.layout, TaskLayout::arc);
  EXPECT_EQ(task.questions[0].text, "q");
  EXPECT_EQ(task.questions[0].right, 1);
  EXPECT_EQ(task.questions[1].options.size(), 3U);
  EXPECT_EQ(task.questions[1].right, 0);
}

TEST_F(TaskFile, BoolqAndGpqa) {
  const Task boolq = read(
      "{\"question\": \"is it\", \"passage\": \"p\", \"answer\": true, \"title\": \"t\"}\n"
      "{\"question\": \"was it\", \"passage\": \"p\", \"answer\": false}\n");
  EXPECT_EQ(boolq.layout, TaskLayout::boolq);
  EXPECT_EQ(boolq.questions[0].context, "p");
  EXPECT_EQ(boolq.questions[0].right, 0);
  EXPECT_EQ(boolq.questions[1].right, 1);
  EXPECT_EQ(boolq.questions[1].options, (std::vector<std::string>{"Yes", "No"}));
  const Task gpqa = read(
      "{\"Question\": \"q\", \"Correct Answer\": \"a\", \"Incorrect Answer 1\": \"b\", "
      "\"Incorrect Answer 2\": \"c\", \"Incorrect Answer 3\": \"d\"}\n");
  EXPECT_EQ(gpqa.layout, TaskLayout::gpqa);
  EXPECT_EQ(gpqa.questions[0].options.size(), 4U);
  EXPECT_EQ(gpqa.questions[0].options[gpqa.questions[0].right], "a");
}

TEST_F(TaskFile, BrokenOnesAreRefusedWithTheirLine) {
  const std::string good = "{\"question\": \"q\", \"options\": [\"a\", \"b\"], \"answer\": 0}\n";
  expect_error("", "it holds no questions");
  expect_error("[1]\n", "line 1: expected an object, found array");
  expect_error(good + "{\"question\": \n", "line 2");
  expect_error("{\"prompt\": \"q\"}\n", "line 1: of no known layout");
  expect_error(good + "{\"question\": \"q\", \"choices\": [\"a\", \"b\"], \"answer\": 0}\n",
               "line 2: a question in layout mmlu, the lines before are in layout lamina");
  expect_error("{\"question\": \"q\", \"options\": [\"a\", \"b\"]}\n", "key \"answer\" is missing");
  expect_error("{\"question\": \"q\", \"options\": [\"a\", \"b\"], \"answer\": 2}\n",
               "expected a letter A to B or a number 0 to 1 for 2 options, found 2");
  expect_error("{\"question\": \"q\", \"options\": [\"a\", \"b\"], \"answer\": -1}\n", "found -1");
  expect_error("{\"question\": \"q\", \"options\": [\"a\", \"b\"], \"answer\": \"AB\"}\n",
               "found \"AB\"");
  expect_error("{\"question\": \"q\", \"options\": [\"a\"], \"answer\": 0}\n", "1 options");
  expect_error("{\"question\": \"q\", \"options\": [\"a\", \" \"], \"answer\": 0}\n",
               "texts that are not empty");
  expect_error("{\"question\": 5, \"options\": [\"a\", \"b\"], \"answer\": 0}\n",
               "key \"question\": expected a text, found 5");
  expect_error("{\"question\": \"q\", \"options\": \"ab\", \"answer\": 0}\n", "a list of texts");
  expect_error("{\"question\": \"q\", \"passage\": \"p\", \"answer\": 1}\n", "true or false");
  expect_error(
      "{\"question\": \"q\", \"choices\": {\"text\": [\"a\", \"b\"], \"label\": [\"A\"]}, "
      "\"answerKey\": \"A\"}\n",
      "1 labels for 2 choices");
  expect_error(
      "{\"question\": \"q\", \"choices\": {\"text\": [\"a\", \"b\"], \"label\": [\"A\", "
      "\"B\"]}, \"answerKey\": \"D\"}\n",
      "one of the labels A, B");
  expect_error("{\"Question\": \"q\", \"Correct Answer\": \"a\", \"Incorrect Answer 1\": \"b\"}\n",
               "key \"Incorrect Answer 2\" is missing");
  expect_error(
      "{\"id\": \"x\", \"question\": \"q\", \"options\": [\"a\", \"b\"], \"answer\": 0}\n"
      "{\"id\": \"x\", \"question\": \"q\", \"options\": [\"a\", \"b\"], \"answer\": 0}\n",
      "line 2: id \"x\" stands twice");
  EXPECT_THROW(read_task(folder_.path() / "nothing.jsonl"), Error);
}

TEST_F(TaskFile, ShufflingKeepsTheRightOption) {
  Task task = read_task(fs::path(LAMINA_SOURCE_DIR) / "data/questions/questions.jsonl");
  ASSERT_EQ(task.questions.size(), 120U);
  std::map<std::int64_t, int> places;
  for (const Question& q : task.questions) ++places[q.right];
  EXPECT_EQ(places, (std::map<std::int64_t, int>{{0, 30}, {1, 30}, {2, 30}, {3, 30}}));
  Task a = task, b = task, c = task;
  shuffle_options(a, 7);
  shuffle_options(b, 7);
  shuffle_options(c, 8);
  int moved = 0, differ = 0;
  places.clear();
  for (std::size_t q = 0; q < task.questions.size(); ++q) {
    const Question &before = task.questions[q], &after = a.questions[q];
    EXPECT_EQ(before.options[before.right], after.options[after.right]);
    EXPECT_EQ(std::set(before.options.begin(), before.options.end()),
              std::set(after.options.begin(), after.options.end()));
    EXPECT_EQ(after.options, b.questions[q].options);
    moved += before.options != after.options;
    differ += after.options != c.questions[q].options;
    ++places[after.right];
  }
  EXPECT_GT(moved, 100);
  EXPECT_GT(differ, 100);
  for (const auto& [place, count] : places) EXPECT_NEAR(count, 30, 15) << place;
}

TEST(AnswerLetter, StandsAlone) {
  EXPECT_EQ(answer_letter("B", 4), 1);
  EXPECT_EQ(answer_letter(" (C) because", 4), 2);
  EXPECT_EQ(answer_letter("D.", 4), 3);
  EXPECT_EQ(answer_letter("The answer is B: Bread", 4), 1);
  EXPECT_EQ(answer_letter("All of Anna's cats", 4), std::nullopt);
  EXPECT_EQ(answer_letter("a", 4), std::nullopt);
  EXPECT_EQ(answer_letter("E", 4), std::nullopt);
  EXPECT_EQ(answer_letter("E", 5), 4);
  EXPECT_EQ(answer_letter("B2 or C", 4), 2);
  EXPECT_EQ(answer_letter("Äpfel BÄ", 4), std::nullopt);
  EXPECT_EQ(answer_letter("", 4), std::nullopt);
}

TEST(Wilson, KnownValues) {
  // The formula in Python, double precision.
  const Interval half = wilson(60, 120);
  EXPECT_NEAR(half.low, 0.41193871, 1e-7);
  EXPECT_NEAR(half.high, 0.58806129, 1e-7);
  EXPECT_NEAR(wilson(0, 10).low, 0, 1e-15);
  EXPECT_NEAR(wilson(0, 10).high, 0.27753280, 1e-7);
  EXPECT_NEAR(wilson(10, 10).low, 0.72246720, 1e-7);
  EXPECT_NEAR(wilson(10, 10).high, 1, 1e-15);
  EXPECT_TRUE(std::isnan(wilson(0, 0).low));
}

// The shipped organism: a real tokenizer, quick to run.
class Choices : public ::testing::Test {
 protected:
  Model model{Model::load(fs::path(LAMINA_SOURCE_DIR) / "data/organism")};
  Forward forward{model};
  const Tokenizer& tokenizer = *model.tokenizer();
  Task task;
  ChoiceOptions options;

  Choices() {
    const auto add = [&](const char* text, std::vector<std::string> choices, std::int64_t right) {
      Question& q = task.questions.emplace_back();
      q.id = std::to_string(task.questions.size());
      q.text = text;
      q.options = std::move(choices);
      q.right = right;
    };
    add("The capital of France is", {"Paris", "Rome", "the keys to the cabinet"}, 0);
    add("When Mary and John went to the store", {"John gave a drink", "Mary"}, 1);
    add("the", {"cat", "dog to", "keys", "war lasted"}, 2);
    task.questions[1].context = "The war lasted from the year";
    options.max_new = 4;
  }

  // log p of `tail` after `prefix`, both in one pass.
  double logprob(const std::vector<std::int32_t>& prefix, const std::vector<std::int32_t>& tail,
                 const Hooks& hooks) {
    Batch batch;
    std::vector<std::int32_t> ids = prefix;
    ids.insert(ids.end(), tail.begin(), tail.end());
    batch.add(ids);
    forward.run(batch, hooks);
    double sum = 0;
    std::vector<float> logits(static_cast<std::size_t>(model.config().d_vocab));
    for (std::size_t i = 0; i < tail.size(); ++i) {
      const auto row = static_cast<std::int64_t>(prefix.size() + i) - 1;
      forward.run_logits({&row, 1}, logits);
      sum += logits[static_cast<std::size_t>(tail[i])] - math::log_sum_exp(logits);
    }
    return sum;
  }
};

TEST_F(Choices, EqualPassesOneByOne) {
  const auto prompts = choice_prompts(task, tokenizer, {}, model.config().n_ctx, options.max_new);
  for (SkipMode mode : {SkipMode::none, SkipMode::last_active, SkipMode::blocks}) {
    const double alpha = 0.8;
    SkipRun run(model.config(), {mode, alpha, VoidRule::l2, {}});
    set_threads(2);
    const ChoiceRun got = run_choices(forward, task, prompts, run, {&alpha, 1}, options);
    set_threads(1);
    ChoiceOptions alone = options;
    alone.batch_questions = 1;
    const ChoiceRun single = run_choices(forward, task, prompts, run, {&alpha, 1}, alone);
    EXPECT_EQ(got.chosen, single.chosen);
    EXPECT_EQ(got.generated, single.generated);
    EXPECT_EQ(got.used[0], single.used[0]);
    EXPECT_EQ(got.width, 4);

    VoidCounts counts(1, model.config().n_layers);
    for (std::size_t q = 0; q < 3; ++q) {
      const std::size_t choices = task.questions[q].options.size();
      std::vector<double> text, letter;
      for (std::size_t o = 0; o < choices; ++o) {
        const std::size_t at = q * 4 + o;
        text.push_back(logprob(prompts[q].text.prefix, prompts[q].text.options[o], run.hooks()));
        letter.push_back(
            logprob(prompts[q].letter.prefix, prompts[q].letter.options[o], run.hooks()));
        EXPECT_EQ(got.text_logprob[at], text[o]);
        EXPECT_EQ(single.text_logprob[at], text[o]);
        EXPECT_EQ(got.letter_logprob[at], letter[o]);
        EXPECT_EQ(got.text_tokens[at], static_cast<int>(prompts[q].text.options[o].size()));
      }
      for (std::size_t o = choices; o < 4; ++o)
        EXPECT_TRUE(std::isnan(got.text_logprob[q * 4 + o]));
      EXPECT_EQ(got.chosen[q], std::max_element(text.begin(), text.end()) - text.begin());
      EXPECT_EQ(got.chosen[9 + q], std::max_element(letter.begin(), letter.end()) - letter.begin());

      // The greedy answer, every step from the beginning.
      std::vector<std::int32_t> ids = prompts[q].listed, made;
      for (int step = 0; step < 4; ++step) {
        Batch batch;
        batch.add(ids);
        forward.run(batch, run.hooks());
        if (step == 3 || step == 0) {
          const std::int64_t layers = model.config().n_layers;
          const auto given = static_cast<std::int64_t>(prompts[q].listed.size());
          const auto prefix = static_cast<std::int64_t>(prompts[q].letter.prefix.size());
          for (std::int64_t t = step == 0 ? 0 : given; t < (step == 0 ? prefix : batch.tokens());
               ++t) {
            ++counts.tokens[step == 0 ? 0 : 1];
            for (std::int64_t l = 0; l < layers; ++l) {
              counts.at(0, step == 0 ? 0 : 1, l) += run.active()[t * layers + l];
            }
          }
        }
        std::vector<float> logits(static_cast<std::size_t>(model.config().d_vocab));
        const std::int64_t last = batch.tokens() - 1;
        forward.run_logits({&last, 1}, logits);
        made.push_back(static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) -
                                                 logits.begin()));
        ids.push_back(made.back());
      }
      EXPECT_EQ(got.generated[q], tokenizer.decode(made, true));
    }
    EXPECT_EQ(got.used[0], counts);
  }
}

TEST_F(Choices, UsageAtSeveralAlphas) {
  const auto prompts = choice_prompts(task, tokenizer, {}, model.config().n_ctx, options.max_new);
  const std::vector<double> alphas = {0, 0.4, 1};
  SkipRun none(model.config(), {SkipMode::none, 0.4, VoidRule::l2, {}});
  const ChoiceRun all = run_choices(forward, task, prompts, none, alphas, options);
  for (std::size_t a = 0; a < alphas.size(); ++a) {
    SkipRun one(model.config(), {SkipMode::none, alphas[a], VoidRule::l2, {}});
    const ChoiceRun alone = run_choices(forward, task, prompts, one, {&alphas[a], 1}, options);
    EXPECT_EQ(all.used[a], alone.used[0]);
  }
  EXPECT_GT(all.used[0].model_usage(0, 0), all.used[2].model_usage(0, 0));
  SkipRun blocks(model.config(), {SkipMode::blocks, 0.4, VoidRule::l2, {}});
  EXPECT_THROW(run_choices(forward, task, prompts, blocks, alphas, options), UsageError);
}

TEST_F(Choices, StopTokensEndAnAnswer) {
  const auto prompts = choice_prompts(task, tokenizer, {}, model.config().n_ctx, options.max_new);
  SkipRun run(model.config(), {});
  const double alpha = 0.8;
  for (std::int32_t id = 0; id < model.config().d_vocab; ++id) options.stop.push_back(id);
  const ChoiceRun got = run_choices(forward, task, prompts, run, {&alpha, 1}, options);
  EXPECT_EQ(got.generated[0], "");
  EXPECT_EQ(got.used[0].tokens[1], 0);
  EXPECT_EQ(tally(got, task, ChoiceScore::generated).silent, 3);
}

TEST_F(Choices, PromptsAreWhatTheyShouldBe) {
  task.questions.resize(2);
  const Question example = task.questions[0];
  ChoiceFormat format;
  format.examples = {&example, 1};
  const auto prompts = choice_prompts(task, tokenizer, format, model.config().n_ctx, 4);
  const auto text = [&](const std::vector<std::int32_t>& ids) {
    return tokenizer.decode(ids, true);
  };
  const std::string listed = text(prompts[1].listed);
  EXPECT_EQ(listed, text(tokenizer.encode(
                        "Question: The capital of France is\nA. Paris\nB. Rome\nC. the keys to the "
                        "cabinet\nAnswer: A\n\nThe war lasted from the year\n\nQuestion: When Mary "
                        "and John went to the store\nA. John gave a drink\nB. Mary\nAnswer:")));
  EXPECT_EQ(text(prompts[0].text.options[0]), text(tokenizer.encode("Paris", Bos::never)));
  EXPECT_THROW(choice_prompts(task, tokenizer, format, 20, 4), Error);
  const ChatTemplate chat = ChatTemplate::of(ChatFormat::llama2, "<s>", "</s>");
  format.chat = &chat;
  EXPECT_EQ(choice_prompts(task, tokenizer, format, model.config().n_ctx, 4).size(), 2U);
}

}  // namespace
}  // namespace lamina
