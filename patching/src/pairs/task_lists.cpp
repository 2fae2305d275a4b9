#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>

#include "lamina/core/error.h"
#include "lamina/internal/file_text.h"
#include "lamina/internal/strict_json.h"
#include "lamina/patching/pair_tasks.h"
#include "pairs/task_template.h"

namespace lamina {
namespace {

using files::quote;
using Json = nlohmann::json;

constexpr std::size_t kMaxBytes = std::size_t{16} << 20;
constexpr std::array<std::string_view, 5> kTasks = {"ioi", "greater_than", "sva", "capitals",
                                                    "translation"};

// What a task needs: slots that every template must have, slots that it fills itself, and lists
// with their number of forms and how many entries they need.
struct Needs {
  struct List {
    std::string_view name;
    std::size_t forms, entries;
  };
  std::vector<std::string_view> slots;   // in every template, filled by the task
  std::vector<std::string_view> extras;  // may be in a template, filled by the task
  std::vector<List> lists;
};

Needs needs_of(std::string_view task) {
  if (task == "ioi") return {{"A", "B", "S"}, {}, {{"name", 1, 6}}};
  if (task == "greater_than") return {{"start", "century"}, {}, {{"century", 1, 1}}};
  if (task == "sva") {
    return {{"noun"}, {"attractor", "verb"}, {{"noun", 2, 2}, {"answer", 2, 1}}};
  }
  if (task == "capitals") return {{"country"}, {}, {{"country", 2, 2}}};
  return {{"word", "translation"}, {}, {{"word", 2, 3}}};
}

std::string text_of(const Json& value, std::string_view source, const std::string& what) {
  if (!value.is_string()) {
    fail("{}: {}: a string expected, found {}", source, what, value.type_name());
  }
  const auto& text = value.get_ref<const std::string&>();
  if (text.empty()) fail("{}: {} is empty", source, what);
  for (char c : text) {
    if (static_cast<unsigned char>(c) < 0x20 && c != '\n') {
      fail("{}: {}: control character in {}", source, what, quote(text));
    }
  }
  return text;
}

std::vector<std::string> forms_of(const Json& entry, std::string_view source,
                                  const std::string& what) {
  if (!entry.is_array()) return {text_of(entry, source, what)};
  std::vector<std::string> forms;
  for (const Json& form : entry) forms.push_back(text_of(form, source, what));
  return forms;
}

void check(const TaskLists& lists) {
  const Needs needs = needs_of(lists.task);
  for (const Needs::List& need : needs.lists) {
    const auto found = lists.lists.find(std::string(need.name));
    if (found == lists.lists.end()) {
      fail("{}: the task {} needs a list {}", lists.source, lists.task, quote(need.name));
    }
    if (found->second.size() < need.entries) {
      fail("{}: list {}: at least {} entries expected, found {}", lists.source, quote(need.name),
           need.entries, found->second.size());
    }
    for (const auto& forms : found->second) {
      if (forms.size() == need.forms) continue;
      fail("{}: list {}: {} forms of every entry expected, {} has {}", lists.source,
           quote(need.name), need.forms, quote(forms.empty() ? "" : forms.front()), forms.size());
    }
  }
  for (const auto& [name, entries] : lists.lists) {
    if (entries.empty()) fail("{}: list {} is empty", lists.source, quote(name));
    std::set<std::string> seen;
    for (const auto& forms : entries) {
      if (!forms.empty() && !seen.insert(forms.front()).second) {
        fail("{}: list {}: {} occurs twice", lists.source, quote(name), quote(forms.front()));
      }
    }
    if (name == "verb" && lists.task == "sva") {
      for (const auto& forms : entries) {
        if (forms.size() != 2) {
          fail("{}: list \"verb\": 2 forms of every entry expected, {} has {}", lists.source,
               quote(forms.empty() ? "" : forms.front()), forms.size());
        }
      }
      continue;
    }
    const bool known =
        std::any_of(needs.lists.begin(), needs.lists.end(),
                    [&wanted = name](const auto& need) { return need.name == wanted; });
    for (const auto& forms : entries) {
      if (!known && forms.size() != 1) {
        fail("{}: list {}: {} has {} forms, 1 expected", lists.source, quote(name),
             quote(forms.empty() ? "" : forms.front()), forms.size());
      }
    }
  }
  if (lists.templates.empty()) fail("{}: at least 1 template expected, found 0", lists.source);
  for (const std::string& text : lists.templates) {
    const std::vector<std::string> slots = template_slots(text, lists.source);
    for (std::string_view slot : needs.slots) {
      if (std::find(slots.begin(), slots.end(), slot) == slots.end()) {
        fail("{}: template {}: slot {{{}}} is missing", lists.source, quote(text), slot);
      }
    }
    for (const std::string& slot : slots) {
      const auto filled = [&](const auto& names) {
        return std::find(names.begin(), names.end(), slot) != names.end();
      };
      if (filled(needs.slots)) continue;
      if (filled(needs.extras) && (slot == "attractor" || lists.lists.contains(slot))) continue;
      if (!filled(needs.extras) && lists.lists.contains(slot)) continue;
      fail("{}: template {}: there is no list for the slot {{{}}}", lists.source, quote(text),
           slot);
    }
  }
}

}  // namespace

std::span<const std::string_view> pair_tasks() {
  return kTasks;
}

TaskLists parse_task_lists(std::string_view json, std::string_view source) {
  if (!files::valid_utf8(json)) fail("{}: not valid UTF-8", source);
  const Json root = files::parse_strict_json(json, source, 8);
  if (!root.is_object()) fail("{}: an object expected, found {}", source, root.type_name());
  for (const auto& [key, value] : root.items()) {
    if (key != "task" && key != "templates" && key != "lists") {
      fail("{}: key {} is not one of task, templates, lists", source, quote(key));
    }
  }
  for (const char* key : {"task", "templates", "lists"}) {
    if (!root.contains(key)) fail("{}: key {} is missing", source, key);
  }
  TaskLists out;
  out.source = source;
  out.task = text_of(root["task"], source, "task");
  if (std::find(kTasks.begin(), kTasks.end(), out.task) == kTasks.end()) {
    fail("{}: task {} is not one of {}", source, quote(out.task), fmt::join(kTasks, ", "));
  }
  if (!root["templates"].is_array()) {
    fail("{}: templates: an array expected, found {}", source, root["templates"].type_name());
  }
  for (std::size_t i = 0; i < root["templates"].size(); ++i) {
    out.templates.push_back(text_of(root["templates"][i], source, fmt::format("templates[{}]", i)));
  }
  if (!root["lists"].is_object()) {
    fail("{}: lists: an object expected, found {}", source, root["lists"].type_name());
  }
  for (const auto& [name, entries] : root["lists"].items()) {
    if (!entries.is_array()) {
      fail("{}: list {}: an array expected, found {}", source, quote(name), entries.type_name());
    }
    auto& list = out.lists[name];
    for (std::size_t i = 0; i < entries.size(); ++i) {
      list.push_back(forms_of(entries[i], source, fmt::format("list {}[{}]", quote(name), i)));
    }
  }
  check(out);
  return out;
}

TaskLists read_task_lists(const std::filesystem::path& path) {
  const std::string name = path.string();
  if (std::filesystem::is_directory(path)) fail("{}: a file expected, found a folder", name);
  std::ifstream stream(path, std::ios::binary);
  if (!stream) fail("{}: cannot open the file", name);
  std::string text;
  std::string block(std::size_t{1} << 16, '\0');
  while (stream.read(block.data(), static_cast<std::streamsize>(block.size())) ||
         stream.gcount() > 0) {
    text.append(block, 0, static_cast<std::size_t>(stream.gcount()));
    if (text.size() > kMaxBytes) fail("{}: more than {} bytes", name, kMaxBytes);
  }
  if (stream.bad()) fail("{}: cannot read the file", name);
  return parse_task_lists(text, name);
}

TaskLists translation_lists(const WordList& words, std::string_view from, std::string_view to) {
  TaskLists out;
  out.source = words.source;
  out.task = "translation";
  // Braces in a language's name would be slots; parse_word_list allows them.
  const std::string& from_name = words.language(from).name;
  const std::string& to_name = words.language(to).name;
  if (from == to) fail_usage("translation from {} to itself", from);
  if ((from_name + to_name).find_first_of("{}") != std::string::npos) {
    fail("{}: a brace in the name of a language: {}, {}", words.source, quote(from_name),
         quote(to_name));
  }
  out.templates = {from_name + ": \"{word}\" - " + to_name + ": \"{translation}\"\n"};
  auto& list = out.lists["word"];
  std::set<std::string> seen;  // of two words that are spelled alike the first
  for (const WordList::Word& word : words.words) {
    const std::string *a = word.form(from), *b = word.form(to);
    if (a != nullptr && b != nullptr && seen.insert(*a).second) list.push_back({*a, *b});
  }
  check(out);
  return out;
}

IoiCorruption parse_ioi_corruption(std::string_view name) {
  if (name == "flip") return IoiCorruption::flip;
  if (name == "order") return IoiCorruption::order;
  if (name == "abc") return IoiCorruption::abc;
  fail_usage("corruption '{}' is not one of flip, order, abc", name);
}

}  // namespace lamina
