#include "cli_errors.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <string_view>
#include <vector>

#include "lamina/core/edit_distance.h"

namespace lamina::cli {
namespace {

const CLI::App& chosen_verb(const CLI::App& app) {
  const auto verbs = app.get_subcommands();  // those that were typed
  return verbs.empty() ? app : *verbs.front();
}

// The candidate closest to `typed`, if it is close enough to have been meant.
std::string nearest(std::string_view typed, const std::vector<std::string>& candidates) {
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(2, typed.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const std::size_t distance = edit_distance(typed.substr(0, 100), candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace

std::string parse_error_text(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App& verb = chosen_verb(app);
  const bool has_verb = &verb != &app;
  const std::string help =
      has_verb ? fmt::format("see `lamina {} --help`", verb.get_name()) : "see `lamina --help`";

  // With fallthrough, what no one expected ends up with the program itself.
  std::vector<std::string> extras = verb.remaining();
  if (extras.empty()) extras = app.remaining();
  const bool no_verb = !has_verb && dynamic_cast<const CLI::RequiredError*>(&error) != nullptr;
  if ((dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr || no_verb) && !extras.empty()) {
    const std::string& typed = extras.front();
    const bool option = typed.starts_with("-") && typed != "-";
    std::vector<std::string> candidates;
    if (option) {
      for (const CLI::App* from : {&verb, &app}) {
        for (const CLI::Option* known : from->get_options()) {
          for (const auto& name : known->get_lnames())
            candidates.push_back(fmt::format("--{}", name));
        }
      }
    } else if (!has_verb) {
      for (const CLI::App* known : app.get_subcommands({})) candidates.push_back(known->get_name());
    }
    const std::string name = typed.substr(0, typed.find('='));
    const std::string meant = nearest(name, candidates);
    const std::string what = option     ? fmt::format("unknown option {}", name)
                             : has_verb ? fmt::format("'{}' was not expected", typed)
                                        : fmt::format("unknown verb '{}'", typed);
    return fmt::format("{}{}; {}", what,
                       meant.empty() ? "" : fmt::format(", did you mean {}?", meant), help);
  }
  if (no_verb) return "a verb is missing; " + help;
  std::string what = error.what();
  std::replace(what.begin(), what.end(), '\n', ' ');
  while (!what.empty() && (what.back() == ' ' || what.back() == '.')) what.pop_back();
  return fmt::format("{}; {}", what, help);
}

}  // namespace lamina::cli
