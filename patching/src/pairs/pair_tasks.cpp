#include "lamina/patching/pair_tasks.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "lamina/internal/file_text.h"
#include "lamina/patching/metric.h"
#include "pairs/pair_drafts.h"
#include "pairs/words.h"

namespace lamina {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kMaxMisses = 5000;             // drafts in a row that give no pair
constexpr std::int64_t kBatchTokens = 1024;  // of a forward pass over many prompts
constexpr std::int64_t kBatchPrompts = 32;   // whose logits are held at once

// The style in which this tokenizer reads text.
TextStyle style_of(const Tokenizer& tokenizer) {
  TextStyle style;
  const std::string_view probe = "the,";
  try {
    style.spaced =
        unknown_word(tokenizer, probe, tokenizer.encode(probe, Bos::never, false)).has_value();
  } catch (const Error&) {
    // A character without a token: no text of these tasks will fit, and each will say why.
  }
  style.two_digits = tokenizer.find_piece("07") && tokenizer.find_piece("81");
  return style;
}

}  // namespace

struct PairMaker::Impl {
  TaskLists lists;
  const Tokenizer& tokenizer;
  std::int64_t d_vocab;
  PairTaskOptions options;
  TextStyle style;
  Draw draw;
  std::map<std::string, Dropped> dropped;
  std::set<std::pair<std::string, std::string>> made;
  std::int64_t drafts = 0;

  // Counts a draft that does not fit.
  std::nullopt_t drop(const std::string& why, const std::string& word = {}) {
    Dropped& entry = dropped[why];
    ++entry.drafts;
    if (!word.empty()) entry.words.insert(word);
    return std::nullopt;
  }

  std::optional<std::vector<std::int32_t>> encode(const std::string& text) {
    std::vector<std::int32_t> ids;
    try {
      ids = tokenizer.encode(text, options.prompt.bos, options.prompt.parse_special);
    } catch (const Error&) {
      return drop("characters without a token");
    }
    if (const auto word = unknown_word(tokenizer, text, ids)) {
      return drop("words unknown to the tokenizer", *word);
    }
    return ids;
  }

  // Tokens of answers behind the clean prompt; nullopt if one does not fit.
  std::optional<std::vector<std::int32_t>> answers(const std::vector<std::string>& words,
                                                   const Draft& draft, const Pair& pair) {
    std::vector<std::int32_t> ids;
    for (const std::string& word : words) {
      const std::string follows = draft.glued || style.spaced ? word : " " + word;
      const auto id = find_answer(tokenizer, pair.clean.back(), follows);
      if (!id) return drop("answers that are not one token", word);
      // The answer's token must be what the tokenizer makes of prompt and answer together.
      const std::string text = draft.clean + (style.spaced ? " " + word : follows);
      std::vector<std::int32_t> expected = pair.clean;
      expected.push_back(*id);
      if (tokenizer.encode(text, options.prompt.bos, options.prompt.parse_special) != expected) {
        return drop("answers that merge with the prompt", word);
      }
      ids.push_back(*id);
    }
    return ids;
  }

  // How a pair file writes an answer: with its blank, as a word, or as an id.
  Json written(const std::string& word, std::int32_t id, std::int32_t last) const {
    const std::string& piece = tokenizer.piece(id);
    if (piece.starts_with(' ') && files::valid_utf8(piece) &&
        find_answer(tokenizer, last, piece) == id) {
      return piece;
    }
    if (find_answer(tokenizer, last, word) == id) return word;
    return id;
  }

  // Where the subject is: a word if its first occurrence is meant, else positions.
  Json subject(const Draft& draft, Pair& pair) const {
    auto span = find_span(tokenizer, pair.clean, draft.subject);
    if (draft.late) {
      std::int32_t at = 0;
      for (std::int32_t i = 0; i < pair.tokens(); ++i) {
        const auto row = static_cast<std::size_t>(i);
        if (pair.clean[row] != pair.corrupted[row]) at = i;
      }
      if (span != std::pair(at, at + 1)) {
        span = {at, at + 1};
        pair.subject = span;
        return Json::array({span->first, span->second});
      }
    }
    pair.subject = span;
    return span ? Json(draft.subject) : Json();
  }

  std::optional<MadePair> fit(const Draft& draft) {
    MadePair made_pair;
    Pair& pair = made_pair.pair;
    const auto clean = encode(draft.clean);
    if (!clean) return std::nullopt;
    const auto corrupted = encode(draft.corrupted);
    if (!corrupted) return std::nullopt;
    if (clean->size() != corrupted->size()) return drop("prompts of unequal lengths");
    if (*clean == *corrupted) return drop("clean and corrupted prompt the same");
    pair.clean = *clean;
    pair.corrupted = *corrupted;
    // Names of several tokens can shift what stands between them though the lengths are equal.
    std::size_t differing = 0;
    for (std::size_t i = 0; i < clean->size(); ++i) differing += (*clean)[i] != (*corrupted)[i];
    if (draft.differing > 0 && differing != draft.differing) {
      return drop("names that are not one token each");
    }
    const auto correct = answers(draft.correct, draft, pair);
    if (!correct) return std::nullopt;
    const auto wrong = answers(draft.wrong, draft, pair);
    if (!wrong) return std::nullopt;
    pair.correct = *correct;
    pair.wrong = *wrong;
    std::set<std::int32_t> all(correct->begin(), correct->end());
    all.insert(wrong->begin(), wrong->end());
    if (all.size() != correct->size() + wrong->size()) return drop("two answers the same token");

    pair.id = fmt::format("{}-{}-{}", lists.task, draft.kind, made.size());
    Json line;
    line["id"] = pair.id;
    line["clean"] = draft.clean;
    line["corrupted"] = draft.corrupted;
    const auto list = [&](const std::vector<std::string>& words,
                          const std::vector<std::int32_t>& ids) {
      Json out = Json::array();
      for (std::size_t i = 0; i < ids.size(); ++i) {
        out.push_back(written(words[i], ids[i], pair.clean.back()));
      }
      return out;
    };
    line["correct"] = list(draft.correct, pair.correct);
    line["wrong"] = list(draft.wrong, pair.wrong);
    if (!draft.subject.empty()) {
      if (Json found = subject(draft, pair); !found.is_null()) line["subject"] = std::move(found);
    }
    made_pair.json = line.dump();
    // What is written must be read as what was meant.
    const Pair read =
        parse_pair(made_pair.json, 1, lists.source, &tokenizer, d_vocab, options.prompt);
    if (read.clean != pair.clean || read.corrupted != pair.corrupted ||
        read.correct != pair.correct || read.wrong != pair.wrong || read.subject != pair.subject) {
      return drop("pairs that read differently");
    }
    return made_pair;
  }
};

PairMaker::PairMaker(TaskLists lists, const Tokenizer& tokenizer, std::int64_t d_vocab,
                     const PairTaskOptions& options)
    : impl_(new Impl{std::move(lists),
                     tokenizer,
                     d_vocab,
                     options,
                     style_of(tokenizer),
                     Draw(options.seed),
                     {},
                     {},
                     0}) {
  if (impl_->lists.task != "translation") return;
  const auto words = static_cast<std::int64_t>(impl_->lists.lists.at("word").size());
  if (options.shots < 0 || options.shots > words - 2) {
    fail_usage("{}: {} examples in a prompt need {} words, found {}", impl_->lists.source,
               options.shots, options.shots + 2, words);
  }
}
PairMaker::~PairMaker() = default;

std::optional<MadePair> PairMaker::next() {
  Impl& impl = *impl_;
  for (int misses = 0; misses < kMaxMisses; ++misses) {
    ++impl.drafts;
    const Draft draft = draw_pair(impl.lists, impl.options, impl.style, impl.draw);
    if (impl.made.contains({draft.clean, draft.corrupted})) continue;
    if (auto pair = impl.fit(draft)) {
      impl.made.emplace(draft.clean, draft.corrupted);
      return pair;
    }
  }
  return std::nullopt;
}

const std::map<std::string, PairMaker::Dropped>& PairMaker::dropped() const {
  return impl_->dropped;
}

std::int64_t PairMaker::drafts() const {
  return impl_->drafts;
}

std::vector<double> logit_differences(Forward& forward, std::span<const Pair> pairs,
                                      bool corrupted) {
  const std::int64_t d_vocab = forward.model().config().d_vocab;
  const Metric metric(MetricKind::logit_diff, pairs, d_vocab);
  std::vector<double> values;
  std::vector<float> logits;
  for (std::size_t first = 0; first < pairs.size();) {
    Batch batch;
    std::vector<std::int64_t> rows;
    for (std::size_t i = first; i < pairs.size(); ++i) {
      const auto& ids = corrupted ? pairs[i].corrupted : pairs[i].clean;
      const auto length = static_cast<std::int64_t>(ids.size());
      const bool full = batch.tokens() + length > kBatchTokens || batch.prompts() >= kBatchPrompts;
      if (batch.prompts() > 0 && full) break;
      batch.add(ids);
      rows.push_back(batch.tokens() - 1);
    }
    forward.run(batch);
    logits.resize(rows.size() * static_cast<std::size_t>(d_vocab));
    forward.run_logits(rows, logits);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const auto row = std::span<const float>(logits).subspan(r * static_cast<std::size_t>(d_vocab),
                                                              static_cast<std::size_t>(d_vocab));
      values.push_back(metric.value(static_cast<std::int64_t>(first + r), row));
    }
    first += rows.size();
  }
  return values;
}

}  // namespace lamina
