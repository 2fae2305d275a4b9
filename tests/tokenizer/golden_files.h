#pragma once

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

// Access to the files that make_goldens.py wrote.
namespace lamina::test {

inline std::string golden_text(const std::string& name) {
  const std::string path = std::string(LAMINA_SOURCE_DIR) + "/tests/tokenizer/golden/" + name;
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("missing " + path);
  std::stringstream out;
  out << in.rdbuf();
  return out.str();
}

inline nlohmann::json golden_json(const std::string& name) {
  return nlohmann::json::parse(golden_text(name));
}

}  // namespace lamina::test
