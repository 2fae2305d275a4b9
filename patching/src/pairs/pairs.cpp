#include "lamina/patching/pairs.h"

#include <algorithm>
#include <array>
#include <unordered_map>

#include "lamina/core/error.h"
#include "lamina/internal/file_text.h"
#include "lamina/internal/line_reader.h"
#include "pairs/words.h"

namespace lamina {
namespace {

using files::quote;

constexpr std::array<std::string_view, 7> kKeys = {"clean", "corrupted", "correct", "wrong",
                                                   "id",    "map",       "subject"};
constexpr std::size_t kShown = 24;  // tokens of a prompt that a message lists

/// Turns one line into a pair.
class PairReader : public LineReader {
 public:
  using LineReader::LineReader;

  Pair read(const std::string& line, std::int64_t number) const {
    const Json found = object(line, kKeys);
    for (const char* key : {"clean", "corrupted", "correct"}) {
      if (!found.contains(key)) fail("{}: key {} is missing", where_, key);
    }
    Pair pair;
    pair.id = found.contains("id") ? name(found["id"], "id") : std::to_string(number);
    pair.clean = prompt(found["clean"], "clean");
    pair.corrupted = prompt(found["corrupted"], "corrupted");
    if (found.contains("map")) {
      pair.token_map = token_map(found["map"], pair);
    } else if (pair.clean.size() != pair.corrupted.size()) {
      fail(
          "{}: clean and corrupted must have the same number of tokens (or a map), found {} and "
          "{}: {} and {}",
          where_, pair.clean.size(), pair.corrupted.size(), spelled(pair.clean),
          spelled(pair.corrupted));
    }
    pair.correct = answers(found["correct"], "correct", pair);
    if (pair.correct.empty()) {
      fail("{}: key correct: at least 1 answer expected, found 0", where_);
    }
    if (found.contains("wrong")) pair.wrong = answers(found["wrong"], "wrong", pair);
    for (std::int32_t id : pair.wrong) {
      if (std::find(pair.correct.begin(), pair.correct.end(), id) != pair.correct.end()) {
        fail("{}: answer {} is both correct and wrong", where_, spelled(id));
      }
    }
    if (found.contains("subject")) pair.subject = subject(found["subject"], pair);
    return pair;
  }

 private:
  /// `17 " Mary"`, without a tokenizer `17`.
  std::string spelled(std::int32_t id) const {
    if (tokenizer_ == nullptr || id >= tokenizer_->vocab_size()) return std::to_string(id);
    return fmt::format("{} {}", id, quote(tokenizer_->piece(id)));
  }
  std::string spelled(std::span<const std::int32_t> ids) const {
    std::string out = "[";
    for (std::size_t i = 0; i < std::min(ids.size(), kShown); ++i) {
      out += (i == 0 ? "" : ", ") + spelled(ids[i]);
    }
    return out + (ids.size() > kShown ? ", …]" : "]");
  }

  std::vector<std::int32_t> prompt(const Json& value, std::string_view key) const {
    if (value.is_array()) return token_ids(value, key);
    if (!value.is_string()) bad(key, "a text or an array of token ids", value);
    const std::string given = text(value, key);
    std::vector<std::int32_t> ids = encode_prompt(given, fmt::format("key {}: ", key));
    check_known(given, ids, key);
    return ids;
  }

  // Two different words that the tokenizer does not know are one and the same token: a pair that
  // holds them would not say what it seems to.
  void check_known(std::string_view text, std::span<const std::int32_t> ids,
                   std::string_view key) const {
    if (const auto word = unknown_word(*tokenizer_, text, ids)) {
      fail("{}: key {}: the tokenizer does not know {}", where_, key, quote(*word));
    }
  }

  std::vector<std::int32_t> answers(const Json& value, std::string_view key,
                                    const Pair& pair) const {
    if (!value.is_array()) bad(key, "an array of answers", value);
    std::vector<std::int32_t> out;
    for (const Json& item : value) {
      if (!item.is_string() && !item.is_number_integer()) {
        bad(key, "an answer as text or token id", item);
      }
      const std::int32_t id =
          item.is_string() ? answer(text(item, key), key, pair) : token_id(item, key);
      if (std::find(out.begin(), out.end(), id) != out.end()) {
        fail("{}: key {}: answer {} is given twice", where_, key, spelled(id));
      }
      out.push_back(id);
    }
    return out;
  }

  std::int32_t answer(const std::string& given, std::string_view key, const Pair& pair) const {
    const Tokenizer& t = tokenizer("an answer as text");
    if (given.empty()) fail("{}: key {}: an answer is empty", where_, key);
    std::optional<std::int32_t> id;
    std::vector<std::int32_t> ids;
    try {
      id = find_answer(t, pair.clean.back(), given);
      if (!id) ids = t.encode(given, Bos::never, false);
    } catch (const Error& error) {
      fail("{}: key {}: answer {}: {}", where_, key, quote(given), error.what());
    }
    if (!id && ids.size() == 1) {
      fail("{}: key {}: the tokenizer does not know the answer {}", where_, key, quote(given));
    }
    if (!id) {
      fail("{}: key {}: the answer {} must be 1 token, found {}: {}", where_, key, quote(given),
           ids.size(), spelled(ids));
    }
    check_id(*id, key);
    return *id;
  }

  /// An integer from 0 to `last`.
  std::int32_t position(const Json& value, std::string_view key, std::size_t last,
                        std::string_view what) const {
    if (!value.is_number_integer()) bad(key, what, value);
    // JSON's non-negative integers are unsigned; the others are negative.
    const bool fits = value.is_number_unsigned() && value.get<std::uint64_t>() <= last;
    if (!fits) {
      fail("{}: key {}: {} expected from 0 to {}, found {}", where_, key, what, last, value.dump());
    }
    return static_cast<std::int32_t>(value.get<std::int64_t>());
  }

  std::vector<std::int32_t> token_map(const Json& value, const Pair& pair) const {
    if (!value.is_array()) bad("map", "an array of positions", value);
    if (value.size() != pair.clean.size()) {
      fail("{}: key map: a position for each of the {} clean tokens expected, found {}", where_,
           pair.clean.size(), value.size());
    }
    std::vector<std::int32_t> map;
    std::vector<char> taken(pair.corrupted.size(), 0);
    for (const Json& item : value) {
      const std::int32_t to =
          position(item, "map", pair.corrupted.size() - 1, "a position in the corrupted prompt");
      if (std::exchange(taken[static_cast<std::size_t>(to)], 1)) {
        fail("{}: key map: position {} stands for two clean tokens", where_, to);
      }
      map.push_back(to);
    }
    return map;
  }

  std::pair<std::int32_t, std::int32_t> subject(const Json& value, const Pair& pair) const {
    if (value.is_string()) {
      const std::string given = text(value, "subject");
      const auto span = find_span(tokenizer("a subject as text"), pair.clean, given);
      if (!span) {
        fail("{}: key subject: no tokens of the clean prompt spell {}: {}", where_, quote(given),
             spelled(pair.clean));
      }
      return *span;
    }
    if (!value.is_array() || value.size() != 2) {
      bad("subject", "a text or [first, one past the last token]", value);
    }
    const std::string_view what = "a position in the clean prompt";
    const std::int32_t first = position(value[0], "subject", pair.clean.size() - 1, what);
    const std::int32_t end = position(value[1], "subject", pair.clean.size(), what);
    if (first >= end) {
      fail("{}: key subject: the end must be behind the first token, found [{}, {}]", where_, first,
           end);
    }
    return {first, end};
  }
};

}  // namespace

std::int64_t Pair::first_difference() const {
  for (std::size_t i = 0; i < clean.size(); ++i) {
    const std::size_t other = token_map.empty() ? i : static_cast<std::size_t>(token_map[i]);
    if (other != i || clean[i] != corrupted[i]) return static_cast<std::int64_t>(i);
  }
  return tokens();
}

Pair parse_pair(const std::string& line, std::int64_t number, const std::string& where,
                const Tokenizer* tokenizer, std::int64_t d_vocab, const PromptOptions& options) {
  return PairReader(tokenizer, d_vocab, options, where).read(line, number);
}

std::vector<Pair> read_pairs(const std::filesystem::path& path, const Tokenizer* tokenizer,
                             std::int64_t d_vocab, const PromptOptions& options) {
  std::vector<Pair> pairs;
  std::unordered_map<std::string, std::int64_t> seen;  // id → line
  for_each_line(path, [&](const std::string& line, std::int64_t number, const std::string& where) {
    if (is_blank(line)) return;
    Pair pair = parse_pair(line, number, where, tokenizer, d_vocab, options);
    const auto [earlier, is_new] = seen.emplace(pair.id, number);
    if (!is_new) {
      fail("{}: pair id {} was given in line {} already", where, quote(pair.id), earlier->second);
    }
    pairs.push_back(std::move(pair));
  });
  if (pairs.empty()) fail("{}: at least 1 pair expected, found none", path.string());
  return pairs;
}

Batch clean_batch(std::span<const Pair> pairs) {
  Batch batch;
  for (const Pair& pair : pairs) batch.add(pair.clean);
  return batch;
}

Batch corrupted_batch(std::span<const Pair> pairs) {
  Batch batch;
  for (const Pair& pair : pairs) batch.add(pair.corrupted);
  return batch;
}

}  // namespace lamina
