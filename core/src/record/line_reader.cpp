#include "lamina/internal/line_reader.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "lamina/core/error.h"
#include "lamina/internal/file_text.h"
#include "lamina/internal/strict_json.h"

namespace lamina {
namespace {

using files::quote;

// A line longer than this is some other file.
constexpr std::size_t kMaxLine = std::size_t{64} << 20;

}  // namespace

void LineReader::bad(std::string_view key, std::string_view expected, const Json& found) const {
  fail("{}: {}{}{}{} expected, found {} {}", where_, key.empty() ? "" : "key ", key,
       key.empty() ? "" : ": ", expected, found.type_name(),
       quote(found.dump(-1, ' ', false, Json::error_handler_t::replace)));
}

LineReader::Json LineReader::object(const std::string& line,
                                    std::span<const std::string_view> keys) const {
  Json found = files::parse_strict_json(line, where_, 8);
  if (!found.is_object()) bad("", "an object", found);
  for (const auto& [key, value] : found.items()) {
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
      fail("{}: key {} is not one of {}", where_, quote(key), fmt::join(keys, ", "));
    }
  }
  return found;
}

std::string LineReader::text(const Json& value, std::string_view key) const {
  if (!value.is_string()) bad(key, "a string", value);
  const auto& out = value.get_ref<const std::string&>();
  if (const auto zero = out.find('\0'); zero != out.npos) {
    fail("{}: key {}: zero byte at byte {} of {}", where_, key, zero, out.size());
  }
  return out;
}

std::string LineReader::name(const Json& value, std::string_view key) const {
  if (value.is_number_integer()) return value.dump();
  std::string out = text(value, key);
  if (out.empty()) fail("{}: key {}: the id is empty", where_, key);
  return out;
}

void LineReader::check_id(std::int64_t id, std::string_view key) const {
  if (id < 0 || id >= d_vocab_) {
    fail("{}: key {}: token id {} is outside the model's vocabulary (0 to {})", where_, key, id,
         d_vocab_ - 1);
  }
}

std::int32_t LineReader::token_id(const Json& value, std::string_view key) const {
  if (!value.is_number_integer()) bad(key, "a token id", value);
  // An unsigned number above the signed range would come out negative.
  if (value.is_number_unsigned() &&
      value.get<std::uint64_t>() >= static_cast<std::uint64_t>(d_vocab_)) {
    fail("{}: key {}: token id {} is outside the model's vocabulary (0 to {})", where_, key,
         value.get<std::uint64_t>(), d_vocab_ - 1);
  }
  const auto id = value.get<std::int64_t>();
  check_id(id, key);
  return static_cast<std::int32_t>(id);
}

std::vector<std::int32_t> LineReader::token_ids(const Json& value, std::string_view key) const {
  if (!value.is_array()) bad(key, "an array of token ids", value);
  if (value.empty()) fail("{}: key {}: at least 1 token id expected, found 0", where_, key);
  std::vector<std::int32_t> ids;
  for (const Json& id : value) ids.push_back(token_id(id, key));
  return ids;
}

const Tokenizer& LineReader::tokenizer(std::string_view what) const {
  if (tokenizer_ == nullptr) {
    fail("{}: {} needs a tokenizer and the model comes without one: give token ids", where_, what);
  }
  return *tokenizer_;
}

std::vector<std::int32_t> LineReader::encode_prompt(const std::string& text,
                                                    std::string_view label) const {
  if (text.empty()) fail("{}: {}the text is empty", where_, label);
  const Tokenizer& encoder = tokenizer("text");
  std::vector<std::int32_t> ids;
  try {
    ids = encoder.encode(text, options_.bos, options_.parse_special);
  } catch (const Error& error) {
    fail("{}: {}{}", where_, label, error.what());
  }
  if (ids.empty()) fail("{}: {}the text {} gives no tokens", where_, label, quote(text));
  for (std::int32_t id : ids) check_id(id, "text");
  return ids;
}

void for_each_line(const std::filesystem::path& path,
                   const std::function<void(const std::string& line, std::int64_t number,
                                            const std::string& where)>& use) {
  const std::string file = path.string();
  if (std::filesystem::is_directory(path)) fail("{}: a file expected, found a folder", file);
  std::ifstream stream(path, std::ios::binary);
  if (!stream) fail("{}: cannot open the file: {}", file, std::strerror(errno));
  std::string line;
  for (std::int64_t number = 1; std::getline(stream, line); ++number) {
    if (number == 1 && line.starts_with("\xef\xbb\xbf")) line.erase(0, 3);
    if (!line.empty() && line.back() == '\r') line.pop_back();
    const std::string where = fmt::format("{}, line {}", file, number);
    if (line.size() > kMaxLine) {
      fail("{}: {} bytes, at most {} expected", where, line.size(), kMaxLine);
    }
    if (const auto zero = line.find('\0'); zero != line.npos) {
      fail("{}: zero byte at byte {} of {}", where, zero, line.size());
    }
    if (!files::valid_utf8(line)) fail("{}: not valid UTF-8: {}", where, quote(line));
    use(line, number, where);
  }
  if (stream.bad()) fail("{}: cannot read the file: {}", file, std::strerror(errno));
}

bool is_blank(std::string_view line) {
  return line.find_first_not_of(" \t\v\f") == line.npos;
}

}  // namespace lamina
