#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "record/h5.h"

namespace lamina::h5 {

/// Named dimensions of one file by HDF5's dimension-scale specification, as h5py's `.dims` and
/// xarray's h5netcdf engine read them. Written here and not through the HL library, because that
/// rewrites the list of users at every attachment and takes quadratic time.
class Scales {
 public:
  /// Makes `dataset` (rank 1) the scale called `name`.
  void add(std::string name, Object dataset);
  /// A scale with the values 0 … size − 1 (plus `first`) at `path`.
  void add_index(const Object& at, const std::string& path, std::string name, hsize_t size,
                 std::int64_t first = 0);
  /// A dimension of that size without values; nothing is stored for it.
  void add_bare(const Object& at, const std::string& path, std::string name, hsize_t size);
  bool has(const std::string& name) const { return scales_.contains(name); }
  hsize_t size(const std::string& name) const { return scales_.at(name).size; }

  /// Attaches one scale to every dimension of `dataset`; `labels` are scale names, or for scales of
  /// a group ("/attention/x/element") the label is the part after the last '/'.
  void attach(const Object& dataset, std::span<const std::string> names);
  /// Writes each scale's list of users: once, after the last attach().
  void finish();

 private:
  struct User {
    hobj_ref_t dataset;
    std::uint32_t dimension;
  };
  struct Scale {
    Object dataset;
    hsize_t size;
    std::vector<User> users;
  };
  std::map<std::string, Scale> scales_;
};

}  // namespace lamina::h5
