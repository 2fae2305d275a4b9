#include "lamina/probes/streams.h"

#include "depth/token_fold.h"
#include "lamina/core/error.h"

namespace lamina {

std::vector<Site> stream_sites(const ModelConfig& config) {
  const SiteKind leaving =
      config.norm_place == NormPlace::post ? SiteKind::normalized_resid_post : SiteKind::resid_post;
  std::vector<Site> sites = {{SiteKind::resid_pre, 0}};
  for (std::int32_t l = 0; l < config.n_layers; ++l) sites.push_back({leaving, l});
  return sites;
}

std::vector<std::string> stream_labels(const ModelConfig& config) {
  std::vector<std::string> labels = {"embed"};
  for (std::int64_t l = 0; l < config.n_layers; ++l) labels.push_back(std::to_string(l));
  return labels;
}

void check_choice(const TokenChoice& choice) {
  if (choice.skip < 0) {
    fail_usage("tokens to skip: expected a number of 0 or more, got {}", choice.skip);
  }
  if (choice.every < 1) {
    fail_usage("one token in how many: expected a number of 1 or more, got {}", choice.every);
  }
}

std::vector<std::int64_t> chosen_rows(const ActivationBlock& block, const TokenChoice& choice) {
  std::vector<std::int64_t> rows;
  for (std::int64_t p = 0; p < block.batch.prompts(); ++p) {
    const std::int64_t begin = block.batch.offsets[static_cast<std::size_t>(p)];
    for (std::int64_t i = choice.skip; i < block.batch.length(p); ++i) {
      if ((block.first_prompt + p + i) % choice.every == 0) rows.push_back(begin + i);
    }
  }
  return rows;
}

std::span<const float> site_rows(const ActivationBlock& block, Site site, std::int64_t width,
                                 std::string_view analysis) {
  const std::vector<float>& values = block.at(site).values;
  if (values.size() != static_cast<std::size_t>(block.batch.tokens() * width)) {
    fail("{}: {} holds {} values, {} tokens × {} were expected", analysis, site_name(site),
         values.size(), block.batch.tokens(), width);
  }
  return values;
}

std::string token_place(const ActivationBlock& block, std::int64_t row) {
  std::int64_t p = 0;
  while (block.batch.offsets[static_cast<std::size_t>(p) + 1] <= row) ++p;
  return fmt::format("prompt \"{}\", position {}", block.prompts[static_cast<std::size_t>(p)].id,
                     row - block.batch.offsets[static_cast<std::size_t>(p)]);
}

}  // namespace lamina
