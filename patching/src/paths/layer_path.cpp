#include "lamina/patching/layer_path.h"

#include <fmt/format.h>

#include <algorithm>

#include "lamina/core/error.h"

namespace lamina {
namespace {

// What stands at a character of a path, for an error message.
std::string found(std::string_view text, std::size_t at) {
  if (at >= text.size()) return "the end";
  const auto c = static_cast<unsigned char>(text[at]);
  if (c < 0x20 || c >= 0x7f) return fmt::format("byte 0x{:02x}", c);
  return fmt::format("'{}'", text[at]);
}

// As much of the path as fits into an error line; a path may come from a file.
std::string shown(std::string_view text) {
  constexpr std::size_t kShown = 60;
  std::string out;
  for (const char c : text.substr(0, kShown)) {
    const auto byte = static_cast<unsigned char>(c);
    out += byte < 0x20 || byte >= 0x7f ? '?' : c;
  }
  return text.size() > kShown ? out + "…" : out;
}

// One comma-separated item after the other.
class PathReader {
 public:
  PathReader(std::string_view text, const ModelConfig& config) : text_(text), config_(config) {}

  struct Item {
    std::int32_t first = 0, last = 0;
    bool attention = true, mlp = true;
    std::int64_t times = 1;
    std::size_t at = 0;  // where it begins
  };

  bool next(Item& item) {
    blanks();
    if (at_ == text_.size()) {
      if (started_) expected("a layer");
      fail_usage("the path is empty; expected layers such as 0-5,7,7,9a,10m");
    }
    started_ = true;
    item = {};
    item.at = at_;
    item.first = item.last = layer();
    blanks();
    if (take('-')) {
      blanks();
      item.last = layer();
      blanks();
    }
    if (take('a')) {
      item.mlp = false;
    } else if (at_ < text_.size() && text_[at_] == 'm') {
      if (config_.d_mlp == 0) {
        fail_usage("path '{}': 'm' at character {}, but this model's layers have no MLP",
                   shown(text_), at_ + 1);
      }
      ++at_;
      item.attention = false;
    }
    blanks();
    if (take('*')) {
      blanks();
      const std::size_t at = at_;
      item.times = number("a number of times");
      if (item.times < 1 || item.times > kMaxSteps) {
        fail_usage("path '{}': {} times at character {}; expected 1 to {}", shown(text_),
                   item.times, at + 1, kMaxSteps);
      }
      blanks();
    }
    return true;
  }

  // Past the comma; false at the end.
  bool more() {
    if (at_ == text_.size()) return false;
    if (!take(',')) expected("a comma");
    return true;
  }

  std::string_view text() const { return text_; }

 private:
  void blanks() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t')) ++at_;
  }
  bool take(char c) {
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  [[noreturn]] void expected(std::string_view what) const {
    fail_usage("path '{}': expected {} at character {}, found {}", shown(text_), what, at_ + 1,
               found(text_, at_));
  }
  // Saturates: every caller refuses numbers this large.
  std::int64_t number(std::string_view what) {
    if (at_ >= text_.size() || text_[at_] < '0' || text_[at_] > '9') expected(what);
    std::int64_t value = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      value = std::min<std::int64_t>(value * 10 + (text_[at_] - '0'), 1'000'000'000);
    }
    return value;
  }
  std::int32_t layer() {
    const std::size_t at = at_;
    const std::int64_t value = number("a layer");
    if (value >= config_.n_layers) {
      fail_usage("path '{}': layer {} at character {}; this model has layers 0 to {}", shown(text_),
                 text_.substr(at, std::min<std::size_t>(at_ - at, 20)), at + 1,
                 config_.n_layers - 1);
    }
    return static_cast<std::int32_t>(value);
  }

  std::string_view text_;
  const ModelConfig& config_;
  std::size_t at_ = 0;
  bool started_ = false;
};

char part_letter(const Step& step) {
  return step.attention ? (step.mlp ? ' ' : 'a') : 'm';
}

}  // namespace

LayerPath parse_layer_path(std::string_view text, const ModelConfig& config) {
  LayerPath path;
  PathReader reader(text, config);
  PathReader::Item item;
  do {
    reader.next(item);
    const std::int32_t direction = item.last < item.first ? -1 : 1;
    const std::int64_t length = std::int64_t{direction} * (item.last - item.first) + 1;
    if (static_cast<std::int64_t>(path.size()) + length * item.times > kMaxSteps) {
      fail_usage("path '{}': more than {} steps with the item at character {}", shown(text),
                 kMaxSteps, item.at + 1);
    }
    for (std::int64_t time = 0; time < item.times; ++time) {
      for (std::int64_t i = 0; i < length; ++i) {
        path.push_back(
            {static_cast<std::int32_t>(item.first + direction * i), item.attention, item.mlp});
      }
    }
  } while (reader.more());
  return path;
}

std::string layer_path_text(std::span<const Step> path, const ModelConfig& config) {
  LayerPath steps;
  for (Step step : path) {
    if (config.d_mlp == 0) step.mlp = step.attention;  // the whole layer
    if (step.attention || step.mlp) steps.push_back(step);
  }
  std::string out;
  for (std::size_t i = 0; i < steps.size();) {
    // A run of the same layer, or of neighbours upwards or downwards.
    const char part = part_letter(steps[i]);
    const auto run = [&](std::int32_t by) {
      std::size_t end = i + 1;
      while (end < steps.size() && part_letter(steps[end]) == part &&
             steps[end].layer == steps[end - 1].layer + by) {
        ++end;
      }
      return end - i;
    };
    const std::size_t same = run(0), up = run(1), down = run(-1);
    if (!out.empty()) out += ',';
    out += std::to_string(steps[i].layer);
    std::size_t length = 1;
    if (same == 1 && std::max(up, down) > 1) {
      length = std::max(up, down);
      out += fmt::format("-{}", steps[i + length - 1].layer);
    }
    if (part != ' ') out += part;
    if (same > 1) {
      length = same;
      out += fmt::format("*{}", same);
    }
    i += length;
  }
  return out.empty() ? "nothing" : out;
}

double layers_used(std::span<const Step> path, const ModelConfig& config) {
  double used = 0;
  for (const Step& step : path) {
    if (config.d_mlp == 0) {
      used += step.attention ? 1 : 0;
    } else {
      used += (step.attention ? 0.5 : 0) + (step.mlp ? 0.5 : 0);
    }
  }
  return used;
}

std::string sublayer_name(Sublayer sublayer) {
  return fmt::format("{}{}", sublayer.layer, sublayer.mlp ? 'm' : 'a');
}

std::vector<Sublayer> all_sublayers(const ModelConfig& config) {
  std::vector<Sublayer> all;
  for (std::int32_t layer = 0; layer < config.n_layers; ++layer) {
    all.push_back({layer, false});
    if (config.d_mlp > 0) all.push_back({layer, true});
  }
  return all;
}

std::vector<Sublayer> parse_sublayers(std::string_view text, const ModelConfig& config) {
  std::vector<Sublayer> sublayers;
  PathReader reader(text, config);
  PathReader::Item item;
  do {
    reader.next(item);
    if (item.first != item.last || item.times != 1 || item.attention == item.mlp) {
      fail_usage("'{}': expected a sublayer such as 12a or 12m at character {}", shown(text),
                 item.at + 1);
    }
    const Sublayer sublayer{item.first, item.mlp};
    if (std::ranges::find(sublayers, sublayer) != sublayers.end()) {
      fail_usage("'{}': sublayer {} at character {} stands there twice", shown(text),
                 sublayer_name(sublayer), item.at + 1);
    }
    sublayers.push_back(sublayer);
  } while (reader.more());
  return sublayers;
}

LayerPath path_without(std::span<const Sublayer> removed, const ModelConfig& config) {
  LayerPath path = all_steps(config);
  for (const Sublayer& sublayer : removed) {
    Step& step = path[static_cast<std::size_t>(sublayer.layer)];
    (sublayer.mlp ? step.mlp : step.attention) = false;
  }
  return path;
}

}  // namespace lamina
