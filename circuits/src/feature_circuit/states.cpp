#include "feature_circuit/states.h"

#include <algorithm>

#include "lamina/core/error.h"

namespace lamina::feature_circuit {
namespace {

// The mean of states row by row, in double.
struct MeanRow {
  std::map<std::int32_t, double> features;
  std::vector<double> error, site;
  std::int64_t rows = 0;

  void add(const State& state, std::int64_t row, std::size_t width) {
    const auto feature = state.features(row);
    const auto value = state.values(row);
    for (std::size_t i = 0; i < feature.size(); ++i) features[feature[i]] += double{value[i]};
    error.resize(width);
    site.resize(width);
    for (std::size_t i = 0; i < width; ++i) {
      error[i] += double{state.error[size(row) * width + i]};
      site[i] += double{state.site[size(row) * width + i]};
    }
    ++rows;
  }
  State state() const {
    const auto n = static_cast<double>(rows);
    State out;
    for (const auto& [feature, sum] : features) {
      out.z.feature.push_back(feature);
      out.z.value.push_back(static_cast<float>(sum / n));
    }
    out.z.offsets.push_back(static_cast<std::int64_t>(out.z.feature.size()));
    for (const double sum : error) out.error.push_back(static_cast<float>(sum / n));
    for (const double sum : site) out.site.push_back(static_cast<float>(sum / n));
    return out;
  }
};

}  // namespace

std::span<const std::int32_t> State::features(std::int64_t row) const {
  const std::int64_t first = z.offsets[size(row)];
  return std::span(z.feature).subspan(size(first), size(z.offsets[size(row + 1)] - first));
}

std::span<const float> State::values(std::int64_t row) const {
  const std::int64_t first = z.offsets[size(row)];
  return std::span(z.value).subspan(size(first), size(z.offsets[size(row + 1)] - first));
}

float State::value(std::int64_t row, std::int32_t feature) const {
  const auto ids = features(row);
  const auto found = std::lower_bound(ids.begin(), ids.end(), feature);
  if (found == ids.end() || *found != feature) return 0.0F;
  return values(row)[static_cast<std::size_t>(found - ids.begin())];
}

SiteCopies::SiteCopies(const Model& model, std::span<const Transcoder> dictionaries)
    : model_(model), dictionaries_(dictionaries) {
  for (const Transcoder& t : dictionaries) {
    values_[t.config.input.site];
    values_[t.config.output.site];
  }
}

void SiteCopies::watch(Hooks& hooks) {
  for (auto& [site, values] : values_) {
    hooks.read(site, [&values = values](SiteView& view) {
      values.assign(view.values.begin(), view.values.end());
    });
  }
}

std::vector<float> SiteCopies::input(std::size_t i) const {
  const DictionaryPlace& place = dictionaries_[i].config.input;
  std::vector<float> x = values_.at(place.site);
  apply_place(model_, place, x);
  return x;
}

std::span<const float> SiteCopies::output(std::size_t i) const {
  return values_.at(dictionaries_[i].config.output.site);
}

std::vector<State> SiteCopies::states() const {
  std::vector<State> all;
  for (std::size_t i = 0; i < dictionaries_.size(); ++i) {
    const std::span<const float> y = output(i);
    State state{.z = dictionaries_[i].encode(input(i)),
                .error = std::vector<float>(y.size()),
                .site = {y.begin(), y.end()}};
    dictionaries_[i].decode(state.z, {}, state.error);
    for (std::size_t j = 0; j < y.size(); ++j) state.error[j] = y[j] - state.error[j];
    all.push_back(std::move(state));
  }
  return all;
}

void append_row(const State& from, std::int64_t row, std::int64_t width, State& to) {
  const auto feature = from.features(row);
  const auto value = from.values(row);
  to.z.feature.insert(to.z.feature.end(), feature.begin(), feature.end());
  to.z.value.insert(to.z.value.end(), value.begin(), value.end());
  to.z.offsets.push_back(static_cast<std::int64_t>(to.z.feature.size()));
  const auto copy = [&](const std::vector<float>& a, std::vector<float>& b) {
    b.insert(b.end(), a.begin() + row * width, a.begin() + (row + 1) * width);
  };
  copy(from.error, to.error);
  copy(from.site, to.site);
}

State select_rows(const State& state, std::span<const std::int64_t> rows, std::int64_t width) {
  State out;
  for (const std::int64_t row : rows) append_row(state, row, width, out);
  return out;
}

std::vector<patching::Chunk> clean_chunks(const FeatureStudy& study, std::int64_t batch_tokens) {
  return patching::make_chunks(study.pairs, Direction::noise, batch_tokens);
}

Baselines::Baselines(const FeatureStudy& study, FeatureBaseline kind, CountFrom from,
                     std::int64_t batch_tokens)
    : study_(study), kind_(kind), from_(from) {
  if (kind != FeatureBaseline::mean) return;
  std::vector<std::map<std::int32_t, MeanRow>> sums(study.dictionaries.size());
  for (const patching::Chunk& chunk : clean_chunks(study, batch_tokens)) {
    SiteCopies copies(study.forward.model(), study.dictionaries);
    Hooks hooks;
    copies.watch(hooks);
    study.forward.run(chunk.other, hooks);
    const std::vector<State> states = copies.states();
    for (std::size_t i = 0; i < states.size(); ++i) {
      const std::size_t width = size(study.dictionaries[i].config.d_out);
      for (std::size_t p = 0; p < chunk.pairs.size(); ++p) {
        const std::int64_t tokens = chunk.pairs[p].tokens();
        for (std::int64_t t = 0; t < tokens; ++t) {
          sums[i][position_of(t, tokens, from)].add(
              states[i], chunk.other_rows[size(chunk.offsets[p] + t)], width);
        }
      }
    }
  }
  for (const auto& rows : sums) {
    auto& out = means_.emplace_back();
    for (const auto& [position, row] : rows) out[position] = row.state();
  }
}

std::vector<State> Baselines::of(const patching::Chunk& chunk,
                                 std::span<const State> corrupted) const {
  std::vector<State> all;
  const std::int64_t rows = chunk.offsets.back();
  for (std::size_t i = 0; i < study_.dictionaries.size(); ++i) {
    const std::int64_t width = study_.dictionaries[i].config.d_out;
    if (kind_ == FeatureBaseline::pair) {
      all.push_back(select_rows(corrupted[i], chunk.other_rows, width));
      continue;
    }
    State& state = all.emplace_back();
    if (kind_ == FeatureBaseline::zero) {
      state.z.offsets.assign(size(rows + 1), 0);
      state.error.assign(size(rows * width), 0.0F);
      const std::vector<float>& bias = study_.dictionaries[i].decoder_bias;
      for (std::int64_t r = 0; r < rows; ++r) {
        state.site.insert(state.site.end(), bias.begin(), bias.end());
      }
      continue;
    }
    for (const Pair& pair : chunk.pairs) {
      for (std::int64_t t = 0; t < pair.tokens(); ++t) {
        const State& mean = means_[i].at(position_of(t, pair.tokens(), from_));
        append_row(mean, 0, width, state);
      }
    }
  }
  return all;
}

}  // namespace lamina::feature_circuit
