// lamina verify: is a recording what it says it is?

#include "lamina/core/verify.h"

#include <memory>
#include <nlohmann/json.hpp>

#include "inputs.h"
#include "lamina/core/error.h"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/info.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

struct Args {
  std::string recording;
  std::string model;
  bool json = false;
};

void print_report(const VerifyReport& report, Output& out) {
  Table table({"check", "", ">values", ">worst error", ">allowed", "where"});
  for (const VerifyCheck& check : report.checks) {
    const bool looked = check.compared > 0;
    table.row({check.name,
               !looked          ? styled(Style::dim, "-")
               : check.passed() ? styled(Style::good, "ok")
                                : styled(Style::bad, "FAILED"),
               looked ? grouped(check.compared) : "",
               looked ? fmt::format("{:.3g}", check.error) : "",
               looked ? fmt::format("{:.3g}", check.allowed) : "",
               looked ? escape_controls(check.place) : "not in this recording"});
  }
  out.write(table.text());
  std::int64_t failures = 0;
  for (const VerifyCheck& check : report.checks) failures += check.failures;
  out.print("{}\n", report.passed()
                        ? styled(Style::good, "ok")
                        : styled(Style::bad, fmt::format("FAILED: {} values", grouped(failures))));
}

nlohmann::ordered_json report_json(const VerifyReport& report) {
  nlohmann::ordered_json json;
  json["passed"] = report.passed();
  json["checks"] = nlohmann::ordered_json::array();
  for (const VerifyCheck& check : report.checks) {
    json["checks"].push_back({{"name", check.name},
                              {"compared", check.compared},
                              {"failures", check.failures},
                              {"error", check.error},  // null if infinite or not a number
                              {"allowed", check.allowed},
                              {"place", check.place}});
  }
  return json;
}

int run_verify(const Args& args) {
  const Recording recording = Recording::open(args.recording);
  std::optional<Model> model;
  std::optional<Forward> forward;
  if (!args.model.empty()) {
    model.emplace(load_model(args.model));
    forward.emplace(*model);
  }
  ProgressLine progress("verifying", "tokens", recording.tokens());
  const VerifyReport report =
      verify_recording(recording, forward ? &*forward : nullptr,
                       [&](std::int64_t, std::int64_t tokens) { progress.update(tokens); });
  progress.finish();
  Output out;
  if (args.json) {
    print_json(report_json(report), out);
  } else {
    print_report(report, out);
  }
  out.close();
  return report.passed() ? 0 : 1;
}

}  // namespace

void register_verify(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb =
      app.add_subcommand("verify", "check that a recording is sound; exit 1 if it is not");
  verb->group("Look");
  verb->add_option("recording", args->recording, "the recording")
      ->required()
      ->option_text("RECORDING");
  verb->add_option("--model", args->model, "also run this model again and compare every value")
      ->option_text("MODEL");
  verb->add_flag("--json", args->json, "print JSON");
  verb->callback([args, &globals] { globals.action = [args] { return run_verify(*args); }; });
}

}  // namespace lamina::cli
