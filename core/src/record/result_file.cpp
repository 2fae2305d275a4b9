#include "lamina/core/result_file.h"

#include <set>

#include "lamina/core/checked.h"
#include "record/paths.h"
#include "record/scales.h"

namespace lamina {

struct ResultFile::Impl {
  std::filesystem::path path, part;
  h5::Object file;
  h5::Object group;
  std::string group_name;
  h5::Scales scales;
  bool closed = false;

  std::string scale(std::string_view dimension) const {
    return fmt::format("{}/{}", group_name, dimension);
  }
  void check_name(std::string_view kind, std::string_view name) const {
    if (name.empty() || name == "." || name.find('/') != name.npos ||
        name.find('\0') != name.npos) {
      fail("{}: {} name '{}' cannot be used: it is empty, '.', or has '/' or a zero byte",
           path.string(), kind, name);
    }
  }
  // Every call but group() needs a group, and none may come after close().
  void check_open(std::string_view kind, std::string_view name) const {
    if (closed) fail("{}: {} '{}' after close()", path.string(), kind, name);
    if (!group) fail("{}: {} '{}' before any group", path.string(), kind, name);
    check_name(kind, name);
  }
  void check_new(std::string_view kind, std::string_view name) const {
    check_open(kind, name);
    if (h5::exists(group, std::string(name))) {
      fail("{}: {} '{}' is there already", group.where, kind, name);
    }
  }

  template <class Value>
  void set(std::string_view name, const Value& value) {
    check_open("setting", name);
    const std::string text(name);
    if (h5::has_attribute(group, text.c_str())) {
      fail("{}: setting '{}' is there already", group.where, name);
    }
    h5::write_attribute(group, text.c_str(), value);
  }

  template <class Value>
  void add_axis(std::string_view dimension, std::span<const Value> values) {
    check_new("axis", dimension);
    const std::string name(dimension);
    scales.add(scale(dimension), write(name, {values.size()}, values));
  }

  h5::Object write(const std::string& name, const h5::Dims& dims, std::span<const float> v) {
    return h5::write_dataset(group, name, h5::Type::f32, dims, v.data());
  }
  h5::Object write(const std::string& name, const h5::Dims& dims, std::span<const double> v) {
    return h5::write_dataset(group, name, h5::Type::f64, dims, v.data());
  }
  h5::Object write(const std::string& name, const h5::Dims& dims, std::span<const std::uint8_t> v) {
    return h5::write_dataset(group, name, h5::Type::u8, dims, v.data());
  }
  h5::Object write(const std::string& name, const h5::Dims& dims, std::span<const std::int32_t> v) {
    return h5::write_dataset(group, name, h5::Type::i32, dims, v.data());
  }
  h5::Object write(const std::string& name, const h5::Dims& dims, std::span<const std::int64_t> v) {
    return h5::write_dataset(group, name, h5::Type::i64, dims, v.data());
  }
  h5::Object write(const std::string& name, const h5::Dims& dims, std::span<const std::string> v) {
    return h5::write_texts(group, name, dims, v);
  }

  template <class Value>
  void add_dataset(std::string_view name, std::span<const std::string> dimensions,
                   std::span<const Value> values, std::string_view description,
                   std::string_view units) {
    check_new("dataset", name);
    h5::Dims dims;
    std::vector<std::string> names;
    std::uint64_t product = 1;
    for (const std::string& dimension : dimensions) {
      const std::string full = scale(dimension);
      if (!scales.has(full)) {
        fail("{}: dataset '{}': dimension '{}' is no axis of this group", group.where, name,
             dimension);
      }
      names.push_back(full);
      dims.push_back(scales.size(full));
      product = checked_mul(product, dims.back(), name);
    }
    if (std::set(names.begin(), names.end()).size() != names.size()) {
      fail("{}: dataset '{}' uses one dimension twice", group.where, name);
    }
    if (product != values.size()) {
      fail("{}: dataset '{}': {} values expected for {}, found {}", group.where, name, product,
           h5::dims_text(dims), values.size());
    }
    const h5::Object dataset = write(std::string(name), dims, values);
    h5::write_attribute(dataset, "description", description);
    h5::write_attribute(dataset, "units", units);
    if (!names.empty()) scales.attach(dataset, names);
  }
};

ResultFile::ResultFile(const std::filesystem::path& path,
                       const std::map<std::string, std::string>& provenance)
    : impl_(std::make_unique<Impl>()) {
  h5::Lock lock;
  impl_->path = path;
  impl_->part = record::part_path(path);
  impl_->file = h5::create_file(impl_->part.string());
  h5::write_attribute(impl_->file, "format", std::string_view("lamina-results"));
  h5::write_attribute(impl_->file, "format_version", std::int64_t{1});
  for (const auto& [name, value] : provenance) {
    impl_->check_name("attribute", name);
    h5::write_attribute(impl_->file, name.c_str(), std::string_view(value));
  }
}

ResultFile::~ResultFile() {
  if (impl_->closed) return;
  impl_->group = {};
  impl_->scales = {};
  impl_->file = {};
  std::error_code ignored;
  std::filesystem::remove(impl_->part, ignored);
}

void ResultFile::group(std::string_view analysis) {
  h5::Lock lock;
  if (impl_->closed) fail("{}: group '{}' after close()", impl_->path.string(), analysis);
  impl_->check_name("group", analysis);
  impl_->group_name = fmt::format("analyses/{}", analysis);
  impl_->group = h5::make_group(impl_->file, impl_->group_name);
}

void ResultFile::setting(std::string_view name, const std::string& value) {
  impl_->set(name, std::string_view(value));
}
void ResultFile::setting(std::string_view name, double value) {
  impl_->set(name, value);
}
void ResultFile::setting(std::string_view name, std::int64_t value) {
  impl_->set(name, value);
}

void ResultFile::axis(std::string_view dimension, std::span<const std::string> values) {
  impl_->add_axis(dimension, values);
}
void ResultFile::axis(std::string_view dimension, std::span<const std::int64_t> values) {
  impl_->add_axis(dimension, values);
}
void ResultFile::axis(std::string_view dimension, std::span<const double> values) {
  impl_->add_axis(dimension, values);
}

void ResultFile::dataset(std::string_view name, std::span<const std::string> dimensions,
                         std::span<const float> values, std::string_view description,
                         std::string_view units) {
  impl_->add_dataset(name, dimensions, values, description, units);
}
void ResultFile::dataset(std::string_view name, std::span<const std::string> dimensions,
                         std::span<const double> values, std::string_view description,
                         std::string_view units) {
  impl_->add_dataset(name, dimensions, values, description, units);
}
void ResultFile::dataset(std::string_view name, std::span<const std::string> dimensions,
                         std::span<const std::int32_t> values, std::string_view description,
                         std::string_view units) {
  impl_->add_dataset(name, dimensions, values, description, units);
}
void ResultFile::dataset(std::string_view name, std::span<const std::string> dimensions,
                         std::span<const std::int64_t> values, std::string_view description,
                         std::string_view units) {
  impl_->add_dataset(name, dimensions, values, description, units);
}
void ResultFile::dataset(std::string_view name, std::span<const std::string> dimensions,
                         std::span<const std::uint8_t> values, std::string_view description,
                         std::string_view units) {
  impl_->add_dataset(name, dimensions, values, description, units);
}
void ResultFile::dataset(std::string_view name, std::span<const std::string> dimensions,
                         std::span<const std::string> values, std::string_view description,
                         std::string_view units) {
  impl_->add_dataset(name, dimensions, values, description, units);
}

void ResultFile::close() {
  h5::Lock lock;
  if (impl_->closed) return;
  impl_->scales.finish();
  impl_->group = {};
  h5::flush(impl_->file);
  h5::close_file(impl_->file);
  record::rename_durably(impl_->part, impl_->path);
  impl_->closed = true;
}

}  // namespace lamina
