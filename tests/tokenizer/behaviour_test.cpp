#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "golden_files.h"
#include "lamina/core/error.h"
#include "lamina/core/sha256.h"
#include "lamina/core/tokenizer.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/regex.h"
#include "tokenizer/utf8.h"

namespace lamina {
namespace {

using test::golden_text;
using Ids = std::vector<std::int32_t>;

Tokenizer golden(const std::string& kind) {
  return Tokenizer::from_json(golden_text(kind + ".tokenizer.json"), kind);
}

std::string message_of(const auto& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Tokenizer, BeginningOfSequence) {
  const Tokenizer llama3 = golden("llama3");
  ASSERT_TRUE(llama3.adds_bos());
  ASSERT_EQ(llama3.bos_id(), 0);
  const Ids plain = llama3.encode("the lamp", Bos::never);
  Ids with = plain;
  with.insert(with.begin(), 0);
  EXPECT_EQ(llama3.encode("the lamp"), with);
  EXPECT_EQ(llama3.encode("the lamp", Bos::always), with);

  const Tokenizer gpt2 = golden("gpt2");
  EXPECT_FALSE(gpt2.adds_bos());
  EXPECT_EQ(gpt2.bos_id(), gpt2.find_name("<|endoftext|>"));
  EXPECT_EQ(gpt2.encode("x"), gpt2.encode("x", Bos::never));
  EXPECT_EQ(gpt2.encode("x", Bos::always).size(), gpt2.encode("x").size() + 1);
  EXPECT_EQ(message_of([] { (void)golden("unknown").encode("x", Bos::always); }),
            "unknown: the tokenizer has no beginning-of-sequence token");
}

TEST(Tokenizer, ConfigFileDecidesAboutBos) {
  const auto folder = std::filesystem::path(testing::TempDir()) / "lamina_tokenizer_config";
  std::filesystem::create_directories(folder);
  const auto write = [&](const char* name, const std::string& text) {
    std::ofstream(folder / name, std::ios::binary) << text;
  };
  write("tokenizer.json", golden_text("llama3.tokenizer.json"));
  std::filesystem::remove(folder / "tokenizer_config.json");
  EXPECT_TRUE(Tokenizer::load(folder).adds_bos());
  write("tokenizer_config.json", R"({"add_bos_token": false, "eos_token": {"content": "the"}})");
  const Tokenizer without = Tokenizer::load(folder);
  EXPECT_FALSE(without.adds_bos());
  EXPECT_EQ(without.eos_id(), without.find_name("the"));
  write("tokenizer.json", golden_text("gpt2.tokenizer.json"));
  write("tokenizer_config.json", R"({"add_bos_token": true, "bos_token": "<mask>"})");
  const Tokenizer with = Tokenizer::load(folder);
  EXPECT_EQ(with.encode("x").front(), with.find_name("<mask>"));
  write("tokenizer_config.json", R"({"bos_token": "nothing"})");
  EXPECT_EQ(message_of([&] { (void)Tokenizer::load(folder); }),
            (folder / "tokenizer_config.json").string() +
                ": special token \"nothing\" is not in the vocabulary");
  std::filesystem::remove_all(folder);
}

TEST(Tokenizer, PiecesAreTheBytesOfTheText) {
  for (const char* kind : {"gpt2", "llama3", "digits", "metaspace", "llama2"}) {
    const Tokenizer tokenizer = golden(kind);
    const std::string text = "x the lamp, \u4f60\u597d \U0001F600\nnaïve";
    std::string joined;
    for (std::int32_t id : tokenizer.encode(text, Bos::never)) joined += tokenizer.piece(id);
    // Three of the kinds put a space in front of the text.
    const bool prefixed = std::string(kind) != "gpt2" && std::string(kind) != "llama3";
    EXPECT_EQ(joined, (prefixed ? " " : "") + text) << kind;
  }
}

TEST(Tokenizer, FindsPieces) {
  for (const char* kind : {"gpt2", "metaspace"}) {
    const Tokenizer tokenizer = golden(kind);
    const auto the = tokenizer.find_piece(" the");
    ASSERT_TRUE(the) << kind;
    EXPECT_EQ(tokenizer.piece(*the), " the");
    EXPECT_EQ(tokenizer.encode("x the", Bos::never).back(), *the);
    EXPECT_FALSE(tokenizer.find_piece("no such piece"));
    EXPECT_FALSE(tokenizer.find_piece(""));
    int found = 0;
    for (std::int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
      const auto piece = tokenizer.find_piece(tokenizer.piece(id));
      if (piece) {
        EXPECT_EQ(tokenizer.piece(*piece), tokenizer.piece(id));
      }
      found += piece == id;
    }
    EXPECT_GT(found, 300) << kind;
  }
  const Tokenizer gpt2 = golden("gpt2");
  EXPECT_FALSE(gpt2.find_piece("<|endoftext|>"));
  EXPECT_EQ(gpt2.find_name("<|endoftext|>"), 0);
  EXPECT_TRUE(gpt2.is_special(0));
  EXPECT_FALSE(gpt2.is_special(*gpt2.find_name("foo")));
  EXPECT_EQ(gpt2.piece(*gpt2.byte_token(0xE4)), "\xE4");
  const Tokenizer metaspace = golden("metaspace");
  EXPECT_EQ(metaspace.byte_token(0x0A), metaspace.find_name("<0x0A>"));
  EXPECT_EQ(metaspace.piece(*metaspace.byte_token(0x0A)), "\n");
  EXPECT_FALSE(golden("word_level").byte_token('a'));
}

TEST(Tokenizer, SpecialTokensInText) {
  const Tokenizer tokenizer = golden("gpt2");
  const std::string text = "a<|endoftext|>b";
  const Ids parsed = tokenizer.encode(text);
  EXPECT_EQ(std::count(parsed.begin(), parsed.end(), 0), 1);
  const Ids plain = tokenizer.encode(text, Bos::model, false);
  EXPECT_EQ(std::count(plain.begin(), plain.end(), 0), 0);
  EXPECT_EQ(tokenizer.decode(plain), text);
  EXPECT_EQ(tokenizer.decode(parsed), text);
  EXPECT_EQ(tokenizer.decode(parsed, true), "ab");
}

TEST(Tokenizer, RefusesWhatItCannotRead) {
  const Tokenizer tokenizer = golden("gpt2");
  EXPECT_EQ(message_of([&] { (void)tokenizer.encode("abc\xC3("); }),
            "the text is not UTF-8: byte 3 of 5 is 0xC3");
  EXPECT_EQ(message_of([&] { (void)tokenizer.encode("\xED\xA0\x80"); }),
            "the text is not UTF-8: byte 0 of 3 is 0xED");
  const std::string size = std::to_string(tokenizer.vocab_size());
  EXPECT_EQ(message_of([&] { (void)tokenizer.decode(Ids{tokenizer.vocab_size()}); }),
            "gpt2: token id " + size + " is out of range, the vocabulary has " + size + " entries");
  EXPECT_NE(message_of([&] { (void)tokenizer.piece(-1); }), "no error");
  EXPECT_NE(message_of([] { (void)Tokenizer::load("no/such/file.json"); }), "no error");
}

TEST(Tokenizer, FingerprintIsTheFile) {
  Sha256 hash;
  hash.update(golden_text("gpt2.tokenizer.json"));
  EXPECT_EQ(golden("gpt2").sha256(), hash.hex());
}

// Quadratic work on a megabyte would take minutes; the limit is generous for slow machines.
TEST(Tokenizer, LongTextsWithoutSpacesTakeLinearTime) {
  std::string marks = "a";
  for (int i = 0; i < 250000; ++i) marks += "\u0301\u0323";
  const std::string repeated(1 << 20, 'a'), blank(1 << 20, ' '), lines(1 << 20, '\n');
  for (const char* kind : {"gpt2", "qwen2", "metaspace", "llama2"}) {
    const Tokenizer tokenizer = golden(kind);
    for (const std::string& text : {repeated, blank, lines, marks}) {
      const auto start = std::chrono::steady_clock::now();
      EXPECT_GT(tokenizer.encode(text).size(), 1000u);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      EXPECT_LT(took.count(), 20.0) << kind;
    }
  }
}

TEST(Tokenizer, SharedBetweenThreads) {
  const Tokenizer tokenizer = golden("llama3");
  const auto lines = test::golden_json("lines.json").get<std::vector<std::string>>();
  const auto encode_all = [&] {
    std::vector<Ids> out;
    for (const std::string& line : lines) out.push_back(tokenizer.encode(line));
    return out;
  };
  const auto expected = encode_all();
  std::vector<std::vector<Ids>> got(4);
  {
    std::vector<std::jthread> threads;
    for (auto& result : got) threads.emplace_back([&] { result = encode_all(); });
  }
  for (const auto& result : got) EXPECT_EQ(result, expected);
}

TEST(Unicode, LossyReplacesMaximalParts) {
  using tokenizer::lossy_utf8;
  // The example of the Unicode standard, section 3.9, table 3-8.
  EXPECT_EQ(lossy_utf8("\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64"),
            "a\uFFFD\uFFFD\uFFFDb\uFFFDc\uFFFD\uFFFDd");
  EXPECT_EQ(lossy_utf8("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");
}

TEST(Unicode, NormalisationForms) {
  using tokenizer::to_form;
  using tokenizer::UnicodeForm;
  // The order of marks of different classes does not matter, Hangul composes, U+212B is excluded.
  EXPECT_EQ(to_form("o\u0302\u0323", UnicodeForm::nfc), "\u1ED9");
  EXPECT_EQ(to_form("o\u0323\u0302", UnicodeForm::nfc), "\u1ED9");
  EXPECT_EQ(to_form("\u1112\u1161\u11AB", UnicodeForm::nfc), "\uD55C");
  EXPECT_EQ(to_form("\u212B", UnicodeForm::nfc), "\u00C5");
  EXPECT_EQ(to_form("\u1ED9", UnicodeForm::nfd), "o\u0323\u0302");
  EXPECT_EQ(to_form("\uFB01", UnicodeForm::nfkc), "fi");
  EXPECT_EQ(to_form("\uFB01", UnicodeForm::nfc), "\uFB01");
}

TEST(Pattern, ClassesAreUnicodes) {
  const auto matches = [](const char* pattern, std::string_view text) {
    std::vector<std::pair<std::size_t, std::size_t>> hits;
    tokenizer::Regex(pattern, "test").find_all(text, hits);
    return hits.size();
  };
  EXPECT_EQ(matches(R"(\s)", "\u180E"), 0u);  // not White_Space since Unicode 6.3
  EXPECT_EQ(matches(R"([\s])", "\u2003\u0085"), 2u);
  EXPECT_EQ(matches(R"(\w)", "\u0301\u203F\u2167"), 3u);
  EXPECT_EQ(matches(R"(\p{Han})", "\u4E00\u3001"), 1u);  // the script, not its extensions
  EXPECT_EQ(matches(R"(a*)", "baac"), 3u);
}

TEST(Pattern, RefusesOtherMeanings) {
  const auto message = [](const char* pattern) {
    return message_of([&] { tokenizer::Regex(pattern, "file"); });
  };
  EXPECT_EQ(message("[a[b]]"),
            "file: pattern \"[a[b]]\" uses a nested character class, which is not supported");
  EXPECT_EQ(message("[a-z&&b]"),
            "file: pattern \"[a-z&&b]\" uses the class intersection &&, which is not supported");
  EXPECT_EQ(message("(?m:.)"), "file: pattern \"(?m:.)\" uses (?m, which is not supported");
  EXPECT_EQ(message("(*UTF)a"),
            "file: pattern \"(*UTF)a\" uses a verb (*…), which is not supported");
}

TEST(Pattern, StepLimitStopsHostilePatterns) {
  std::vector<std::pair<std::size_t, std::size_t>> hits;
  const tokenizer::Regex hostile("(a|a|aa)+c", "file");
  const std::string text = std::string(4998, 'a') + "bc";
  const std::string message = message_of([&] { hostile.find_all(text, hits); });
  EXPECT_TRUE(
      message.starts_with("file: pattern \"(a|a|aa)+c\" gave up at byte 0 of a text of "
                          "5000 bytes: "))
      << message;
}

}  // namespace
}  // namespace lamina
