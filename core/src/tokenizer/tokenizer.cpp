#include "lamina/core/tokenizer.h"

#include <algorithm>
#include <fstream>

#include "lamina/core/error.h"
#include "lamina/core/gguf.h"
#include "lamina/internal/file_text.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/definition.h"
#include "tokenizer/utf8.h"

namespace lamina {
namespace {

using namespace tokenizer;  // NOLINT: the private half of this one class

/// How vocabulary names spell text.
struct Spelling {
  bool byte_level = false, byte_fallback = false;
  std::string space;  // stands for " "; empty if nothing does

  explicit Spelling(const Definition& definition) {
    byte_level = definition.options.byte_level;
    for (const DecoderStep& step : definition.decoder) {
      if (std::holds_alternative<ByteFallbackDecode>(step)) byte_fallback = true;
      if (const auto* metaspace = std::get_if<MetaspaceDecode>(&step))
        space = metaspace->replacement;
      const auto* replace = std::get_if<Replace>(&step);
      if (replace && !replace->pattern && replace->to == " ") space = replace->from;
    }
  }

  std::string bytes_of(const std::string& name) const {
    if (byte_level) return from_alphabet(name).value_or(name);
    if (byte_fallback) {
      if (const auto byte = byte_fallback_value(name))
        return std::string(1, static_cast<char>(*byte));
    }
    return replace_all(name, space, " ");
  }

  std::string name_of(std::string_view bytes) const {
    return byte_level      ? to_alphabet(bytes)
           : space.empty() ? std::string(bytes)
                           : replace_all(bytes, " ", space);
  }
};

std::string read_file(const std::filesystem::path& path) {
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  if (error) fail("{}: {}", path.string(), error.message());
  if (size > kMaxJson) {
    fail("{}: {} bytes, a tokenizer file has at most {}", path.string(), size, kMaxJson);
  }
  std::ifstream in(path, std::ios::binary);
  std::string text(size, '\0');
  if (!in.read(text.data(), static_cast<std::streamsize>(size))) {
    fail("{}: cannot be read", path.string());
  }
  return text;
}

bool starts_like_gguf(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::string magic(4, '\0');
  return in.read(magic.data(), 4) && magic == "GGUF";
}

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(Definition made)
      : definition(std::move(made)), spelling(definition), special(size(), false) {
    make_model();
    split_added();
    pieces.reserve(size());
    for (std::int32_t id = 0; id < definition.vocabulary.size(); ++id) {
      pieces.push_back(spelling.bytes_of(definition.vocabulary.name(id)));
    }
    bytes.fill(-1);
    for (int byte = 0; byte < 256; ++byte) {
      const auto value = static_cast<std::uint8_t>(byte);
      if (spelling.byte_level)
        bytes[byte] = definition.vocabulary.find_in_model(byte_character(value));
      if (spelling.byte_fallback)
        bytes[byte] = definition.vocabulary.find(byte_fallback_name(value));
    }
    for (const AddedToken& token : definition.added) {
      const auto index = static_cast<std::size_t>(token.id);
      special[index] = token.special;
      pieces[index] = token.content;
    }
  }

  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  std::size_t size() const { return static_cast<std::size_t>(definition.vocabulary.size()); }

  std::size_t checked(std::int32_t id) const {
    if (id < 0 || id >= definition.vocabulary.size()) {
      fail("{}: token id {} is out of range, the vocabulary has {} entries", definition.name, id,
           definition.vocabulary.size());
    }
    return static_cast<std::size_t>(id);
  }

  void make_model() {
    switch (definition.kind) {
      case ModelKind::ranked_bpe:
        model = make_ranked_bpe(definition.vocabulary, definition.merges, definition.options);
        break;
      case ModelKind::scored_bpe:
        model = make_scored_bpe(definition.vocabulary, definition.scores, definition.options);
        break;
      case ModelKind::word_level:
        model = make_word_level(definition.vocabulary, definition.options);
        break;
    }
    definition.merges = {}, definition.scores = {};  // the model has its own form of them
  }

  void split_added() {
    std::vector<AddedToken> raw, normalized;
    std::size_t total = 0;
    for (AddedToken token : definition.added) {
      if (token.normalized) {
        token.content = normalize(token.content, definition.normalizer);
        normalized.push_back(std::move(token));
      } else {
        raw.push_back(std::move(token));
      }
    }
    for (const auto* tokens : {&raw, &normalized}) {
      for (const AddedToken& token : *tokens) total += token.content.size();
    }
    if (total > kMaxAddedTotal) {
      fail("{}: the added tokens have {} bytes, at most {} are accepted", definition.name, total,
           kMaxAddedTotal);
    }
    in_raw = AddedTokenSplitter(std::move(raw));
    in_normalized = AddedTokenSplitter(std::move(normalized));
  }

  void encode(std::string_view text, bool parse_special, std::vector<std::int32_t>& out) const {
    const ScratchPointer scratch = make_scratch();
    Pieces words;
    for (const Section& section : in_raw.split(text, parse_special)) {
      if (section.id >= 0) {
        out.push_back(section.id);
        continue;
      }
      std::string changed;
      std::string_view normal = section.text;
      if (!definition.normalizer.empty())
        normal = changed = normalize(normal, definition.normalizer);
      for (const Section& inner : in_normalized.split(normal, parse_special)) {
        if (inner.id >= 0) {
          out.push_back(inner.id);
          continue;
        }
        const bool at_start =
            section.text.data() == text.data() && inner.text.data() == normal.data();
        pre_tokenize(inner.text, at_start, definition.pre_tokenizer, words);
        for (std::string_view word : words.views) model->encode(word, *scratch, out);
      }
    }
  }

  Definition definition;
  Spelling spelling;
  std::unique_ptr<const Model> model;
  AddedTokenSplitter in_raw, in_normalized;
  std::vector<std::string> pieces;
  std::vector<bool> special;
  std::array<std::int32_t, 256> bytes;
};

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::from_json(std::string_view text, std::string_view name) {
  return Tokenizer(std::make_unique<const Impl>(read_json_definition(text, name)));
}

Tokenizer Tokenizer::from_gguf(const GgufMetadata& metadata) {
  return Tokenizer(std::make_unique<const Impl>(read_gguf_definition(metadata)));
}

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
  const bool folder = std::filesystem::is_directory(path);
  const std::filesystem::path file = folder ? path / "tokenizer.json" : path;
  if (!std::filesystem::exists(file)) fail("{}: no such file", file.string());
  if (starts_like_gguf(file)) return from_gguf(open_gguf(file).metadata);
  Definition definition = read_json_definition(read_file(file), file.string());
  const std::filesystem::path config = path / "tokenizer_config.json";
  if (folder && std::filesystem::exists(config)) {
    apply_tokenizer_config(definition, read_file(config), config.string());
  }
  return Tokenizer(std::make_unique<const Impl>(std::move(definition)));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, Bos bos,
                                            bool parse_special) const {
  if (const std::size_t bad = first_invalid_utf8(text); bad < text.size()) {
    fail("the text is not UTF-8: byte {} of {} is 0x{:02X}", bad, text.size(),
         static_cast<std::uint8_t>(text[bad]));
  }
  if (text.size() >= std::size_t{1} << 31) {
    fail("a text of {} bytes is too long to tokenize, the limit is {}", text.size(),
         (std::size_t{1} << 31) - 1);
  }
  const Definition& definition = impl_->definition;
  std::vector<std::int32_t> ids;
  if (bos == Bos::always && definition.prefix.empty()) {
    if (!definition.bos)
      fail("{}: the tokenizer has no beginning-of-sequence token", definition.name);
    ids.push_back(*definition.bos);
  } else if (bos != Bos::never) {
    ids = definition.prefix;
  }
  impl_->encode(text, parse_special, ids);
  if (bos == Bos::model) ids.insert(ids.end(), definition.suffix.begin(), definition.suffix.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  std::vector<std::string> names;
  names.reserve(ids.size());
  for (std::int32_t id : ids) {
    const std::size_t index = impl_->checked(id);
    if (skip_special && impl_->special[index]) continue;
    names.push_back(impl_->definition.vocabulary.name(id));
  }
  return decode_names(std::move(names), impl_->definition.decoder);
}

const std::string& Tokenizer::piece(std::int32_t id) const {
  return impl_->pieces[impl_->checked(id)];
}

std::optional<std::int32_t> Tokenizer::find_piece(std::string_view bytes) const {
  if (bytes.empty()) return std::nullopt;
  const Vocabulary& vocabulary = impl_->definition.vocabulary;
  // An ordinary entry, or a token added to the text's own characters (Gemma's newlines).
  for (const std::string& name : {impl_->spelling.name_of(bytes), std::string(bytes)}) {
    const std::int32_t id = vocabulary.find(name);
    if (id < 0 || is_special(id) || piece(id) != bytes) continue;
    if (impl_->spelling.byte_fallback && byte_fallback_value(vocabulary.name(id))) continue;
    return id;
  }
  return std::nullopt;
}

std::optional<std::int32_t> Tokenizer::byte_token(std::uint8_t byte) const {
  const std::int32_t id = impl_->bytes[byte];
  return id < 0 ? std::nullopt : std::optional(id);
}

std::optional<std::int32_t> Tokenizer::find_name(std::string_view name) const {
  const std::int32_t id = impl_->definition.vocabulary.find(name);
  return id < 0 ? std::nullopt : std::optional(id);
}

bool Tokenizer::is_special(std::int32_t id) const {
  return impl_->special[impl_->checked(id)];
}
std::int32_t Tokenizer::vocab_size() const {
  return impl_->definition.vocabulary.size();
}
std::optional<std::int32_t> Tokenizer::bos_id() const {
  return impl_->definition.bos;
}
std::optional<std::int32_t> Tokenizer::eos_id() const {
  return impl_->definition.eos;
}
bool Tokenizer::adds_bos() const {
  return !impl_->definition.prefix.empty();
}
const std::string& Tokenizer::sha256() const {
  return impl_->definition.sha256;
}

}  // namespace lamina
