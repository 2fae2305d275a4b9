#include <atomic>
#include <cstdlib>
#include <string>
#include <string_view>

#include "engine/kernels.h"
#include "engine/simd/table.h"
#include "lamina/core/error.h"

namespace lamina::kernels {
namespace {

#if defined(LAMINA_X86_KERNELS)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

const KernelTable* best() {
#if defined(LAMINA_X86_KERNELS)
  if (has_avx512()) return &kAvx512Table;
  if (has_avx2()) return &kAvx2Table;
#endif
  return &kGenericTable;
}

const KernelTable* find(std::string_view name) {
  if (name.empty()) return best();
  if (name == kGenericTable.name) return &kGenericTable;
#if defined(LAMINA_X86_KERNELS)
  for (const KernelTable* t : {&kAvx2Table, &kAvx512Table}) {
    if (name != t->name) continue;
    if (t == &kAvx2Table ? has_avx2() : has_avx512()) return t;
    fail_usage("LAMINA_ISA: this processor lacks {}; the best it has is {}", name, best()->name);
  }
#endif
  fail_usage("LAMINA_ISA: unknown instruction set \"{}\"; expected avx512, avx2 or generic", name);
}

std::atomic<const KernelTable*>& chosen() {
  static std::atomic<const KernelTable*> value = [] {
    const char* name = std::getenv("LAMINA_ISA");
    return find(name == nullptr ? "" : name);
  }();
  return value;
}

}  // namespace

const KernelTable& table() {
  return *chosen().load(std::memory_order_relaxed);
}

void select_isa(const char* name) {
  chosen() = find(name);
}

std::string_view isa() {
  return table().name;
}

}  // namespace lamina::kernels
