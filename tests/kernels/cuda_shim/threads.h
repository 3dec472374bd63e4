#pragma once

#include <functional>

namespace cuda_shim {

inline constexpr unsigned kWarpThreads = 32;

/// Runs a block's threads to their ends; fibers.cpp or os_threads.cpp.
void run_block(unsigned block, unsigned threads, const std::function<void()>& kernel);

}  // namespace cuda_shim
