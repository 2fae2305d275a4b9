#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "lamina/probes/latent.h"

namespace lamina {
namespace {

using Ids = std::vector<std::int32_t>;

// A vocabulary in the manner of Llama 2: bytes, characters, and a few longer entries (without
// merges: encode() spells everything out, but the entries are there to be found).
Tokenizer make_tokenizer() {
  nlohmann::json vocab;
  std::int32_t next = 0;
  const auto add = [&](const std::string& entry) { vocab[entry] = next++; };
  add("<unk>");
  add("<s>");
  add("</s>");
  for (int b = 0; b < 256; ++b) add(fmt::format("<0x{:02X}>", b));
  for (char c = 'a'; c <= 'z'; ++c) add(std::string(1, c));
  for (const char* c : {"▁", "\"", ":", "-", ".", "E", "F", "A", "P", "猫", "犬", "书", "é"})
    add(c);
  for (const char* c : {"ca", "▁c", "▁ca", "▁cat", "ch", "▁chat", "do", "▁do"}) add(c);
  nlohmann::json file = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", nlohmann::json::array()},
      {"normalizer",
       {{"type", "Sequence"},
        {"normalizers",
         {{{"type", "Prepend"}, {"prepend", "▁"}},
          {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}}}}}},
      {"pre_tokenizer", nullptr},
      {"post_processor", nullptr},
      {"decoder",
       {{"type", "Sequence"},
        {"decoders",
         {{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}},
          {{"type", "ByteFallback"}},
          {{"type", "Fuse"}},
          {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", "<unk>"},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", true},
        {"byte_fallback", true},
        {"vocab", vocab},
        {"merges", nlohmann::json::array()}}}};
  return Tokenizer::from_json(file.dump(), "test");
}

Ids entries(const Tokenizer& t, const std::vector<std::string>& names) {
  Ids ids;
  for (const std::string& name : names) {
    const auto id = t.find_name(name);
    EXPECT_TRUE(id.has_value()) << name;
    if (id) ids.push_back(*id);
  }
  std::sort(ids.begin(), ids.end());
  return ids;
}

WordList make_words() {
  return parse_word_list(R"({
    "languages": {"en": "English", "fr": "Fr", "zh": "Zh"},
    "words": [{"id": "cat", "en": ["cat"], "fr": ["chat", "minou"], "zh": ["猫"]},
              {"id": "dog", "en": ["dog"], "fr": ["chien"], "zh": ["犬"]},
              {"id": "book", "en": ["book"], "fr": ["livre"], "zh": ["书"]},
              {"id": "summer", "en": ["summer"], "fr": ["été"], "zh": ["夏"]},
              {"id": "piano", "en": ["piano"], "fr": ["PianoForte"], "zh": ["琴"]},
              {"id": "rock", "en": ["rock"], "fr": ["rockeur"], "zh": ["岩"]},
              {"id": "void", "en": ["void"], "zh": ["空"]}],
    "cloze": [{"id": "book", "en": "A \"___\" is read. Answer: \"book\".",
               "fr": "Un \"___\" se lit. R : \"livre\"."},
              {"id": "cat", "en": "A \"___\" purrs. Answer: \"cat\".",
               "fr": "Un \"___\" ronronne. R : \"chat\"."},
              {"id": "dog", "en": "A \"___\" barks. Answer: \"dog\".",
               "fr": "Un \"___\" aboie. R : \"un chien\"."}]})",
                         "words.json");
}

TEST(WordTokens, EveryPrefixWithAndWithoutSpace) {
  const Tokenizer t = make_tokenizer();
  EXPECT_EQ(word_tokens(t, "cat", false), entries(t, {"c", "ca", "▁c", "▁ca", "▁cat"}));
  EXPECT_EQ(word_tokens(t, "chat", false), entries(t, {"c", "ch", "▁c", "▁chat"}));
  // Prefixes are of characters, not of bytes; the byte entry only when asked for.
  EXPECT_EQ(word_tokens(t, "猫", false), entries(t, {"猫"}));
  EXPECT_EQ(word_tokens(t, "猫", true), entries(t, {"<0xE7>", "猫"}));
  EXPECT_EQ(word_tokens(t, "夏", false), Ids{});
  EXPECT_EQ(word_tokens(t, "夏", true), entries(t, {"<0xE5>"}));
  EXPECT_EQ(word_tokens(t, "", true), Ids{});
}

TEST(LatentTask, TranslationPrompts) {
  const Tokenizer t = make_tokenizer();
  LatentTaskOptions o;
  o.from = "fr";
  o.to = "zh";
  const LatentTask task = make_latent_task(make_words(), t, o);
  EXPECT_EQ(task.languages, (std::vector<std::string>{"zh", "en", "fr"}));
  ASSERT_EQ(task.items.size(), 6U);  // all but "void", which French lacks
  EXPECT_EQ(task.dropped.at("word missing in a language of the prompt"), 1);
  const LatentItem& cat = task.items[0];
  EXPECT_EQ(cat.prompt.id, "cat");
  EXPECT_EQ(cat.words, (std::vector<std::string>{"猫", "cat", "chat"}));
  EXPECT_EQ(cat.tokens[0], entries(t, {"<0xE7>", "猫"}));
  EXPECT_EQ(cat.prompt.ids, t.encode(cat.prompt.text));
  EXPECT_EQ(cat.prompt.target, t.find_name("猫"));

  // Four shots, then the query, open at the answer's quote.
  const std::string query = "Fr: \"chat\" - Zh: \"";
  ASSERT_GE(cat.prompt.text.size(), query.size());
  EXPECT_EQ(cat.prompt.text.substr(cat.prompt.text.size() - query.size()), query);
  EXPECT_EQ(std::count(cat.prompt.text.begin(), cat.prompt.text.end(), '\n'), 4);
  std::vector<std::string> lines;
  for (std::size_t at = 0; at < cat.prompt.text.size();) {
    const std::size_t end = std::min(cat.prompt.text.find('\n', at), cat.prompt.text.size());
    lines.push_back(cat.prompt.text.substr(at, end - at));
    at = end + 1;
  }
  const std::vector<std::string> possible = {
      "Fr: \"chien\" - Zh: \"犬\"", "Fr: \"livre\" - Zh: \"书\"", "Fr: \"été\" - Zh: \"夏\"",
      "Fr: \"PianoForte\" - Zh: \"琴\"", "Fr: \"rockeur\" - Zh: \"岩\""};
  std::vector<std::string> shots(lines.begin(), lines.end() - 1);
  for (const std::string& shot : shots) {
    EXPECT_NE(std::find(possible.begin(), possible.end(), shot), possible.end()) << shot;
  }
  std::sort(shots.begin(), shots.end());
  EXPECT_EQ(std::unique(shots.begin(), shots.end()), shots.end());  // no shot twice

  // The seed decides the shots, and nothing else does.
  const LatentTask again = make_latent_task(make_words(), t, o);
  o.seed = 1;
  const LatentTask other = make_latent_task(make_words(), t, o);
  bool differs = false;
  for (std::size_t i = 0; i < task.items.size(); ++i) {
    EXPECT_EQ(task.items[i].prompt.text, again.items[i].prompt.text);
    differs |= task.items[i].prompt.text != other.items[i].prompt.text;
  }
  EXPECT_TRUE(differs);
}

TEST(LatentTask, DropRules) {
  const Tokenizer t = make_tokenizer();
  LatentTaskOptions o;
  o.from = "zh";
  o.to = "fr";
  o.shots = 1;
  o.languages = {"fr", "en"};
  o.byte_tokens = ByteTokens::nonascii;
  const LatentTask task = make_latent_task(make_words(), t, o);
  // cat–chat share "c" and "▁c"; dog–chien, book–livre and summer–été share nothing;
  // PianoForte contains piano and rockeur contains rock; void has no French.
  std::vector<std::string> kept;
  for (const LatentItem& item : task.items) kept.push_back(item.prompt.id);
  EXPECT_EQ(kept, (std::vector<std::string>{"dog", "book", "summer"}));
  EXPECT_EQ(task.dropped,
            (std::map<std::string, std::int64_t>{{"word missing in a language of the prompt", 1},
                                                 {"word in fr contains the word in en", 2},
                                                 {"words in fr and en share a token", 1}}));

  // Towards the pivot itself neither rule applies.
  o.to = "en";
  o.languages = {"en"};
  EXPECT_EQ(make_latent_task(make_words(), t, o).items.size(), 7U);
}

TEST(LatentTask, ByteTokenRules) {
  const Tokenizer t = make_tokenizer();
  LatentTaskOptions o;
  o.from = "en";
  o.to = "fr";
  o.shots = 0;
  o.languages = {"fr", "zh"};
  const auto tokens = [&](ByteTokens rule, std::size_t language, const std::string& id) {
    o.byte_tokens = rule;
    const LatentTask task = make_latent_task(make_words(), t, o);
    for (const LatentItem& item : task.items) {
      if (item.prompt.id == id) return item.tokens[language];
    }
    return Ids{-1};
  };
  EXPECT_EQ(tokens(ByteTokens::nonascii, 0, "summer"), entries(t, {"<0xC3>", "é"}));
  // The authors add it for Chinese and Russian only.
  EXPECT_EQ(tokens(ByteTokens::authors, 0, "summer"), entries(t, {"é"}));
  EXPECT_EQ(tokens(ByteTokens::authors, 1, "dog"), entries(t, {"<0xE7>", "犬"}));
  EXPECT_EQ(tokens(ByteTokens::none, 1, "dog"), entries(t, {"犬"}));
  // Without byte entries 夏 has no token at all: the item goes, with its reason.
  EXPECT_EQ(tokens(ByteTokens::none, 1, "summer"), Ids{-1});
}

TEST(LatentTask, FormsAndDistinctLanguages) {
  const Tokenizer t = make_tokenizer();
  LatentTaskOptions o;
  o.from = "fr";
  o.to = "zh";
  o.shots = 0;
  o.all_forms = true;
  const LatentTask all = make_latent_task(make_words(), t, o);
  EXPECT_EQ(all.items[0].tokens[2], entries(t, {"c", "ch", "▁c", "▁chat", "m"}));
  o.distinct = true;  // chat and cat share tokens, though neither is the target
  const LatentTask distinct = make_latent_task(make_words(), t, o);
  EXPECT_EQ(distinct.items[0].prompt.id, "dog");
  EXPECT_GE(distinct.dropped.at("words in en and fr share a token"), 1);
}

TEST(LatentTask, RepetitionAndCloze) {
  const Tokenizer t = make_tokenizer();
  LatentTaskOptions o;
  o.kind = LatentKind::repetition;
  o.to = "zh";
  o.shots = 0;
  const LatentTask repetition = make_latent_task(make_words(), t, o);
  EXPECT_EQ(repetition.items[0].prompt.text, "Zh: \"猫\" - Zh: \"");
  EXPECT_EQ(repetition.languages, (std::vector<std::string>{"zh", "en"}));

  o.kind = LatentKind::cloze;
  o.to = "fr";
  o.shots = -1;
  const LatentTask cloze = make_latent_task(make_words(), t, o);
  EXPECT_EQ(cloze.options.shots, 2);
  ASSERT_EQ(cloze.items.size(), 2U);  // chat shares tokens with cat
  const LatentItem& book = cloze.items[0];
  EXPECT_EQ(book.words, (std::vector<std::string>{"livre", "book"}));
  const std::string query = "\nUn \"___\" se lit. R : \"";
  EXPECT_EQ(book.prompt.text.substr(book.prompt.text.size() - query.size()), query);
  EXPECT_NE(book.prompt.text.find("Un \"___\" ronronne. R : \"chat\".\n"), std::string::npos);
  EXPECT_EQ(cloze.items[1].words[0], "un chien");
}

TEST(LatentTask, WordPromptsContinueTheItems) {
  const Tokenizer t = make_tokenizer();
  LatentTaskOptions o;
  o.from = "fr";
  o.to = "zh";
  o.shots = 1;
  const LatentTask task = make_latent_task(make_words(), t, o);
  const std::vector<Prompt> prompts = word_prompts(task, t);
  ASSERT_EQ(prompts.size(), task.items.size() * 3);
  EXPECT_EQ(prompts[1].id, "cat/en");
  EXPECT_EQ(prompts[1].given, static_cast<std::int64_t>(task.items[0].prompt.ids.size()));
  EXPECT_EQ(Ids(prompts[1].ids.end() - 3, prompts[1].ids.end()),
            (Ids{*t.find_name("c"), *t.find_name("a"), *t.find_name("t")}));
  EXPECT_EQ(prompts[1].labels.at("tokenized"), "in context");
}

TEST(LatentTask, RefusesWhatCannotBe) {
  const Tokenizer t = make_tokenizer();
  const WordList words = make_words();
  LatentTaskOptions o;
  o.to = "xx";
  EXPECT_THROW(make_latent_task(words, t, o), UsageError);
  o.to = "zh";
  o.languages = {"en", "fr"};
  EXPECT_THROW(make_latent_task(words, t, o), UsageError);  // the target is not scored
  o.languages = {"zh", "zh"};
  EXPECT_THROW(make_latent_task(words, t, o), UsageError);
  o.languages = {};
  o.shots = 6;
  EXPECT_THROW(make_latent_task(words, t, o), Error);  // six usable words, one is the query
  WordList empty = words;
  empty.cloze.clear();
  o.kind = LatentKind::cloze;
  EXPECT_THROW(make_latent_task(empty, t, o), Error);
}

}  // namespace
}  // namespace lamina
