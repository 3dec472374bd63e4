// Which bucket takes which buffer: a matter of the order alone.
#include "engine/gradient_pool.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

namespace zerosched::detail {
namespace {

std::vector<int> chosen_buffers(const std::vector<int64_t>& order, const std::vector<int64_t>& bucket_bytes,
    const std::vector<int64_t>& buffer_bytes) {
  std::vector<int> chosen;
  for (const BufferUse& use : assign_buffers(order, bucket_bytes, buffer_bytes)) chosen.push_back(use.buffer);
  return chosen;
}

TEST(GradientPool, BuffersOfOneSizeGoRound) {
  const std::vector<int64_t> order = {2, 0, 3, 1, 4, 5, 6};
  const std::vector<int64_t> bucket_bytes(7, 100);
  for (const size_t buffers : {1U, 2U, 3U}) {
    const auto chosen = chosen_buffers(order, bucket_bytes, std::vector<int64_t>(buffers, 100));
    // Taken for the first time from the last on.
    for (size_t k = 0; k < order.size(); ++k) {
      EXPECT_EQ(chosen[k], static_cast<int>(buffers - 1 - k % buffers))
          << buffers << " buffers, position " << k;
    }
  }
}

TEST(GradientPool, AHugeBucketDoesNotMakeEveryBufferHuge) {
  const std::vector<int64_t> bucket_bytes = {10, 10, 1000, 10, 10};
  const std::vector<int64_t> order = {0, 1, 2, 3, 4};
  const auto chosen = chosen_buffers(order, bucket_bytes, {1000, 10, 10});
  EXPECT_EQ(chosen, (std::vector<int>{2, 1, 0, 2, 1}));
}

TEST(GradientPool, EveryBucketFitsAndKnowsWhoWasBefore) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 100; ++trial) {
    std::vector<int64_t> bytes(1 + random() % 12), order(bytes.size());
    for (int64_t& size : bytes) size = 1 + static_cast<int64_t>(random() % 64);
    std::iota(order.begin(), order.end(), int64_t{0});
    std::shuffle(order.begin(), order.end(), random);
    const int buffers = 1 + static_cast<int>(random() % 4);
    const auto alone = self_communicator();
    GradientPool pool(bytes, buffers, *alone, at::kCPU);
    pool.assign(order);
    std::vector<const void*> memory;
    for (size_t k = 0; k < order.size(); ++k) {
      const int64_t size = bytes[static_cast<size_t>(order[k])];
      const at::Tensor buffer = pool.view(k, size, at::kByte);  // throws if it is smaller
      const auto before = std::find(memory.rbegin(), memory.rend(), buffer.const_data_ptr());
      const int64_t expected = before == memory.rend() ? -1 : memory.rend() - before - 1;
      EXPECT_EQ(pool.user_before(k), expected);
      memory.push_back(buffer.const_data_ptr());
    }
  }
}

}  // namespace
}  // namespace zerosched::detail
