// A block's threads as fibers of one thread of the system.
#include "cuda_runtime.h"

#include "threads.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_shim {
namespace {

constexpr size_t kStackBytes = 128 << 10;

struct Barrier {
  unsigned expected = 0;
  unsigned arrived = 0;
  uint64_t generation = 0;
};

struct Fiber {
  ucontext_t context;
  void* stack = nullptr;
  void* sanitizer_state = nullptr;
  const Barrier* waits_for = nullptr;
  uint64_t generation = 0;  ///< of the barrier, when the wait began
  bool done = false;

  bool can_run() const { return !done && (waits_for == nullptr || waits_for->generation != generation); }
};

std::vector<Fiber> fibers;
std::vector<Barrier> warps;
Barrier block_barrier;
ucontext_t scheduler;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
unsigned current = 0;
const std::function<void()>* running_kernel = nullptr;
std::mt19937 generator(0);
bool shuffled = false;

// ASan keeps a shadow of the stack, which has to change with it.
void leave(void** state, const void* stack, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(state, stack, bytes);
#else
  static_cast<void>(state), static_cast<void>(stack), static_cast<void>(bytes);
#endif
}

void enter(void* state, const void** stack, size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(state, stack, bytes);
#else
  static_cast<void>(state), static_cast<void>(stack), static_cast<void>(bytes);
#endif
}

void yield() {
  Fiber& fiber = fibers[current];
  leave(fiber.done ? nullptr : &fiber.sanitizer_state, scheduler_stack, scheduler_stack_bytes);
  swapcontext(&fiber.context, &scheduler);
  enter(fiber.sanitizer_state, &scheduler_stack, &scheduler_stack_bytes);
}

void run_fiber() {
  enter(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  (*running_kernel)();
  fibers[current].done = true;
  yield();
}

void wait_at(Barrier& barrier) {
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  Fiber& fiber = fibers[current];
  fiber.waits_for = &barrier;
  fiber.generation = barrier.generation;
  yield();
  fiber.waits_for = nullptr;
}

void start(Fiber& fiber) {
  if (fiber.stack == nullptr) {
    fiber.stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    require(fiber.stack != MAP_FAILED, "no memory for a stack");
  }
  fiber.waits_for = nullptr;
  fiber.sanitizer_state = nullptr;
  fiber.done = false;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run_fiber, 0);
}

void resume(unsigned block, unsigned thread) {
  current = thread;
  blockIdx.x = block;
  threadIdx.x = thread;
  void* state = nullptr;
  leave(&state, fibers[thread].stack, kStackBytes);
  swapcontext(&scheduler, &fibers[thread].context);
  enter(state, nullptr, nullptr);
}

}  // namespace

void set_order(uint32_t seed) {
  shuffled = seed != 0;
  generator.seed(seed);
}

void wait_for_block() { wait_at(block_barrier); }
void wait_for_warp() { wait_at(warps[threadIdx.x / kWarpThreads]); }

void run_block(unsigned block, unsigned threads, const std::function<void()>& kernel) {
  running_kernel = &kernel;
  if (fibers.size() < threads) fibers.resize(threads);
  block_barrier = {threads, 0, 0};
  warps.assign((threads + kWarpThreads - 1) / kWarpThreads, {kWarpThreads, 0, 0});
  if (threads % kWarpThreads != 0) warps.back().expected = threads % kWarpThreads;
  for (unsigned thread = 0; thread < threads; ++thread) start(fibers[thread]);
  std::vector<unsigned> order(threads);
  std::iota(order.begin(), order.end(), 0U);
  for (unsigned left = threads; left > 0;) {
    if (shuffled) std::shuffle(order.begin(), order.end(), generator);
    bool progress = false;
    for (const unsigned thread : order) {
      if (!fibers[thread].can_run()) continue;
      progress = true;
      resume(block, thread);
      if (fibers[thread].done) --left;
    }
    if (!progress) {
      std::fprintf(stderr, "cuda_shim: divergent barrier: %u of %u threads of block %u wait for the others\n",
          left, threads, block);
      std::abort();
    }
  }
}

}  // namespace cuda_shim
