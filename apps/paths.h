#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lamina::cli {

/// What a path on the command line is, from its first bytes rather than its name.
enum class FileKind : std::uint8_t { model_folder, gguf, safetensors, tokenizer_json, hdf5, other };

/// Error if there is nothing at `path` or it cannot be read.
FileKind file_kind(const std::filesystem::path& path);

/// The folder with the models and prompts that ship with lamina: the environment variable
/// LAMINA_DATA, else share/lamina beside the installed program, else the source tree. Error if
/// there is none.
std::filesystem::path data_folder();

/// A model as typed: a path, or the name of a model that ships with lamina ("organism").
/// Error if it is neither.
std::filesystem::path resolve_model(std::string_view typed);

/// Dictionaries as typed: a path, or the name of a model that ships with lamina and has some
/// ("organism"). What does not exist is left as it is, for its reader to refuse.
std::filesystem::path resolve_dictionaries(std::string_view typed);

/// Names of the models that ship with lamina; empty if the data folder is missing.
std::vector<std::string> shipped_models();

}  // namespace lamina::cli
