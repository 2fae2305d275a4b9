#include "lamina/core/result_reader.h"

#include "lamina/core/checked.h"
#include "record/h5.h"

namespace lamina {

struct ResultReader::Impl {
  h5::Object file, group;
};

ResultReader::ResultReader(const std::filesystem::path& path, std::string_view analysis)
    : impl_(std::make_unique<Impl>()) {
  h5::Lock lock;
  impl_->file = h5::open_file(path.string(), false);
  const bool named = h5::has_attribute(impl_->file, "format");
  const std::string format = named ? h5::read_text_attribute(impl_->file, "format") : "";
  if (format != "lamina-results") {
    fail("{}: format: expected lamina-results, found '{}'", path.string(), format);
  }
  if (const std::int64_t version = h5::read_integer_attribute(impl_->file, "format_version");
      version != 1) {
    fail("{}: format_version: expected 1, found {}", path.string(), version);
  }
  const std::string group = fmt::format("analyses/{}", analysis);
  if (!h5::exists(impl_->file, "analyses") || !h5::exists(impl_->file, group)) {
    fail("{}: it holds no analysis '{}'", path.string(), analysis);
  }
  impl_->group = h5::open_group(impl_->file, group);
}

ResultReader::~ResultReader() {
  h5::Lock lock;
  impl_.reset();
}

std::string ResultReader::text_setting(const char* name) const {
  h5::Lock lock;
  return h5::read_text_attribute(impl_->group, name);
}

std::int64_t ResultReader::integer_setting(const char* name) const {
  h5::Lock lock;
  return h5::read_integer_attribute(impl_->group, name);
}

std::vector<float> ResultReader::floats(const std::string& dataset,
                                        std::vector<std::int64_t>& shape) const {
  h5::Lock lock;
  if (!h5::exists(impl_->group, dataset)) fail("{}: no dataset {}", impl_->group.where, dataset);
  const h5::Object object = h5::open_dataset(impl_->group, dataset);
  h5::expect_type(object, h5::Type::f32);
  const h5::Dims dims = h5::dataset_dims(object);
  if (dims.empty()) fail("{}: expected at least one dimension, found none", object.where);
  std::uint64_t values = 1;
  shape.clear();
  for (hsize_t extent : dims) {
    values = checked_mul(values, extent, object.where);
    shape.push_back(static_cast<std::int64_t>(extent));
  }
  std::vector<float> out(values);
  h5::read_rows(object, h5::Type::f32, 0, dims[0], out.data());
  return out;
}

}  // namespace lamina
