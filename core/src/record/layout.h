#pragma once

#include <array>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lamina/core/checked.h"
#include "lamina/core/recording.h"
#include "record/h5.h"
#include "record/scales.h"

namespace lamina::record {

inline constexpr std::string_view kFormat = "lamina-recording";
inline constexpr std::int64_t kFormatVersion = 1;

// Caps on what a file may claim, far above anything real.
inline constexpr std::int64_t kMaxLayers = 10'000;
inline constexpr std::int64_t kMaxWidth = std::int64_t{1} << 24;

/// Names of ModelConfig::norm_place in the file, in the enumeration's order.
inline constexpr std::array<std::string_view, 4> kNormPlaces = {"none", "pre", "post", "sandwich"};

/// One dataset of rows: an activation site, an attention site or a part of the logit summary.
struct Slot {
  enum class Kind { token, attention, logits };
  Kind kind = Kind::token;
  Site site;         // token and attention slots
  std::string path;  // of the dataset
  h5::Type type = h5::Type::f32;
  std::vector<hsize_t> row;             // extent after the first dimension
  std::vector<std::string> dimensions;  // names of `row`'s dimensions
  std::string semantics;

  /// Elements of one row.
  std::uint64_t row_elements() const;
  std::uint64_t row_bytes() const { return row_elements() * h5::type_size(type); }
};

/// The row datasets of a recording in the order of its header's sites, the logits last.
std::vector<Slot> make_slots(const RecordingHeader& header);

/// Elements of attention values that prompt of `length` tokens has.
inline std::uint64_t attention_elements(const RecordingHeader& header, std::int64_t length) {
  const auto heads = static_cast<std::uint64_t>(header.config.n_heads);
  const auto keys = static_cast<std::uint64_t>(length);
  return checked_mul(checked_mul(heads, keys, "attention values"), keys, "attention values");
}

/// Bytes that one prompt's rows take.
std::uint64_t prompt_bytes(const RecordingHeader& header, std::span<const Slot> slots,
                           std::int64_t length);

/// How the row datasets come to be: really, or as virtual ones in an index.
using MakeRows = std::function<h5::Object(const h5::Object& file, const Slot& slot,
                                          const h5::Dims& dims, const h5::Dims& chunk)>;
h5::Object make_real_rows(const h5::Object& file, const Slot& slot, const h5::Dims& dims,
                          const h5::Dims& chunk);

/// Writes everything of a file but the rows: header, inputs, dimensions, and the row datasets at
/// their final extent. After this only values change: raw data at fixed places, and two attributes.
/// `prompts` are the file's own, the first being prompt `first_prompt` of the run.
void write_skeleton(const h5::Object& file, const RecordingHeader& header,
                    std::span<const Slot> slots, std::span<const Prompt> prompts,
                    std::int64_t first_prompt, const MakeRows& make_rows);

/// The root attributes and the list of sites. Fails on anything that is no recording.
RecordingHeader read_header(const h5::Object& file);

/// One clear line on what differs between two runs ("model_sha256: a… here, b… there"), or "".
std::string run_difference(const RecordingHeader& a, const RecordingHeader& b);

/// The prompts and offsets of one file; every array checked against the others.
struct Inputs {
  std::vector<Prompt> prompts;
  std::vector<std::int64_t> offsets;
};
Inputs read_inputs(const h5::Object& file);

/// Opens a slot's dataset after checking its type and extent.
h5::Object open_rows(const h5::Object& file, const Slot& slot, const RecordingHeader& header,
                     std::span<const std::int64_t> offsets);

}  // namespace lamina::record
