// lamina merge: the parts of `record --shard I/N` as one recording.

#include <memory>

#include "inputs.h"
#include "lamina/core/error.h"
#include "lamina/core/recording.h"
#include "ui/output.h"
#include "ui/terminal.h"
#include "verbs/verbs.h"

namespace lamina::cli {

void register_merge(CLI::App& app, Globals& globals) {
  struct Args {
    std::vector<std::string> parts;
    OutputOptions output;
    bool copy = false;
  };
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand("merge", "make one recording of the parts of a sharded run");
  verb->group("Record");
  verb->add_option("parts", args->parts, "finished recordings of record --shard")
      ->required()
      ->option_text("PARTS...");
  add_output_options(*verb, args->output, "the recording to write");
  verb->get_option("--output")->required();
  verb->add_flag("--copy", args->copy, "copy the values; without it the parts must stay in place");
  verb->callback([args, &globals] {
    globals.action = [args] {
      check_writable(args->output.path, args->output.force);
      const std::vector<std::filesystem::path> parts(args->parts.begin(), args->parts.end());
      for (const auto& part : parts) {
        std::error_code ignored;
        if (std::filesystem::equivalent(part, args->output.path, ignored)) {
          fail("{}: the output is one of the parts", args->output.path);
        }
      }
      if (args->output.force) std::filesystem::remove(args->output.path);
      merge_recordings(parts, args->output.path, args->copy);
      info("wrote {}: {} parts{}", args->output.path, parts.size(),
           args->copy ? "" : ", which must stay where they are");
      return 0;
    };
  });
}

}  // namespace lamina::cli
