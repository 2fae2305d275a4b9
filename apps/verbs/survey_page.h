#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "lamina/core/model.h"
#include "lamina/probes/inflection.h"
#include "lamina/probes/survey.h"

namespace lamina::cli {

/// What a survey has to say, for the page and for JSON.
struct SurveyFindings {
  const Model& model;
  const Survey& survey;
  std::int64_t prompts = 0, tokens = 0, longest = 0;
  std::optional<InflectionResults> gradients;  // over the first prompts only
};

/// The page: the model, the text, a line a layer, and what stands out.
std::string survey_page(const SurveyFindings& findings);
nlohmann::ordered_json survey_json(const SurveyFindings& findings);

}  // namespace lamina::cli
