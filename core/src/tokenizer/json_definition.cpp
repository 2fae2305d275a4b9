#include <algorithm>
#include <array>
#include <limits>
#include <unordered_set>

#include "lamina/core/sha256.h"
#include "lamina/internal/strict_json.h"
#include "tokenizer/definition.h"
#include "tokenizer/json_reading.h"
#include "tokenizer/json_steps.h"
#include "tokenizer/utf8.h"

namespace lamina::tokenizer {
namespace {

constexpr std::size_t kMaxDepth = 32;

std::int32_t read_id(const Json& value, std::string_view what, std::string_view where) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() >= kMaxVocabulary) {
    fail("{}: the id of {} must be a whole number below {}, found {}", where, quote(what),
         kMaxVocabulary, quote(value.dump(-1, ' ', false, Json::error_handler_t::replace)));
  }
  return static_cast<std::int32_t>(value.get<std::uint64_t>());
}

std::vector<AddedToken> read_added(const Json& root, std::string_view where) {
  std::vector<AddedToken> out;
  const Json& list = member(root, "added_tokens", where);
  if (list.is_null()) return out;
  if (!list.is_array()) fail_type(list, "added_tokens", "a list", where);
  for (const Json& entry : list) {
    AddedToken token;
    token.content = text_member(entry, "content", where);
    token.id = read_id(member(entry, "id", where), token.content, where);
    token.special = bool_member(entry, "special", false, where);
    token.normalized = bool_member(entry, "normalized", !token.special, where);
    token.single_word = bool_member(entry, "single_word", false, where);
    token.lstrip = bool_member(entry, "lstrip", false, where);
    token.rstrip = bool_member(entry, "rstrip", false, where);
    if (token.content.empty()) fail("{}: added token {} is empty", where, token.id);
    if (token.content.size() > kMaxAddedName) {
      fail("{}: added token {} has {} bytes, at most {} are accepted", where, token.id,
           token.content.size(), kMaxAddedName);
    }
    out.push_back(std::move(token));
  }
  return out;
}

/// The entries of the model and the added tokens that it lacks: ids dense from 0, all different.
Vocabulary read_vocabulary(const Json& vocab, const std::vector<AddedToken>& added,
                           std::string_view where) {
  if (!vocab.is_object()) fail_type(vocab, "vocab", "an object", where);
  std::size_t count = vocab.size();
  std::unordered_set<std::string_view> contents;
  for (const AddedToken& token : added) {
    if (!contents.insert(token.content).second) {
      fail("{}: added token {} appears twice", where, quote(token.content));
    }
    const auto entry = vocab.find(token.content);
    if (entry == vocab.end()) {
      ++count;
    } else if (read_id(*entry, token.content, where) != token.id) {
      fail("{}: added token {} has id {}, but the vocabulary says {}", where, quote(token.content),
           token.id, entry->get<std::int64_t>());
    }
  }
  if (count == 0) fail("{}: the vocabulary is empty", where);
  if (count > kMaxVocabulary) {
    fail("{}: {} vocabulary entries, at most {} are accepted", where, count, kMaxVocabulary);
  }
  std::vector<std::string> names(count);
  std::vector<bool> taken(count, false), in_model(count, false);
  const auto take = [&](const std::string& name, std::int32_t id, bool model) {
    const auto index = static_cast<std::size_t>(id);
    if (index >= count) {
      fail("{}: token {} has id {}, but there are only {} tokens (ids must be dense)", where,
           quote(name), id, count);
    }
    if (taken[index]) {
      fail("{}: tokens {} and {} have the same id {}", where, quote(names[index]), quote(name), id);
    }
    if (name.size() > kMaxName) {
      fail("{}: token {} has {} bytes, at most {} are accepted", where, id, name.size(), kMaxName);
    }
    taken[index] = true;
    in_model[index] = model;
    names[index] = name;
  };
  for (const auto& [name, id] : vocab.items()) take(name, read_id(id, name, where), true);
  for (const AddedToken& token : added) {
    if (!vocab.contains(token.content)) take(token.content, token.id, false);
  }
  return Vocabulary(std::move(names), std::move(in_model), where);
}

/// "a b" or ["a", "b"].
std::pair<std::string_view, std::string_view> merge_sides(const Json& merge, std::size_t rank,
                                                          std::string_view where) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return {merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>()};
  }
  if (merge.is_string()) {
    const std::string_view text = merge.get_ref<const std::string&>();
    const std::size_t space = text.find(' ');
    if (space != text.npos && text.find(' ', space + 1) == text.npos) {
      return {text.substr(0, space), text.substr(space + 1)};
    }
  }
  fail("{}: merge {} must be \"left right\" or [\"left\", \"right\"]", where, rank);
}

std::vector<Merge> read_merges(const Json& model, const Vocabulary& vocabulary,
                               std::string_view where) {
  const Json& list = list_member(model, "merges", where);
  if (list.size() > kMaxMerges) {
    fail("{}: {} merges, at most {} are accepted", where, list.size(), kMaxMerges);
  }
  std::vector<Merge> merges;
  merges.reserve(list.size());
  std::string whole;
  for (const Json& entry : list) {
    const std::size_t rank = merges.size();
    const auto sides = merge_sides(entry, rank, where);
    const std::string_view left = sides.first, right = sides.second;
    const auto id = [&](std::string_view name) {
      const std::int32_t found = vocabulary.find_in_model(name);
      if (found < 0 || name.empty()) {
        fail("{}: merge {} ({} + {}) needs {}, which is not in the vocabulary", where, rank,
             quote(left), quote(right), quote(name));
      }
      return found;
    };
    whole.assign(left).append(right);
    merges.push_back({id(left), id(right), id(whole)});
  }
  return merges;
}

/// The type, also of old files that do not state it.
std::string model_type(const Json& model, std::string_view where) {
  if (!member(model, "type", where).is_null()) return type_of(model, where);
  if (member(model, "vocab", where).is_array()) return "Unigram";
  return member(model, "merges", where).is_null() ? "WordPiece" : "BPE";
}

void require_unused(const Json& model, std::string_view key, std::string_view where) {
  const Json& value = member(model, key, where);
  const bool unused = value.is_null() ||
                      (value.is_string() && value.get_ref<const std::string&>().empty()) ||
                      (value.is_number() && value.get<double>() == 0);
  if (!unused) fail("{}: model option {} is not supported", where, quote(key));
}

void read_model(const Json& model, Definition& out, std::string_view where) {
  const std::string type = model_type(model, where);
  if (type != "BPE" && type != "WordLevel") {
    fail("{}: model type {} is not supported (BPE and WordLevel are)", where, quote(type));
  }
  out.vocabulary = read_vocabulary(member(model, "vocab", where), out.added, where);
  const Json& unknown = member(model, "unk_token", where);
  if (!unknown.is_null()) {
    const std::string& name = text_member(model, "unk_token", where);
    out.options.unknown = out.vocabulary.find_in_model(name);
    // WordLevel files name an unknown token even where there is none.
    if (out.options.unknown < 0 && type == "BPE") {
      fail("{}: unk_token {} is not in the vocabulary", where, quote(name));
    }
  }
  if (type == "WordLevel") {
    out.kind = ModelKind::word_level;
    return;
  }
  out.kind = ModelKind::ranked_bpe;
  for (std::string_view key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    require_unused(model, key, where);
  }
  out.options.byte_fallback = bool_member(model, "byte_fallback", false, where);
  out.options.fuse_unknown = bool_member(model, "fuse_unk", false, where);
  out.options.whole_words = bool_member(model, "ignore_merges", false, where);
  out.merges = read_merges(model, out.vocabulary, where);
}

std::int32_t known_id(const Definition& definition, const std::string& name,
                      std::string_view where) {
  const std::int32_t id = definition.vocabulary.find(name);
  if (id < 0) fail("{}: special token {} is not in the vocabulary", where, quote(name));
  return id;
}

void check_range(const Definition& definition, std::int32_t id, std::string_view what,
                 std::string_view where) {
  if (id >= definition.vocabulary.size()) {
    fail("{}: {} has id {}, but there are only {} tokens", where, what, id,
         definition.vocabulary.size());
  }
}

void read_template(const Json& part, Definition& out, std::string_view where) {
  bool after_text = false;
  for (const Json& item : list_member(part, "single", where)) {
    const Json& special = member(item, "SpecialToken", where);
    if (special.is_null()) {
      if (member(item, "Sequence", where).is_null() || after_text) {
        fail("{}: the template of the post-processor must hold the sequence once", where);
      }
      after_text = true;
      continue;
    }
    const std::string& name = text_member(special, "id", where);
    const Json& entry = member(member(part, "special_tokens", where), name, where);
    for (const Json& id : list_member(entry, "ids", where)) {
      (after_text ? out.suffix : out.prefix).push_back(read_id(id, name, where));
      check_range(out, read_id(id, name, where), "a token of the template", where);
    }
    if (out.prefix.size() + out.suffix.size() > kMaxSteps) {
      fail("{}: the post-processor adds more than {} tokens", where, kMaxSteps);
    }
  }
  if (!after_text) fail("{}: the template of the post-processor lacks the sequence", where);
}

/// ["</s>", 2] of the older post-processors.
std::int32_t pair_id(const Json& part, std::string_view key, const Definition& definition,
                     std::string_view where) {
  const Json& pair = list_member(part, key, where);
  if (pair.size() != 2) fail("{}: {} must be [name, id]", where, quote(key));
  const std::int32_t id = read_id(pair[1], key, where);
  check_range(definition, id, key, where);
  return id;
}

void read_post_processor(const Json& part, Definition& out, std::string_view where, int depth = 0) {
  if (part.is_null()) return;
  const std::string& type = type_of(part, where);
  if (type == "ByteLevel") return;  // only moves offsets
  if (type == "Sequence" && depth < 4) {
    for (const Json& inner : list_member(part, "processors", where)) {
      read_post_processor(inner, out, where, depth + 1);
    }
    return;
  }
  if (!out.prefix.empty() || !out.suffix.empty()) {
    fail("{}: more than one post-processor adds tokens", where);
  }
  if (type == "TemplateProcessing") {
    read_template(part, out, where);
  } else if (type == "RobertaProcessing" || type == "BertProcessing") {
    out.prefix = {pair_id(part, "cls", out, where)};
    out.suffix = {pair_id(part, "sep", out, where)};
  } else {
    fail("{}: post-processor {} is not supported", where, quote(type));
  }
}

/// A tokenizer.json does not say which token begins or ends a text. Until a tokenizer_config.json
/// does, the post-processor decides, then the names in common use.
void guess_ends(Definition& out) {
  constexpr std::array<std::string_view, 6> kBegin = {"<s>",
                                                      "<bos>",
                                                      "<|begin_of_text|>",
                                                      "<\uFF5Cbegin\u2581of\u2581sentence\uFF5C>",
                                                      "<|im_start|>",
                                                      "<|endoftext|>"};
  constexpr std::array<std::string_view, 5> kEnd = {"</s>", "<eos>", "<|end_of_text|>",
                                                    "<\uFF5Cend\u2581of\u2581sentence\uFF5C>",
                                                    "<|endoftext|>"};
  const auto first_special = [&](const auto& names) -> std::optional<std::int32_t> {
    for (std::string_view name : names) {
      for (const AddedToken& token : out.added) {
        if (token.special && token.content == name) return token.id;
      }
    }
    return std::nullopt;
  };
  out.bos = out.prefix.empty() ? first_special(kBegin) : out.prefix.front();
  out.eos = out.suffix.empty() ? first_special(kEnd) : out.suffix.back();
}

}  // namespace

Definition read_json_definition(std::string_view text, std::string_view name) {
  if (text.size() > kMaxJson) {
    fail("{}: {} bytes, at most {} are accepted", name, text.size(), kMaxJson);
  }
  const Json root = files::parse_strict_json(text, name, kMaxDepth);
  if (!root.is_object()) fail("{}: a tokenizer.json must be an object", name);
  Definition out;
  out.name = name;
  out.added = read_added(root, name);
  const Json& model = member(root, "model", name);
  if (!model.is_object()) fail_type(model, "model", "an object", name);
  read_model(model, out, name);
  out.normalizer = read_normalizer(member(root, "normalizer", name), name);
  PreTokenizer pre = read_pre_tokenizer(member(root, "pre_tokenizer", name), name);
  out.pre_tokenizer = std::move(pre.steps);
  out.options.byte_level = pre.byte_level;
  if (pre.byte_level && out.kind == ModelKind::word_level) {
    fail("{}: model type WordLevel with pre-tokenizer ByteLevel is not supported", name);
  }
  out.decoder = read_decoder(member(root, "decoder", name), name);
  read_post_processor(member(root, "post_processor", name), out, name);
  guess_ends(out);
  Sha256 hash;
  hash.update(text);
  out.sha256 = hash.hex();
  return out;
}

void apply_tokenizer_config(Definition& definition, std::string_view text, std::string_view name) {
  const Json root = files::parse_strict_json(text, name, kMaxDepth);
  if (!root.is_object()) fail("{}: a tokenizer_config.json must be an object", name);
  // A token is its name, or an object that holds the name.
  const auto token = [&](std::string_view key) -> std::optional<std::int32_t> {
    const Json& value = member(root, key, name);
    if (value.is_null()) return std::nullopt;
    return known_id(
        definition,
        value.is_object() ? text_member(value, "content", name) : text_member(root, key, name),
        name);
  };
  if (const auto id = token("bos_token")) definition.bos = id;
  if (const auto id = token("eos_token")) definition.eos = id;
  const auto apply = [&](std::string_view key, std::optional<std::int32_t> id,
                         std::vector<std::int32_t>& out) {
    if (member(root, key, name).is_null()) return;
    if (!bool_member(root, key, false, name)) {
      out.clear();
    } else if (!id) {
      fail("{}: {} is true, but the tokenizer has no such token", name, quote(key));
    } else {
      out = {*id};
    }
  };
  apply("add_bos_token", definition.bos, definition.prefix);
  apply("add_eos_token", definition.eos, definition.suffix);
}

}  // namespace lamina::tokenizer
