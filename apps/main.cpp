// The command line: global options, the list of verbs, and how failures become exit codes.
// 0: done. 1: failed (one line on standard error). 2: the command line was wrong.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "cli_errors.h"
#include "globals.h"
#include "lamina/core/error.h"
#include "ui/output.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/verbs.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace lamina::cli {
namespace {

constexpr int kFailed = 1;
constexpr int kUsage = 2;

std::string joined_argv(int argc, char** argv) {
  std::string all;
  for (int i = 0; i < argc; ++i) {
    if (i > 0) all += ' ';
    all += quoted_word(argv[i]);
  }
  return all;
}

void add_global_options(CLI::App& app, Globals& globals) {
  app.add_option("--threads", globals.threads, "threads to use (default: all cores)")
      ->check(CLI::Range(1, 4096))
      ->option_text("N");
  app.add_option("--seed", globals.seed, "seed of everything random (default 0)")->option_text("N");
  app.add_flag("--quiet,-q", globals.quiet, "no progress and no notes, errors only");
  app.add_option("--color", globals.color, "colours: auto (default), always, never")
      ->check(CLI::IsMember({"auto", "always", "never"}))
      ->option_text("WHEN");
  app.add_option("--log-level", globals.log_level, "error, warning, info (default) or debug")
      ->check(CLI::IsMember({"error", "warning", "info", "debug"}))
      ->option_text("LEVEL");
}

void add_everything(CLI::App& app, Globals& globals) {
  app.set_version_flag("--version", "lamina " LAMINA_VERSION, "print the version and exit");
  app.set_help_flag("--help,-h", "print this help and exit");
  app.require_subcommand(1);
  app.fallthrough();  // global options may stand after the verb as well
  app.get_formatter()->column_width(34);
  add_global_options(app, globals);
  register_info(app, globals);
  register_verify(app, globals);
  register_diff(app, globals);
  register_demo(app, globals);
  register_record(app, globals);
  register_merge(app, globals);
  register_generate(app, globals);
  register_tokenize(app, globals);
  register_survey(app, globals);
  register_lens(app, globals);
  register_tune(app, globals);
  register_latent(app, globals);
  register_inflection(app, globals);
  register_entropy(app, globals);
  register_depth(app, globals);
  register_effects(app, globals);
  register_probe(app, globals);
  register_clue(app, globals);
  register_infoplane(app, globals);
  register_cka(app, globals);
  register_void(app, globals);
  register_eval(app, globals);
  register_pairs(app, globals);
  register_patch(app, globals);
  register_ablate(app, globals);
  register_edges(app, globals);
  register_bakeoff(app, globals);
  register_circuit(app, globals);
  register_feature_circuit(app, globals);
  register_graph(app, globals);
  register_paths(app, globals);
  register_transcoder(app, globals);
  register_codebook(app, globals);
  register_completion(app, globals);
  app.footer("`lamina VERB --help` explains a verb. Documentation: docs/ in the source tree.");
}

// One command line from within another, with the same global options: how demo runs its steps.
int run_nested(const Globals& outer, std::vector<std::string> words) {
  Globals globals = outer;
  globals.action = nullptr;
  globals.argv = "lamina";
  for (const std::string& word : words) globals.argv += " " + quoted_word(word);
  CLI::App app("", "lamina");
  add_everything(app, globals);
  std::reverse(words.begin(), words.end());  // as CLI11 wants them
  app.parse(words);
  return globals.action();
}

int run(int argc, char** argv) {
  Globals globals;
  globals.argv = joined_argv(argc, argv);
  globals.run = [&globals](const std::vector<std::string>& words) {
    return run_nested(globals, words);
  };
  CLI::App app("See what a transformer language model does inside.", "lamina");
  add_everything(app, globals);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& request) {  // --help, --version
    std::ostringstream text;
    app.exit(request, text, text);
    Output out;
    out.write(text.str());
    out.close();
    return 0;
  } catch (const CLI::ParseError& error) {
    setup_terminal(globals);
    error_line(parse_error_text(app, error));
    return kUsage;
  }
  setup_terminal(globals);
#ifdef _OPENMP
  if (globals.threads > 0) omp_set_num_threads(globals.threads);
#endif
  return globals.action();
}

}  // namespace
}  // namespace lamina::cli

int main(int argc, char** argv) {
  using namespace lamina;
  // A reader that went away must not kill a recording: writes report EPIPE instead.
  std::signal(SIGPIPE, SIG_IGN);
  try {
    return cli::run(argc, argv);
  } catch (const cli::OutputClosed&) {
    return 0;
  } catch (const UsageError& error) {
    cli::error_line(error.what());
    return cli::kUsage;
  } catch (const std::bad_alloc&) {
    cli::error_line("out of memory");
  } catch (const std::exception& error) {
    cli::error_line(error.what());
  }
  return cli::kFailed;
}
