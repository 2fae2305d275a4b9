#include "lamina/patching/path_tree.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <utility>

#include "lamina/core/error.h"

namespace lamina {
namespace {

constexpr double kWorst = -std::numeric_limits<double>::infinity();

struct StepOrder {
  bool operator()(const LayerPath& a, const LayerPath& b) const {
    return std::ranges::lexicographical_compare(a, b, [](const Step& x, const Step& y) {
      return std::tuple(x.layer, x.attention, x.mlp) < std::tuple(y.layer, y.attention, y.mlp);
    });
  }
};

// Skips (repeats = 0) or repeats `length` steps from `first` on.
struct Edit {
  std::size_t first, length, repeats;
};

struct Node {
  std::size_t tried = 0;  // index of its path in TreeResult::tried
  std::size_t next = 0;   // edits of this node begin here or later
  std::int32_t edits = 0;
  std::vector<Edit> untaken;
  bool opened = false;  // untaken is filled
  std::vector<std::unique_ptr<Node>> children;
  double best = kWorst;  // reward here and below
  std::int64_t visits = 0;
  bool exhausted = false;  // nothing below is left to try
};

class Search {
 public:
  Search(const PathEvaluator& evaluate, const TreeOptions& options)
      : evaluate_(evaluate), options_(options), random_(options.seed) {}

  TreeResult run(const LayerPath& whole) {
    Node root;
    root.tried = visit(whole, 0);
    finish(root, {});
    while (evaluated_ - 1 < options_.simulations && !root.exhausted) {
      const std::int64_t before = evaluated_;
      std::vector<Node*> way = descend(root);
      Node& leaf = *way.back();
      if (!leaf.untaken.empty()) {
        std::unique_ptr<Node> child = take(leaf);
        way.push_back(child.get());
        leaf.children.push_back(std::move(child));
      }
      Node& last = *way.back();
      way.pop_back();
      finish(last, way);
      if (evaluated_ != before && options_.progress) options_.progress(evaluated_ - 1);
    }
    result_.exhausted = root.exhausted;
    for (std::size_t i = 1; i < result_.tried.size(); ++i) {
      const PathTried &a = result_.tried[i], &b = result_.tried[result_.best];
      if (a.reward > b.reward || (a.reward == b.reward && a.value.layers < b.value.layers)) {
        result_.best = i;
      }
    }
    return std::move(result_);
  }

 private:
  // Index of the path in `tried`; evaluates it if it is new.
  std::size_t visit(const LayerPath& path, std::int32_t edits) {
    const auto [at, fresh] = known_.try_emplace(path, result_.tried.size());
    if (!fresh) {
      PathTried& old = result_.tried[at->second];
      old.edits = std::min(old.edits, edits);
      return at->second;
    }
    PathTried tried{path, evaluate_(path), 0, edits};
    tried.reward = std::isfinite(tried.value.quality)
                       ? tried.value.quality - options_.cost * tried.value.layers
                       : kWorst;
    rewards_.insert(std::ranges::upper_bound(rewards_, tried.reward), tried.reward);
    result_.tried.push_back(std::move(tried));
    ++evaluated_;
    return at->second;
  }

  void open(Node& node) {
    node.opened = true;
    if (node.edits >= options_.edits) return;
    const auto steps = result_.tried[node.tried].path.size();
    const auto block = static_cast<std::size_t>(options_.block);
    const auto repeats = static_cast<std::size_t>(options_.repeats);
    for (std::size_t first = node.next; first < steps; ++first) {
      for (std::size_t length = 1; length <= block && first + length <= steps; ++length) {
        if (options_.skip && length < steps) node.untaken.push_back({first, length, 0});
        for (std::size_t times = 1; times <= repeats; ++times) {
          if (steps + length * times > static_cast<std::size_t>(kMaxSteps)) break;
          node.untaken.push_back({first, length, times});
        }
      }
    }
  }

  std::unique_ptr<Node> take(Node& node) {
    const std::size_t pick = static_cast<std::size_t>(random_() % node.untaken.size());
    std::swap(node.untaken[pick], node.untaken.back());
    const Edit edit = node.untaken.back();
    node.untaken.pop_back();
    LayerPath path = result_.tried[node.tried].path;
    const auto at = path.begin() + static_cast<std::ptrdiff_t>(edit.first);
    const auto end = at + static_cast<std::ptrdiff_t>(edit.length);
    auto child = std::make_unique<Node>();
    if (edit.repeats == 0) {
      path.erase(at, end);
      child->next = edit.first;
    } else {
      const LayerPath block(at, end);
      for (std::size_t i = 0; i < edit.repeats; ++i) {
        path.insert(path.begin() + static_cast<std::ptrdiff_t>(edit.first), block.begin(),
                    block.end());
      }
      child->next = edit.first + edit.length * edit.repeats;  // the last copy may be edited again
    }
    child->edits = node.edits + 1;
    child->tried = visit(path, child->edits);
    return child;
  }

  // From the root to the node that gets the next child.
  std::vector<Node*> descend(Node& root) {
    std::vector<Node*> way = {&root};
    while (true) {
      Node& node = *way.back();
      const double room = 2 * std::sqrt(static_cast<double>(node.visits));
      Node* best = nullptr;
      if (node.untaken.empty() || static_cast<double>(node.children.size()) >= room) {
        double highest = kWorst;
        for (const auto& child : node.children) {
          if (child->exhausted) continue;
          const double bound =
              share(child->best) +
              options_.explore * std::sqrt(std::log(static_cast<double>(node.visits)) /
                                           static_cast<double>(child->visits));
          if (best == nullptr || bound > highest) {
            best = child.get();
            highest = bound;
          }
        }
      }
      if (best == nullptr) return way;
      way.push_back(best);
    }
  }

  // Where a reward stands between the median (and below) and the best of all so far: 0 … 1.
  double share(double reward) const {
    const double median = rewards_[rewards_.size() / 2], best = rewards_.back();
    if (!(reward > median)) return 0;
    return std::isfinite(median) ? (reward - median) / (best - median) : 1;
  }

  // Counts the visit of a node upwards, and finds out what is exhausted.
  void finish(Node& node, std::span<Node* const> above) {
    if (!node.opened) open(node);
    const double reward = result_.tried[node.tried].reward;
    const auto count = [&](Node& at) {
      ++at.visits;
      at.best = std::max(at.best, reward);
      at.exhausted = at.untaken.empty() && std::ranges::all_of(at.children, [](const auto& child) {
                       return child->exhausted;
                     });
    };
    count(node);
    for (std::size_t i = above.size(); i-- > 0;) count(*above[i]);
  }

  const PathEvaluator& evaluate_;
  const TreeOptions& options_;
  std::mt19937_64 random_;
  TreeResult result_;
  std::map<LayerPath, std::size_t, StepOrder> known_;
  std::vector<double> rewards_;  // rising
  std::int64_t evaluated_ = 0;
};

}  // namespace

TreeResult search_tree(const LayerPath& whole, const PathEvaluator& evaluate,
                       const TreeOptions& options) {
  if (whole.empty()) fail_usage("a search needs a path with at least one step");
  if (options.simulations < 0 || options.edits < 0 || options.block < 1 || options.repeats < 0) {
    fail_usage(
        "a search needs simulations, edits and repeats of 0 or more and blocks of 1 or more");
  }
  return Search(evaluate, options).run(whole);
}

}  // namespace lamina
