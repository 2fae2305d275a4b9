#include <algorithm>
#include <iterator>
#include <utility>

#include "lamina/core/error.h"
#include "lamina/core/gguf.h"
#include "lamina/internal/file_text.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using files::quote;

constexpr std::int64_t kMaxParts = 65535;  // split.count is a 16-bit number in the format

/// One file: a whole model or one part of it.
struct Part {
  std::shared_ptr<const MappedFile> file;
  GgufContent content;
};

Part open_part(const fs::path& path) {
  Part part{std::make_shared<const MappedFile>(path), {}};
  part.content = parse_gguf(part.file->bytes(), path.string());
  part.file->require_unchanged_size();
  return part;
}

std::string part_suffix(std::int64_t part, std::int64_t count) {
  return fmt::format("-{:05}-of-{:05}.gguf", part + 1, count);
}

/// The parts' common path, without the suffix that numbers them.
std::string split_stem(const Part& part, std::int64_t number, std::int64_t count) {
  const std::string path = part.file->path().string();
  const std::string suffix = part_suffix(number, count);
  if (!path.ends_with(suffix)) {
    fail("{}: the metadata say part {} of {}, so the file's name must end in {}", path, number + 1,
         count, quote(suffix));
  }
  return path.substr(0, path.size() - suffix.size());
}

/// split.no and split.count of a part, checked; count 1 for a file that is not split.
struct Split {
  std::int64_t number = 0, count = 1;
};

Split read_split(const GgufMetadata& metadata) {
  Split split;
  split.count = metadata.find_integer("split.count").value_or(1);
  if (split.count == 0) split.count = 1;
  if (split.count < 0 || split.count > kMaxParts) {
    fail("{}: split.count is {}, expected 1 to {}", metadata.file(), split.count, kMaxParts);
  }
  if (split.count == 1) return split;
  split.number = metadata.integer("split.no");
  if (split.number < 0 || split.number >= split.count) {
    fail("{}: split.no is {}, expected 0 to {}", metadata.file(), split.number, split.count - 1);
  }
  return split;
}

}  // namespace

GgufFile open_gguf(const fs::path& path) {
  Part opened = open_part(path);
  const Split split = read_split(opened.content.metadata);
  if (split.count == 1) {
    return {
        opened.content.version, std::move(opened.content.metadata),
        TensorStore(path.string(), std::move(opened.content.tensors), {std::move(opened.file)})};
  }

  // Any part stands for the whole model; the first one carries its metadata.
  const std::string stem = split_stem(opened, split.number, split.count);
  std::uint32_t version = 0;
  GgufMetadata metadata;
  std::vector<TensorInfo> tensors;
  std::vector<std::shared_ptr<const MappedFile>> mapped;
  for (std::int64_t i = 0; i < split.count; ++i) {
    Part part =
        i == split.number ? std::move(opened) : open_part(stem + part_suffix(i, split.count));
    const Split found = read_split(part.content.metadata);
    if (found.number != i || found.count != split.count) {
      fail("{}: the metadata say part {} of {}, expected part {} of {}", part.file->path().string(),
           found.number + 1, found.count, i + 1, split.count);
    }
    std::move(part.content.tensors.begin(), part.content.tensors.end(),
              std::back_inserter(tensors));
    mapped.push_back(std::move(part.file));
    if (i == 0) {
      version = part.content.version;
      metadata = std::move(part.content.metadata);
    }
  }
  const auto expected = metadata.find_integer("split.tensors.count");
  if (expected && *expected != static_cast<std::int64_t>(tensors.size())) {
    fail("{}: split.tensors.count is {}, but the {} parts hold {} tensors", metadata.file(),
         *expected, split.count, tensors.size());
  }
  return {version, std::move(metadata),
          TensorStore(path.string(), std::move(tensors), std::move(mapped))};
}

}  // namespace lamina
