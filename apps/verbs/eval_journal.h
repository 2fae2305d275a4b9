#pragma once

#include <cstdio>
#include <filesystem>
#include <map>
#include <string>
#include <utility>

#include "lamina/probes/choice_eval.h"

namespace lamina::cli {

/// Answers of an evaluation as they come, in OUTPUT.part: what --resume goes on from. One JSON
/// object a line; a line cut off by a crash is dropped. Removed when the results are written.
class EvalJournal {
 public:
  /// `fingerprint` says which evaluation this is. With `resume`, reads what is there: Error if it
  /// belongs to another evaluation or is no journal. Without, Error if there is one and not
  /// `force`.
  EvalJournal(const std::filesystem::path& output, const std::string& fingerprint, bool resume,
              bool force);
  ~EvalJournal();
  EvalJournal(const EvalJournal&) = delete;
  EvalJournal& operator=(const EvalJournal&) = delete;

  /// The part of run `run` that begins at question `first`; nullptr if it is not there.
  const ChoicePart* find(std::int64_t run, std::int64_t first) const;
  /// Questions that were read back, over all runs.
  std::int64_t questions() const;
  /// Adds a part and flushes it.
  void keep(std::int64_t run, const ChoicePart& part);
  /// The results are safe: removes the file.
  void remove();

 private:
  std::int64_t read(const std::string& fingerprint);
  void write_line(const std::string& line);

  std::filesystem::path path_;
  std::FILE* file_ = nullptr;
  std::map<std::pair<std::int64_t, std::int64_t>, ChoicePart> parts_;
};

}  // namespace lamina::cli
