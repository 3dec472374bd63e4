// A block's threads as threads of the system, so that TSan sees them.
#include "cuda_runtime.h"

#include "threads.h"

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace cuda_shim {
namespace {

class Barrier {
 public:
  explicit Barrier(unsigned expected) : expected_(expected) {}
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const uint64_t generation = generation_;
    if (++arrived_ == expected_) {
      arrived_ = 0;
      ++generation_;
      released_.notify_all();
      return;
    }
    released_.wait(lock, [&] { return generation_ != generation; });
  }

 private:
  const unsigned expected_;
  unsigned arrived_ = 0;
  uint64_t generation_ = 0;
  std::mutex mutex_;
  std::condition_variable released_;
};

std::unique_ptr<Barrier> block_barrier;
std::vector<std::unique_ptr<Barrier>> warps;

}  // namespace

void set_order(uint32_t) {}

void wait_for_block() { block_barrier->wait(); }
void wait_for_warp() { warps[threadIdx.x / kWarpThreads]->wait(); }

void run_block(unsigned block, unsigned threads, const std::function<void()>& kernel) {
  block_barrier = std::make_unique<Barrier>(threads);
  warps.clear();
  for (unsigned first = 0; first < threads; first += kWarpThreads) {
    warps.push_back(
        std::make_unique<Barrier>(threads - first < kWarpThreads ? threads - first : kWarpThreads));
  }
  std::vector<std::thread> running;
  for (unsigned thread = 0; thread < threads; ++thread) {
    running.emplace_back([&kernel, block, thread] {
      blockIdx.x = block;
      threadIdx.x = thread;
      kernel();
    });
  }
  for (std::thread& one : running) one.join();
}

}  // namespace cuda_shim
