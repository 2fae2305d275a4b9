// lamina codebook: codes that stand for a site's activations.

#include "lamina/circuits/codebook.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>

#include "lamina/core/error.h"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/activation_source.h"
#include "verbs/info.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

struct Args {
  std::vector<std::string> recordings;
  std::string model;
  PromptInputs prompts;
  OutputOptions output;
  std::string site, apply;
  std::int64_t codes = 0, nearest = 0;
  std::int64_t rows = 65536;
  KMeansOptions fit;
  CodebookEvalOptions options;
  std::int64_t show = 10;
  bool json = false;
};

// How the codes came to be; empty for those of a file.
struct Fit {
  std::int64_t rows = 0;
  KMeansResult result;
};

Codebook fit_codes(const Args& args, const Globals& globals, ActivationSource& source, Fit& fit) {
  if (args.site.empty()) fail_usage("--site is required, or --apply FILE");
  if (args.codes == 0) fail_usage("--codes is required, or --apply FILE");
  Codebook book;
  book.site = parse_site(args.site, source.config());
  RowSample sample(book.site, args.rows, args.options.skip, globals.seed);
  source.run(sample, "sampling");
  const std::vector<float> rows = sample.rows();
  book.width = sample.width();
  if (rows.empty()) {
    fail("no token to fit: every prompt has at most {} tokens", args.options.skip);
  }
  fit.rows = static_cast<std::int64_t>(rows.size()) / book.width;
  KMeansOptions options = args.fit;
  options.codes = args.codes;
  options.seed = globals.seed;
  ProgressLine progress("k-means", "iterations", options.max_iterations);
  options.progress = [&](std::int64_t done, double) { progress.update(done); };
  fit.result = k_means(rows, book.width, options);
  progress.finish();
  book.codes = fit.result.centres;
  book.nearest = std::max<std::int64_t>(args.nearest, 1);
  return book;
}

Codebook open_codes(const Args& args, const ActivationSource& source) {
  if (args.codes != 0) fail_usage("--codes and --apply were both given; a file has its own codes");
  Codebook book = read_codebook(args.apply);
  const std::vector<Site> sites = all_sites(source.config());
  if (!args.site.empty()) book.site = parse_site(args.site, source.config());
  if (source.model && std::find(sites.begin(), sites.end(), book.site) == sites.end()) {
    fail("{}: its site {} is none of model '{}'", args.apply, site_name(book.site),
         source.model->id());
  }
  if (args.nearest != 0) book.nearest = args.nearest;
  return book;
}

std::string text_of(const CodebookEval& eval, const Codebook& book, const Fit& fit,
                    const Tokenizer* tokenizer, std::int64_t show) {
  const ReconstructionSums& s = eval.sums();
  Facts facts;
  facts.add("site", fmt::format("{} ({} values)", site_name(book.site), book.width));
  facts.add("codes", fmt::format("{}, nearest {}", grouped(book.size()), book.nearest));
  if (fit.rows > 0) {
    facts.add("fitted",
              fmt::format("{} rows, {} iterations{}", grouped(fit.rows), fit.result.inertia.size(),
                          fit.result.converged ? "" : " (not converged)"));
  }
  facts.add("tokens", grouped(s.tokens));
  facts.add("unused codes", grouped(eval.unused()));
  facts.add("perplexity of usage", short_number(eval.perplexity()));
  facts.add("cosine", fmt::format("{:.4f}", s.mean_cosine()));
  facts.add("explained variance", fmt::format("{:.4f}, per token {:.4f}", s.explained_variance(),
                                              s.explained_variance_rows()));
  std::vector<std::int64_t> order(static_cast<std::size_t>(book.size()));
  std::iota(order.begin(), order.end(), 0);
  const FeatureStats& codes = eval.codes();
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return codes.count(a) > codes.count(b); });
  const auto top = eval.top_tokens();
  Table table({">code", ">frequency", ">cosine", "fires most often at"});
  for (std::int64_t c : order) {
    if (show-- == 0 || codes.count(c) == 0) break;
    std::string tokens;
    for (const auto& [token, count] : top[static_cast<std::size_t>(c)]) {
      const std::string piece =
          tokenizer != nullptr ? quoted_piece(tokenizer->piece(token)) : std::to_string(token);
      tokens += fmt::format("{}{} ×{}", tokens.empty() ? "" : ", ", piece, count);
    }
    table.row({std::to_string(c), short_number(codes.frequency(c)), short_number(codes.mean(c)),
               clip(tokens, 70)});
  }
  return facts.text() + (table.empty() ? "" : "\n" + table.text());
}

nlohmann::ordered_json json_of(const CodebookEval& eval, const Codebook& book, const Fit& fit) {
  const ReconstructionSums& s = eval.sums();
  nlohmann::ordered_json j = {{"site", site_name(book.site)},
                              {"codes", book.size()},
                              {"nearest", book.nearest},
                              {"tokens", s.tokens},
                              {"unused", eval.unused()},
                              {"perplexity", eval.perplexity()},
                              {"cosine", s.mean_cosine()},
                              {"norm_ratio", s.mean_norm_ratio()},
                              {"explained_variance", s.explained_variance()},
                              {"explained_variance_per_token", s.explained_variance_rows()},
                              {"mse", s.mse(book.width)},
                              {"normalized_mse", s.normalized_mse()}};
  if (fit.rows > 0) {
    j["fit"] = {
        {"rows", fit.rows}, {"inertia", fit.result.inertia}, {"converged", fit.result.converged}};
  }
  return j;
}

void write_fit(ResultFile& file, const Args& args, const Fit& fit) {
  if (fit.rows == 0) {
    file.setting("applied", args.apply);
    return;
  }
  file.setting("fit_rows", fit.rows);
  file.setting("row_cap", args.rows);
  file.setting("iterations", static_cast<std::int64_t>(fit.result.inertia.size()));
  file.setting("max_iterations", args.fit.max_iterations);
  file.setting("tolerance", args.fit.tolerance);
  file.setting("converged", std::int64_t{fit.result.converged});
  file.setting("defaults", std::string("[ours] rows 65536, iterations 100, tolerance 1e-4"));
  std::vector<std::int64_t> number(fit.result.inertia.size());
  std::iota(number.begin(), number.end(), 1);
  file.axis("iteration", number);
  const std::vector<std::string> dimension = {"iteration"};
  file.dataset("inertia", dimension, std::span<const double>(fit.result.inertia),
               "sum over the fitted rows of |x - nearest centre|^2", "1");
}

int run_codebook(const Args& args, const Globals& globals) {
  if (!args.output.path.empty()) check_writable(args.output.path, args.output.force);
  ActivationSource source(args.model, args.recordings, args.prompts);
  Fit fit;
  const Codebook book =
      args.apply.empty() ? fit_codes(args, globals, source, fit) : open_codes(args, source);
  TranscoderConfig place;
  place.name = "codebook";
  place.output.site = book.site;
  place.d_out = book.width;
  OutputMeans means({place}, args.options.skip);
  source.run(means, "means");
  CodebookEval eval(book, source.tokenizer(), means.means().front(), args.options);
  source.run(eval, "codes");
  if (!args.output.path.empty()) {
    ResultFile file(args.output.path, source.provenance(globals));
    file.group(eval.name());
    write_fit(file, args, fit);
    eval.write(file);
    file.close();
  }
  Output out;
  if (args.json) {
    print_json(json_of(eval, book, fit), out);
  } else {
    out.write(text_of(eval, book, fit, source.tokenizer(), args.show));
  }
  out.close();
  if (!args.output.path.empty()) info("wrote {}", args.output.path);
  return 0;
}

}  // namespace

void register_codebook(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb =
      app.add_subcommand("codebook", "codes that stand for a site's activations, by k-means");
  verb->group("Explain");
  verb->add_option("recordings", args->recordings, "recordings to read")
      ->option_text("RECORDING...");
  verb->add_option("--model", args->model,
                   "the recordings' model (for the text of tokens), or the one to run now over "
                   "--prompts")
      ->option_text("MODEL");
  add_prompt_options(*verb, args->prompts);
  add_output_options(*verb, args->output, "write codes and results to this HDF5 file");
  verb->add_option("--site", args->site, "the site whose activations are replaced")
      ->option_text("SITE");
  verb->add_option("--codes", args->codes, "codes to fit")
      ->check(CLI::Range(1, 1 << 20))
      ->option_text("K");
  verb->add_option("--nearest", args->nearest,
                   "codes that replace an activation: their mean (default 1)")
      ->check(CLI::Range(1, 1 << 20))
      ->option_text("K");
  verb->add_option("--apply", args->apply,
                   "do not fit: use the codes of this result file (its site, unless --site)")
      ->option_text("FILE");
  verb->add_option("--rows", args->rows,
                   "fit to a seeded sample of at most this many tokens (default 65536 [ours])")
      ->check(CLI::PositiveNumber)
      ->option_text("N");
  verb->add_option("--iterations", args->fit.max_iterations,
                   "k-means iterations at most (default 100 [ours])")
      ->check(CLI::PositiveNumber)
      ->option_text("N");
  verb->add_option("--tolerance", args->fit.tolerance,
                   "stop when the sum of squares falls by less than this share (default 1e-4 "
                   "[ours])")
      ->check(CLI::NonNegativeNumber)
      ->option_text("SHARE");
  verb->add_option("--skip", args->options.skip,
                   "tokens at the beginning of each prompt to leave out (default 0)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_option("--examples", args->options.examples,
                   "nearest tokens to keep of each code (default 5)")
      ->check(CLI::Range(0, 1000))
      ->option_text("N");
  verb->add_option("--top-tokens", args->options.top_tokens,
                   "most frequent tokens to keep of each code (default 10)")
      ->check(CLI::Range(0, 1000))
      ->option_text("N");
  verb->add_option("--show", args->show, "most used codes to print (default 10)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] {
    globals.action = [args, &globals] { return run_codebook(*args, globals); };
  });
}

}  // namespace lamina::cli
