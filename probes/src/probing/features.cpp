#include "lamina/probes/features.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <optional>

#include "lamina/core/error.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

template <class Integer>
bool parse_integer(std::string_view text, Integer& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size();
}

// The token at `index`, which may count from the end.
std::int64_t at_index(const Prompt& prompt, std::int64_t index) {
  const auto length = static_cast<std::int64_t>(prompt.ids.size());
  const std::int64_t token = index < 0 ? length + index : index;
  if (token < 0 || token >= length) {
    fail("prompt '{}' has {} tokens: there is none at position {}", prompt.id, length, index);
  }
  return token;
}

std::int64_t marked(const Prompt& prompt, const TokenMarker& marker, std::int64_t from) {
  using Kind = TokenMarker::Kind;
  const auto length = static_cast<std::int64_t>(prompt.ids.size());
  if (marker.kind == Kind::index) return at_index(prompt, marker.index);
  if (marker.kind == Kind::tokens) {
    const auto found = std::search(prompt.ids.begin() + from, prompt.ids.end(), marker.ids.begin(),
                                   marker.ids.end());
    if (found == prompt.ids.end()) {
      fail("prompt '{}' has no tokens {} from position {} on", prompt.id,
           fmt::join(marker.ids, ","), from);
    }
    return found - prompt.ids.begin() + static_cast<std::int64_t>(marker.ids.size()) - 1;
  }
  if (prompt.given >= length) {
    fail(
        "prompt '{}' has no generated tokens: record it with --generate, or give --start and --end",
        prompt.id);
  }
  return marker.kind == Kind::first_generated ? prompt.given : length - 1;
}

std::string scalar_text(const nlohmann::json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

// The labels of a prompt's tokens, if its label is an array.
std::optional<nlohmann::json> token_labels(const std::string& text) {
  if (!text.starts_with('[')) return std::nullopt;
  nlohmann::json found = nlohmann::json::parse(text, nullptr, false);
  if (!found.is_array()) return std::nullopt;  // a text that happens to begin so
  return found;
}

}  // namespace

RowChoice parse_row_choice(std::string_view text, std::int64_t& index) {
  if (text == "last") return RowChoice::last;
  if (text == "first") return RowChoice::first;
  if (text == "mean") return RowChoice::mean;
  if (text == "all") return RowChoice::all;
  if (!parse_integer(text, index)) {
    fail_usage("position '{}': last, first, mean, all or a number expected", text);
  }
  return RowChoice::index;
}

std::string row_choice_text(RowChoice choice, std::int64_t index) {
  switch (choice) {
    case RowChoice::last:
      return "last";
    case RowChoice::first:
      return "first";
    case RowChoice::mean:
      return "mean";
    case RowChoice::all:
      return "all";
    case RowChoice::index:
      return std::to_string(index);
    case RowChoice::difference:
      return "difference";
  }
  return "";
}

TokenMarker parse_token_marker(std::string_view text) {
  TokenMarker marker;
  if (text == "first-generated") return marker;
  if (text == "last-generated") {
    marker.kind = TokenMarker::Kind::last_generated;
    return marker;
  }
  if (text.starts_with("id:")) {
    marker.kind = TokenMarker::Kind::tokens;
    for (std::size_t at = 3; at <= text.size();) {
      const std::size_t comma = std::min(text.find(',', at), text.size());
      std::int32_t id = 0;
      if (!parse_integer(text.substr(at, comma - at), id) || id < 0) {
        fail_usage("marker '{}': token ids such as id:27 or id:27,13 expected", text);
      }
      marker.ids.push_back(id);
      at = comma + 1;
    }
    return marker;
  }
  marker.kind = TokenMarker::Kind::index;
  if (!parse_integer(text, marker.index)) {
    fail_usage("marker '{}': first-generated, last-generated, a number or id:… expected", text);
  }
  return marker;
}

std::vector<FeatureRow> feature_rows(const Prompt& prompt, std::int64_t number,
                                     const FeatureOptions& options) {
  const auto length = static_cast<std::int64_t>(prompt.ids.size());
  FeatureRow row{number, length - 1, 0, prompt.id, "", prompt.id};
  std::optional<nlohmann::json> per_token;
  if (!options.label.empty()) {
    const auto label = prompt.labels.find(options.label);
    if (label == prompt.labels.end()) {
      if (options.skip_unlabelled) return {};
      fail("prompt '{}' has no label '{}'; --skip-unlabelled leaves such prompts out", prompt.id,
           options.label);
    }
    row.label = label->second;
    per_token = token_labels(row.label);
  }
  if (!options.group.empty()) {
    const auto group = prompt.labels.find(options.group);
    if (group == prompt.labels.end()) {
      fail("prompt '{}' has no label '{}', which says what belongs together", prompt.id,
           options.group);
    }
    row.group = group->second;
  }
  if (per_token) {
    if (options.choice == RowChoice::mean || options.choice == RowChoice::difference) {
      fail(
          "prompt '{}': label '{}' has one value per token, a mean or difference of tokens needs "
          "one per prompt",
          prompt.id, options.label);
    }
    const auto entries = static_cast<std::int64_t>(per_token->size());
    if (entries != length && entries != prompt.given) {
      fail("prompt '{}': label '{}' has {} entries, {} expected, one per token", prompt.id,
           options.label, entries, prompt.given);
    }
  }
  std::vector<FeatureRow> rows;
  const auto add = [&](std::int64_t token) {
    row.token = token;
    row.id = prompt.ids[size(token)];
    if (per_token) {
      if (token >= static_cast<std::int64_t>(per_token->size())) return;
      const nlohmann::json& label = (*per_token)[size(token)];
      if (label.is_null()) return;
      row.label = scalar_text(label);
    }
    rows.push_back(row);
  };
  switch (options.choice) {
    case RowChoice::last:
      add(length - 1);
      break;
    case RowChoice::first:
      add(0);
      break;
    case RowChoice::index:
      add(at_index(prompt, options.index));
      break;
    case RowChoice::mean:
      if (options.skip >= length) {
        fail("prompt '{}' has {} tokens: skipping {} leaves none", prompt.id, length, options.skip);
      }
      add(length - 1);
      break;
    case RowChoice::all:
      for (std::int64_t t = options.skip; t < length; ++t) add(t);
      break;
    case RowChoice::difference: {
      const std::int64_t start = marked(prompt, options.start, 0);
      const std::int64_t end = marked(
          prompt, options.end, options.end.kind == TokenMarker::Kind::tokens ? start + 1 : 0);
      if (end <= start) {
        fail("prompt '{}': the end marker stands at token {}, not after the start at {}", prompt.id,
             end, start);
      }
      add(end);
      break;
    }
  }
  return rows;
}

Features::Features(const ModelConfig& config, FeatureOptions options)
    : options_(std::move(options)), values_(options_.sites.size()) {
  for (const Site site : options_.sites) {
    const SiteShape shape = site_shape(site, config);
    if (shape.attention) {
      fail_usage("{} has one value per pair of tokens, features need a vector per token",
                 site_name(site));
    }
    widths_.push_back(shape.row());
  }
}

std::unique_ptr<Probe> Features::fresh() const {
  auto out = std::make_unique<Features>(*this);
  out->prompts_ = 0;
  out->rows_.clear();
  for (auto& values : out->values_) values.clear();
  return out;
}

void Features::read(const ActivationBlock& block, std::size_t prompt, const FeatureRow& row) {
  const std::int64_t base = block.batch.offsets[prompt];
  for (std::size_t s = 0; s < options_.sites.size(); ++s) {
    const auto width = size(widths_[s]);
    const float* values = block.at(options_.sites[s]).values.data();
    const auto at = [&](std::int64_t token) { return values + size(base + token) * width; };
    std::vector<float>& out = values_[s];
    const std::size_t begin = out.size();
    out.insert(out.end(), at(row.token), at(row.token) + width);
    if (options_.choice == RowChoice::difference) {
      const float* start = at(marked(block.prompts[prompt], options_.start, 0));
      for (std::size_t i = 0; i < width; ++i) out[begin + i] -= start[i];
    } else if (options_.choice == RowChoice::mean) {
      std::vector<double> sums(width, 0.0);
      for (std::int64_t t = options_.skip; t <= row.token; ++t) {
        for (std::size_t i = 0; i < width; ++i) sums[i] += at(t)[i];
      }
      const auto count = static_cast<double>(row.token + 1 - options_.skip);
      for (std::size_t i = 0; i < width; ++i) out[begin + i] = static_cast<float>(sums[i] / count);
    }
  }
}

void Features::observe(const ActivationBlock& block) {
  for (std::size_t p = 0; p < block.prompts.size(); ++p) {
    for (FeatureRow& row : feature_rows(block.prompts[p], prompts_, options_)) {
      read(block, p, row);
      rows_.push_back(std::move(row));
    }
    ++prompts_;
  }
}

void Features::merge(Probe& other) {
  auto& more = dynamic_cast<Features&>(other);
  for (FeatureRow& row : more.rows_) {
    row.prompt += prompts_;
    rows_.push_back(std::move(row));
  }
  prompts_ += more.prompts_;
  for (std::size_t s = 0; s < values_.size(); ++s) {
    if (values_[s].empty()) {
      values_[s] = std::move(more.values_[s]);
    } else {
      values_[s].insert(values_[s].end(), more.values_[s].begin(), more.values_[s].end());
    }
    more.values_[s].clear();
  }
  more.rows_.clear();
  more.prompts_ = 0;
}

void Features::write(ResultFile& file) const {
  using Names = std::vector<std::string>;
  file.setting("position", row_choice_text(options_.choice, options_.index));
  file.setting("label", options_.label);
  std::vector<std::int64_t> numbers;
  std::vector<std::int32_t> tokens, ids;
  Names labels, prompts;
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    numbers.push_back(static_cast<std::int64_t>(r));
    tokens.push_back(static_cast<std::int32_t>(rows_[r].token));
    ids.push_back(rows_[r].id);
    labels.push_back(rows_[r].label);
    prompts.push_back(rows_[r].prompt_id);
  }
  const Names row{"row"};
  file.axis("row", numbers);
  file.dataset("row_prompt", row, prompts, "id of the row's prompt", "");
  file.dataset("row_token", row, tokens, "token the row was read at, within its prompt", "token");
  file.dataset("row_token_id", row, ids, "that token's id", "");
  file.dataset("row_label", row, labels, "the row's label", "");
  std::vector<std::int64_t> made;
  for (std::size_t s = 0; s < options_.sites.size(); ++s) {
    const std::string axis = "component_" + std::to_string(widths_[s]);
    if (std::find(made.begin(), made.end(), widths_[s]) == made.end()) {
      made.push_back(widths_[s]);
      std::vector<std::int64_t> components(size(widths_[s]));
      for (std::size_t i = 0; i < components.size(); ++i)
        components[i] = static_cast<std::int64_t>(i);
      file.axis(axis, components);
    }
    file.dataset(site_name(options_.sites[s]), Names{"row", axis}, values(s),
                 "activations of the rows", "1");
  }
}

}  // namespace lamina
