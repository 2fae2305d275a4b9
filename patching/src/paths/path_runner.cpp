#include "lamina/patching/path_runner.h"

#include <utility>

#include "lamina/core/error.h"

namespace lamina {

// A tree of the steps that were run: a node is a path, its state what leaves the path's last step.
struct PathRunner::Node {
  Step step;
  std::vector<float> state;  // empty: not kept, or dropped
  std::vector<std::unique_ptr<Node>> children;
  Node* newer = nullptr;
  Node* older = nullptr;
};

PathRunner::PathRunner(Forward& forward, Batch batch, std::uint64_t memory)
    : forward_(forward), batch_(std::move(batch)), memory_(memory), root_(new Node) {}

PathRunner::~PathRunner() = default;

PathRunner::Node* PathRunner::child(Node& node, const Step& step) {
  for (const auto& child : node.children) {
    if (child->step == step) return child.get();
  }
  return nullptr;
}

// Makes a state the newest.
void PathRunner::touch(Node& node) {
  if (newest_ == &node) return;
  if (node.newer != nullptr) node.newer->older = node.older;
  if (node.older != nullptr) node.older->newer = node.newer;
  if (oldest_ == &node) oldest_ = node.newer;
  node.newer = nullptr;
  node.older = newest_;
  if (newest_ != nullptr) newest_->newer = &node;
  newest_ = &node;
  if (oldest_ == nullptr) oldest_ = &node;
}

void PathRunner::store(Node& node, std::span<const float> state) {
  const std::uint64_t bytes = state.size() * sizeof(float);
  while (oldest_ != nullptr && bytes_ + bytes > memory_) {
    Node& dropped = *oldest_;
    oldest_ = dropped.newer;
    (oldest_ != nullptr ? oldest_->older : newest_) = nullptr;
    dropped.newer = nullptr;
    bytes_ -= dropped.state.size() * sizeof(float);
    std::vector<float>().swap(dropped.state);
  }
  if (bytes > memory_) return;
  node.state.assign(state.begin(), state.end());
  bytes_ += bytes;
  touch(node);
}

std::span<const float> PathRunner::run(std::span<const Step> path, bool keep) {
  // To the forward pass no steps mean all of them.
  if (path.empty()) fail_usage("a path needs at least one step");
  asked_ += static_cast<std::int64_t>(path.size());
  Node* from = nullptr;  // the deepest kept state on the way
  std::size_t done = 0;
  Node* node = root_.get();
  for (std::size_t i = 0; i < path.size(); ++i) {
    node = child(*node, path[i]);
    if (node == nullptr) break;
    if (!node->state.empty()) {
      from = node;
      done = i + 1;
    }
  }
  if (from != nullptr) touch(*from);
  if (from != nullptr && done == path.size()) return from->state;
  run_ += static_cast<std::int64_t>(path.size() - done);

  const auto pass = [&](std::span<const Step> steps, std::span<const float> start) {
    RunOptions options;
    options.steps = steps;
    options.start = start;
    return forward_.run(batch_, {}, options);
  };
  if (!keep) {
    return pass(path.subspan(done),
                from != nullptr ? std::span<const float>(from->state) : std::span<const float>());
  }
  // One step at a time. The state that a step starts from must outlive its being dropped.
  std::vector<float> start;
  if (from != nullptr) start = from->state;
  node = from != nullptr ? from : root_.get();
  std::span<const float> out;
  for (std::size_t i = done; i < path.size(); ++i) {
    out = pass(path.subspan(i, 1), start);
    Node* next = child(*node, path[i]);
    if (next == nullptr) {
      node->children.push_back(std::make_unique<Node>());
      next = node->children.back().get();
      next->step = path[i];
    }
    node = next;
    if (node->state.empty()) store(*node, out);
    if (i + 1 < path.size()) start.assign(out.begin(), out.end());
  }
  return out;
}

}  // namespace lamina
