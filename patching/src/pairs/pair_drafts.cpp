#include "pairs/pair_drafts.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "pairs/task_template.h"

namespace lamina {
namespace {

using Values = std::map<std::string, std::string>;
using List = std::vector<std::vector<std::string>>;

// A random template, and a random word for every slot that the task does not fill itself.
struct Sentence {
  std::string text;
  Values values;
};

Sentence draw_sentence(const TaskLists& lists, Draw& draw) {
  Sentence sentence;
  sentence.text = draw.of(lists.templates);
  for (const std::string& slot : template_slots(sentence.text, lists.source)) {
    const auto list = lists.lists.find(slot);
    if (list == lists.lists.end() || sentence.values.contains(slot)) continue;
    sentence.values[slot] = draw.of(list->second).front();
  }
  return sentence;
}

std::string filled(const Sentence& sentence, const Values& changes, std::string_view until = {}) {
  Values values = sentence.values;
  for (const auto& [slot, word] : changes) values[slot] = word;
  return fill_template(sentence.text, values, until);
}

Draft draw_ioi(const TaskLists& lists, IoiCorruption corruption, Draw& draw) {
  const Sentence sentence = draw_sentence(lists, draw);
  const List& names = lists.lists.at("name");
  std::vector<std::string> drawn;
  for (std::size_t i : draw.distinct(5, names.size())) drawn.push_back(names[i].front());
  const std::string &a = drawn[0], &b = drawn[1];
  const bool abba = draw.coin();  // the second name acts: A B … B → A
  const std::string &subject = abba ? b : a, &object = abba ? a : b;

  Draft draft;
  draft.kind = abba ? "abba" : "baba";
  draft.clean = filled(sentence, {{"A", a}, {"B", b}, {"S", subject}});
  switch (corruption) {
    case IoiCorruption::flip:
      draft.corrupted = filled(sentence, {{"A", a}, {"B", b}, {"S", object}});
      draft.differing = 1;
      break;
    case IoiCorruption::order:
      draft.corrupted = filled(sentence, {{"A", b}, {"B", a}, {"S", subject}});
      draft.differing = 2;
      break;
    case IoiCorruption::abc:
      draft.corrupted = filled(sentence, {{"A", drawn[2]}, {"B", drawn[3]}, {"S", drawn[4]}});
      draft.differing = 3;
      break;
  }
  draft.correct = {object};
  draft.wrong = {subject};
  // With the order corrupted, the acting name is the same in both prompts.
  if (corruption != IoiCorruption::order) {
    draft.subject = subject;
    draft.late = true;
  }
  return draft;
}

Draft draw_greater_than(const TaskLists& lists, const TextStyle& style, Draw& draw) {
  const Sentence sentence = draw_sentence(lists, draw);
  const std::string century = draw.of(lists.lists.at("century")).front();
  const auto year = [&](std::size_t y) {
    return fmt::format("{}{}{:02}", century, style.spaced ? " " : "", y);
  };
  Draft draft;
  draft.kind = "year";
  draft.glued = true;
  std::size_t y = 0;
  if (style.two_digits) {
    y = 2 + draw.below(97);  // 02 … 98: above the corrupted 01, and something is later
    for (std::size_t other = 0; other < 100; ++other) {
      (other > y ? draft.correct : draft.wrong).push_back(fmt::format("{:02}", other));
    }
  } else {
    const std::size_t decade = 1 + draw.below(8);
    y = decade * 10 + draw.below(10);
    // The year's own decade is right or wrong by its last digit, which is not asked for.
    for (std::size_t other = 0; other < 10; ++other) {
      if (other == decade) continue;
      (other > decade ? draft.correct : draft.wrong).push_back(std::to_string(other));
    }
  }
  draft.clean = filled(sentence, {{"century", century}, {"start", year(y)}});
  draft.corrupted = filled(sentence, {{"century", century}, {"start", year(1)}});
  draft.subject = year(y);
  return draft;
}

Draft draw_sva(const TaskLists& lists, Draw& draw) {
  Sentence sentence = draw_sentence(lists, draw);
  const List& nouns = lists.lists.at("noun");
  const auto drawn = draw.distinct(2, nouns.size());
  const std::size_t number = draw.below(2), other = 1 - number;  // 0 singular, 1 plural
  // The attractor between noun and verb has the other number.
  sentence.values["attractor"] = nouns[drawn[1]][other];
  if (const auto verbs = lists.lists.find("verb"); verbs != lists.lists.end()) {
    sentence.values["verb"] = draw.of(verbs->second)[other];
  }
  const std::vector<std::string>& noun = nouns[drawn[0]];
  Draft draft;
  draft.kind = number == 0 ? "singular" : "plural";
  draft.clean = filled(sentence, {{"noun", noun[number]}});
  draft.corrupted = filled(sentence, {{"noun", noun[other]}});
  for (const auto& verb : lists.lists.at("answer")) {
    draft.correct.push_back(verb[number]);
    draft.wrong.push_back(verb[other]);
  }
  draft.subject = noun[number];
  return draft;
}

Draft draw_capitals(const TaskLists& lists, Draw& draw) {
  const Sentence sentence = draw_sentence(lists, draw);
  const List& countries = lists.lists.at("country");
  const auto drawn = draw.distinct(2, countries.size());
  const auto &here = countries[drawn[0]], &there = countries[drawn[1]];
  Draft draft;
  draft.kind = "capital";
  draft.clean = filled(sentence, {{"country", here[0]}});
  draft.corrupted = filled(sentence, {{"country", there[0]}});
  draft.correct = {here[1]};
  draft.wrong = {there[1]};
  draft.subject = here[0];
  return draft;
}

Draft draw_translation(const TaskLists& lists, std::int64_t shots, Draw& draw) {
  const Sentence sentence = draw_sentence(lists, draw);
  const List& words = lists.lists.at("word");
  const auto examples = static_cast<std::size_t>(shots);
  const auto drawn = draw.distinct(examples + 2, words.size());
  const auto values = [&](std::size_t i) {
    const auto& word = words[drawn[i]];
    return Values{{"word", word[0]}, {"translation", word[1]}};
  };
  std::string before;
  for (std::size_t i = 2; i < drawn.size(); ++i) before += filled(sentence, values(i));
  Draft draft;
  draft.kind = "word";
  draft.glued = true;
  draft.clean = before + filled(sentence, values(0), "translation");
  draft.corrupted = before + filled(sentence, values(1), "translation");
  draft.correct = {words[drawn[0]][1]};
  draft.wrong = {words[drawn[1]][1]};
  draft.subject = words[drawn[0]][0];
  return draft;
}

// Blanks around punctuation, none twice, line breaks as blanks.
std::string with_blanks(std::string_view text) {
  std::string out;
  const auto blank = [&] {
    if (!out.empty() && out.back() != ' ') out += ' ';
  };
  for (char c : text) {
    if (c == ' ' || c == '\n') {
      blank();
    } else if (std::string_view(".,:;!?\"()").find(c) != std::string_view::npos) {
      blank();
      out += c;
      out += ' ';
    } else {
      out += c;
    }
  }
  while (out.ends_with(' ')) out.pop_back();
  return out;
}

}  // namespace

std::size_t Draw::below(std::size_t n) {
  // The part of the engine's range that n does not divide is thrown away.
  const std::uint64_t limit = engine_.max() - engine_.max() % n;
  std::uint64_t value = engine_();
  while (value >= limit) value = engine_();
  return static_cast<std::size_t>(value % n);
}

std::vector<std::size_t> Draw::distinct(std::size_t count, std::size_t n) {
  std::vector<std::size_t> all(n);
  std::iota(all.begin(), all.end(), std::size_t{0});
  for (std::size_t i = 0; i < count; ++i) std::swap(all[i], all[i + below(n - i)]);
  all.resize(count);
  return all;
}

Draft draw_pair(const TaskLists& lists, const PairTaskOptions& options, const TextStyle& style,
                Draw& draw) {
  Draft draft = lists.task == "ioi"            ? draw_ioi(lists, options.corruption, draw)
                : lists.task == "greater_than" ? draw_greater_than(lists, style, draw)
                : lists.task == "sva"          ? draw_sva(lists, draw)
                : lists.task == "capitals"     ? draw_capitals(lists, draw)
                                               : draw_translation(lists, options.shots, draw);
  if (style.spaced) {
    draft.clean = with_blanks(draft.clean);
    draft.corrupted = with_blanks(draft.corrupted);
  }
  return draft;
}

}  // namespace lamina
