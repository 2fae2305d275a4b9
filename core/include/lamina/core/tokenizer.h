#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lamina {

class GgufMetadata;

/// Whether encode() puts the beginning-of-sequence token in front.
enum class Bos : std::uint8_t {
  model,   ///< as the tokenizer file says (its post-processor or add_bos_token); the only choice
           ///< that also puts an end-of-sequence token behind the text, if the file says so
  always,  ///< always; Error if the tokenizer has none
  never,
};

/// Text to token ids and back. Immutable after loading; safe to share between threads.
///
/// Byte-level BPE (GPT-2, Llama 3, Qwen 2/3, SmolLM2 pre-tokenizers), SentencePiece-style BPE with
/// byte fallback (Llama 2, Gemma), WordPiece (BERT), and whole words (WordLevel). References: the
/// `tokenizers` package; for the scored pieces of a GGUF file the `sentencepiece` package. Neither
/// truncation nor padding of a file is applied.
class Tokenizer {
 public:
  /// From the text of a tokenizer.json. `name` is used in messages. A pre-tokenizer, normaliser or
  /// decoder that is not supported is refused by name, never skipped.
  static Tokenizer from_json(std::string_view text, std::string_view name);
  /// From the `tokenizer.ggml.*` keys of a GGUF file.
  static Tokenizer from_gguf(const GgufMetadata& metadata);
  /// A folder with tokenizer.json (and tokenizer_config.json for the BOS policy), a tokenizer.json,
  /// or a GGUF file.
  static Tokenizer load(const std::filesystem::path& path);

  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  /// Token ids of UTF-8 `text`. Invalid UTF-8 is an Error naming the byte offset; so is a character
  /// for which there is neither a token nor an unknown token (the reference drops it silently).
  /// `parse_special`: whether special tokens written out in the text become their ids.
  std::vector<std::int32_t> encode(std::string_view text, Bos bos = Bos::model,
                                   bool parse_special = true) const;

  /// Text of `ids`, as the reference's decode. Unknown ids are an Error.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special = false) const;

  /// The bytes that one token stands for, a leading space included; a special token's own name.
  /// May be a part of a UTF-8 sequence. WordPiece: the entry itself, "##" included.
  const std::string& piece(std::int32_t id) const;
  /// The token that stands for exactly these bytes (`" the"`, `"the"`); nullopt if there is none.
  /// Special tokens and byte-fallback tokens are not found this way.
  std::optional<std::int32_t> find_piece(std::string_view bytes) const;
  /// The byte-fallback token <0xNN> of a SentencePiece-style vocabulary, or the single-byte entry
  /// of a byte-level one; nullopt if there is none.
  std::optional<std::int32_t> byte_token(std::uint8_t byte) const;
  /// The special or ordinary entry whose vocabulary name is exactly `name` ("<|endoftext|>").
  std::optional<std::int32_t> find_name(std::string_view name) const;
  bool is_special(std::int32_t id) const;

  /// One more than the largest id.
  std::int32_t vocab_size() const;
  /// The tokens that begin and end a text. A tokenizer.json alone does not name them: then those of
  /// its post-processor, or a special token with a name in common use ("<s>", "<|endoftext|>", …).
  std::optional<std::int32_t> bos_id() const;
  std::optional<std::int32_t> eos_id() const;
  /// Whether encode(…, Bos::model) adds a BOS token.
  bool adds_bos() const;
  /// SHA-256 (hex) of the definition it was made from: file text, or vocabulary,
  /// types, scores and merges. A tokenizer_config.json does not count.
  const std::string& sha256() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

}  // namespace lamina
