#pragma once

#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "tokenizer/decoder.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/pre_tokenizer.h"

// The parts of a tokenizer.json that are lists of steps. A type that is not supported is an Error
// that names it.
namespace lamina::tokenizer {

std::vector<NormalizerStep> read_normalizer(const nlohmann::json& part, std::string_view where);

struct PreTokenizer {
  std::vector<PreTokenizerStep> steps;
  bool byte_level = false;  ///< ends in the byte alphabet
};
PreTokenizer read_pre_tokenizer(const nlohmann::json& part, std::string_view where);

std::vector<DecoderStep> read_decoder(const nlohmann::json& part, std::string_view where);

}  // namespace lamina::tokenizer
