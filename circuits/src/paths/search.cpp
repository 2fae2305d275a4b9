// Greedy path finding.

#include <algorithm>
#include <cmath>

#include "lamina/circuits/paths.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

bool followable(PathNodeKind kind) {
  return kind == PathNodeKind::feature || kind == PathNodeKind::head || kind == PathNodeKind::skip;
}
bool competes(PathNodeKind kind) {
  return kind != PathNodeKind::error && kind != PathNodeKind::bias;
}

// As the authors' code has it: see PathOptions.
std::vector<PathContribution> as_authors(const std::vector<PathContribution>& all) {
  std::vector<PathContribution> out;
  std::ptrdiff_t token = -1;
  for (const PathContribution& c : all) {
    if (c.node.kind == PathNodeKind::position && token >= 0) {
      out[static_cast<std::size_t>(token)].value += c.value;
      continue;
    }
    if (c.node.kind == PathNodeKind::token) token = std::ssize(out);
    out.push_back(c);
  }
  return out;
}

void count(PathPrefix::Account& account, const PathContribution& c, bool kept) {
  account.magnitude += std::abs(c.value);
  if (kept) {
    account.kept += c.value;
    return;
  }
  switch (c.node.kind) {
    case PathNodeKind::feature:
      account.features += c.value;
      break;
    case PathNodeKind::head:
      account.heads += c.value;
      break;
    case PathNodeKind::skip:
      account.skips += c.value;
      break;
    case PathNodeKind::error:
      account.errors += c.value;
      break;
    case PathNodeKind::bias:
      account.biases += c.value;
      break;
    default:
      account.embeddings += c.value;
  }
}

std::string token_text(const Model& model, std::int64_t id) {
  return model.tokenizer() == nullptr || id >= model.tokenizer()->vocab_size()
             ? fmt::format("#{}", id)
             : model.tokenizer()->piece(static_cast<std::int32_t>(id));
}

}  // namespace

FoundPaths find_paths(const PathFinder& finder, const PathNode& root, const PathCursor& cursor,
                      const PathOptions& options) {
  if (options.depth < 1 || options.width < 1) {
    fail_usage("paths need a depth and a width of at least 1, got {} and {}", options.depth,
               options.width);
  }
  FoundPaths found;
  found.options = options;
  const Replacement& replacement = finder.replacement();
  for (const std::int32_t id : replacement.ids())
    found.tokens.push_back(token_text(replacement.model(), id));
  if (root.kind == PathNodeKind::logit) {
    found.explained = token_text(replacement.model(), root.index);
    if (root.other >= 0) found.explained += " − " + token_text(replacement.model(), root.other);
  }
  found.prefixes.push_back({.node = root, .contribution = cursor.value, .account = {}});
  std::vector<std::int32_t> ends = {0};  // kept prefixes that something may contribute to
  std::vector<PathCursor> cursors = {cursor};
  for (std::int32_t depth = 1; depth <= options.depth && !ends.empty(); ++depth) {
    std::vector<std::vector<PathContribution>> all = finder.contributions(cursors);
    struct Candidate {
      std::size_t end, part;
      double rank;
    };
    std::vector<Candidate> candidates;
    for (std::size_t e = 0; e < all.size(); ++e) {
      if (options.as_authors) all[e] = as_authors(all[e]);
      for (std::size_t i = 0; i < all[e].size(); ++i) {
        const PathContribution& c = all[e][i];
        const bool first_token =
            options.as_authors && c.node.kind == PathNodeKind::head && c.node.position == 0;
        if (!competes(c.node.kind) || first_token || c.value == 0) continue;
        candidates.push_back({e, i, options.absolute ? std::abs(c.value) : c.value});
      }
    }
    const std::size_t keep = std::min(candidates.size(), size(options.width));
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const Candidate& a, const Candidate& b) { return a.rank > b.rank; });
    candidates.resize(keep);
    std::vector<std::vector<bool>> kept(all.size());
    for (std::size_t e = 0; e < all.size(); ++e) kept[e].resize(all[e].size());
    for (const Candidate& c : candidates) kept[c.end][c.part] = true;
    for (std::size_t e = 0; e < all.size(); ++e) {
      PathPrefix& prefix = found.prefixes[size(ends[e])];
      prefix.expanded = true;
      for (std::size_t i = 0; i < all[e].size(); ++i) count(prefix.account, all[e][i], kept[e][i]);
    }
    std::vector<std::int32_t> next_ends;
    std::vector<PathCursor> next_cursors;
    for (const Candidate& c : candidates) {
      const PathContribution& part = all[c.end][c.part];
      found.prefixes.push_back({.node = part.node,
                                .parent = ends[c.end],
                                .depth = depth,
                                .contribution = part.value,
                                .account = {}});
      const bool bottom =
          options.as_authors && part.node.kind == PathNodeKind::head && part.node.layer == 0;
      if (!followable(part.node.kind) || bottom || depth == options.depth) continue;
      next_ends.push_back(static_cast<std::int32_t>(found.prefixes.size()) - 1);
      next_cursors.push_back(finder.follow(cursors[c.end], part));
    }
    ends = std::move(next_ends);
    cursors = std::move(next_cursors);
  }
  return found;
}

std::vector<std::int32_t> FoundPaths::ends() const {
  std::vector<bool> continued(prefixes.size());
  for (const PathPrefix& p : prefixes)
    if (p.parent >= 0) continued[size(p.parent)] = true;
  std::vector<std::int32_t> out;
  for (std::size_t i = 0; i < prefixes.size(); ++i)
    if (!continued[i]) out.push_back(static_cast<std::int32_t>(i));
  std::stable_sort(out.begin(), out.end(), [&](std::int32_t a, std::int32_t b) {
    return prefixes[size(a)].contribution > prefixes[size(b)].contribution;
  });
  return out;
}

std::vector<std::int32_t> FoundPaths::path(std::int32_t prefix) const {
  std::vector<std::int32_t> out;
  for (std::int32_t at = prefix; at >= 0; at = prefixes.at(size(at)).parent) out.push_back(at);
  std::reverse(out.begin(), out.end());
  return out;
}

double FoundPaths::rounding() const {
  double worst = 0;
  for (const PathPrefix& p : prefixes) {
    if (!p.expanded || p.account.magnitude == 0) continue;
    worst = std::max(worst, std::abs(p.contribution - p.account.sum()) / p.account.magnitude);
  }
  return worst;
}

void FoundPaths::write(ResultFile& file) const {
  file.group("paths");
  file.setting("depth", options.depth);
  file.setting("width", options.width);
  file.setting("rank", std::string(options.absolute ? "absolute" : "signed"));
  file.setting("search", std::string(options.as_authors ? "authors" : "lamina"));
  file.setting("defaults", std::string("[ours] depth 3 (the authors' code: 2); signed rank and "
                                       "width 5 are the authors'"));
  file.setting("rounding", rounding());
  std::vector<std::int64_t> number, index;
  std::vector<std::int32_t> parent, depth, layer, position;
  std::vector<std::string> kind, name;
  std::vector<std::uint8_t> expanded;
  std::vector<double> contribution, kept, features, heads, skips, embeddings, errors, biases;
  for (const PathPrefix& p : prefixes) {
    number.push_back(std::ssize(number));
    parent.push_back(p.parent);
    depth.push_back(p.depth);
    kind.emplace_back(path_node_kind_name(p.node.kind));
    name.push_back(path_node_name(p.node));
    layer.push_back(p.node.layer);
    position.push_back(p.node.position);
    index.push_back(p.node.index);
    expanded.push_back(p.expanded ? 1 : 0);
    contribution.push_back(p.contribution);
    kept.push_back(p.account.kept);
    features.push_back(p.account.features);
    heads.push_back(p.account.heads);
    skips.push_back(p.account.skips);
    embeddings.push_back(p.account.embeddings);
    errors.push_back(p.account.errors);
    biases.push_back(p.account.biases);
  }
  const std::vector<std::string> on = {"prefix"};
  file.axis("prefix", std::span<const std::int64_t>(number));
  const auto whole = [&](const char* what, const std::vector<std::int32_t>& v, const char* text) {
    file.dataset(what, on, std::span<const std::int32_t>(v), text, "");
  };
  const auto real = [&](const char* what, const std::vector<double>& v, const char* text) {
    file.dataset(what, on, std::span<const double>(v), text, "");
  };
  whole("parent", parent, "the prefix without its last node; -1: this is the root");
  whole("depth", depth, "steps from the root");
  file.dataset("kind", on, std::span<const std::string>(kind), "of the last node", "");
  file.dataset("name", on, std::span<const std::string>(name), "the last node", "");
  whole("layer", layer, "of the last node; -1 for tokens, positions and logits");
  whole("position", position, "token at which the last node stands; of a head: reads");
  file.dataset("index", on, std::span<const std::int64_t>(index),
               "feature, head or token id of the last node", "");
  file.dataset("expanded", on, std::span<const std::uint8_t>(expanded),
               "1 if it was asked what the last node is the sum of", "");
  real("contribution", contribution, "of the last node to the root on this way; the root's value");
  real("kept", kept, "of it, what the prefixes that follow have (this and all below: if expanded)");
  real("features", features, "of it, other features");
  real("heads", heads, "of it, other heads and source tokens");
  real("skips", skips, "of it, skip paths of transcoders");
  real("embeddings", embeddings, "of it, embeddings of token and position that were not kept");
  real("errors", errors, "of it, what dictionaries do not rebuild");
  real("biases", biases, "of it, biases");
}

}  // namespace lamina
