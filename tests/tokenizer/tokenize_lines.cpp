// Tokenizes lines for comparison with other implementations: one JSON string per input line, one
// {"ids": […], "text": "…"} per output line, where text is what the ids decode to.
//
//   tokenize_lines MODEL [--no-bos] [--plain-special] < lines.jsonl
//   tokenize_lines MODEL --time FILE      prints MB/s of encoding FILE, whole and line by line
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "lamina/core/error.h"
#include "lamina/core/tokenizer.h"

namespace {

double seconds(auto&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int time_file(const lamina::Tokenizer& tokenizer, const char* path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream buffer;
  buffer << in.rdbuf();
  const std::string text = buffer.str();
  std::vector<std::string> lines;
  for (std::string line; std::getline(buffer, line);) lines.push_back(line);
  std::size_t ids = 0, line_ids = 0;
  double whole = 1e9, by_line = 1e9;
  for (int round = 0; round < 3; ++round) {
    whole = std::min(whole, seconds([&] { ids = tokenizer.encode(text).size(); }));
    by_line = std::min(by_line, seconds([&] {
                         line_ids = 0;
                         for (const std::string& line : lines) {
                           line_ids += tokenizer.encode(line).size();
                         }
                       }));
  }
  const double mb = static_cast<double>(text.size()) / 1e6;
  std::printf("%.2f MB: whole %.2f MB/s (%zu ids), line by line %.2f MB/s (%zu ids)\n", mb,
              mb / whole, ids, mb / by_line, line_ids);
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2)
    throw lamina::UsageError("usage: tokenize_lines MODEL [--no-bos] [--plain-special]");
  const auto tokenizer = lamina::Tokenizer::load(argv[1]);
  lamina::Bos bos = lamina::Bos::model;
  bool parse_special = true;
  for (int i = 2; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--no-bos") bos = lamina::Bos::never;
    if (option == "--plain-special") parse_special = false;
    if (option == "--time" && i + 1 < argc) return time_file(tokenizer, argv[i + 1]);
  }
  for (std::string line; std::getline(std::cin, line);) {
    const auto text = nlohmann::json::parse(line).get<std::string>();
    const auto ids = tokenizer.encode(text, bos, parse_special);
    std::cout << nlohmann::json{{"ids", ids}, {"text", tokenizer.decode(ids)}}.dump() << '\n';
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << "tokenize_lines: " << error.what() << '\n';
  return 1;
}
