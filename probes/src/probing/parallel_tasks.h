#pragma once

#include <cstddef>
#include <exception>
#include <vector>

namespace lamina {

/// A loop over tasks on all threads; the first exception by index is thrown afterwards. Eigen's
/// products inside run on one thread each, so results do not depend on the number of threads.
template <class Task>
void parallel_tasks(std::size_t count, const Task& task) {
  std::vector<std::exception_ptr> errors(count);
#pragma omp parallel for schedule(dynamic, 1)
  for (std::size_t i = 0; i < count; ++i) {
    try {
      task(i);
    } catch (...) {
      errors[i] = std::current_exception();
    }
  }
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace lamina
