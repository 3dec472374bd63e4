#pragma once

#include "engine/engine.h"
#include "timeline/timed_kernels.h"
#include "timeline/timed_runtime.h"
#include "timeline/transformer.h"

#include <zerosched/adamw_schedulefree.h>
#include <zerosched/sharding_options.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace zerosched::testing {

/// One step of training, in seconds. "Hidden" is what happens while the GPU runs forward or backward, or updates;
/// "exposed" while it does nothing else.
struct StepTimes {
  double begin = 0, end = 0;  ///< on the timeline; the step's last kernel ends at `end`
  double forward = 0, backward = 0, pack = 0, update = 0;
  double reduce_scatter = 0, reduce_scatter_exposed = 0;
  double all_gather = 0, all_gather_exposed = 0;
  double host = 0;         ///< that the host worked
  int64_t host_waits = 0;  ///< times the host waited for the device
  int64_t gradient_bytes =
      0;  ///< the most that backward and step() took at once, above what there was before
  std::map<std::string, int64_t> calls;  ///< of the device, by kind

  double seconds() const { return end - begin; }
};

/// The library's engine and NCCL communicator, training a model on a timed device: rank 0 of as many as the machine has
/// GPUs, of which the others do the same.
class TimedTraining {
 public:
  struct Options {
    at::ScalarType dtype = at::kBFloat16;
    int64_t tokens = 1;
    ShardingOptions sharding;
    /// What one of LibTorch's operations costs the host, and how many a module takes; together 18 ms for a step of GPT-2, as
    /// bench_step_gpu has measured.
    double operation_call = 10e-6;
    int operations = 12;
    std::optional<double> loss_scale;  ///< steps are those of a GradScaler
    bool reads_loss = false;           ///< before the next step, so that the host is no more than one ahead
    /// Instead of the communicator's own: for designs that are to be compared with.
    std::function<std::shared_ptr<Communicator>(std::shared_ptr<Communicator>)> wrap;
    std::function<void(bool)> in_backward = [](bool) {};  ///< told when backward begins and when it has ended
  };

  TimedTraining(TimedRuntime& runtime, const std::vector<ModelPart>& parts, Options options);
  ~TimedTraining();

  /// Forward, backward and step().
  StepTimes step();
  detail::Engine& engine() const { return *engine_; }

 private:
  struct Part;
  at::Tensor forward();

  TimedRuntime& runtime_;
  TimedKernels kernels_;
  const Options options_;
  AdamWScheduleFreeOptions optimizer_options_{1e-3};
  device::Stream stream_;
  std::vector<Part> parts_;
  std::unique_ptr<detail::Engine> engine_;
  double last_end_ = 0;
};

}  // namespace zerosched::testing
