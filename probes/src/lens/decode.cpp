#include "lens/decode.h"

#include <algorithm>

#include "lamina/core/error.h"

namespace lamina {
namespace {

// Eight fixed lanes: the result does not depend on how many rows are translated together.
float dot(const float* a, const float* b, std::int64_t n) {
  float lane[8] = {};
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (std::int64_t j = 0; j < 8; ++j) lane[j] += a[i + j] * b[i + j];
  }
  for (std::int64_t j = 0; i + j < n; ++j) lane[j] += a[i + j] * b[i + j];
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

void translate(const LensTranslators::Map& map, std::int64_t d, std::int64_t count, float* rows) {
  std::vector<float> moved(static_cast<std::size_t>(count * d));
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < count * d; ++i) {
    const float* row = rows + i / d * d;
    moved[i] = rows[i] + (dot(map.weight.data() + i % d * d, row, d) + map.bias[i % d]);
  }
  std::copy(moved.begin(), moved.end(), rows);
}

}  // namespace

void RowDecoder::gather(const ActivationBlock& block, Site site,
                        std::span<const std::int64_t> token_rows) {
  const std::int64_t d = readout_.d_model();
  const ActivationBlock::Values& values = block.at(site);
  if (static_cast<std::int64_t>(values.values.size()) != block.batch.tokens() * d) {
    fail("{}: {} values for {} tokens of {} each", site_name(site), values.values.size(),
         block.batch.tokens(), d);
  }
  const std::size_t begin = rows_.size();
  rows_.resize(begin + token_rows.size() * static_cast<std::size_t>(d));
  float* out = rows_.data() + begin;
  for (std::size_t i = 0; i < token_rows.size(); ++i) {
    std::copy_n(values.values.data() + token_rows[i] * d, d,
                out + static_cast<std::int64_t>(i) * d);
  }
  const LensTranslators::Map* map = translators_ ? translators_->find(site) : nullptr;
  if (map) translate(*map, d, static_cast<std::int64_t>(token_rows.size()), out);
}

std::span<const float> RowDecoder::decode(std::vector<float>& logits) {
  const auto rows = static_cast<std::int64_t>(rows_.size()) / readout_.d_model();
  normalized_.resize(rows_.size());
  logits.resize(static_cast<std::size_t>(rows * readout_.d_vocab()));
  readout_.final_norm(rows_, normalized_);
  readout_.unembed(normalized_, logits);
  rows_.clear();
  return logits;
}

std::vector<std::int64_t> selected_positions(const ActivationBlock& block, std::int64_t prompt,
                                             const LensOptions& options) {
  const Prompt& p = block.prompts[prompt];
  const std::int64_t length = block.batch.length(prompt);
  std::vector<std::int64_t> positions;
  switch (options.positions) {
    case LensPositions::last:
      positions.push_back((p.given > 0 ? std::min(p.given, length) : length) - 1);
      break;
    case LensPositions::all:
      for (std::int64_t i = 0; i < length; ++i) positions.push_back(i);
      break;
    case LensPositions::list:
      for (std::int64_t asked : options.position_list) {
        const std::int64_t at = asked < 0 ? length + asked : asked;
        if (at < 0 || at >= length) {
          fail_usage("prompt \"{}\" has {} tokens: it has no position {}", p.id, length, asked);
        }
        positions.push_back(at);
      }
      break;
  }
  return positions;
}

std::int32_t expected_next(const Prompt& prompt, std::int64_t position) {
  if (position == prompt.given - 1 && prompt.target) return *prompt.target;
  const auto next = static_cast<std::size_t>(position) + 1;
  return next < prompt.ids.size() ? prompt.ids[next] : -1;
}

void check_lens_sites(std::span<const Site> sites, const ModelConfig& config) {
  if (config.norm_place == NormPlace::post) {
    fail_usage(
        "lens: this model normalises after every addition, so that none of its residual "
        "sites is what it unembeds");
  }
  const std::vector<Site> valid = all_sites(config);
  for (Site site : sites) {
    if (std::find(valid.begin(), valid.end(), site) == valid.end()) {
      fail_usage("lens: this model has no site {}", site_name(site));
    }
    switch (site.kind) {
      case SiteKind::embed:
      case SiteKind::pos_embed:
      case SiteKind::resid_pre:
      case SiteKind::resid_mid:
      case SiteKind::resid_post:
      case SiteKind::attn_out:
      case SiteKind::mlp_out:
        break;
      default:
        fail_usage("lens: {} is no vector of the residual stream", site_name(site));
    }
  }
}

}  // namespace lamina
