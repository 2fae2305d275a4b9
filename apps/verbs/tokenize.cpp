// lamina tokenize: text to tokens and back.

#include <charconv>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>

#include "lamina/core/error.h"
#include "lamina/core/tokenizer.h"
#include "paths.h"
#include "ui/output.h"
#include "ui/table.h"
#include "ui/terminal.h"
#include "ui/text.h"
#include "verbs/verbs.h"

namespace lamina::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Args {
  std::string tokenizer;
  std::vector<std::string> texts;
  std::vector<std::string> decode;
  std::string bos = "model";
  bool plain = false;
  bool ids = false;
  bool json = false;
};

std::string read_standard_input() {
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

// Numbers separated by blanks or commas.
std::vector<std::int32_t> parse_ids(const std::vector<std::string>& words) {
  std::vector<std::int32_t> ids;
  for (const std::string& word : words) {
    for (std::size_t at = 0; at < word.size();) {
      if (word[at] == ',' || word[at] == ' ' || word[at] == '[' || word[at] == ']') {
        ++at;
        continue;
      }
      std::int32_t id = 0;
      const auto parsed = std::from_chars(word.data() + at, word.data() + word.size(), id);
      if (parsed.ec != std::errc{})
        fail_usage("--decode: '{}' is no token id", word.substr(at, 40));
      ids.push_back(id);
      at = static_cast<std::size_t>(parsed.ptr - word.data());
    }
  }
  return ids;
}

void print_tokens(const Tokenizer& tokenizer, const std::string& text,
                  const std::vector<std::int32_t>& ids, const Args& args, Output& out) {
  if (args.json) {
    Json line;
    line["text"] = text;
    line["ids"] = ids;
    line["pieces"] = Json::array();
    for (std::int32_t id : ids) line["pieces"].push_back(tokenizer.piece(id));
    out.write(line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
  } else if (args.ids) {
    std::string line;
    for (std::int32_t id : ids) line += fmt::format("{}{}", line.empty() ? "" : " ", id);
    out.write(line + "\n");
  } else {
    Table table({">position", ">id", "piece"});
    for (std::size_t i = 0; i < ids.size(); ++i) {
      table.row({std::to_string(i), std::to_string(ids[i]), quoted_piece(tokenizer.piece(ids[i]))});
    }
    out.write(table.text());
  }
}

int run_tokenize(const Args& args) {
  const auto path = resolve_model(args.tokenizer);
  const Tokenizer tokenizer = Tokenizer::load(path);
  Output out;
  if (!args.decode.empty()) {
    const std::vector<std::int32_t> ids = parse_ids(args.decode);
    const std::string text = tokenizer.decode(ids);
    if (args.json) {
      out.write(
          Json{{"ids", ids}, {"text", text}}.dump(-1, ' ', false, Json::error_handler_t::replace) +
          "\n");
    } else {
      out.write(text + "\n");
    }
  } else {
    const Bos bos = args.bos == "always"  ? Bos::always
                    : args.bos == "never" ? Bos::never
                                          : Bos::model;
    std::vector<std::string> texts = args.texts;
    if (texts.empty()) texts.push_back(read_standard_input());
    for (const std::string& text : texts) {
      print_tokens(tokenizer, text, tokenizer.encode(text, bos, !args.plain), args, out);
    }
  }
  out.close();
  return 0;
}

}  // namespace

void register_tokenize(CLI::App& app, Globals& globals) {
  auto args = std::make_shared<Args>();
  CLI::App* verb = app.add_subcommand("tokenize", "turn text into tokens, or ids back into text");
  verb->group("Record");
  verb->add_option("tokenizer", args->tokenizer, "model folder, GGUF file or tokenizer.json")
      ->required()
      ->option_text("MODEL|FILE");
  CLI::Option* text = verb->add_option("--text", args->texts, "texts (default: standard input)")
                          ->option_text("TEXT...");
  verb->add_option("--decode", args->decode, "print the text of these ids")
      ->option_text("ID...")
      ->excludes(text);
  verb->add_option("--bos", args->bos,
                   "beginning-of-sequence token: as the model says (default), always, never")
      ->check(CLI::IsMember({"model", "always", "never"}))
      ->option_text("WHEN");
  verb->add_flag("--plain", args->plain, "special tokens written out in the text stay text");
  CLI::Option* ids = verb->add_flag("--ids", args->ids, "print ids only, one line a text");
  verb->add_flag("--json", args->json, "print one JSON object a text")->excludes(ids);
  verb->callback([args, &globals] { globals.action = [args] { return run_tokenize(*args); }; });
}

}  // namespace lamina::cli
