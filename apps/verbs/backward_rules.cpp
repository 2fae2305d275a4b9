#include "verbs/backward_rules.h"

#include <algorithm>
#include <iterator>

#include "lamina/core/error.h"

namespace lamina::cli {
namespace {

struct Rule {
  const char* name;
  bool BackwardRules::*field;
};
constexpr Rule kRules[] = {{"norm", &BackwardRules::frozen_norm},
                           {"activation", &BackwardRules::activation_ratio},
                           {"gate", &BackwardRules::half_gate},
                           {"pattern", &BackwardRules::frozen_pattern},
                           {"mlp", &BackwardRules::frozen_mlp}};

}  // namespace

BackwardRules parse_rules(const std::vector<std::string>& words, const BackwardRules& own) {
  BackwardRules rules = own;
  if (words.empty()) return rules;
  for (const Rule& rule : kRules) rules.*rule.field = false;
  for (const std::string& word : words) {
    if (word == "none" && words.size() == 1) break;
    const auto* found = std::find_if(std::begin(kRules), std::end(kRules),
                                     [&](const Rule& rule) { return rule.name == word; });
    if (found == std::end(kRules)) {
      fail_usage("--rules: '{}', expected norm, activation, gate, pattern, mlp, or none alone",
                 word);
    }
    rules.*found->field = true;
  }
  return rules;
}

std::string rules_text(const BackwardRules& rules) {
  std::string out;
  for (const Rule& rule : kRules) {
    if (rules.*rule.field) out += (out.empty() ? "" : ", ") + std::string(rule.name);
  }
  if (out.empty()) return "none: the gradient";
  if (rules.activation_ratio) out += fmt::format(" (stabiliser {:g})", rules.stabiliser);
  return out;
}

}  // namespace lamina::cli
