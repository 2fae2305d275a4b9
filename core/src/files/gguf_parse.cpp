#include <algorithm>
#include <bit>
#include <cstring>
#include <unordered_set>

#include "lamina/core/checked.h"
#include "lamina/core/error.h"
#include "lamina/core/gguf.h"
#include "lamina/internal/file_text.h"

namespace lamina {
namespace {

using files::quote;

constexpr std::uint64_t kMaxName = 65535;  // bytes of a key, by the format; tensor names likewise
constexpr std::uint64_t kMaxDims = 4;
constexpr std::uint64_t kDefaultAlignment = 32;

// Value types, in the format's numbering.
enum class ValueType : std::uint32_t {
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  f32,
  boolean,
  string,
  array,
  u64,
  i64,
  f64
};
constexpr std::uint32_t kValueTypes = 13;

/// Fewest bytes one value of the type takes in the file.
std::uint64_t least_bytes(ValueType type) {
  constexpr std::uint8_t bytes[kValueTypes] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};
  return bytes[static_cast<std::uint32_t>(type)];
}

// Tensor types, in ggml's numbering; a gap or an entry without a DType cannot be read.
struct GgmlType {
  std::uint32_t number;
  std::string_view name;
  std::optional<DType> type;
};
constexpr GgmlType kGgmlTypes[] = {
    {0, "F32", DType::f32},    {1, "F16", DType::f16},    {2, "Q4_0", DType::q4_0},
    {3, "Q4_1", DType::q4_1},  {4, "Q4_2", {}},           {5, "Q4_3", {}},
    {6, "Q5_0", DType::q5_0},  {7, "Q5_1", DType::q5_1},  {8, "Q8_0", DType::q8_0},
    {9, "Q8_1", {}},           {10, "Q2_K", {}},          {11, "Q3_K", {}},
    {12, "Q4_K", DType::q4_k}, {13, "Q5_K", DType::q5_k}, {14, "Q6_K", DType::q6_k},
    {15, "Q8_K", {}},          {16, "IQ2_XXS", {}},       {17, "IQ2_XS", {}},
    {18, "IQ3_XXS", {}},       {19, "IQ1_S", {}},         {20, "IQ4_NL", {}},
    {21, "IQ3_S", {}},         {22, "IQ2_S", {}},         {23, "IQ4_XS", {}},
    {24, "I8", DType::i8},     {25, "I16", DType::i16},   {26, "I32", DType::i32},
    {27, "I64", DType::i64},   {28, "F64", DType::f64},   {29, "IQ1_M", {}},
    {30, "BF16", DType::bf16}, {31, "Q4_0_4_4", {}},      {32, "Q4_0_4_8", {}},
    {33, "Q4_0_8_8", {}},      {34, "TQ1_0", {}},         {35, "TQ2_0", {}},
    {36, "IQ4_NL_4_4", {}},    {37, "IQ4_NL_4_8", {}},    {38, "IQ4_NL_8_8", {}},
    {39, "MXFP4", {}},         {40, "NVFP4", {}},         {41, "Q1_0", {}},
};

/// Reads the file from front to back; every step is checked against what is left.
class Reader {
 public:
  Reader(std::span<const std::byte> file, std::string_view name) : file_(file), name_(name) {}

  std::string_view name() const { return name_; }
  std::uint64_t position() const { return position_; }
  std::uint64_t left() const { return file_.size() - position_; }

  std::span<const std::byte> bytes(std::uint64_t count, std::string_view what) {
    if (count > left()) {
      fail("{}: {} at byte {} takes {} bytes, but only {} are left", name_, what, position_, count,
           left());
    }
    const auto taken = file_.subspan(position_, count);
    position_ += count;
    return taken;
  }

  template <class T>
  T number(std::string_view what) {
    T value;
    std::memcpy(&value, bytes(sizeof value, what).data(), sizeof value);
    return value;
  }

  std::string text(std::string_view what) {
    const auto size = number<std::uint64_t>(what);
    const auto raw = bytes(size, what);
    return {reinterpret_cast<const char*>(raw.data()), raw.size()};
  }

  /// A key or a tensor's name.
  std::string label(std::string_view what) {
    const std::uint64_t start = position_;
    const auto size = number<std::uint64_t>(what);
    if (size == 0 || size > kMaxName) {
      fail("{}: {} at byte {} is {} bytes long, expected 1 to {}", name_, what, start, size,
           kMaxName);
    }
    const auto raw = bytes(size, what);
    std::string result(reinterpret_cast<const char*>(raw.data()), raw.size());
    if (!files::valid_utf8(result)) {
      fail("{}: {} {} at byte {} is no UTF-8 text", name_, what, quote(result), start);
    }
    return result;
  }

  /// A number of things that take at least `least` bytes each, refused if they cannot fit: nothing
  /// is allocated for a count that the file does not back.
  void require_room(std::uint64_t count, std::uint64_t least, std::string_view what) const {
    if (count > left() / least) {
      fail("{}: {} {} need at least {} bytes each, but only {} bytes are left", name_, count, what,
           least, left());
    }
  }

 private:
  std::span<const std::byte> file_;
  std::string_view name_;
  std::uint64_t position_ = 0;
};

/// The metadata section, value by value.
class MetadataReader {
 public:
  explicit MetadataReader(Reader& reader) : reader_(reader) {}

  std::map<std::string, GgufValue, std::less<>> read(std::uint64_t count) {
    std::map<std::string, GgufValue, std::less<>> values;
    reader_.require_room(count, 13, "metadata keys");  // length, a byte, type, a one-byte value
    for (std::uint64_t i = 0; i < count; ++i) {
      std::string key = reader_.label("metadata key");
      what_ = fmt::format("metadata key {}", quote(key));
      if (values.contains(key)) fail("{}: {} appears twice", reader_.name(), what_);
      GgufValue held = value();
      values.emplace(std::move(key), std::move(held));
    }
    return values;
  }

 private:
  ValueType type() {
    const auto number = reader_.number<std::uint32_t>(what_);
    if (number >= kValueTypes) {
      fail("{}: {}: unknown value type {}, expected 0 to {}", reader_.name(), what_, number,
           kValueTypes - 1);
    }
    return static_cast<ValueType>(number);
  }

  bool boolean() {
    const auto byte = reader_.number<std::uint8_t>(what_);
    if (byte > 1) fail("{}: {}: a boolean is {}, expected 0 or 1", reader_.name(), what_, byte);
    return byte == 1;
  }

  GgufValue value() {
    switch (const ValueType of = type()) {
      case ValueType::boolean:
        return boolean();
      case ValueType::string:
        return reader_.text(what_);
      case ValueType::array:
        return array();
      case ValueType::f32:
        return double{reader_.number<float>(what_)};
      case ValueType::f64:
        return reader_.number<double>(what_);
      case ValueType::u8:
      case ValueType::u16:
      case ValueType::u32:
      case ValueType::u64:
        return whole<std::uint64_t>(of);
      default:
        return whole<std::int64_t>(of);
    }
  }

  template <class Wide>
  Wide whole(ValueType of) {
    switch (of) {
      case ValueType::u8:
        return reader_.number<std::uint8_t>(what_);
      case ValueType::i8:
        return reader_.number<std::int8_t>(what_);
      case ValueType::u16:
        return reader_.number<std::uint16_t>(what_);
      case ValueType::i16:
        return reader_.number<std::int16_t>(what_);
      case ValueType::u32:
        return reader_.number<std::uint32_t>(what_);
      case ValueType::i32:
        return reader_.number<std::int32_t>(what_);
      default:
        return reader_.number<Wide>(what_);
    }
  }

  GgufValue array() {
    const ValueType of = type();
    if (of == ValueType::array) {
      fail("{}: {}: arrays of arrays are not supported", reader_.name(), what_);
    }
    const auto count = reader_.number<std::uint64_t>(what_);
    reader_.require_room(count, least_bytes(of), what_ + " elements");
    switch (of) {
      case ValueType::boolean:
        return elements<bool>(count, [&] { return boolean(); });
      case ValueType::string:
        return elements<std::string>(count, [&] { return reader_.text(what_); });
      case ValueType::f32:
        return elements<double>(count, [&] { return reader_.number<float>(what_); });
      case ValueType::f64:
        return elements<double>(count, [&] { return reader_.number<double>(what_); });
      case ValueType::u8:
      case ValueType::u16:
      case ValueType::u32:
      case ValueType::u64:
        return elements<std::uint64_t>(count, [&] { return whole<std::uint64_t>(of); });
      default:
        return elements<std::int64_t>(count, [&] { return whole<std::int64_t>(of); });
    }
  }

  template <class T, class Next>
  static std::vector<T> elements(std::uint64_t count, Next next) {
    std::vector<T> result;
    result.reserve(count);
    for (std::uint64_t i = 0; i < count; ++i) result.push_back(next());
    return result;
  }

  Reader& reader_;
  std::string what_;  // the key being read, for messages
};

struct Entry {
  TensorInfo info;
  std::uint64_t offset = 0, size = 0;  // in the data section
};

DType tensor_type(std::uint32_t number, std::string_view file, std::string_view tensor) {
  const auto* found =
      std::find_if(std::begin(kGgmlTypes), std::end(kGgmlTypes),
                   [&](const GgmlType& candidate) { return candidate.number == number; });
  constexpr std::string_view readable =
      "F32, F16, BF16, F64, I8 to I64, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K are";
  if (found == std::end(kGgmlTypes)) {
    fail("{}: tensor {}: unknown ggml type number {}; {} supported", file, tensor, number,
         readable);
  }
  if (!found->type) {
    fail("{}: tensor {}: ggml type {} is not supported; {}", file, tensor, found->name, readable);
  }
  return *found->type;
}

Entry read_tensor(Reader& reader) {
  Entry entry;
  entry.info.name = reader.label("tensor name");
  const std::string shown = quote(entry.info.name);
  const std::string what = "tensor " + shown;
  const auto dims = reader.number<std::uint32_t>(what);
  if (dims == 0 || dims > kMaxDims) {
    fail("{}: {} has {} dimensions, expected 1 to {}", reader.name(), what, dims, kMaxDims);
  }
  entry.info.shape.resize(dims);
  // The file lists the contiguous dimension first.
  for (std::uint32_t d = 0; d < dims; ++d) {
    const auto extent = reader.number<std::uint64_t>(what);
    if (extent == 0) {
      fail("{}: {}: dimension {} of {} is 0, expected at least 1", reader.name(), what, d, dims);
    }
    entry.info.shape[dims - 1 - d] = extent;
  }
  entry.info.dtype = tensor_type(reader.number<std::uint32_t>(what), reader.name(), shown);
  entry.offset = reader.number<std::uint64_t>(what);

  const std::uint64_t row = entry.info.shape.back(), block = block_elements(entry.info.dtype);
  if (row % block != 0) {
    fail("{}: {}: rows of {} elements are no whole number of {} blocks of {}", reader.name(), what,
         row, dtype_name(entry.info.dtype), block);
  }
  const std::string shape = fmt::format("{}: {}: shape", reader.name(), what);
  std::uint64_t elements = 1;
  for (std::uint64_t extent : entry.info.shape) elements = checked_mul(elements, extent, shape);
  entry.size = checked_mul(elements / block, block_bytes(entry.info.dtype), shape);
  return entry;
}

std::uint64_t read_alignment(const GgufMetadata& metadata, std::string_view name) {
  const auto alignment = metadata.find_integer("general.alignment");
  if (!alignment) return kDefaultAlignment;
  if (*alignment <= 0 || !std::has_single_bit(static_cast<std::uint64_t>(*alignment))) {
    fail("{}: general.alignment is {}, expected a power of two", name, *alignment);
  }
  return static_cast<std::uint64_t>(*alignment);
}

/// Gives every tensor its bytes, after checking that the ranges are aligned, inside the file and
/// apart from each other.
void place_tensors(std::vector<Entry>& entries, std::span<const std::byte> data,
                   std::uint64_t alignment, std::string_view name) {
  std::vector<const Entry*> by_offset;
  by_offset.reserve(entries.size());
  for (Entry& e : entries) {
    const std::string tensor = quote(e.info.name);
    if (e.offset % alignment != 0) {
      fail("{}: tensor {}: offset {} is no multiple of the alignment {}", name, tensor, e.offset,
           alignment);
    }
    if (e.offset > data.size() || e.size > data.size() - e.offset) {
      fail("{}: tensor {}: {} bytes at offset {} go beyond the {} data bytes", name, tensor, e.size,
           e.offset, data.size());
    }
    e.info.bytes = data.subspan(e.offset, e.size);
    by_offset.push_back(&e);
  }
  std::sort(by_offset.begin(), by_offset.end(),
            [](const Entry* a, const Entry* b) { return a->offset < b->offset; });
  for (std::size_t i = 1; i < by_offset.size(); ++i) {
    const Entry &before = *by_offset[i - 1], &after = *by_offset[i];
    if (after.offset < before.offset + before.size) {
      fail("{}: tensors {} and {} overlap: the first ends at data byte {}, the second begins at {}",
           name, quote(before.info.name), quote(after.info.name), before.offset + before.size,
           after.offset);
    }
  }
}

}  // namespace

GgufContent parse_gguf(std::span<const std::byte> file, std::string_view name) {
  Reader reader(file, name);
  const auto magic = reader.bytes(4, "the magic \"GGUF\"");
  if (std::memcmp(magic.data(), "GGUF", 4) != 0) {
    fail("{}: not a GGUF file: it begins with {}, expected \"GGUF\"", name,
         quote({reinterpret_cast<const char*>(magic.data()), 4}));
  }
  GgufContent content;
  content.version = reader.number<std::uint32_t>("the version");
  if (content.version != 0 && (content.version & 0xffff) == 0) {
    fail(
        "{}: the GGUF file is big-endian (its version reads as {}); only little-endian files are "
        "supported",
        name, content.version);
  }
  if (content.version != 2 && content.version != 3) {
    fail("{}: GGUF version {} is not supported, expected 2 or 3", name, content.version);
  }
  const auto tensor_count = reader.number<std::uint64_t>("the number of tensors");
  const auto key_count = reader.number<std::uint64_t>("the number of metadata keys");
  content.metadata = {std::string(name), MetadataReader(reader).read(key_count)};

  // Name length and a byte, rank, one extent, type, offset.
  reader.require_room(tensor_count, 33, "tensors");
  std::vector<Entry> entries;
  entries.reserve(tensor_count);
  std::unordered_set<std::string> names;
  for (std::uint64_t i = 0; i < tensor_count; ++i) {
    entries.push_back(read_tensor(reader));
    if (!names.insert(entries.back().info.name).second) {
      fail("{}: tensor {} appears twice", name, quote(entries.back().info.name));
    }
  }
  if (entries.empty()) return content;

  const std::uint64_t alignment = read_alignment(content.metadata, name);
  const std::uint64_t past_end = reader.position() % alignment;
  const std::uint64_t padding = past_end == 0 ? 0 : alignment - past_end;
  reader.bytes(padding, "the padding before the tensor data");
  place_tensors(entries, file.subspan(reader.position()), alignment, name);
  content.tensors.reserve(entries.size());
  for (Entry& e : entries) content.tensors.push_back(std::move(e.info));
  return content;
}

}  // namespace lamina
