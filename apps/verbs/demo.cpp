// lamina demo: what lamina does, on a small model that ships with it. Each step is a command line
// that a user could type; it is printed, then run.

#include <chrono>
#include <cstdlib>
#include <memory>

#include "lamina/core/error.h"
#include "paths.h"
#include "ui/output.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

namespace fs = std::filesystem;

// The shorter of the path itself and the way to it from here.
std::string typed_path(const fs::path& path) {
  std::error_code ignored;
  const std::string direct = fs::proximate(path, ignored).string();
  return !direct.empty() && direct.size() < path.string().size() ? direct : path.string();
}

void step(const Globals& globals, const std::string& why, const std::vector<std::string>& words,
          const std::string& hidden = {}) {
  std::string line;
  for (const std::string& word : words) line += " " + quoted_word(word);
  Output out;
  out.print("\n{}\n{}\n", styled(Style::bold, why), styled(Style::note, "$ lamina" + line));
  out.close();
  std::vector<std::string> all = words;
  if (!hidden.empty()) all.push_back(hidden);
  if (globals.run(all) != 0) fail("the demonstration stopped: lamina{} failed", line);
}

bool graphviz() {
  const char* path = std::getenv("PATH");
  std::string_view rest = path == nullptr ? "" : path;
  while (!rest.empty()) {
    const std::size_t end = rest.find(':');
    std::error_code ignored;
    if (fs::is_regular_file(fs::path(rest.substr(0, end)) / "dot", ignored)) return true;
    rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
  }
  return false;
}

int run_demo(const std::string& typed, const Globals& globals) {
  const auto start = std::chrono::steady_clock::now();
  const fs::path folder = typed.empty() ? "lamina-demo" : typed;
  fs::create_directories(folder);
  const auto in = [&](const char* name) { return (folder / name).string(); };
  const std::string prompts = typed_path(data_folder() / "organism" / "prompts.jsonl");
  const std::string pairs = typed_path(data_folder() / "organism" / "pairs" / "ioi.jsonl");

  step(globals,
       "The organism: a small trained transformer that finishes sentences, compares years, repeats "
       "patterns and translates words.",
       {"info", "organism"});
  step(globals, "Let it continue a sentence that only someone who keeps track of names can finish.",
       {"generate", "organism", "--max-new", "1", "--text",
        "When Mary and John went to the store , John gave a drink to"});
  step(globals,
       "Look at all of it first: every analysis that applies, in one pass over 44 prompts.",
       {"survey", "organism", "--prompts", prompts, "-o", in("survey.h5")}, "--force");
  step(globals, "Record what happens inside while it reads 44 prompts.",
       {"record", "organism", "--prompts", prompts, "--sites",
        "resid_pre:0,resid_mid,resid_post,attn_out,mlp_out,z,pattern", "-o", in("run.h5")},
       "--force");
  step(globals,
       "Check the recording: does the residual stream add up, does the model give the same again?",
       {"verify", in("run.h5"), "--model", "organism"});
  step(globals, "The logit lens: what would each layer have answered?",
       {"lens", in("run.h5"), "--show", "3", "-o", in("lens.h5")}, "--force");
  step(globals,
       "Latent language: translating from French to Chinese, which language do the layers prefer?",
       {"latent", "--model", "organism", "--spaced", "--from", "fr", "--to", "zh", "-o",
        in("latent.h5")},
       "--force");

  step(globals,
       "Causes: the names' roles are swapped in the corrupted prompt. Which attention head, put "
       "back, "
       "brings the answer back? Every number is a run of the model.",
       {"patch", "organism", "--pairs", pairs, "--site", "z", "--show", "3", "-o", in("patch.h5")},
       "--force");
  step(globals,
       "The same question answered in one backward pass (relevance patching), with its error: all "
       "nodes patched exactly beside it.",
       {"patch", "organism", "--pairs", pairs, "--site", "z", "--method", "relp", "--check", "all",
        "--show", "3", "-o", in("relp.h5")},
       "--force");
  step(globals,
       "What do the components pass on to each other? The circuit of the 5 % strongest edges, and "
       "how "
       "much of the behaviour it keeps.",
       {"edges", "organism", "--pairs", pairs, "--share", "0.05", "--faithfulness", "--show", "5",
        "-o", in("edges.h5")},
       "--force");
  step(globals, "Which sublayers can the model do without?",
       {"ablate", "organism", "--pairs", pairs, "--remove", "4", "-o", in("ablate.h5")}, "--force");

  // The graph of one prompt, the strongest ways through it, and the test of what it says.
  const std::vector<std::string> circuit = {"circuit",  "organism", "--transcoders",
                                            "organism", "--text",   "The keys to the cabinet"};
  const auto more = [&circuit](std::initializer_list<std::string> words) {
    std::vector<std::string> all = circuit;
    all.insert(all.end(), words);
    return all;
  };
  step(globals,
       "Which features make it say \"are\" here? Its MLPs are replaced by transcoders that ship "
       "with "
       "it; with attention and norms held, all that acts on the answer is a graph with exact "
       "weights.",
       more({"--show", "10", "--graph", in("keys.json")}), "--force");
  step(globals, "The strongest ways from the word \"keys\" to the answer \"are\".",
       {"graph", in("keys.json"), "--paths", "3", "--from", "E_240_2", "--to", "7_237_5", "--show",
        "0"});
  if (graphviz()) {
    step(globals, "The heart of that graph, drawn.",
         {"graph", in("keys.json"), "--prune", "--nodes", "0.5", "--edges", "0.9", "--show", "0",
          "--draw", in("keys.svg")},
         "--force");
  }
  step(globals,
       "Is the graph right? Take away all features of \"keys\" (token 2): what the graph predicts "
       "beside what happens, with everything else held (direct), with later features answering "
       "(constrained), and in the model itself (free), which now believes in one key.",
       more({"--show", "0", "--change", "*_*_2=0", "-o", in("circuit.h5")}), "--force");

  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  Output out;
  out.print("\nThe HDF5 files in {} hold the numbers behind these tables ({}).\n", folder.string(),
            duration_text(seconds));
  out.close();
  return 0;
}

}  // namespace

void register_demo(CLI::App& app, Globals& globals) {
  auto folder = std::make_shared<std::string>();
  CLI::App* verb =
      app.add_subcommand("demo", "record, read and patch a small model that ships with lamina");
  verb->group("Look");
  verb->add_option("-o,--output", *folder,
                   "folder for the HDF5 files (default ./lamina-demo); "
                   "files of an earlier demo there are overwritten")
      ->option_text("DIR");
  verb->callback([folder, &globals] {
    globals.action = [folder, &globals] { return run_demo(*folder, globals); };
  });
}

}  // namespace lamina::cli
