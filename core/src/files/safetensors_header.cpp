#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_set>
#include <utility>

#include "lamina/core/checked.h"
#include "lamina/core/error.h"
#include "lamina/core/safetensors.h"
#include "lamina/internal/file_text.h"
#include "safetensors_limits.h"

// The header is read by a SAX handler that accepts exactly the format's grammar, so that a hostile
// header can neither nest deeply nor make lamina hold more than the tensors it names.

namespace lamina {
namespace {

using files::kMaxHeader;
using files::kMaxRank;
using files::quote;

struct NamedDType {
  std::string_view name;
  DType type;
};
constexpr NamedDType kDTypes[] = {{"F64", DType::f64},     {"F32", DType::f32}, {"F16", DType::f16},
                                  {"BF16", DType::bf16},   {"I8", DType::i8},   {"U8", DType::u8},
                                  {"I16", DType::i16},     {"I32", DType::i32}, {"I64", DType::i64},
                                  {"BOOL", DType::boolean}};

struct Entry {
  TensorInfo info;
  std::uint64_t begin = 0, end = 0;  // in the data section
};

class HeaderReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderReader(std::string_view file) : file_(file) {}

  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;

  bool key(string_t& name) override {
    switch (place_) {
      case Place::header:
        key_ = name;
        if (name == "__metadata__") {
          if (std::exchange(metadata_seen_, true)) fail("{}: __metadata__ appears twice", file_);
        } else if (!names_.insert(name).second) {
          fail("{}: tensor {} appears twice in the header", file_, quote(name));
        }
        return true;
      case Place::metadata:
        field_ = name;
        if (metadata.contains(name)) {
          fail("{}: __metadata__: key {} appears twice", file_, quote(name));
        }
        return true;
      default:
        field_ = name;
        if (name != "dtype" && name != "shape" && name != "data_offsets") {
          wrong(fmt::format("unknown key {} (expected dtype, shape, data_offsets)", quote(name)));
        }
        if (!fields_.insert(name).second) wrong(fmt::format("key {} appears twice", name));
        return true;
    }
  }

  bool start_object(std::size_t) override {
    if (place_ == Place::outside) {
      place_ = Place::header;
    } else if (place_ == Place::header && key_ == "__metadata__") {
      place_ = Place::metadata;
    } else if (place_ == Place::header) {
      place_ = Place::tensor;
      entry_ = {};
      fields_.clear();
      numbers_.clear();
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::tensor) {
      for (const char* needed : {"dtype", "shape", "data_offsets"}) {
        if (!fields_.contains(needed)) wrong(fmt::format("key {} is missing", needed));
      }
      entry_.info.name = key_;
      entries.push_back(std::move(entry_));
    }
    place_ = place_ == Place::header ? Place::outside : Place::header;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ != Place::tensor || field_ == "dtype") unexpected("an array");
    place_ = Place::numbers;
    numbers_.clear();
    return true;
  }

  bool end_array() override {
    place_ = Place::tensor;
    if (field_ == "shape") {
      entry_.info.shape = numbers_;
    } else {
      if (numbers_.size() != 2) {
        wrong(fmt::format("data_offsets holds {} numbers, expected 2", numbers_.size()));
      }
      entry_.begin = numbers_[0];
      entry_.end = numbers_[1];
    }
    return true;
  }

  bool string(string_t& text) override {
    if (place_ == Place::metadata) {
      metadata.emplace(field_, text);
    } else if (place_ == Place::tensor && field_ == "dtype") {
      const auto* found = std::find_if(std::begin(kDTypes), std::end(kDTypes),
                                       [&](const NamedDType& d) { return d.name == text; });
      if (found == std::end(kDTypes)) {
        wrong(
            fmt::format("dtype {} is not supported (expected F64, F32, F16, BF16, I8, U8, I16, "
                        "I32, I64 or BOOL)",
                        quote(text)));
      }
      entry_.info.dtype = found->type;
    } else {
      unexpected(fmt::format("the string {}", quote(text)));
    }
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ != Place::numbers) unexpected(fmt::format("the number {}", value));
    const std::size_t most = field_ == "shape" ? kMaxRank : 2;
    if (numbers_.size() == most) {
      wrong(fmt::format("{} holds more than {} numbers", field_, most));
    }
    numbers_.push_back(value);
    return true;
  }

  bool number_integer(number_integer_t value) override {
    unexpected(fmt::format("the negative number {}", value));
  }
  bool number_float(number_float_t, const string_t& text) override {
    unexpected(fmt::format("the number {}, no 64-bit whole number", quote(text)));
  }
  bool null() override { unexpected("null"); }
  bool boolean(bool value) override { unexpected(value ? "true" : "false"); }
  bool binary(binary_t&) override { unexpected("binary data"); }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    fail("{}: the header is no valid JSON at its byte {}", file_, position);
  }

 private:
  enum class Place { outside, header, metadata, tensor, numbers };

  [[noreturn]] void wrong(std::string_view what) const {
    fail("{}: tensor {}: {}", file_, quote(key_), what);
  }

  [[noreturn]] void unexpected(std::string_view what) const {
    switch (place_) {
      case Place::outside:
        fail("{}: the header is {}, expected an object", file_, what);
      case Place::header:
        fail("{}: header key {} holds {}, expected an object", file_, quote(key_), what);
      case Place::metadata:
        fail("{}: __metadata__: key {} holds {}, expected a string", file_, quote(field_), what);
      case Place::numbers:
        wrong(fmt::format("{} holds {}, expected whole numbers ≥ 0", field_, what));
      case Place::tensor:
        wrong(fmt::format("{} is {}, expected {}", field_, what,
                          field_ == "dtype" ? "a string" : "an array"));
    }
    fail("{}: unexpected {} in the header", file_, what);
  }

  std::string_view file_;
  Place place_ = Place::outside;
  std::string key_, field_;  // innermost key of the header, and of the object it holds
  Entry entry_;
  std::vector<std::uint64_t> numbers_;
  std::set<std::string, std::less<>> fields_;
  std::unordered_set<std::string> names_;
  bool metadata_seen_ = false;
};

/// Checks that the entry's range lies in the data and has the size of dtype × shape.
void check_range(const Entry& e, std::uint64_t data_size, std::string_view name) {
  const std::string tensor = quote(e.info.name);
  if (e.begin > e.end || e.end > data_size) {
    fail("{}: tensor {}: data_offsets [{}, {}] lie outside the {} data bytes", name, tensor,
         e.begin, e.end, data_size);
  }
  const std::string what = fmt::format("{}: tensor {}: shape", name, tensor);
  std::uint64_t elements = 1;
  for (std::uint64_t extent : e.info.shape) elements = checked_mul(elements, extent, what);
  const std::uint64_t expected = checked_mul(elements, block_bytes(e.info.dtype), what);
  if (e.end - e.begin != expected) {
    fail("{}: tensor {}: {} × shape [{}] takes {} bytes, data_offsets span {}", name, tensor,
         dtype_name(e.info.dtype), fmt::join(e.info.shape, ", "), expected, e.end - e.begin);
  }
}

}  // namespace

SafetensorsHeader parse_safetensors(std::span<const std::byte> file, std::string_view name) {
  std::uint64_t header_size = 0;
  if (file.size() < sizeof header_size) {
    fail("{}: {} bytes are no safetensors file: the header length alone takes {}", name,
         file.size(), sizeof header_size);
  }
  std::memcpy(&header_size, file.data(), sizeof header_size);
  if (header_size > kMaxHeader) {
    fail("{}: header of {} bytes, at most {} are allowed (is this a safetensors file?)", name,
         header_size, kMaxHeader);
  }
  if (header_size > file.size() - sizeof header_size) {
    fail("{}: header of {} bytes, but only {} follow its length", name, header_size,
         file.size() - sizeof header_size);
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + sizeof header_size,
                              header_size);
  const auto data = file.subspan(sizeof header_size + header_size);
  if (text.empty() || text[0] != '{') {
    fail("{}: the header of {} bytes does not begin with '{{'", name, header_size);
  }
  // The JSON library would take a zero byte for the end of the text.
  if (const std::size_t zero = text.find('\0'); zero != text.npos) {
    fail("{}: the header holds a zero byte at its byte {} of {}", name, zero, header_size);
  }

  HeaderReader reader(name);
  nlohmann::json::sax_parse(text, &reader);
  std::vector<Entry>& entries = reader.entries;
  for (const Entry& e : entries) check_range(e, data.size(), name);
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });

  SafetensorsHeader header;
  header.metadata = std::move(reader.metadata);
  header.tensors.reserve(entries.size());
  std::uint64_t end = 0;
  for (Entry& e : entries) {
    if (e.begin > end) {
      fail("{}: tensor {} begins at data byte {}, but the tensors before it end at {}: a hole",
           name, quote(e.info.name), e.begin, end);
    }
    if (e.begin < end) {
      fail("{}: tensor {} begins at data byte {}, but tensor {} ends at {}: they overlap", name,
           quote(e.info.name), e.begin, quote(header.tensors.back().name), end);
    }
    end = e.end;
    e.info.bytes = data.subspan(e.begin, e.end - e.begin);
    header.tensors.push_back(std::move(e.info));
  }
  if (end != data.size()) {
    fail("{}: the tensors end at data byte {}, but the file holds {} data bytes", name, end,
         data.size());
  }
  return header;
}

}  // namespace lamina
