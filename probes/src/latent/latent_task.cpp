// Prompts and token sets of the latent-language probe.

#include <algorithm>
#include <set>

#include "lamina/core/error.h"
#include "lamina/probes/latent.h"
#include "latent/utf8.h"

namespace lamina {
namespace {

bool is_ascii(char c) {
  return static_cast<unsigned char>(c) < 0x80;
}

// Enough for the substring rule: the pivot's letters are ASCII.
std::string lower_ascii(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

bool meet(const std::vector<std::int32_t>& a, const std::vector<std::int32_t>& b) {
  return std::any_of(a.begin(), a.end(),
                     [&](std::int32_t id) { return std::binary_search(b.begin(), b.end(), id); });
}

// Steele, Lea and Flood's SplitMix64: the same shots on every platform.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15U);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31);
  }
  /// Uniform in 0 … n − 1.
  std::uint64_t below(std::uint64_t n) {
    const std::uint64_t limit = ~std::uint64_t{0} - ~std::uint64_t{0} % n;
    std::uint64_t x = next();
    while (x >= limit) x = next();
    return x % n;
  }

 private:
  std::uint64_t state_;
};

// What the task asks: the word list's entries, whatever kind of prompt they become.
struct Entry {
  std::string id;
  std::map<std::string, std::vector<std::string>> forms;  // by language code
  std::string shot;                                       // the whole line
  std::string query;  // up to and including the opening quote of the answer
};

std::vector<Entry> word_entries(const WordList& list, const LatentTaskOptions& o) {
  const std::string& from = list.language(o.from).name;
  const std::string& to = list.language(o.to).name;
  std::vector<Entry> entries;
  for (const WordList::Word& word : list.words) {
    Entry& entry = entries.emplace_back();
    entry.id = word.id;
    entry.forms = word.forms;
    const std::string *asked = word.form(o.from), *answer = word.form(o.to);
    if (!asked || !answer) continue;
    entry.query = fmt::format("{}: \"{}\" - {}: \"", from, *asked, to);
    entry.shot = entry.query + *answer + "\"";
  }
  return entries;
}

std::vector<Entry> cloze_entries(const WordList& list, const LatentTaskOptions& o) {
  std::vector<Entry> entries;
  for (const WordList::Cloze& cloze : list.cloze) {
    Entry& entry = entries.emplace_back();
    entry.id = cloze.id;
    for (const auto& [code, sentence] : cloze.sentence) {
      const std::size_t close = sentence.rfind('"'), open = sentence.rfind('"', close - 1);
      entry.forms[code] = {sentence.substr(open + 1, close - open - 1)};
      if (code != o.to) continue;
      entry.query = sentence.substr(0, open + 1);
      entry.shot = sentence;
    }
    const WordList::Word* word = list.word(cloze.id);
    if (!word) continue;
    for (const auto& [code, forms] : word->forms) {
      if (!entry.forms.contains(code)) entry.forms[code] = forms;
    }
  }
  return entries;
}

// A blank on both sides of ASCII punctuation: A "b". → A " b " . with a blank at the end.
std::string with_blanks(std::string_view text) {
  std::string out;
  for (char c : text) {
    const bool apart = std::string_view("\":.,;?!").find(c) != std::string_view::npos;
    if (apart && !out.empty() && out.back() != ' ') out += ' ';
    if (c != ' ' || (!out.empty() && out.back() != ' ')) out += c;
    if (apart) out += ' ';
  }
  return out;
}

LatentTaskOptions with_defaults(LatentTaskOptions o) {
  if (o.kind == LatentKind::repetition) o.from = o.to;
  if (o.shots < 0) o.shots = o.kind == LatentKind::cloze ? 2 : 4;
  if (o.languages.empty()) {
    o.languages = {o.to};
    for (const std::string& code : {o.pivot, o.from}) {
      const bool scored =
          std::find(o.languages.begin(), o.languages.end(), code) != o.languages.end();
      const bool asked = o.kind != LatentKind::cloze || code != o.from;
      if (!scored && asked) o.languages.push_back(code);
    }
  }
  return o;
}

bool wants_byte_token(ByteTokens rule, const std::string& code, std::string_view word) {
  switch (rule) {
    case ByteTokens::nonascii:
      return !word.empty() && !is_ascii(word.front());
    case ByteTokens::authors:
      return code == "zh" || code == "ru";
    case ByteTokens::none:
      break;
  }
  return false;
}

// The ids that continue `prompt` to spell `word`, and whether the text was tokenised as a whole.
std::pair<std::vector<std::int32_t>, bool> continuation(const Tokenizer& tokenizer,
                                                        const Prompt& prompt,
                                                        const std::string& word) {
  const std::vector<std::int32_t> whole = tokenizer.encode(prompt.text + word);
  const bool extends = whole.size() > prompt.ids.size() &&
                       std::equal(prompt.ids.begin(), prompt.ids.end(), whole.begin());
  if (extends) {
    return {{whole.begin() + static_cast<std::ptrdiff_t>(prompt.ids.size()), whole.end()}, true};
  }
  return {tokenizer.encode(word, Bos::never), false};
}

}  // namespace

std::vector<std::int32_t> word_tokens(const Tokenizer& tokenizer, std::string_view word,
                                      bool byte_token) {
  std::set<std::int32_t> ids;
  for (std::size_t end = 0; end < word.size();) {
    end += utf8::length(word, end);
    const std::string prefix(word.substr(0, end));
    for (const std::string& entry : {prefix, " " + prefix}) {
      if (const auto id = tokenizer.find_piece(entry)) ids.insert(*id);
    }
  }
  if (byte_token) {
    const auto first = std::find_if_not(word.begin(), word.end(), is_ascii);
    if (first != word.end()) {
      const auto id = tokenizer.byte_token(static_cast<std::uint8_t>(*first));
      if (id) ids.insert(*id);
    }
  }
  return {ids.begin(), ids.end()};
}

std::vector<Prompt> LatentTask::prompts() const {
  std::vector<Prompt> all;
  for (const LatentItem& item : items) all.push_back(item.prompt);
  return all;
}

LatentTask make_latent_task(const WordList& list, const Tokenizer& tokenizer,
                            const LatentTaskOptions& given) {
  LatentTask task;
  task.options = with_defaults(given);
  const LatentTaskOptions& o = task.options;
  task.languages = o.languages;
  for (const std::string& code : o.languages) list.language(code);
  for (const std::string& code : {o.to, o.pivot}) list.language(code);
  const auto index = [&](const std::string& code) {
    const auto at = std::find(task.languages.begin(), task.languages.end(), code);
    return at == task.languages.end() ? -1 : at - task.languages.begin();
  };
  if (std::set<std::string>(o.languages.begin(), o.languages.end()).size() != o.languages.size()) {
    fail_usage("latent: a language is to be scored twice: {}", fmt::join(o.languages, ", "));
  }
  if (index(o.to) < 0) fail_usage("latent: the target language {} is not scored", o.to);
  if (o.shots > 1000) fail_usage("latent: {} shots are too many", o.shots);

  const bool cloze = o.kind == LatentKind::cloze;
  std::vector<Entry> entries = cloze ? cloze_entries(list, o) : word_entries(list, o);
  if (entries.empty()) {
    fail("{}: no \"{}\" entries, which this task needs", list.source, cloze ? "cloze" : "words");
  }

  for (Entry& entry : entries) {
    if (!o.spaced) break;
    entry.query = with_blanks(entry.query);
    entry.shot = with_blanks(entry.shot);
  }

  // What may appear in a prompt at all, as a query or as a shot.
  std::vector<Entry> pool;
  for (Entry& entry : entries) {
    if (entry.query.empty()) {
      ++task.dropped["word missing in a language of the prompt"];
      continue;
    }
    const auto pivot = entry.forms.find(o.pivot);
    if (!cloze && o.to != o.pivot && pivot != entry.forms.end()) {
      const std::string answer = lower_ascii(entry.forms[o.to].front());
      if (answer.find(lower_ascii(pivot->second.front())) != std::string::npos) {
        ++task.dropped[fmt::format("word in {} contains the word in {}", o.to, o.pivot)];
        continue;
      }
    }
    pool.push_back(std::move(entry));
  }
  if (!pool.empty() && static_cast<std::int64_t>(pool.size()) <= o.shots) {
    fail("{}: {} usable words are too few for prompts of {} shots and a query", list.source,
         pool.size(), o.shots);
  }

  for (std::size_t i = 0; i < pool.size(); ++i) {
    const Entry& entry = pool[i];
    LatentItem item;
    std::string reason;
    const auto tokens_of = [&](const std::string& code) {
      std::set<std::int32_t> ids;
      const auto forms = entry.forms.find(code);
      if (forms == entry.forms.end()) return std::vector<std::int32_t>{};
      for (const std::string& form : forms->second) {
        const auto more = word_tokens(tokenizer, form, wants_byte_token(o.byte_tokens, code, form));
        ids.insert(more.begin(), more.end());
        if (!o.all_forms) break;
      }
      return std::vector<std::int32_t>(ids.begin(), ids.end());
    };
    for (const std::string& code : task.languages) {
      item.tokens.push_back(tokens_of(code));
      const auto forms = entry.forms.find(code);
      item.words.push_back(forms == entry.forms.end() ? "" : forms->second.front());
      if (reason.empty() && item.words.back().empty()) reason = "no word in " + code;
      if (reason.empty() && item.tokens.back().empty()) reason = "no token for the word in " + code;
    }
    const std::vector<std::int32_t> pivot = tokens_of(o.pivot);
    if (reason.empty() && o.to != o.pivot && meet(item.tokens[index(o.to)], pivot)) {
      reason = fmt::format("words in {} and {} share a token", o.to, o.pivot);
    }
    for (std::size_t a = 0; o.distinct && a < item.tokens.size(); ++a) {
      for (std::size_t b = 0; b < a; ++b) {
        if (reason.empty() && meet(item.tokens[a], item.tokens[b])) {
          reason =
              fmt::format("words in {} and {} share a token", task.languages[b], task.languages[a]);
        }
      }
    }
    if (!reason.empty()) {
      ++task.dropped[reason];
      continue;
    }

    // Shots: a uniform draw without repeats from the other words, its own for every item.
    Random random(o.seed * 0x9E3779B97F4A7C15U + i);
    std::vector<std::size_t> others;
    for (std::size_t j = 0; j < pool.size(); ++j) {
      if (j != i) others.push_back(j);
    }
    for (std::int64_t s = 0; s < o.shots; ++s) {
      const auto at = static_cast<std::size_t>(s);
      std::swap(others[at], others[at + random.below(others.size() - at)]);
      item.prompt.text += pool[others[at]].shot + "\n";
    }
    item.prompt.text += entry.query;
    item.prompt.id = entry.id;
    item.prompt.ids = tokenizer.encode(item.prompt.text);
    item.prompt.given = static_cast<std::int64_t>(item.prompt.ids.size());
    const std::vector<std::int32_t> next =
        continuation(tokenizer, item.prompt, item.words[index(o.to)]).first;
    if (!next.empty()) item.prompt.target = next.front();
    if (!cloze) item.prompt.labels["from"] = o.from;
    item.prompt.labels["to"] = o.to;
    task.items.push_back(std::move(item));
  }
  if (task.items.empty()) {
    std::string why;
    for (const auto& [reason, count] : task.dropped) why += fmt::format("; {}: {}", reason, count);
    fail("{}: no word is left for {} → {}{}", list.source, cloze ? "cloze" : o.from, o.to, why);
  }
  return task;
}

std::vector<Prompt> word_prompts(const LatentTask& task, const Tokenizer& tokenizer) {
  std::vector<Prompt> prompts;
  for (const LatentItem& item : task.items) {
    for (std::size_t g = 0; g < task.languages.size(); ++g) {
      Prompt prompt = item.prompt;
      const auto [ids, in_context] = continuation(tokenizer, item.prompt, item.words[g]);
      prompt.id += "/" + task.languages[g];
      prompt.text += item.words[g];
      prompt.target.reset();
      prompt.ids.insert(prompt.ids.end(), ids.begin(), ids.end());
      prompt.labels["tokenized"] = in_context ? "in context" : "alone";
      prompts.push_back(std::move(prompt));
    }
  }
  return prompts;
}

}  // namespace lamina
