#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace lamina {

/// Words and cloze sentences in several languages.
///
/// File: one JSON object
///   {"languages": {"en": "English", "fr": "Français"},
///    "words": [{"id": "cat", "en": ["cat"], "fr": ["chat"], "kind": "noun"}],
///    "cloze": [{"id": "book", "en": "A \"___\" is used to read stories. Answer: \"book\"."}]}
/// "words" and "cloze" are both optional, one must be there. A word's first form is the one that is
/// prompted with. Members of a word that are no language are ignored.
struct WordList {
  struct Language {
    std::string code, name;
  };
  struct Word {
    std::string id;
    std::map<std::string, std::vector<std::string>> forms;  // by language code
    /// First form, nullptr if the word is not given in this language.
    const std::string* form(std::string_view code) const;
  };
  struct Cloze {
    std::string id;                               // of the word that is the answer
    std::map<std::string, std::string> sentence;  // by language code; ends with the answer quoted
  };
  std::string source;  // file, for messages
  std::vector<Language> languages;
  std::vector<Word> words;
  std::vector<Cloze> cloze;

  bool has_language(std::string_view code) const;
  /// Error naming the source and the known codes if there is no such language.
  const Language& language(std::string_view code) const;
  const Word* word(std::string_view id) const;
};

/// Reads a word list. Refuses (Error with one line): ill-formed JSON or UTF-8, wrong types, empty
/// or repeated ids, empty forms, line breaks or quotes in forms, cloze sentences without a quoted
/// answer, more than 64 languages, 100,000 entries or 64 MiB.
WordList read_word_list(const std::filesystem::path& path);
WordList parse_word_list(std::string_view json, std::string_view source);

}  // namespace lamina
