#include "cli_errors.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <string_view>
#include <vector>

#include "lamina/core/edit_distance.h"

namespace lamina::cli {
namespace {

// The program, the verb that was typed, and the verb behind that one (`transcoder train`).
std::vector<const CLI::App*> typed_verbs(const CLI::App& app) {
  std::vector<const CLI::App*> chain{&app};
  for (;;) {
    const auto verbs = chain.back()->get_subcommands();  // those that were typed
    if (verbs.empty()) return chain;
    chain.push_back(verbs.front());
  }
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
  const std::vector<const CLI::App*> chain = typed_verbs(app);
  const CLI::App& verb = *chain.back();
  const bool has_verb = &verb != &app;
  std::string names;
  for (std::size_t i = 1; i < chain.size(); ++i) names += chain[i]->get_name() + " ";
  const std::string help = fmt::format("see `lamina {}--help`", names);

  // With fallthrough, what no one expected ends up with a verb before or the program itself.
  std::vector<std::string> extras;
  for (std::size_t i = chain.size(); i-- > 0 && extras.empty();) extras = chain[i]->remaining();
  const bool wants_verb = !verb.get_subcommands({}).empty();
  const bool no_verb = wants_verb && dynamic_cast<const CLI::RequiredError*>(&error) != nullptr;
  if ((dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr || no_verb) && !extras.empty()) {
    const std::string& typed = extras.front();
    const bool option = typed.starts_with("-") && typed != "-";
    std::vector<std::string> candidates;
    if (option) {
      for (const CLI::App* from : chain) {
        for (const CLI::Option* known : from->get_options()) {
          for (const auto& name : known->get_lnames())
            candidates.push_back(fmt::format("--{}", name));
        }
      }
    } else if (wants_verb) {
      for (const CLI::App* known : verb.get_subcommands({}))
        candidates.push_back(known->get_name());
    }
    const std::string name = typed.substr(0, typed.find('='));
    const std::string meant = nearest(name, candidates);
    const std::string what = option       ? fmt::format("unknown option {}", name)
                             : wants_verb ? fmt::format("unknown verb '{}'", typed)
                                          : fmt::format("'{}' was not expected", typed);
    return fmt::format("{}{}; {}", what,
                       meant.empty() ? "" : fmt::format(", did you mean {}?", meant), help);
  }
  if (no_verb && !has_verb) return "a verb is missing; " + help;
  std::string what = error.what();
  std::replace(what.begin(), what.end(), '\n', ' ');
  while (!what.empty() && (what.back() == ' ' || what.back() == '.')) what.pop_back();
  return fmt::format("{}; {}", what, help);
}

}  // namespace lamina::cli
