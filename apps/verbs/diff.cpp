// lamina diff: where two recordings part.

#include <memory>

#include "lamina/core/recording.h"
#include "nlohmann/json.hpp"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/info.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

void print_difference(const RecordingDifference& difference, Output& out) {
  for (const std::string& note : difference.notes) out.print("{}\n", escape_controls(note));
  Table table({"site", ">largest |a - b|", ">relative", ">token", ">column", ">a", ">b"});
  for (const SiteDifference& site : difference.sites) {
    if (site.token < 0 && site.max_abs == 0) continue;
    const bool beyond = site.token >= 0;
    table.row({site_name(site.site), fmt::format("{:.3g}", site.max_abs),
               fmt::format("{:.3g}", site.relative), beyond ? std::to_string(site.token) : "",
               beyond ? std::to_string(site.column) : "",
               beyond ? fmt::format("{:.9g}", site.a) : "",
               beyond ? fmt::format("{:.9g}", site.b) : ""});
  }
  if (!table.empty()) out.write(table.text());
  out.print("{}\n",
            difference.equal ? styled(Style::good, "equal") : styled(Style::bad, "different"));
}

}  // namespace

void register_diff(CLI::App& app, Globals& globals) {
  struct Args {
    std::string a, b;
    double tolerance = 0;
    bool json = false;
  };
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand("diff", "compare two recordings; exit 1 if they differ");
  verb->group("Look");
  verb->add_option("a", args->a, "a recording")->required()->option_text("A");
  verb->add_option("b", args->b, "another one")->required()->option_text("B");
  verb->add_option("--tolerance", args->tolerance,
                   "allowed difference relative to a site's largest value (default 0: bit for bit)")
      ->check(CLI::NonNegativeNumber)
      ->option_text("T");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] {
    globals.action = [args] {
      const Recording a = Recording::open(args->a);
      const Recording b = Recording::open(args->b);
      const RecordingDifference difference = compare_recordings(a, b, args->tolerance);
      Output out;
      if (args->json) {
        nlohmann::ordered_json json;
        json["equal"] = difference.equal;
        json["notes"] = difference.notes;
        json["sites"] = nlohmann::ordered_json::array();
        for (const SiteDifference& site : difference.sites) {
          json["sites"].push_back({{"name", site_name(site.site)},
                                   {"max_abs", site.max_abs},
                                   {"relative", site.relative},
                                   {"token", site.token},
                                   {"column", site.column}});
        }
        print_json(json, out);
      } else {
        print_difference(difference, out);
      }
      out.close();
      return difference.equal ? 0 : 1;
    };
  });
}

}  // namespace lamina::cli
