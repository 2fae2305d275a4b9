// lamina completion: a shell's completion script, made from the options themselves.

#include <memory>
#include <string>

#include "ui/output.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

std::string long_options(const CLI::App& app) {
  std::string out;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) out += fmt::format(" --{}", name);
  }
  return out.empty() ? out : out.substr(1);
}

std::string verb_names(const CLI::App& app) {
  std::string out;
  for (const CLI::App* verb : app.get_subcommands({})) out += " " + verb->get_name();
  return out.empty() ? out : out.substr(1);
}

// bash and, through bashcompinit, zsh.
std::string bash_script(const CLI::App& app) {
  std::string out = "_lamina() {\n  local word=${COMP_WORDS[COMP_CWORD]} words\n";
  out += "  case ${COMP_WORDS[1]} in\n";
  for (const CLI::App* verb : app.get_subcommands({})) {
    out += fmt::format("    {}) words='{} {}' ;;\n", verb->get_name(), long_options(*verb),
                       long_options(app));
  }
  out += fmt::format("    *) words='{} {}' ;;\n  esac\n", verb_names(app), long_options(app));
  out +=
      "  if [ \"$COMP_CWORD\" -eq 1 ] || [ \"${word#-}\" != \"$word\" ]; then\n"
      "    COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n"
      "  else\n    COMPREPLY=($(compgen -f -- \"$word\"))\n  fi\n}\n"
      "complete -o filenames -F _lamina lamina\n";
  return out;
}

std::string fish_script(const CLI::App& app) {
  std::string out;
  for (const CLI::App* verb : app.get_subcommands({})) {
    out += fmt::format("complete -c lamina -n __fish_use_subcommand -a {} -d '{}'\n",
                       verb->get_name(), verb->get_description());
    for (const CLI::Option* option : verb->get_options()) {
      for (const std::string& name : option->get_lnames()) {
        out += fmt::format("complete -c lamina -n '__fish_seen_subcommand_from {}' -l {}\n",
                           verb->get_name(), name);
      }
    }
  }
  return out;
}

}  // namespace

void register_completion(CLI::App& app, Globals& globals) {
  auto shell = std::make_shared<std::string>();
  CLI::App* verb = app.add_subcommand("completion", "print a completion script for a shell");
  verb->group("Show");
  verb->add_option("shell", *shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}))
      ->option_text("SHELL");
  verb->callback([shell, &app, &globals] {
    globals.action = [shell, &app] {
      Output out;
      if (*shell == "fish") {
        out.write(fish_script(app));
      } else {
        if (*shell == "zsh") out.write("autoload -U +X bashcompinit && bashcompinit\n");
        out.write(bash_script(app));
      }
      out.close();
      return 0;
    };
  });
}

}  // namespace lamina::cli
