#include "verbs/patch_methods.h"

#include <string>
#include <vector>

#include "lamina/core/error.h"

namespace lamina::cli {
namespace {

PatchResult run_exact(const PatchJob& job) {
  return patch_exactly(job.forward, job.pairs, job.metric, job.nodes, job.options);
}

}  // namespace

std::span<const PatchMethod> patch_methods() {
  static const std::vector<PatchMethod> methods = {
      {.name = "exact", .does = "patched runs", .exact = true, .run = run_exact},
  };
  return methods;
}

const PatchMethod& patch_method(std::string_view name) {
  std::string names;
  for (const PatchMethod& method : patch_methods()) {
    if (method.name == name) return method;
    names += (names.empty() ? "" : ", ") + std::string(method.name);
  }
  fail_usage("--method: '{}', expected {}, atp, ig, relp", name, names);
}

}  // namespace lamina::cli
