// Reading multiple-choice files in the field's common layouts.

#include <algorithm>
#include <numeric>
#include <unordered_set>

#include "lamina/core/error.h"
#include "lamina/internal/file_text.h"
#include "lamina/internal/line_reader.h"
#include "lamina/internal/strict_json.h"
#include "lamina/probes/choice.h"

namespace lamina {
namespace {

using Json = nlohmann::json;
using files::quote;

constexpr std::size_t kMaxOptions = 26;

struct Line {
  const Json& json;
  const std::string& where;

  [[noreturn]] void bad(std::string_view key, std::string_view expected, const Json& found) const {
    std::string value = found.dump(-1, ' ', false, Json::error_handler_t::replace);
    if (value.size() > 60) value = value.substr(0, 60) + "…";
    fail("{}: key {}: expected {}, found {}", where, quote(key), expected, value);
  }
  const Json& at(const Json& object, std::string_view key) const {
    const auto found = object.find(key);
    if (found == object.end()) fail("{}: key {} is missing", where, quote(key));
    return *found;
  }
  std::string text(const Json& object, std::string_view key) const {
    const Json& value = at(object, key);
    if (!value.is_string()) bad(key, "a text", value);
    std::string out = value.get<std::string>();
    if (is_blank(out)) fail("{}: key {} is empty", where, quote(key));
    return out;
  }
  std::string optional_text(const Json& object, std::string_view key) const {
    return object.contains(key) && !object[std::string(key)].is_null() ? text(object, key) : "";
  }
  std::vector<std::string> texts(const Json& value, std::string_view key) const {
    if (!value.is_array()) bad(key, "a list of texts", value);
    std::vector<std::string> out;
    for (const Json& entry : value) {
      if (!entry.is_string() || is_blank(entry.get<std::string>())) {
        bad(key, "texts that are not empty", entry);
      }
      out.push_back(entry.get<std::string>());
    }
    return out;
  }
  // An index from 0, or a letter.
  std::int64_t index(std::string_view key, std::size_t options) const {
    const Json& value = at(json, key);
    std::int64_t found = -1;
    if (value.is_number_integer()) found = value.get<std::int64_t>();
    if (value.is_string() && value.get<std::string>().size() == 1) {
      const char c = value.get<std::string>()[0];
      if (c >= 'A' && c <= 'Z') found = c - 'A';
      if (c >= 'a' && c <= 'z') found = c - 'a';
    }
    if (found < 0 || found >= static_cast<std::int64_t>(options)) {
      bad(key,
          fmt::format("a letter A to {} or a number 0 to {} for {} options",
                      static_cast<char>('A' + static_cast<int>(options) - 1), options - 1, options),
          value);
    }
    return found;
  }
};

TaskLayout layout_of(const Json& json, const std::string& where) {
  const auto has = [&](const char* key) { return json.contains(key); };
  if (has("Question") && has("Correct Answer")) return TaskLayout::gpqa;
  if (has("answerKey")) return TaskLayout::arc;
  if (has("question") && has("passage")) return TaskLayout::boolq;
  if (has("question") && has("choices")) return TaskLayout::mmlu;
  if (has("question") && has("options")) return TaskLayout::lamina;
  fail(
      "{}: of no known layout; expected the keys question, options, answer; question, choices, "
      "answer (MMLU); question, answerKey (ARC); question, passage, answer (BoolQ); or Question, "
      "Correct Answer, Incorrect Answer 1 … 3 (GPQA)",
      where);
}

void read_arc(const Line& line, Question& out) {
  const Json& question = line.at(line.json, "question");
  std::vector<std::string> labels;
  const Json* choices = nullptr;
  if (question.is_object()) {
    out.text = line.text(question, "stem");
    choices = &line.at(question, "choices");
  } else {
    out.text = line.text(line.json, "question");
    choices = &line.at(line.json, "choices");
  }
  if (choices->is_object()) {
    out.options = line.texts(line.at(*choices, "text"), "text");
    labels = line.texts(line.at(*choices, "label"), "label");
  } else if (choices->is_array()) {
    for (const Json& choice : *choices) {
      if (!choice.is_object()) line.bad("choices", "objects with text and label", choice);
      out.options.push_back(line.text(choice, "text"));
      labels.push_back(line.text(choice, "label"));
    }
  } else {
    line.bad("choices", "a list, or an object with text and label", *choices);
  }
  if (labels.size() != out.options.size()) {
    fail("{}: {} labels for {} choices", line.where, labels.size(), out.options.size());
  }
  const std::string key = line.text(line.json, "answerKey");
  const auto found = std::find(labels.begin(), labels.end(), key);
  if (found == labels.end()) {
    fail("{}: key \"answerKey\": expected one of the labels {}, found {}", line.where,
         fmt::join(labels, ", "), quote(key));
  }
  out.right = found - labels.begin();
}

Question read_question(const Line& line, TaskLayout layout) {
  Question out;
  switch (layout) {
    case TaskLayout::lamina:
      out.text = line.text(line.json, "question");
      out.options = line.texts(line.at(line.json, "options"), "options");
      out.context = line.optional_text(line.json, "context");
      out.subject = line.optional_text(line.json, "topic");
      break;
    case TaskLayout::mmlu:
      out.text = line.text(line.json, "question");
      out.options = line.texts(line.at(line.json, "choices"), "choices");
      out.subject = line.optional_text(line.json, "subject");
      break;
    case TaskLayout::arc:
      read_arc(line, out);
      break;
    case TaskLayout::boolq: {
      out.text = line.text(line.json, "question");
      out.context = line.text(line.json, "passage");
      out.options = {"Yes", "No"};
      const Json& answer = line.at(line.json, "answer");
      if (!answer.is_boolean()) line.bad("answer", "true or false", answer);
      out.right = answer.get<bool>() ? 0 : 1;
      break;
    }
    case TaskLayout::gpqa:
      out.text = line.text(line.json, "Question");
      out.options = {line.text(line.json, "Correct Answer")};
      for (int i = 1; i <= 3; ++i) {
        out.options.push_back(line.text(line.json, fmt::format("Incorrect Answer {}", i)));
      }
      out.subject = line.optional_text(line.json, "Subdomain");
      break;
  }
  if (out.options.size() < 2 || out.options.size() > kMaxOptions) {
    fail("{}: {} options; expected 2 to {}", line.where, out.options.size(), kMaxOptions);
  }
  if (layout == TaskLayout::lamina || layout == TaskLayout::mmlu) {
    out.right = line.index("answer", out.options.size());
  }
  return out;
}

// SplitMix64: the same order on every platform.
std::uint64_t next_random(std::uint64_t& state) {
  std::uint64_t z = state += 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

}  // namespace

std::string_view task_layout_name(TaskLayout layout) {
  constexpr std::string_view kNames[] = {"lamina", "mmlu", "arc", "boolq", "gpqa"};
  return kNames[static_cast<std::size_t>(layout)];
}

Task read_task(const std::filesystem::path& path) {
  Task task;
  std::unordered_set<std::string> ids;
  for_each_line(path, [&](const std::string& text, std::int64_t number, const std::string& where) {
    if (is_blank(text)) return;
    const Json json = files::parse_strict_json(text, where, 8);
    if (!json.is_object()) fail("{}: expected an object, found {}", where, json.type_name());
    const TaskLayout layout = layout_of(json, where);
    if (task.questions.empty()) task.layout = layout;
    if (layout != task.layout) {
      fail("{}: a question in layout {}, the lines before are in layout {}", where,
           task_layout_name(layout), task_layout_name(task.layout));
    }
    const Line line{json, where};
    Question question = read_question(line, layout);
    question.id = std::to_string(number);
    if (json.contains("id")) {
      const Json& id = json["id"];
      if (!id.is_string() && !id.is_number_integer()) line.bad("id", "a text or a number", id);
      question.id = id.is_string() ? id.get<std::string>() : id.dump();
    }
    if (!ids.insert(question.id).second) fail("{}: id {} stands twice", where, quote(question.id));
    task.questions.push_back(std::move(question));
  });
  if (task.questions.empty()) fail("{}: it holds no questions", path.string());
  return task;
}

void shuffle_options(Task& task, std::uint64_t seed) {
  for (std::size_t q = 0; q < task.questions.size(); ++q) {
    Question& question = task.questions[q];
    std::uint64_t state = seed;
    state = next_random(state) ^ (q * 0xd1342543de82ef95ULL);
    std::vector<std::size_t> order(question.options.size());
    std::iota(order.begin(), order.end(), 0);
    for (std::size_t i = order.size(); i > 1; --i) {
      std::swap(order[i - 1], order[next_random(state) % i]);  // bias below 2^-59
    }
    std::vector<std::string> options;
    std::int64_t right = 0;
    for (std::size_t i = 0; i < order.size(); ++i) {
      if (order[i] == static_cast<std::size_t>(question.right))
        right = static_cast<std::int64_t>(i);
      options.push_back(std::move(question.options[order[i]]));
    }
    question.options = std::move(options);
    question.right = right;
  }
}

}  // namespace lamina
