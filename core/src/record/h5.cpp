#include "record/h5.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "lamina/core/checked.h"
#include "lamina/internal/file_text.h"

namespace lamina::h5 {
namespace {

std::recursive_mutex& library_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

// The innermost entry of HDF5's error stack, and the errno that any entry mentions.
struct Reason {
  std::string text;
  int error_number = 0;
};

herr_t collect(unsigned, const H5E_error2_t* entry, void* data) {
  auto& reason = *static_cast<Reason*>(data);
  const std::string_view text = entry->desc == nullptr ? "" : entry->desc;
  if (reason.text.empty()) reason.text = text;
  if (const auto at = text.find("errno = "); at != text.npos && reason.error_number == 0) {
    const std::string_view digits = text.substr(at + 8);
    std::from_chars(digits.data(), digits.data() + digits.size(), reason.error_number);
  }
  return 0;
}

Handle file_access() {
  Handle access(check(H5Pcreate(H5P_FILE_ACCESS), "HDF5", "make file access properties"));
  H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG);
  H5Pset_sieve_buf_size(access.get(), 0);
  H5Pset_cache(access.get(), 0, 521, 0, 0.75);
  H5Pset_alignment(access.get(), 256 << 10, 4096);
  return access;
}

Handle type_of(const Object& dataset) {
  return Handle(check(H5Dget_type(dataset.id()), dataset.where, "read its type"));
}

Handle scalar() {
  return Handle(check(H5Screate(H5S_SCALAR), "HDF5", "make a scalar space"));
}

Handle simple(const Dims& dims, std::string_view where) {
  return Handle(check(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr), where,
                      "make its extent"));
}

void write_scalar(const Object& object, const char* name, hid_t type, const void* value) {
  Handle space = scalar();
  Handle attribute(check(H5Acreate2(object.id(), name, type, space.get(), H5P_DEFAULT, H5P_DEFAULT),
                         object.where, fmt::format("create attribute {}", name)));
  check(H5Awrite(attribute.get(), type, value), object.where,
        fmt::format("write attribute {}", name));
}

struct Attribute {
  Handle handle, type;
};

Attribute open_attribute(const Object& object, const char* name, H5T_class_t wanted,
                         const char* wanted_name) {
  if (!has_attribute(object, name)) fail("{}: attribute {} is missing", object.where, name);
  Attribute attribute;
  attribute.handle = Handle(check(H5Aopen(object.id(), name, H5P_DEFAULT), object.where,
                                  fmt::format("open attribute {}", name)));
  attribute.type = Handle(check(H5Aget_type(attribute.handle.get()), object.where,
                                fmt::format("read the type of attribute {}", name)));
  Handle space(check(H5Aget_space(attribute.handle.get()), object.where,
                     fmt::format("read the extent of attribute {}", name)));
  const hssize_t points = H5Sget_simple_extent_npoints(space.get());
  if (H5Tget_class(attribute.type.get()) != wanted || points != 1) {
    fail("{}: attribute {} must be one {}, it is another type or has {} values", object.where, name,
         wanted_name, points);
  }
  return attribute;
}

}  // namespace

Lock::Lock() : lock_(library_mutex()) {
  // Where a file cannot be closed (full disk), HDF5 1.10 keeps its identifier and closes freed
  // memory when the program exits. Handles close everything here, so that last round is not needed.
  static const bool no_exit_round = H5dont_atexit() >= 0;
  (void)no_exit_round;
  // HDF5 keeps one error stack per thread, so the switch is per thread too.
  thread_local const bool silent = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  (void)silent;
}

void fail_h5(std::string_view where, std::string_view action) {
  Reason reason;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, collect, &reason);
  H5Eclear2(H5E_DEFAULT);
  if (reason.error_number != 0) {
    throw SystemError(fmt::format("{}: cannot {}: {}", where, action,
                                  reason.error_number == EAGAIN
                                      ? "another program has it open"
                                      : std::strerror(reason.error_number)));
  }
  std::replace(reason.text.begin(), reason.text.end(), '\n', ' ');
  fail("{}: cannot {}: {}", where, action, reason.text.empty() ? "no reason given" : reason.text);
}

void Handle::reset() {
  if (id_ < 0) return;
  Lock lock;
  H5Idec_ref(id_);
  id_ = H5I_INVALID_HID;
}

Object create_file(const std::string& path) {
  Lock lock;
  Handle access = file_access();
  return {Handle(check(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get()), path,
                       "create the file")),
          path};
}

Object open_file(const std::string& path, bool write) {
  Lock lock;
  // HDF5 says the same of a missing file and of one that is not HDF5.
  if (::access(path.c_str(), write ? R_OK | W_OK : R_OK) != 0) {
    throw SystemError(fmt::format("{}: cannot open the file: {}", path, std::strerror(errno)));
  }
  Handle access = file_access();
  return {Handle(check(H5Fopen(path.c_str(), write ? H5F_ACC_RDWR : H5F_ACC_RDONLY, access.get()),
                       path, "open it as HDF5")),
          path};
}

void flush(const Object& file) {
  Lock lock;
  check(H5Fflush(file.id(), H5F_SCOPE_LOCAL), file.where, "write to the file");
  void* descriptor = nullptr;
  check(H5Fget_vfd_handle(file.id(), H5P_DEFAULT, &descriptor), file.where, "find its descriptor");
  if (::fsync(*static_cast<int*>(descriptor)) != 0) {
    throw SystemError(
        fmt::format("{}: cannot flush the file to the disk: {}", file.where, std::strerror(errno)));
  }
}

void close_file(Object& file) {
  Lock lock;
  if (!file) return;
  check(H5Fflush(file.id(), H5F_SCOPE_LOCAL), file.where, "write to the file");
  check(H5Fclose(file.handle.release()), file.where, "close the file");
}

Object make_group(const Object& at, const std::string& path) {
  Lock lock;
  if (exists(at, path)) return open_group(at, path);
  Handle links(check(H5Pcreate(H5P_LINK_CREATE), at.where, "make link properties"));
  H5Pset_create_intermediate_group(links.get(), 1);
  std::string where = fmt::format("{}: {}", at.where, path);
  Handle group(check(H5Gcreate2(at.id(), path.c_str(), links.get(), H5P_DEFAULT, H5P_DEFAULT),
                     where, "create the group"));
  return {std::move(group), std::move(where)};
}

bool exists(const Object& at, const std::string& path) {
  Lock lock;
  // H5Lexists wants every parent to exist: ask level by level.
  for (std::size_t slash = path.find('/', 1);; slash = path.find('/', slash + 1)) {
    const std::string prefix = path.substr(0, slash);
    const htri_t found = H5Lexists(at.id(), prefix.c_str(), H5P_DEFAULT);
    H5Eclear2(H5E_DEFAULT);
    if (found <= 0) return false;
    if (slash == path.npos) {
      const htri_t there = H5Oexists_by_name(at.id(), prefix.c_str(), H5P_DEFAULT);
      H5Eclear2(H5E_DEFAULT);
      return there > 0;
    }
  }
}

Object open_group(const Object& at, const std::string& path) {
  Lock lock;
  std::string where = fmt::format("{}: {}", at.where, path);
  if (!exists(at, path)) fail("{}: the group is missing", where);
  Handle group(check(H5Gopen2(at.id(), path.c_str(), H5P_DEFAULT), where, "open the group"));
  return {std::move(group), std::move(where)};
}

Object open_dataset(const Object& at, const std::string& path) {
  Lock lock;
  std::string where = fmt::format("{}: {}", at.where, path);
  if (!exists(at, path)) fail("{}: the dataset is missing", where);
  Handle dataset(check(H5Dopen2(at.id(), path.c_str(), H5P_DEFAULT), where, "open the dataset"));
  return {std::move(dataset), std::move(where)};
}

std::vector<std::string> children(const Object& group, std::size_t cap) {
  Lock lock;
  H5G_info_t info;
  check(H5Gget_info(group.id(), &info), group.where, "list the group");
  if (info.nlinks > cap) {
    fail("{}: the group holds {} entries, at most {} make sense", group.where, info.nlinks, cap);
  }
  std::vector<std::string> names;
  const auto add = [](hid_t, const char* name, const H5L_info_t*, void* data) -> herr_t {
    static_cast<std::vector<std::string>*>(data)->emplace_back(name);
    return 0;
  };
  hsize_t index = 0;
  check(H5Literate(group.id(), H5_INDEX_NAME, H5_ITER_INC, &index, add, &names), group.where,
        "list the group");
  return names;
}

// ---- types

std::size_t type_size(Type type) {
  switch (type) {
    case Type::u8:
      return 1;
    case Type::f16:
    case Type::bf16:
      return 2;
    case Type::i32:
    case Type::f32:
      return 4;
    default:
      return 8;
  }
}

std::string_view type_name(Type type) {
  switch (type) {
    case Type::u8:
      return "uint8";
    case Type::i32:
      return "int32";
    case Type::i64:
      return "int64";
    case Type::f64:
      return "float64";
    case Type::f32:
      return "float32";
    case Type::f16:
      return "float16";
    case Type::bf16:
      return "bfloat16";
    case Type::text:
      return "variable-length UTF-8 text";
  }
  return "";
}

Handle make_type(Type type) {
  Lock lock;
  const auto copy = [](hid_t of) { return Handle(check(H5Tcopy(of), "HDF5", "copy a type")); };
  const auto half = [&](std::size_t exponent_bits, std::size_t mantissa_bits, std::size_t bias) {
    Handle made = copy(H5T_IEEE_F32LE);
    check(H5Tset_fields(made.get(), 15, mantissa_bits, exponent_bits, 0, mantissa_bits), "HDF5",
          "make a 16-bit float type");
    check(H5Tset_size(made.get(), 2), "HDF5", "make a 16-bit float type");
    check(H5Tset_ebias(made.get(), bias), "HDF5", "make a 16-bit float type");
    return made;
  };
  switch (type) {
    case Type::u8:
      return copy(H5T_STD_U8LE);
    case Type::i32:
      return copy(H5T_STD_I32LE);
    case Type::i64:
      return copy(H5T_STD_I64LE);
    case Type::f64:
      return copy(H5T_IEEE_F64LE);
    case Type::f32:
      return copy(H5T_IEEE_F32LE);
    case Type::f16:
      return half(5, 10, 15);
    case Type::bf16:
      return half(8, 7, 127);
    case Type::text: {
      Handle made = copy(H5T_C_S1);
      check(H5Tset_size(made.get(), H5T_VARIABLE), "HDF5", "make a text type");
      check(H5Tset_cset(made.get(), H5T_CSET_UTF8), "HDF5", "make a text type");
      return made;
    }
  }
  fail("no such element type");
}

// ---- attributes

void write_attribute(const Object& object, const char* name, std::string_view value) {
  Lock lock;
  const std::string text(value);
  const char* data = text.c_str();
  write_scalar(object, name, make_type(Type::text).get(), &data);
}

void write_attribute(const Object& object, const char* name, std::int64_t value) {
  Lock lock;
  write_scalar(object, name, make_type(Type::i64).get(), &value);
}

void write_attribute(const Object& object, const char* name, std::uint64_t value) {
  Lock lock;
  write_scalar(object, name, H5T_STD_U64LE, &value);
}

void write_attribute(const Object& object, const char* name, double value) {
  Lock lock;
  write_scalar(object, name, make_type(Type::f64).get(), &value);
}

void update_attribute(const Object& object, const char* name, std::int64_t value) {
  Lock lock;
  Attribute attribute = open_attribute(object, name, H5T_INTEGER, "integer");
  check(H5Awrite(attribute.handle.get(), H5T_NATIVE_INT64, &value), object.where,
        fmt::format("write attribute {}", name));
}

bool has_attribute(const Object& object, const char* name) {
  Lock lock;
  return check(H5Aexists(object.id(), name), object.where,
               fmt::format("look for attribute {}", name)) > 0;
}

std::string read_text_attribute(const Object& object, const char* name) {
  Lock lock;
  Attribute attribute = open_attribute(object, name, H5T_STRING, "text");
  const auto action = fmt::format("read attribute {}", name);
  std::string out;
  if (check(H5Tis_variable_str(attribute.type.get()), object.where, action) > 0) {
    char* text = nullptr;
    check(H5Aread(attribute.handle.get(), attribute.type.get(), &text), object.where, action);
    if (text != nullptr) out = text;
    H5free_memory(text);
    return out;
  }
  const std::size_t size = H5Tget_size(attribute.type.get());
  if (size == 0 || size > (1u << 20)) {
    fail("{}: attribute {} claims {} bytes of text", object.where, name, size);
  }
  out.resize(size);
  check(H5Aread(attribute.handle.get(), attribute.type.get(), out.data()), object.where, action);
  out.resize(std::min(out.size(), out.find('\0')));
  return out;
}

std::int64_t read_integer_attribute(const Object& object, const char* name) {
  Lock lock;
  Attribute attribute = open_attribute(object, name, H5T_INTEGER, "integer");
  std::int64_t value = 0;
  check(H5Aread(attribute.handle.get(), H5T_NATIVE_INT64, &value), object.where,
        fmt::format("read attribute {}", name));
  return value;
}

std::uint64_t read_unsigned_attribute(const Object& object, const char* name) {
  Lock lock;
  Attribute attribute = open_attribute(object, name, H5T_INTEGER, "integer");
  std::uint64_t value = 0;
  check(H5Aread(attribute.handle.get(), H5T_NATIVE_UINT64, &value), object.where,
        fmt::format("read attribute {}", name));
  return value;
}

double read_real_attribute(const Object& object, const char* name) {
  Lock lock;
  Attribute attribute = open_attribute(object, name, H5T_FLOAT, "real number");
  double value = 0;
  check(H5Aread(attribute.handle.get(), H5T_NATIVE_DOUBLE, &value), object.where,
        fmt::format("read attribute {}", name));
  return value;
}

// ---- datasets

Object create_dataset(const Object& at, const std::string& path, const DatasetPlan& plan) {
  Lock lock;
  std::string where = fmt::format("{}: {}", at.where, path);
  Handle create(check(H5Pcreate(H5P_DATASET_CREATE), where, "make dataset properties"));
  if (!plan.chunk.empty()) {
    check(H5Pset_chunk(create.get(), static_cast<int>(plan.chunk.size()), plan.chunk.data()), where,
          "set its chunks");
  }
  if (plan.allocate) H5Pset_alloc_time(create.get(), H5D_ALLOC_TIME_EARLY);
  H5Pset_fill_time(create.get(),
                   plan.type == Type::text ? H5D_FILL_TIME_IFSET : H5D_FILL_TIME_NEVER);
  // No time stamps: the same run gives the same file.
  H5Pset_obj_track_times(create.get(), 0);
  Handle links(check(H5Pcreate(H5P_LINK_CREATE), where, "make link properties"));
  H5Pset_create_intermediate_group(links.get(), 1);
  Handle type = make_type(plan.type);
  Handle space = simple(plan.dims, where);
  Handle dataset(check(H5Dcreate2(at.id(), path.c_str(), type.get(), space.get(), links.get(),
                                  create.get(), H5P_DEFAULT),
                       where, "create the dataset"));
  return {std::move(dataset), std::move(where)};
}

Object write_dataset(const Object& at, const std::string& path, Type type, const Dims& dims,
                     const void* values) {
  Lock lock;
  Object dataset = create_dataset(at, path, {type, dims, {}, true});
  if (std::find(dims.begin(), dims.end(), 0u) == dims.end()) {
    check(H5Dwrite(dataset.id(), make_type(type).get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, values),
          dataset.where, "write the dataset");
  }
  return dataset;
}

Object write_texts(const Object& at, const std::string& path, const Dims& dims,
                   std::span<const std::string> values) {
  Lock lock;
  std::vector<const char*> pointers;
  pointers.reserve(values.size());
  for (const std::string& value : values) {
    if (value.find('\0') != value.npos) {
      fail("{}: {}: text with a zero byte cannot be stored", at.where, path);
    }
    pointers.push_back(value.c_str());
  }
  return write_dataset(at, path, Type::text, dims, pointers.data());
}

namespace {

// File and memory spaces of rows first … first + count − 1.
std::pair<Handle, Handle> row_spaces(const Object& dataset, hsize_t first, hsize_t count) {
  Handle file(check(H5Dget_space(dataset.id()), dataset.where, "read its extent"));
  const int rank = check(H5Sget_simple_extent_ndims(file.get()), dataset.where, "read its rank");
  Dims start(static_cast<std::size_t>(rank), 0), size(start.size());
  check(H5Sget_simple_extent_dims(file.get(), size.data(), nullptr), dataset.where,
        "read its extent");
  if (rank < 1 || first > size[0] || count > size[0] - first) {
    fail("{}: rows {} to {} asked for, it has {}", dataset.where, first, first + count,
         rank < 1 ? 0 : size[0]);
  }
  start[0] = first;
  size[0] = count;
  Handle memory = simple(size, dataset.where);
  check(
      H5Sselect_hyperslab(file.get(), H5S_SELECT_SET, start.data(), nullptr, size.data(), nullptr),
      dataset.where, "select rows");
  return {std::move(file), std::move(memory)};
}

template <class T>
std::vector<T> read_vector(const Object& dataset, Type type) {
  Lock lock;
  expect_type(dataset, type);
  const Dims dims = dataset_dims(dataset);
  if (dims.size() != 1) fail("{}: rank 1 expected, found {}", dataset.where, dims_text(dims));
  std::vector<T> out(dims[0]);
  if (!out.empty()) read_rows(dataset, type, 0, dims[0], out.data());
  return out;
}

}  // namespace

void write_rows(const Object& dataset, Type type, hsize_t first, hsize_t count,
                const void* values) {
  if (count == 0) return;
  Lock lock;
  const auto [file, memory] = row_spaces(dataset, first, count);
  check(
      H5Dwrite(dataset.id(), make_type(type).get(), memory.get(), file.get(), H5P_DEFAULT, values),
      dataset.where, "write to the file");
}

void read_rows(const Object& dataset, Type type, hsize_t first, hsize_t count, void* values) {
  if (count == 0) return;
  Lock lock;
  const auto [file, memory] = row_spaces(dataset, first, count);
  check(H5Dread(dataset.id(), make_type(type).get(), memory.get(), file.get(), H5P_DEFAULT, values),
        dataset.where, "read the dataset");
}

Dims dataset_dims(const Object& dataset) {
  Lock lock;
  Handle space(check(H5Dget_space(dataset.id()), dataset.where, "read its extent"));
  if (H5Sget_simple_extent_type(space.get()) != H5S_SIMPLE) {
    fail("{}: an array expected, found a scalar or an empty space", dataset.where);
  }
  const int rank = check(H5Sget_simple_extent_ndims(space.get()), dataset.where, "read its rank");
  Dims dims(static_cast<std::size_t>(rank));
  check(H5Sget_simple_extent_dims(space.get(), dims.data(), nullptr), dataset.where,
        "read its extent");
  Handle type = type_of(dataset);
  std::uint64_t bytes = H5Tget_size(type.get());
  for (hsize_t dim : dims) bytes = checked_mul(bytes, dim, dataset.where);
  // Filtered data may expand (deflate at most 1032 times); unwritten data has no storage at all.
  const std::uint64_t stored = H5Dget_storage_size(dataset.id());
  if (bytes / 1100 > stored) {
    fail("{}: its extent {} asks for {} bytes, the file stores {}", dataset.where, dims_text(dims),
         bytes, stored);
  }
  return dims;
}

void expect_type(const Object& dataset, Type type) {
  Lock lock;
  Handle found = type_of(dataset);
  bool same = false;
  if (type == Type::text) {
    same = H5Tget_class(found.get()) == H5T_STRING && H5Tis_variable_str(found.get()) > 0;
  } else {
    same = H5Tequal(found.get(), make_type(type).get()) > 0;
  }
  H5Eclear2(H5E_DEFAULT);
  if (same) return;
  const H5T_class_t kind = H5Tget_class(found.get());
  const std::string_view name = kind == H5T_INTEGER  ? "integer"
                                : kind == H5T_FLOAT  ? "float"
                                : kind == H5T_STRING ? "text"
                                                     : "other";
  fail("{}: type {} expected, found {} of {} bits", dataset.where, type_name(type), name,
       8 * H5Tget_size(found.get()));
}

void expect_dims(const Object& dataset, const Dims& dims) {
  const Dims found = dataset_dims(dataset);
  if (found != dims) {
    fail("{}: extent {} expected, found {}", dataset.where, dims_text(dims), dims_text(found));
  }
}

std::vector<std::int32_t> read_i32(const Object& dataset) {
  return read_vector<std::int32_t>(dataset, Type::i32);
}
std::vector<std::int64_t> read_i64(const Object& dataset) {
  return read_vector<std::int64_t>(dataset, Type::i64);
}
std::vector<std::uint8_t> read_u8(const Object& dataset) {
  return read_vector<std::uint8_t>(dataset, Type::u8);
}

std::vector<std::string> read_texts(const Object& dataset) {
  Lock lock;
  std::vector<char*> pointers = read_vector<char*>(dataset, Type::text);
  std::vector<std::string> out;
  out.reserve(pointers.size());
  for (char*& pointer : pointers) {
    out.emplace_back(pointer == nullptr ? "" : pointer);
    H5free_memory(pointer);
  }
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (!files::valid_utf8(out[i])) fail("{}: entry {} is not UTF-8", dataset.where, i);
  }
  return out;
}

std::string dims_text(const Dims& dims) {
  std::string out = "[";
  for (std::size_t i = 0; i < dims.size(); ++i) out += fmt::format("{}{}", i ? ", " : "", dims[i]);
  return out + "]";
}

}  // namespace lamina::h5
