#include "record/scales.h"

#include <cstddef>
#include <numeric>

namespace lamina::h5 {
namespace {

// An attribute holds at most 64 KiB; a scale with more users than fit keeps a shorter list. Readers
// go from datasets to scales, so nothing is lost but the way back.
constexpr std::size_t kMaxUsers = 4000;

std::string last_part(const std::string& name) {
  return name.substr(name.rfind('/') + 1);
}

// The specification's attributes are fixed-length, null-terminated strings.
void write_fixed_text(const Object& object, const char* name, const std::string& value) {
  Handle type(check(H5Tcopy(H5T_C_S1), object.where, "copy a type"));
  check(H5Tset_size(type.get(), value.size() + 1), object.where, "make a text type");
  Handle space(check(H5Screate(H5S_SCALAR), object.where, "make a scalar space"));
  Handle attribute(
      check(H5Acreate2(object.id(), name, type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT),
            object.where, fmt::format("create attribute {}", name)));
  check(H5Awrite(attribute.get(), type.get(), value.c_str()), object.where,
        fmt::format("write attribute {}", name));
}

void write_array(const Object& object, const char* name, hid_t type, hsize_t count,
                 const void* values) {
  Handle space(check(H5Screate_simple(1, &count, nullptr), object.where, "make an extent"));
  Handle attribute(check(H5Acreate2(object.id(), name, type, space.get(), H5P_DEFAULT, H5P_DEFAULT),
                         object.where, fmt::format("create attribute {}", name)));
  check(H5Awrite(attribute.get(), type, values), object.where,
        fmt::format("write attribute {}", name));
}

hobj_ref_t reference(const Object& object) {
  hobj_ref_t made = 0;
  check(H5Rcreate(&made, object.id(), ".", H5R_OBJECT, -1), object.where, "make a reference");
  return made;
}

}  // namespace

void Scales::add(std::string name, Object dataset) {
  Lock lock;
  const hsize_t size = dataset_dims(dataset).at(0);
  write_fixed_text(dataset, "CLASS", "DIMENSION_SCALE");
  write_fixed_text(dataset, "NAME", last_part(name));
  scales_.emplace(std::move(name), Scale{std::move(dataset), size, {}});
}

void Scales::add_index(const Object& at, const std::string& path, std::string name, hsize_t size,
                       std::int64_t first) {
  std::vector<std::int64_t> values(size);
  std::iota(values.begin(), values.end(), first);
  add(std::move(name), write_dataset(at, path, Type::i64, {size}, values.data()));
}

void Scales::add_bare(const Object& at, const std::string& path, std::string name, hsize_t size) {
  Lock lock;
  Object dataset = create_dataset(at, path, {Type::u8, {size}, {}, false});
  write_fixed_text(dataset, "CLASS", "DIMENSION_SCALE");
  // netCDF-4's mark for a dimension that has no coordinate values.
  write_fixed_text(
      dataset, "NAME",
      fmt::format("This is a netCDF dimension but not a netCDF variable. {:>9}", size));
  scales_.emplace(std::move(name), Scale{std::move(dataset), size, {}});
}

void Scales::attach(const Object& dataset, std::span<const std::string> names) {
  Lock lock;
  const std::size_t rank = names.size();
  std::vector<hobj_ref_t> references(rank);
  std::vector<hvl_t> list(rank);
  std::vector<std::string> labels;
  std::vector<const char*> label_pointers;
  const hobj_ref_t user = reference(dataset);
  for (std::size_t i = 0; i < rank; ++i) {
    Scale& scale = scales_.at(names[i]);
    references[i] = reference(scale.dataset);
    list[i] = {1, &references[i]};
    labels.push_back(last_part(names[i]));
    scale.users.push_back({user, static_cast<std::uint32_t>(i)});
  }
  for (const std::string& label : labels) label_pointers.push_back(label.c_str());
  Handle list_type(check(H5Tvlen_create(H5T_STD_REF_OBJ), dataset.where, "make a reference type"));
  write_array(dataset, "DIMENSION_LIST", list_type.get(), rank, list.data());
  write_array(dataset, "DIMENSION_LABELS", make_type(Type::text).get(), rank,
              label_pointers.data());
}

void Scales::finish() {
  Lock lock;
  Handle type(check(H5Tcreate(H5T_COMPOUND, sizeof(User)), "HDF5", "make a compound type"));
  check(H5Tinsert(type.get(), "dataset", offsetof(User, dataset), H5T_STD_REF_OBJ), "HDF5",
        "make a compound type");
  check(H5Tinsert(type.get(), "dimension", offsetof(User, dimension), H5T_NATIVE_UINT32), "HDF5",
        "make a compound type");
  for (auto& [name, scale] : scales_) {
    if (scale.users.empty()) continue;
    write_array(scale.dataset, "REFERENCE_LIST", type.get(),
                std::min(scale.users.size(), kMaxUsers), scale.users.data());
  }
  scales_.clear();
}

}  // namespace lamina::h5
