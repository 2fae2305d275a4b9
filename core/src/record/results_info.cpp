#include "lamina/core/results_info.h"

#include <algorithm>

#include "record/h5.h"

namespace lamina {
namespace {

using h5::check;
using Pairs = std::vector<std::pair<std::string, std::string>>;

constexpr std::size_t kMostNames = 10'000;

std::vector<std::string> attribute_names(const h5::Object& object) {
  std::vector<std::string> names;
  const auto collect = [](hid_t, const char* name, const H5A_info_t*, void* data) -> herr_t {
    auto& out = *static_cast<std::vector<std::string>*>(data);
    out.emplace_back(name);
    return out.size() > kMostNames ? 1 : 0;
  };
  hsize_t at = 0;
  check(H5Aiterate2(object.id(), H5_INDEX_NAME, H5_ITER_INC, &at, collect, &names), object.where,
        "list its attributes");
  if (names.size() > kMostNames) {
    fail("{}: more than {} attributes", object.where, kMostNames);
  }
  return names;
}

H5T_class_t attribute_class(const h5::Object& object, const std::string& name) {
  const h5::Handle attribute(check(H5Aopen(object.id(), name.c_str(), H5P_DEFAULT), object.where,
                                   "open attribute " + name));
  const h5::Handle type(check(H5Aget_type(attribute.get()), object.where, "read a type"));
  const h5::Handle space(check(H5Aget_space(attribute.get()), object.where, "read an extent"));
  if (H5Sget_simple_extent_npoints(space.get()) != 1) return H5T_NO_CLASS;
  return H5Tget_class(type.get());
}

// Single texts and numbers; anything else is left out.
Pairs attributes(const h5::Object& object) {
  Pairs out;
  for (const std::string& name : attribute_names(object)) {
    switch (attribute_class(object, name)) {
      case H5T_STRING:
        out.emplace_back(name, h5::read_text_attribute(object, name.c_str()));
        break;
      case H5T_INTEGER:
        out.emplace_back(name, std::to_string(h5::read_integer_attribute(object, name.c_str())));
        break;
      case H5T_FLOAT:
        out.emplace_back(name, fmt::format("{:g}", h5::read_real_attribute(object, name.c_str())));
        break;
      default:
        break;
    }
  }
  return out;
}

std::string type_text(const h5::Object& dataset) {
  const h5::Handle type(check(H5Dget_type(dataset.id()), dataset.where, "read its type"));
  if (H5Tget_class(type.get()) == H5T_STRING) return "text";
  for (h5::Type known : {h5::Type::u8, h5::Type::i32, h5::Type::i64, h5::Type::f64, h5::Type::f32,
                         h5::Type::f16, h5::Type::bf16}) {
    if (H5Tequal(type.get(), h5::make_type(known).get()) > 0) {
      return std::string(h5::type_name(known));
    }
  }
  return "other";
}

// Names by the dimension-scale specification: variable-length texts, one per dimension.
std::vector<std::string> dimension_names(const h5::Object& dataset, std::size_t rank) {
  std::vector<std::string> names(rank);
  constexpr const char* kLabels = "DIMENSION_LABELS";
  if (rank == 0 || !h5::has_attribute(dataset, kLabels)) return names;
  const h5::Handle attribute(
      check(H5Aopen(dataset.id(), kLabels, H5P_DEFAULT), dataset.where, "open its labels"));
  const h5::Handle type(check(H5Aget_type(attribute.get()), dataset.where, "read its labels"));
  const h5::Handle space(check(H5Aget_space(attribute.get()), dataset.where, "read its labels"));
  if (H5Tis_variable_str(type.get()) <= 0 ||
      H5Sget_simple_extent_npoints(space.get()) != static_cast<hssize_t>(rank)) {
    return names;
  }
  std::vector<char*> texts(rank);
  check(H5Aread(attribute.get(), type.get(), texts.data()), dataset.where, "read its labels");
  for (std::size_t i = 0; i < rank; ++i) {
    if (texts[i] != nullptr) names[i] = texts[i];
  }
  H5Dvlen_reclaim(type.get(), space.get(), H5P_DEFAULT, texts.data());
  return names;
}

ResultDataset describe(const h5::Object& group, const std::string& name) {
  ResultDataset out;
  out.name = name;
  const h5::Object dataset = h5::open_dataset(group, name);
  out.type = type_text(dataset);
  const h5::Handle space(check(H5Dget_space(dataset.id()), dataset.where, "read its extent"));
  const bool scalar = H5Sget_simple_extent_type(space.get()) == H5S_SCALAR;
  const h5::Dims dims = scalar ? h5::Dims() : h5::dataset_dims(dataset);
  const std::vector<std::string> names = dimension_names(dataset, dims.size());
  for (std::size_t i = 0; i < dims.size(); ++i) out.dimensions.emplace_back(names[i], dims[i]);
  const auto text = [&](const char* attribute) {
    return h5::has_attribute(dataset, attribute) ? h5::read_text_attribute(dataset, attribute)
                                                 : std::string();
  };
  out.axis = text("CLASS") == "DIMENSION_SCALE";
  out.description = text("description");
  out.units = text("units");
  return out;
}

bool is_results(const h5::Object& file) {
  return h5::has_attribute(file, "format") && attribute_class(file, "format") == H5T_STRING &&
         h5::read_text_attribute(file, "format") == "lamina-results";
}

}  // namespace

bool is_results_file(const std::filesystem::path& path) {
  h5::Lock lock;
  return is_results(h5::open_file(path.string(), false));
}

ResultsInfo read_results_info(const std::filesystem::path& path) {
  h5::Lock lock;
  const h5::Object file = h5::open_file(path.string(), false);
  if (!is_results(file)) fail("{}: expected a results file of lamina", path.string());
  ResultsInfo info;
  info.provenance = attributes(file);
  if (!h5::exists(file, "analyses")) return info;
  const h5::Object analyses = h5::open_group(file, "analyses");
  for (const std::string& name : h5::children(analyses, kMostNames)) {
    ResultAnalysis& analysis = info.analyses.emplace_back();
    analysis.name = name;
    const h5::Object group = h5::open_group(analyses, name);
    analysis.settings = attributes(group);
    for (const std::string& child : h5::children(group, kMostNames)) {
      analysis.datasets.push_back(describe(group, child));
    }
  }
  return info;
}

}  // namespace lamina
