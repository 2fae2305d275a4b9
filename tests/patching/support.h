#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "lamina/core/error.h"
#include "support/tiny_model.h"

namespace lamina::testing {

/// The message of the Error that `action` throws; empty (and a failure) if it throws none.
template <class ErrorType = Error, class Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const ErrorType& error) {
    return error.what();
  }
  ADD_FAILURE() << "no error was thrown";
  return {};
}

/// A message is one line that holds every part.
template <class... Parts>
void expect_message(const std::string& message, const Parts&... parts) {
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  for (std::string_view part : {std::string_view(parts)...}) {
    EXPECT_NE(message.find(part), std::string::npos)
        << "expected: …" << part << "…\ngot: " << message;
  }
}

/// A file with this text in a folder of its own.
struct TextFile {
  TempDir folder;
  std::filesystem::path path;
  explicit TextFile(std::string_view text, std::string_view name = "pairs.jsonl")
      : path(folder.path() / name) {
    std::ofstream(path, std::ios::binary) << text;
  }
};

}  // namespace lamina::testing
