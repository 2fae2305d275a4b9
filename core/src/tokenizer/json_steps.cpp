#include "tokenizer/json_steps.h"

#include <array>
#include <utility>

#include "tokenizer/definition.h"
#include "tokenizer/json_reading.h"
#include "tokenizer/utf8.h"

namespace lamina::tokenizer {
namespace {

/// Calls read(part) for `part`, or for each part of the "Sequence" it is; null has none.
template <class Read>
void each_part(const Json& part, std::string_view list, std::string_view where, int depth,
               const Read& read) {
  if (part.is_null()) return;
  if (type_of(part, where) != "Sequence") return read(part);
  if (depth > 4) fail("{}: sequences nested more than 4 deep", where);
  const Json& parts = list_member(part, list, where);
  if (parts.size() > kMaxSteps) {
    fail("{}: a sequence of {} steps, at most {} are accepted", where, parts.size(), kMaxSteps);
  }
  for (const Json& inner : parts) each_part(inner, list, where, depth + 1, read);
}

[[noreturn]] void refuse(std::string_view kind, const Json& part, std::string_view where) {
  fail("{}: {} {} is not supported", where, kind, quote(type_of(part, where)));
}

/// {"String": …} or {"Regex": …}: the literal, or the compiled pattern.
std::pair<std::string, std::optional<Regex>> read_pattern(const Json& part,
                                                          std::string_view where) {
  const Json& pattern = member(part, "pattern", where);
  if (!member(pattern, "String", where).is_null()) {
    return {text_member(pattern, "String", where), std::nullopt};
  }
  return {std::string(), Regex(text_member(pattern, "Regex", where), where)};
}

/// Text that a step puts in. Short, so that a hostile chain of steps cannot make text explode.
const std::string& read_insertion(const Json& part, std::string_view key, std::string_view where) {
  const std::string& text = text_member(part, key, where);
  if (text.size() > kMaxInsertion) {
    fail("{}: {} of {} has {} bytes, at most {} are accepted", where, quote(key),
         type_of(part, where), text.size(), kMaxInsertion);
  }
  return text;
}

Replace read_replace(const Json& part, std::string_view where) {
  auto [from, pattern] = read_pattern(part, where);
  return {std::move(from), read_insertion(part, "content", where), std::move(pattern)};
}

SplitBehavior read_behavior(const Json& part, std::string_view where) {
  constexpr std::array<std::pair<std::string_view, SplitBehavior>, 5> kNames = {
      {{"Removed", SplitBehavior::removed},
       {"Isolated", SplitBehavior::isolated},
       {"MergedWithPrevious", SplitBehavior::merged_with_previous},
       {"MergedWithNext", SplitBehavior::merged_with_next},
       {"Contiguous", SplitBehavior::contiguous}}};
  const std::string& name = text_member(part, "behavior", where);
  for (const auto& [known, behavior] : kNames) {
    if (name == known) return behavior;
  }
  fail("{}: unknown split behavior {}", where, quote(name));
}

Split split_at(std::string_view pattern, SplitBehavior behavior, bool invert = false) {
  return {Regex(pattern, "built-in pattern"), std::string(), behavior, invert};
}

/// "Metaspace" of a pre-tokenizer or decoder, in the old spelling (add_prefix_space) or the new one
/// (prepend_scheme).
Metaspace read_metaspace(const Json& part, std::string_view where) {
  Metaspace out;
  out.replacement = text_member(part, "replacement", where);
  if (out.replacement.empty() || code_point_at(out.replacement, 0).size != out.replacement.size()) {
    fail("{}: the replacement of Metaspace must be one character, found {}", where,
         quote(out.replacement));
  }
  const bool add = bool_member(part, "add_prefix_space", true, where);
  out.prefix = add ? Metaspace::Prefix::always : Metaspace::Prefix::never;
  if (!member(part, "prepend_scheme", where).is_null()) {
    const std::string& scheme = text_member(part, "prepend_scheme", where);
    if (scheme != "always" && scheme != "never" && scheme != "first") {
      fail("{}: unknown prepend_scheme {}", where, quote(scheme));
    }
    if (!add && scheme != "never") {
      fail("{}: Metaspace has add_prefix_space false and prepend_scheme {}", where, quote(scheme));
    }
    out.prefix = scheme == "always"  ? Metaspace::Prefix::always
                 : scheme == "first" ? Metaspace::Prefix::first
                                     : Metaspace::Prefix::never;
  }
  out.split = bool_member(part, "split", true, where);
  return out;
}

NormalizerStep read_normalizer_step(const Json& part, std::string_view where) {
  const std::string& type = type_of(part, where);
  if (type == "NFC") return ToForm{UnicodeForm::nfc};
  if (type == "NFD") return ToForm{UnicodeForm::nfd};
  if (type == "NFKC") return ToForm{UnicodeForm::nfkc};
  if (type == "NFKD") return ToForm{UnicodeForm::nfkd};
  if (type == "Lowercase") return Lowercase{};
  if (type == "Prepend") return Prepend{read_insertion(part, "prepend", where)};
  if (type == "Replace") return read_replace(part, where);
  if (type == "Strip") {
    return StripSpace{bool_member(part, "strip_left", false, where),
                      bool_member(part, "strip_right", false, where)};
  }
  if (type == "BertNormalizer") {
    const bool lower = bool_member(part, "lowercase", true, where);
    return BertNormalize{bool_member(part, "clean_text", true, where),
                         bool_member(part, "handle_chinese_chars", true, where),
                         bool_member(part, "strip_accents", lower, where), lower};
  }
  refuse("normalizer", part, where);
}

void read_pre_tokenizer_step(const Json& part, std::string_view where, PreTokenizer& out) {
  const std::string& type = type_of(part, where);
  if (out.byte_level) {
    // What follows would see the byte alphabet's characters instead of the text.
    fail("{}: pre-tokenizer {} after ByteLevel is not supported", where, quote(type));
  }
  if (type == "ByteLevel") {
    if (bool_member(part, "add_prefix_space", true, where)) out.steps.emplace_back(PrefixSpace{});
    if (bool_member(part, "use_regex", true, where)) {
      out.steps.emplace_back(split_at(kGpt2Pattern, SplitBehavior::isolated));
    }
    out.byte_level = true;
  } else if (type == "Split") {
    auto [literal, pattern] = read_pattern(part, where);
    out.steps.emplace_back(Split{std::move(pattern), std::move(literal), read_behavior(part, where),
                                 bool_member(part, "invert", false, where)});
  } else if (type == "Digits") {
    const bool single = bool_member(part, "individual_digits", false, where);
    out.steps.emplace_back(
        split_at(R"(\p{N})", single ? SplitBehavior::isolated : SplitBehavior::contiguous));
  } else if (type == "Punctuation") {
    Split split = split_at(R"([\p{P}$+<=>^`|~])", SplitBehavior::isolated);
    if (!member(part, "behavior", where).is_null()) split.behavior = read_behavior(part, where);
    out.steps.emplace_back(std::move(split));
  } else if (type == "BertPreTokenizer") {
    out.steps.emplace_back(split_at(R"(\s)", SplitBehavior::removed));
    out.steps.emplace_back(split_at(R"([\p{P}$+<=>^`|~])", SplitBehavior::isolated));
  } else if (type == "Metaspace") {
    out.steps.emplace_back(read_metaspace(part, where));
  } else if (type == "Whitespace") {
    out.steps.emplace_back(split_at(R"([\w\x{200C}\x{200D}]+|[^\w\s\x{200C}\x{200D}]+)",
                                    SplitBehavior::removed, true));
  } else if (type == "WhitespaceSplit") {
    out.steps.emplace_back(split_at(R"(\s)", SplitBehavior::removed));
  } else {
    refuse("pre-tokenizer", part, where);
  }
}

DecoderStep read_decoder_step(const Json& part, std::string_view where) {
  const std::string& type = type_of(part, where);
  if (type == "ByteLevel") return ByteLevelDecode{};
  if (type == "ByteFallback") return ByteFallbackDecode{};
  if (type == "Fuse") return Fuse{};
  if (type == "Replace") return read_replace(part, where);
  if (type == "Strip") {
    const std::string& content = text_member(part, "content", where);
    if (content.empty() || code_point_at(content, 0).size != content.size()) {
      fail("{}: the content of decoder Strip must be one character, found {}", where,
           quote(content));
    }
    return StripCharacter{content, count_member(part, "start", where),
                          count_member(part, "stop", where)};
  }
  if (type == "WordPiece") {
    return WordPieceDecode{text_member(part, "prefix", where),
                           bool_member(part, "cleanup", true, where)};
  }
  if (type == "Metaspace") {
    const Metaspace space = read_metaspace(part, where);
    return MetaspaceDecode{space.replacement, space.prefix != Metaspace::Prefix::never};
  }
  refuse("decoder", part, where);
}

}  // namespace

std::vector<NormalizerStep> read_normalizer(const Json& part, std::string_view where) {
  std::vector<NormalizerStep> steps;
  each_part(part, "normalizers", where, 0,
            [&](const Json& step) { steps.push_back(read_normalizer_step(step, where)); });
  return steps;
}

PreTokenizer read_pre_tokenizer(const Json& part, std::string_view where) {
  PreTokenizer out;
  each_part(part, "pretokenizers", where, 0,
            [&](const Json& step) { read_pre_tokenizer_step(step, where, out); });
  return out;
}

std::vector<DecoderStep> read_decoder(const Json& part, std::string_view where) {
  std::vector<DecoderStep> steps;
  each_part(part, "decoders", where, 0,
            [&](const Json& step) { steps.push_back(read_decoder_step(step, where)); });
  return steps;
}

}  // namespace lamina::tokenizer
