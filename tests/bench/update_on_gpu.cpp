#include "bench/update_on_gpu.h"

#include "bench/gpu_data.h"
#include "bench/gpu_timing.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/device_memory.h"
#include "kernels/kernels.h"

#include <vector>

namespace zerosched::testing {

namespace {

namespace gpu = kernels::cuda;  // cuda alone is the toolkit's
using c10::ScalarType;
using kernels::Rule;
using kernels::StepScalars;
using kernels::testing::CudaStream;
using kernels::testing::DeviceMemory;

size_t state_tensors(Rule rule) { return rule == Rule::adamw_schedule_free || rule == Rule::adamw ? 3 : 2; }
bool has_squares(Rule rule) { return state_tensors(rule) == 3; }

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
        spans_(static_cast<size_t>(c.launches * c.spans) * sizeof(gpu::SpanOnDevice)),
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
    std::vector<gpu::SpanOnDevice> table;
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
      gpu::ShardUpdate shard{{}, case_.numel, spans_.data<gpu::SpanOnDevice>() + launch * case_.spans,
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
