#include "lamina/core/threads.h"

#include <omp.h>

#include "lamina/core/error.h"

namespace lamina {

void set_threads(int threads) {
  if (threads < 1 || threads > 1024) fail_usage("threads must be 1 to 1024, got {}", threads);
  omp_set_num_threads(threads);
}

int threads() {
  return omp_get_max_threads();
}

}  // namespace lamina
