#include "family/tensor_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "lamina/core/dtype.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

// Where value (r, c) of a canonical tensor [rows, cols] stands in its file tensor:
//   base + (r / group)·group_stride + place(r % group)·row_stride + c·col_stride   elements.
// place is the identity, or undoes the interleaving of a converter. One of the two inner strides is
// always 1.
struct Layout {
  std::int64_t rows = 0, cols = 0;
  std::int64_t base = 0;
  std::int64_t group = 1, group_stride = 0;
  std::int64_t row_stride = 1, col_stride = 1;
  bool interleaved = false;

  std::int64_t row_offset(std::int64_t r) const {
    std::int64_t inner = r % group;
    if (interleaved) inner = 2 * (inner % (group / 2)) + inner / (group / 2);
    return base + (r / group) * group_stride + inner * row_stride;
  }
};

struct Expected {
  std::vector<std::uint64_t> shape;
  Layout layout;
};

bool is_matrix(std::string_view key) {
  static constexpr std::string_view kMatrices[] = {"embed",   "type_embed", "pos_embed", "head",
                                                   "unembed", "L.q",        "L.k",       "L.v",
                                                   "L.o",     "L.gate",     "L.in",      "L.out"};
  return std::find(std::begin(kMatrices), std::end(kMatrices), key) != std::end(kMatrices);
}

std::string shape_text(std::span<const std::uint64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

// Position of q, k or v in a fused tensor: first row and rows in all.
struct FusedPart {
  std::int64_t index, first, total;
};
FusedPart fused_part(std::string_view key, const ModelConfig& c) {
  const std::int64_t q = c.d_attn(), kv = c.d_kv();
  const std::int64_t total = q + 2 * kv;
  switch (key[2]) {  // "L.q", "L.k.b" …
    case 'q':
      return {0, 0, total};
    case 'k':
      return {1, q, total};
    default:
      return {2, q + kv, total};
  }
}

Expected expected(std::string_view key, const CanonicalTensor& tensor, Form form,
                  const ModelConfig& c) {
  const bool matrix = is_matrix(key);
  const std::int64_t R = matrix ? tensor.rows : tensor.cols;
  const std::int64_t C = matrix ? tensor.cols : 1;
  const std::int64_t d = c.d_head;
  Expected out;
  Layout& at = out.layout;
  at.rows = R;
  at.cols = C;
  at.group = R;
  at.row_stride = C;
  std::vector<std::int64_t> shape = {R, C};
  switch (form) {
    case Form::rows:
      break;
    case Form::columns:
      shape = {C, R};
      at.row_stride = 1;
      at.col_stride = R;
      break;
    case Form::fused_rows: {
      const FusedPart part = fused_part(key, c);
      shape = {part.total, C};
      at.base = part.first * C;
      break;
    }
    case Form::fused_columns: {
      const FusedPart part = fused_part(key, c);
      shape = {C, part.total};
      at.base = part.first;
      at.row_stride = 1;
      at.col_stride = part.total;
      break;
    }
    case Form::fused_heads: {
      const FusedPart part = fused_part(key, c);
      shape = {part.total, C};
      at.base = part.index * d * C;
      at.group = d;
      at.group_stride = 3 * d * C;
      break;
    }
    case Form::head_columns:
      shape = {R / d, C, d};
      at.group = d;
      at.group_stride = C * d;
      at.row_stride = 1;
      at.col_stride = d;
      break;
    case Form::head_inputs:
      shape = {C / d, d, R};
      at.row_stride = 1;
      at.col_stride = R;
      break;
    case Form::rows_from_2:
      shape = {R + 2, C};
      at.base = 2 * C;
      break;
    case Form::rope_rows:
      at.group = d;
      at.group_stride = d * C;
      at.interleaved = true;
      break;
  }
  if (!matrix) {  // leave C = 1 out of the shape
    if (form == Form::head_columns) {
      shape = {R / d, d};
    } else {
      shape = {std::max(shape[0], shape[1])};
    }
    at.col_stride = 1;
  }
  out.shape.assign(shape.begin(), shape.end());
  return out;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t next = text.find(from, at);
    if (next == std::string_view::npos) return out.append(text.substr(at));
    out.append(text.substr(at, next - at)).append(to);
    at = next + from.size();
  }
  return out;
}

class BoundTensors final : public WeightSource {
 public:
  struct Bound {
    const TensorInfo* info;
    Layout layout;
  };

  explicit BoundTensors(TensorStore store) : store_(std::move(store)) {}
  const TensorStore& store() const { return store_; }
  void add(std::string canonical, Bound bound) { bound_.emplace(std::move(canonical), bound); }

  void read_rows(std::string_view canonical, std::int64_t first, std::int64_t count,
                 std::span<float> out) const override {
    const auto it = bound_.find(std::string(canonical));
    if (it == bound_.end()) fail("{}: no canonical tensor \"{}\"", store_.name(), canonical);
    Bound bound = it->second;
    Layout& at = bound.layout;
    std::int64_t key_layer = -1;
    if (!is_matrix(canonical_key(canonical, &key_layer))) {
      // A vector's values are the layout's rows; to the caller it is one row.
      if (first != 0 || count != 1) {
        fail("{}: rows {} to {} of the vector \"{}\"", store_.name(), first, first + count,
             canonical);
      }
      count = at.rows;
    }
    const auto needed = static_cast<std::size_t>(count * at.cols);
    if (first < 0 || count < 0 || first + count > at.rows || out.size() != needed) {
      fail("{}: rows {} to {} of \"{}\" into {} values; the tensor has {} rows of {}",
           store_.name(), first, first + count, canonical, out.size(), at.rows, at.cols);
    }
    if (at.col_stride == 1) {
      read_row_runs(bound, first, count, out);
    } else {
      read_column_runs(bound, first, count, out);
    }
  }

 private:
  void expand(const TensorInfo& info, std::int64_t offset, std::span<float> out) const {
    const std::size_t block = block_elements(info.dtype);
    const auto start = static_cast<std::size_t>(offset);
    const std::size_t bytes = storage_bytes(info.dtype, out.size());
    expand_to_f32(info.dtype, info.bytes.subspan(start / block * block_bytes(info.dtype), bytes),
                  out);
  }

  // Rows that follow each other in the file are expanded together.
  void read_row_runs(const Bound& bound, std::int64_t first, std::int64_t count,
                     std::span<float> out) const {
    const Layout& at = bound.layout;
    for (std::int64_t r = 0; r < count;) {
      const std::int64_t start = at.row_offset(first + r);
      std::int64_t run = 1;
      while (r + run < count && at.row_offset(first + r + run) == start + run * at.cols) ++run;
      expand(*bound.info, start,
             out.subspan(static_cast<std::size_t>(r * at.cols),
                         static_cast<std::size_t>(run * at.cols)));
      r += run;
    }
  }

  // The file has canonical rows as columns: expand a run of rows for one column, and scatter it.
  void read_column_runs(const Bound& bound, std::int64_t first, std::int64_t count,
                        std::span<float> out) const {
    const Layout& at = bound.layout;
    std::vector<float> run_values;
    for (std::int64_t r = 0; r < count;) {
      const std::int64_t run = std::min(count - r, at.group - (first + r) % at.group);
      run_values.resize(static_cast<std::size_t>(run));
      const std::int64_t start = at.row_offset(first + r);
      for (std::int64_t c = 0; c < at.cols; ++c) {
        expand(*bound.info, start + c * at.col_stride, run_values);
        for (std::int64_t i = 0; i < run; ++i) {
          out[static_cast<std::size_t>((r + i) * at.cols + c)] =
              run_values[static_cast<std::size_t>(i)];
        }
      }
      r += run;
    }
  }

  TensorStore store_;
  std::unordered_map<std::string, Bound> bound_;
};

std::string choose_prefix(const TensorStore& store, const TensorTable& table) {
  const auto embed = std::find_if(table.rules.begin(), table.rules.end(),
                                  [](const TensorRule& rule) { return rule.canonical == "embed"; });
  for (std::string_view prefix : table.prefixes) {
    if (store.find(replace_all(embed->file, "{p}", prefix)) != nullptr) return std::string(prefix);
  }
  fail("{}: no tensor \"{}\"", store.name(), replace_all(embed->file, "{p}", table.prefixes[0]));
}

// A tied model may carry a second copy of its embedding. transformers replaces it by the embedding;
// one that differs means that the configuration is wrong, and is not ours to resolve.
void check_tied_copy(const TensorStore& store, const TensorInfo& head, const TensorInfo& embed) {
  const bool same = head.dtype == embed.dtype && head.shape == embed.shape &&
                    head.bytes.size() == embed.bytes.size() &&
                    std::memcmp(head.bytes.data(), embed.bytes.data(), head.bytes.size()) == 0;
  if (!same) {
    fail(
        "{}: the configuration ties the unembedding to the embedding, but \"{}\" {} differs from "
        "\"{}\" {}",
        store.name(), head.name, shape_text(head.shape), embed.name, shape_text(embed.shape));
  }
}

}  // namespace

std::string canonical_key(std::string_view canonical, std::int64_t* layer) {
  std::size_t digits = 0;
  while (digits < canonical.size() && canonical[digits] >= '0' && canonical[digits] <= '9')
    ++digits;
  if (digits == 0 || digits >= canonical.size() || canonical[digits] != '.') {
    *layer = -1;
    return std::string(canonical);
  }
  *layer = std::stoll(std::string(canonical.substr(0, digits)));
  return std::string("L").append(canonical.substr(digits));
}

bool matches_tensor_pattern(std::string_view name, std::string_view pattern) {
  while (!pattern.empty()) {
    if (pattern == "*") return true;
    if (pattern.substr(0, 3) == "{l}") {
      std::size_t digits = 0;
      while (digits < name.size() && name[digits] >= '0' && name[digits] <= '9') ++digits;
      if (digits == 0) return false;
      name.remove_prefix(digits);
      pattern.remove_prefix(3);
      continue;
    }
    if (name.empty() || name[0] != pattern[0]) return false;
    name.remove_prefix(1);
    pattern.remove_prefix(1);
  }
  return name.empty();
}

std::unique_ptr<WeightSource> bind_tensors(TensorStore opened, const ModelConfig& config,
                                           const TensorTable& table) {
  auto source = std::make_unique<BoundTensors>(std::move(opened));
  const TensorStore& store = source->store();
  const std::string prefix = choose_prefix(store, table);
  const auto file_name = [&](std::string_view pattern, std::int64_t layer) {
    return replace_all(replace_all(pattern, "{p}", prefix), "{l}", std::to_string(layer));
  };

  std::unordered_set<std::string_view> used;
  for (const CanonicalTensor& tensor : canonical_tensors(config)) {
    std::int64_t layer = -1;
    const std::string key = canonical_key(tensor.name, &layer);
    const TensorRule* rule = nullptr;
    const TensorInfo* info = nullptr;
    std::string name;
    for (const TensorRule& candidate : table.rules) {
      if (candidate.canonical != key) continue;
      const TensorInfo* found = store.find(file_name(candidate.file, layer));
      if (rule != nullptr && found == nullptr)
        continue;  // name the first spelling if none is there
      rule = &candidate;
      info = found;
      name = file_name(candidate.file, layer);
      if (found != nullptr) break;
    }
    if (rule == nullptr) {
      fail("{}: the family {} has no tensor for \"{}\"", store.name(), config.family, key);
    }
    const Expected want = expected(key, tensor, rule->form, config);
    if (info == nullptr) {
      fail("{}: no tensor \"{}\"; expected {}", store.name(), name, shape_text(want.shape));
    }
    if (info->shape != want.shape) {
      fail("{}: tensor \"{}\" has shape {}; expected {}", store.name(), name,
           shape_text(info->shape), shape_text(want.shape));
    }
    const auto block = static_cast<std::int64_t>(block_elements(info->dtype));
    if (block > 1 && (want.layout.col_stride != 1 || want.layout.cols % block != 0) &&
        !(want.layout.cols == 1 && want.layout.row_stride == 1 && want.layout.rows % block == 0)) {
      fail(
          "{}: tensor \"{}\" is stored as {} in blocks of {}, which cannot be cut along its rows "
          "of {}",
          store.name(), name, dtype_name(info->dtype), block, want.layout.cols);
    }
    if (info->dtype != DType::f64 && info->dtype != DType::f32 && info->dtype != DType::f16 &&
        info->dtype != DType::bf16 && block == 1) {
      fail("{}: tensor \"{}\" has type {}; expected a floating-point or quantised type",
           store.name(), name, dtype_name(info->dtype));
    }
    used.insert(info->name);
    source->add(tensor.name, {info, want.layout});
  }

  for (const TensorRule& rule : table.rules) {
    if (rule.canonical != "unembed" || !config.tied) continue;
    const TensorInfo* head = store.find(file_name(rule.file, -1));
    if (head == nullptr) continue;
    for (const TensorRule& embed : table.rules) {
      if (embed.canonical == "embed" && rule.form == embed.form) {
        check_tied_copy(store, *head, *store.find(file_name(embed.file, -1)));
        used.insert(head->name);
      }
    }
  }
  for (const TensorInfo& info : store.tensors()) {
    if (used.contains(info.name)) continue;
    const bool ignored =
        std::any_of(table.ignored.begin(), table.ignored.end(), [&](std::string_view p) {
          return matches_tensor_pattern(info.name, replace_all(p, "{p}", prefix));
        });
    if (!ignored) {
      fail("{}: tensor \"{}\" {} has no place in a {} model with {} layers", store.name(),
           info.name, shape_text(info.shape), config.family, config.n_layers);
    }
  }
  return source;
}

}  // namespace lamina
