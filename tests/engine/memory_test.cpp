// Bytes: optimizer state, and what gradients take while they arrive.
#include "engine/passing_communicator.h"
#include "engine/toy.h"
#include "support/world.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>

namespace zerosched::testing {
namespace {

/// Counts the bytes that LibTorch's CPU tensors hold, while it lives.
class CountingAllocator final : public c10::Allocator {
 public:
  CountingAllocator() : inner_(c10::GetCPUAllocator()) { c10::SetAllocator(c10::kCPU, this); }
  ~CountingAllocator() override { c10::SetAllocator(c10::kCPU, inner_); }

  c10::DataPtr allocate(size_t bytes) override {
    auto* block = new Block{inner_->allocate(bytes), bytes};
    const int64_t live = counters().live.fetch_add(static_cast<int64_t>(bytes)) + static_cast<int64_t>(bytes);
    int64_t peak = counters().peak.load();
    while (live > peak && !counters().peak.compare_exchange_weak(peak, live)) {
    }
    void* const data = block->data.get();
    return {data, block, &release, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

  static int64_t live() { return counters().live; }
  static int64_t peak() { return counters().peak; }
  static void restart_peak() { counters().peak = counters().live.load(); }

 private:
  struct Block {
    c10::DataPtr data;
    size_t bytes;
  };
  struct Counters {
    std::atomic<int64_t> live{0}, peak{0};
  };
  // Tensors may outlive the allocator.
  static Counters& counters() {
    static Counters instance;
    return instance;
  }
  static void release(void* context) {
    auto* block = static_cast<Block*>(context);
    counters().live -= static_cast<int64_t>(block->bytes);
    delete block;
  }
  c10::Allocator* inner_;
};

/// All its memory is LibTorch's, which is counted, and not shared with other processes; and a reduce-scatter has ended when
/// its launch returns, so that nothing depends on how fast peers are.
class CountedCommunicator final : public PassingCommunicator {
 public:
  using PassingCommunicator::PassingCommunicator;
  std::shared_ptr<Communicator> duplicate() override {
    return std::make_shared<CountedCommunicator>(inner().duplicate());
  }

 private:
  at::Tensor do_allocate(int64_t numel, at::ScalarType dtype, at::Device device, Collective) override {
    return at::empty({numel}, at::TensorOptions().dtype(dtype).device(device));
  }
  std::shared_ptr<Work> launched(
      Collective kind, const CollectiveLabel&, std::shared_ptr<Work> work) override {
    if (kind == Collective::reduce_scatter) work->wait();
    return work;
  }
};

int64_t bytes_of(const NamedParameters& parameters) {
  int64_t bytes = 0;
  for (const auto& named : parameters) bytes += static_cast<int64_t>(named.second.nbytes());
  return bytes;
}

// A decoder-only transformer of width 512 with 6 layers over bytes: 19 million parameters.
std::vector<std::vector<int64_t>> transformer_shapes() {
  std::vector<std::vector<int64_t>> shapes = {{256, 512}, {64, 512}};
  for (int layer = 0; layer < 6; ++layer) {
    for (const auto& shape : std::vector<std::vector<int64_t>>{{512}, {512}, {1536, 512}, {1536}, {512, 512},
             {512}, {512}, {512}, {2048, 512}, {2048}, {512, 2048}, {512}}) {
      shapes.push_back(shape);
    }
  }
  shapes.insert(shapes.end(), {{512}, {512}, {256, 512}, {256}});
  return shapes;
}

TEST(Memory, StateIsTwelveBytesPerParameterOverAllRanks) {
  NamedParameters parameters;
  for (const auto& shape : transformer_shapes()) {
    parameters.emplace_back("p" + std::to_string(parameters.size()), at::zeros(shape).requires_grad_());
  }
  const int64_t count = bytes_of(parameters) / 4;
  ASSERT_GT(count, 18'500'000);
  ASSERT_LT(count, 19'500'000);
  const AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  const double exact = 12.0 * static_cast<double>(count) / world()->size();
  EXPECT_GE(static_cast<double>(optimizer.state_bytes()), exact);
  EXPECT_LT(static_cast<double>(optimizer.state_bytes()), exact * 1.01);
}

TEST(Memory, StateOf16BitsIsFloat32AndOfFloat64IsFloat64) {
  for (const auto& [dtype, bytes] :
      {std::pair(at::kBFloat16, 12), std::pair(at::kHalf, 12), std::pair(at::kDouble, 24)}) {
    const NamedParameters parameters = make_parameters({{100000}}, dtype);
    const AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
    const double exact = bytes * 100000.0 / world()->size();
    EXPECT_GE(static_cast<double>(optimizer.state_bytes()), exact);
    EXPECT_LT(static_cast<double>(optimizer.state_bytes()), exact * 1.01);
  }
}

// Reduce-scatters end at once here, as on an ideal network. What is left is the pool, the gradient that
// backward is making, and this rank's slice of the sum.
TEST(Memory, GradientsThatArriveInOrderTakeThePoolAndOneParameter) {
  const int size = world()->size();
  if (size == 1) return;  // gradients stay where backward put them
  constexpr int64_t kParameter = 64 << 10;
  constexpr int64_t kBucket = 4 * kParameter;
  constexpr int kBuffers = 2;
  NamedParameters parameters;
  for (int i = 0; i < 64; ++i) {
    parameters.emplace_back("p" + std::to_string(i), at::zeros({kParameter / 4}).requires_grad_());
  }
  const int64_t model = bytes_of(parameters);
  const CountingAllocator allocator;
  const int64_t before = CountingAllocator::live();
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, std::make_shared<CountedCommunicator>(world()),
      AdamWScheduleFreeOptions(), buckets_of(kBucket).bucket_buffers(kBuffers));
  // Parameters were allocated before the count began and now live in new buffers.
  const int64_t held_by_gradients = CountingAllocator::live() - before - model - optimizer.state_bytes();
  EXPECT_GE(held_by_gradients, kBuffers * kBucket + model / size);
  EXPECT_LT(held_by_gradients, kBuffers * kBucket + model / size + model / 20);

  for (int step = 0; step < 3; ++step) {
    at::Tensor loss;
    for (const auto& named : parameters) {
      const at::Tensor term = named.second.sum();
      loss = loss.defined() ? loss + term : term;
    }
    const int64_t at_start = CountingAllocator::live();
    CountingAllocator::restart_peak();
    loss.backward();
    const int64_t peak = CountingAllocator::peak() - at_start;
    EXPECT_GE(peak, kParameter);
    EXPECT_LT(peak, kParameter + (64 << 10)) << "of a model of " << model << " bytes";
    for (const auto& named : parameters) EXPECT_FALSE(named.second.grad().defined());
    CountingAllocator::restart_peak();
    optimizer.step();
    EXPECT_LT(CountingAllocator::peak() - at_start, 64 << 10) << "step() allocates nothing of size";
  }
}

}  // namespace
}  // namespace zerosched::testing
