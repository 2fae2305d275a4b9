#pragma once

#include <hdf5.h>

#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lamina/core/error.h"

/// A thin layer over the HDF5 C API: owned handles, every call checked, HDF5's own error printing
/// replaced by one line that names the file and the object.
namespace lamina::h5 {

/// Held around every group of HDF5 calls: HDF5 is not always built to be called from several
/// threads, and where it is, it serialises anyway. Silences HDF5's printing for this thread.
class Lock {
 public:
  Lock();

 private:
  std::unique_lock<std::recursive_mutex> lock_;
};

/// The system refused (disk full, file locked, no permission): nothing is said about the file
/// itself.
class SystemError : public Error {
 public:
  using Error::Error;
};

/// Throws Error (SystemError if the system refused) "<where>: cannot <action>: <HDF5's or the
/// system's reason>".
[[noreturn]] void fail_h5(std::string_view where, std::string_view action);

/// Passes a handle or status through, or fails if it is negative.
template <class T>
T check(T result, std::string_view where, std::string_view action) {
  if (result < 0) fail_h5(where, action);
  return result;
}

/// An owned HDF5 identifier of any kind.
class Handle {
 public:
  Handle() = default;
  explicit Handle(hid_t id) : id_(id) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    return *this;
  }
  ~Handle() { reset(); }
  void reset();
  hid_t get() const { return id_; }
  hid_t release() { return std::exchange(id_, H5I_INVALID_HID); }
  explicit operator bool() const { return id_ >= 0; }

 private:
  hid_t id_ = H5I_INVALID_HID;
};

/// A file, group or dataset, with the name that messages give it ("run.h5: /inputs/text").
struct Object {
  Handle handle;
  std::string where;

  hid_t id() const { return handle.get(); }
  explicit operator bool() const { return static_cast<bool>(handle); }
};

using Dims = std::vector<hsize_t>;

// ---- files and groups

/// Creates a file (overwriting) or opens one. Without chunk and sieve buffers: what H5Dwrite is
/// given goes straight to the file.
Object create_file(const std::string& path);
Object open_file(const std::string& path, bool write);
/// Writes HDF5's buffers to the file and asks the system to put the file on the disk.
void flush(const Object& file);
/// Closes the file and reports what that could not write.
void close_file(Object& file);

/// Opens a group, creating missing parents and the group itself.
Object make_group(const Object& at, const std::string& path);
bool exists(const Object& at, const std::string& path);
Object open_group(const Object& at, const std::string& path);
Object open_dataset(const Object& at, const std::string& path);
/// Names of a group's links, in name order. At most `cap`; more is an Error.
std::vector<std::string> children(const Object& group, std::size_t cap);

// ---- types

/// Element types of the files, little endian. The 16-bit floats are HDF5 types of their own.
enum class Type { u8, i32, i64, f64, f32, f16, bf16, text };
std::size_t type_size(Type type);  // not for text
std::string_view type_name(Type type);
/// A new handle of the type; `text` is variable-length UTF-8.
Handle make_type(Type type);

// ---- attributes

void write_attribute(const Object& object, const char* name, std::string_view value);
void write_attribute(const Object& object, const char* name, std::int64_t value);
void write_attribute(const Object& object, const char* name, std::uint64_t value);
void write_attribute(const Object& object, const char* name, double value);
/// Overwrites the value of an existing integer attribute in place.
void update_attribute(const Object& object, const char* name, std::int64_t value);
bool has_attribute(const Object& object, const char* name);
std::string read_text_attribute(const Object& object, const char* name);
std::int64_t read_integer_attribute(const Object& object, const char* name);
std::uint64_t read_unsigned_attribute(const Object& object, const char* name);
double read_real_attribute(const Object& object, const char* name);

// ---- datasets

struct DatasetPlan {
  Type type = Type::f32;
  Dims dims;
  Dims chunk;            // empty: contiguous
  bool allocate = true;  // reserve the space now, without filling it
};
Object create_dataset(const Object& at, const std::string& path, const DatasetPlan& plan);

/// Creates and fills a contiguous dataset.
Object write_dataset(const Object& at, const std::string& path, Type type, const Dims& dims,
                     const void* values);
Object write_texts(const Object& at, const std::string& path, const Dims& dims,
                   std::span<const std::string> values);

/// Writes or reads rows first … first + count − 1 of the first dimension; no conversion: the memory
/// has the dataset's own type.
void write_rows(const Object& dataset, Type type, hsize_t first, hsize_t count, const void* values);
void read_rows(const Object& dataset, Type type, hsize_t first, hsize_t count, void* values);

/// Extent of a dataset, after checking that its storage can hold it (a damaged file may claim any
/// size).
Dims dataset_dims(const Object& dataset);
/// Fails unless the dataset has this type.
void expect_type(const Object& dataset, Type type);
/// Fails unless the dataset has this extent.
void expect_dims(const Object& dataset, const Dims& dims);

/// A whole one-dimensional dataset.
std::vector<std::int32_t> read_i32(const Object& dataset);
std::vector<std::int64_t> read_i64(const Object& dataset);
std::vector<std::uint8_t> read_u8(const Object& dataset);
/// A whole one-dimensional text dataset; refuses invalid UTF-8.
std::vector<std::string> read_texts(const Object& dataset);

std::string dims_text(const Dims& dims);  // "[12, 64]"

}  // namespace lamina::h5
