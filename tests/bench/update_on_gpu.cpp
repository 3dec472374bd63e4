#include "bench/update_on_gpu.h"

#include "bench/gpu_timing.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/device_memory.h"
#include "kernels/kernels.h"
#include "kernels/ranges.h"

#include <algorithm>
#include <cstdlib>
#include <random>
#include <vector>

namespace zerosched::testing {

namespace {

namespace gpu = kernels::cuda;  // cuda alone is the toolkit's
using c10::ScalarType;
using kernels::Rule;
using kernels::StepScalars;
using kernels::testing::Array;
using kernels::testing::CudaStream;
using kernels::testing::DeviceMemory;

constexpr int64_t kRow = 1024;
constexpr int64_t kBlock = 1024 * kRow;

size_t state_tensors(Rule rule) { return rule == Rule::adamw_schedule_free || rule == Rule::adamw ? 3 : 2; }
bool has_squares(Rule rule) { return state_tensors(rule) == 3; }

/// Normal numbers, or their squares, 0 in a share of the rows that is the same for all tensors.
Array random_block(ScalarType dtype, uint32_t seed, double zero_rows, bool squares) {
  std::mt19937 generator(seed), rows(1);
  std::normal_distribution<double> normal(0.0, 0.1);
  std::bernoulli_distribution is_zero(zero_rows);
  Array block(dtype, kBlock);
  for (int64_t row = 0; row < kBlock / kRow; ++row) {
    const bool zero = is_zero(rows);
    for (int64_t i = 0; i < kRow; ++i) {
      const double value = zero ? 0.0 : normal(generator);
      block.set(row * kRow + i, squares ? value * value : value);
    }
  }
  return block;
}

/// Fills memory with copies of the block, a whole number of elements.
void spread(const DeviceMemory& memory, size_t bytes, const Array& block) {
  size_t done = std::min(bytes, block.byte_count());
  ZEROSCHED_CHECK_CUDA(cudaMemcpy(memory.data(), block.data(), done, cudaMemcpyHostToDevice));
  for (; done < bytes; done = std::min(bytes, 2 * done)) {
    const size_t more = std::min(done, bytes - done);
    ZEROSCHED_CHECK_CUDA(
        cudaMemcpy(memory.data<char>() + done, memory.data(), more, cudaMemcpyDeviceToDevice));
  }
  ZEROSCHED_CHECK_CUDA(cudaDeviceSynchronize());
}

/// Of `bytes` in `pieces`, read and written together.
double copy_rate(size_t bytes, int64_t pieces, int repetitions, cudaStream_t stream) {
  const size_t piece = bytes / 2 / static_cast<size_t>(pieces);
  const size_t all = piece * static_cast<size_t>(pieces);
  const DeviceMemory from(all), to(all);
  spread(from, all, random_block(ScalarType::Float, 1, 0, false));
  const double seconds = median_seconds(stream, repetitions, [&] {
    for (size_t at = 0; at < all; at += piece) {
      ZEROSCHED_CHECK_CUDA(cudaMemcpyAsync(
          to.data<char>() + at, from.data<char>() + at, piece, cudaMemcpyDeviceToDevice, stream));
    }
  });
  return 2.0 * static_cast<double>(all) / seconds;
}

StepScalars an_ordinary_step() {
  StepScalars step;
  step.lr = 1e-3, step.beta1 = 0.9, step.beta2 = 0.99, step.bias_correction1 = 0.5;
  step.bias_correction2 = 0.5, step.eps = 1e-8, step.weight_decay = 0.1;
  step.y_weight_before = 0.1, step.y_weight = 0.1, step.c = 0.01;
  return step;
}

/// Parameters, gradients and state of all launches.
class Shards {
 public:
  explicit Shards(const UpdateCase& c)
      : case_(c),
        y_(bytes_of(c.param)),
        g_(bytes_of(c.grad)),
        spans_(static_cast<size_t>(c.launches * c.spans) * sizeof(gpu::GradientSpan)),
        scalars_(sizeof(StepScalars)),
        step_(an_ordinary_step()) {
    spread(y_, bytes_of(c.param), random_block(c.param, 2, 0, false));
    spread(g_, bytes_of(c.grad), random_block(c.grad, 3, c.zero_rows, false));
    const ScalarType state = kernels::state_dtype(c.param);
    for (size_t i = 0; i < state_tensors(c.rule); ++i) {
      const bool is_v = i == 2 && has_squares(c.rule);
      state_.emplace_back(bytes_of(state));
      spread(state_.back(), bytes_of(state),
          random_block(state, static_cast<uint32_t>(4 + i), is_v ? c.zero_rows : 0, is_v));
    }
    std::vector<gpu::GradientSpan> table;
    const int64_t numel = c.numel / c.spans;
    for (int64_t begin = 0; begin < c.numel * c.launches; begin += numel) {
      table.push_back({g_.data<char>() + begin * static_cast<int64_t>(c10::elementSize(c.grad)), begin, numel,
          nullptr, y_.data<char>() + begin * static_cast<int64_t>(c10::elementSize(c.param))});
    }
    spans_.write(table.data());
    scalars_.write(&step_);
  }

  void update(cudaStream_t stream) const {
    for (int64_t launch = 0; launch < case_.launches; ++launch) {
      gpu::ShardUpdate shard{{}, case_.numel, spans_.data<gpu::GradientSpan>() + launch * case_.spans,
          case_.spans, scalars_.data<StepScalars>(), nullptr};
      for (size_t i = 0; i < state_.size(); ++i) shard.state[i] = state_[i].data();
      gpu::update(case_.rule, step_, case_.param, case_.grad, shard, stream);
    }
  }

 private:
  size_t bytes_of(ScalarType dtype) const {
    return static_cast<size_t>(case_.numel * case_.launches) * c10::elementSize(dtype);
  }

  UpdateCase case_;
  DeviceMemory y_, g_, spans_, scalars_;
  StepScalars step_;
  std::vector<DeviceMemory> state_;
};

}  // namespace

int64_t bytes_per_element(const UpdateCase& c) {
  return static_cast<int64_t>(c10::elementSize(c.param) + c10::elementSize(c.grad) +
                              2 * state_tensors(c.rule) * c10::elementSize(kernels::state_dtype(c.param)));
}

int64_t bytes_needed(const UpdateCase& c) {
  // The copy: what the update moves is as much as both of its arrays hold.
  return c.numel * c.launches * bytes_per_element(c);
}

UpdateRates measure(const UpdateCase& c, int repetitions) {
  const CudaStream stream;
  UpdateRates rates;
  const int64_t moved = c.numel * c.launches * bytes_per_element(c);
  rates.one_copy = copy_rate(static_cast<size_t>(moved), 1, repetitions, stream);
  rates.copies = c.launches == 1 ? rates.one_copy
                                 : copy_rate(static_cast<size_t>(moved), c.launches, repetitions, stream);
  const Shards shards(c);
  const double seconds = median_seconds(stream, repetitions, [&] { shards.update(stream); });
  rates.update = static_cast<double>(moved) / seconds;
  rates.seconds = seconds / static_cast<double>(c.launches);
  return rates;
}

}  // namespace zerosched::testing
