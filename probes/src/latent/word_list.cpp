#include "lamina/probes/word_list.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "lamina/core/error.h"

namespace lamina {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kMaxBytes = std::size_t{64} << 20;
constexpr std::size_t kMaxEntries = 100'000;
constexpr std::size_t kMaxLanguages = 64;
constexpr int kMaxDepth = 8;

// Text from the file inside an error message: one line, not too long.
std::string in_quotes(std::string_view text) {
  std::string out = "\"";
  for (char c : text.substr(0, 60)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out + (text.size() > 60 ? "…\"" : "\"");
}

// The library keeps the last of two equal keys and follows any nesting: neither is wanted here.
Json parse_strict(std::string_view text, std::string_view source) {
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > kMaxDepth) fail("{}: nested deeper than {} levels", source, kMaxDepth);
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) fail("{}: {} occurs twice", source, in_quotes(key));
    }
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Json::exception& e) {
    std::string why = e.what();
    std::replace_if(
        why.begin(), why.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
    fail("{}: no valid JSON: {}", source, why.substr(0, 200));
  }
}

const std::string& text_of(const Json& value, std::string_view source, const std::string& what) {
  if (!value.is_string()) {
    fail("{}: {}: expected a string, found {}", source, what, value.type_name());
  }
  const auto& text = value.get_ref<const std::string&>();
  if (text.empty()) fail("{}: {} is empty", source, what);
  for (char c : text) {
    if (static_cast<unsigned char>(c) < 0x20) {
      fail("{}: {}: control character in {}", source, what, in_quotes(text));
    }
  }
  return text;
}

// The members of an array under `key`, each an object with an id that is used once.
template <class Use>
void each_entry(const Json& root, const char* key, std::string_view source, Use&& use) {
  if (!root.contains(key)) return;
  const Json& list = root[key];
  if (!list.is_array()) {
    fail("{}: \"{}\": expected an array, found {}", source, key, list.type_name());
  }
  if (list.size() > kMaxEntries) {
    fail("{}: \"{}\" has {} entries, at most {} are read", source, key, list.size(), kMaxEntries);
  }
  std::set<std::string> ids;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const std::string where = fmt::format("{}[{}]", key, i);
    if (!list[i].is_object()) {
      fail("{}: {}: expected an object, found {}", source, where, list[i].type_name());
    }
    if (!list[i].contains("id")) fail("{}: {} has no \"id\"", source, where);
    const std::string& id = text_of(list[i]["id"], source, where + ".id");
    if (!ids.insert(id).second) fail("{}: {}: id {} occurs twice", source, where, in_quotes(id));
    use(list[i], id, where);
  }
}

std::vector<std::string> read_forms(const Json& value, std::string_view source,
                                    const std::string& what) {
  std::vector<std::string> forms;
  if (value.is_string()) {
    forms.push_back(text_of(value, source, what));
  } else if (value.is_array()) {
    for (const Json& form : value) forms.push_back(text_of(form, source, what));
  } else {
    fail("{}: {}: expected a string or an array of strings, found {}", source, what,
         value.type_name());
  }
  if (forms.empty()) fail("{}: {} has no form", source, what);
  for (const std::string& form : forms) {
    if (form.find('"') != std::string::npos) {
      fail("{}: {}: a quote inside {} would end the prompt", source, what, in_quotes(form));
    }
  }
  return forms;
}

}  // namespace

const std::string* WordList::Word::form(std::string_view code) const {
  const auto at = forms.find(std::string(code));
  return at == forms.end() ? nullptr : &at->second.front();
}

bool WordList::has_language(std::string_view code) const {
  return std::any_of(languages.begin(), languages.end(),
                     [&](const Language& l) { return l.code == code; });
}

const WordList::Language& WordList::language(std::string_view code) const {
  for (const Language& l : languages) {
    if (l.code == code) return l;
  }
  std::vector<std::string> known;
  for (const Language& l : languages) known.push_back(l.code);
  fail_usage("{}: no language {}; it has {}", source, in_quotes(code), fmt::join(known, ", "));
}

const WordList::Word* WordList::word(std::string_view id) const {
  const auto at =
      std::find_if(words.begin(), words.end(), [&](const Word& w) { return w.id == id; });
  return at == words.end() ? nullptr : &*at;
}

WordList parse_word_list(std::string_view json, std::string_view source) {
  const Json root = parse_strict(json, source);
  if (!root.is_object()) fail("{}: expected an object, found {}", source, root.type_name());
  WordList list;
  list.source = source;
  if (!root.contains("languages") || !root["languages"].is_object() || root["languages"].empty()) {
    fail("{}: \"languages\": expected an object such as {{\"en\": \"English\"}}", source);
  }
  if (root["languages"].size() > kMaxLanguages) {
    fail("{}: {} languages, at most {} are read", source, root["languages"].size(), kMaxLanguages);
  }
  for (const auto& [code, name] : root["languages"].items()) {
    if (code.empty() || code == "id") fail("{}: {} is no language code", source, in_quotes(code));
    list.languages.push_back({code, text_of(name, source, fmt::format("languages.{}", code))});
  }

  each_entry(root, "words", source, [&](const Json& entry, const std::string& id, const auto& at) {
    WordList::Word& word = list.words.emplace_back();
    word.id = id;
    for (const WordList::Language& l : list.languages) {
      if (!entry.contains(l.code)) continue;
      word.forms[l.code] = read_forms(entry[l.code], source, at + "." + l.code);
    }
  });
  each_entry(root, "cloze", source, [&](const Json& entry, const std::string& id, const auto& at) {
    WordList::Cloze& cloze = list.cloze.emplace_back();
    cloze.id = id;
    for (const WordList::Language& l : list.languages) {
      if (!entry.contains(l.code)) continue;
      const std::string what = at + "." + l.code;
      const std::string& sentence = text_of(entry[l.code], source, what);
      const std::size_t close = sentence.rfind('"');
      const std::size_t open = close == std::string::npos || close == 0
                                   ? std::string::npos
                                   : sentence.rfind('"', close - 1);
      if (open == std::string::npos || open + 1 == close) {
        fail("{}: {}: expected a sentence that ends with its answer in quotes, found {}", source,
             what, in_quotes(sentence));
      }
      cloze.sentence[l.code] = sentence;
    }
  });
  if (list.words.empty() && list.cloze.empty()) {
    fail("{}: neither \"words\" nor \"cloze\" has entries", source);
  }
  return list;
}

WordList read_word_list(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file || std::filesystem::is_directory(path)) fail("{}: cannot be opened", path.string());
  const auto size = static_cast<std::streamoff>(file.tellg());
  if (size < 0 || static_cast<std::size_t>(size) > kMaxBytes) {
    fail("{}: {} bytes, a word list has at most {}", path.string(), size, kMaxBytes);
  }
  std::string text(static_cast<std::size_t>(size), '\0');
  file.seekg(0);
  if (!file.read(text.data(), size)) fail("{}: cannot be read", path.string());
  return parse_word_list(text, path.string());
}

}  // namespace lamina
