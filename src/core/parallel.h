// parallel_for: runs body(i) for i in [0, count) on the process's worker threads and waits. Iterations must
// be independent; each is done by exactly one thread, so results never depend on the number of threads.
// Nested calls run serially. An exception from a body is rethrown (the first one) after all threads have
// stopped.
#pragma once

#include <cstdint>
#include <functional>

namespace snapmla {

/// Threads used, the caller's included: SNAPMLA_NUM_THREADS if it is a number from 1 to 1,024, else one a
/// hardware thread.
int num_threads();

/// `grain`: iterations handed out at once; a count of at most one grain runs on the caller alone.
void parallel_for(std::int64_t count, std::int64_t grain, const std::function<void(std::int64_t)>& body);

}  // namespace snapmla
