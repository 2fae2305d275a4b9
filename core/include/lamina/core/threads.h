#pragma once

namespace lamina {

/// Number of threads that computations use from now on (≥ 1; UsageError otherwise). Results do not
/// depend on it. The default is the number of processors, or OMP_NUM_THREADS.
void set_threads(int threads);
int threads();

}  // namespace lamina
