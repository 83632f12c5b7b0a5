#include "core/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace snapmla {
namespace {

thread_local bool inside_parallel_for = false;

int threads_from_environment() {
  const char* text = std::getenv("SNAPMLA_NUM_THREADS");
  if (text != nullptr) {
    char* end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (end != text && *end == '\0' && value >= 1 && value <= 1024) return static_cast<int>(value);
  }
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// Workers sleep between jobs. One job runs at a time; a second caller waits its turn.
class Pool {
 public:
  explicit Pool(int workers) {
    threads_.reserve(static_cast<std::size_t>(workers));
    for (int i = 0; i < workers; ++i) threads_.emplace_back([this] { work(); });
  }

  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  ~Pool() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void run(std::int64_t count, std::int64_t grain, const std::function<void(std::int64_t)>& body) {
    const std::lock_guard turn(turn_);
    {
      const std::lock_guard lock(mutex_);
      body_ = &body;
      count_ = count;
      grain_ = grain;
      next_ = 0;
      error_ = nullptr;
      running_ = static_cast<int>(threads_.size());
      ++job_;
    }
    wake_.notify_all();
    take_iterations();
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return running_ == 0; });
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void work() {
    std::uint64_t seen = 0;
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || job_ != seen; });
        if (stopping_) return;
        seen = job_;
      }
      take_iterations();
      const std::lock_guard lock(mutex_);
      if (--running_ == 0) done_.notify_one();
    }
  }

  void take_iterations() {
    inside_parallel_for = true;
    try {
      for (;;) {
        const std::int64_t begin = next_.fetch_add(grain_);
        if (begin >= count_) break;
        const std::int64_t end = std::min(begin + grain_, count_);
        for (std::int64_t i = begin; i < end; ++i) (*body_)(i);
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      next_ = count_;
    }
    inside_parallel_for = false;
  }

  std::mutex turn_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  std::vector<std::thread> threads_;
  const std::function<void(std::int64_t)>* body_ = nullptr;
  std::int64_t count_ = 0;
  std::int64_t grain_ = 1;
  std::atomic<std::int64_t> next_ = 0;
  std::exception_ptr error_;
  int running_ = 0;
  std::uint64_t job_ = 0;
  bool stopping_ = false;
};

}  // namespace

int num_threads() {
  static const int threads = threads_from_environment();
  return threads;
}

void parallel_for(std::int64_t count, std::int64_t grain, const std::function<void(std::int64_t)>& body) {
  if (count <= grain || num_threads() == 1 || inside_parallel_for) {
    for (std::int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  static Pool pool(num_threads() - 1);
  pool.run(count, grain, body);
}

}  // namespace snapmla
