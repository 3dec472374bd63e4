#pragma once

#include "engine/engine.h"
#include "engine/toy.h"

#include <functional>
#include <memory>
#include <optional>
#include <vector>

// The same training on the CPU and on a device, to be compared bit for bit.
namespace zerosched::testing {

/// What is trained, as it is before the first step.
NamedParameters first_parameters(at::ScalarType dtype = at::kFloat);
/// Of these shapes.
NamedParameters first_parameters(const std::vector<std::vector<int64_t>>& shapes, at::ScalarType dtype);
/// Of the parameters of a job that says nothing else.
std::vector<std::vector<int64_t>> usual_shapes();

/// Everything but where it runs.
struct Job {
  std::vector<std::vector<int64_t>> shapes = usual_shapes();
  int64_t bucket_bytes = 400;
  bool uses_all = false;  ///< else there is a parameter that is not used in every step
  at::ScalarType dtype = at::kFloat;
  bool mixes_dtypes = false;  ///< float64, float32 and float16 by turns, and not `dtype`
  std::optional<at::ScalarType> reduce_dtype;
  int buffers = 2;
  std::optional<double> max_grad_norm;
  bool loss_scaling = false;
  bool asks_norms = true;    ///< with loss scaling, after each step
  bool overflows = false;    ///< an inf on rank 0 in the second step
  bool skips = false;        ///< such a step
  bool ignores = false;      ///< or takes no notice
  bool lr_differs = false;   ///< on the last rank, from the second step on
  bool lr_changes = false;   ///< in every step, on all ranks alike
  bool accumulates = false;  ///< a backward in no_sync() before the other
  bool overlaps = true;
  bool weighs = false;  ///< ranks by their numbers
  bool joins = false;   ///< all but rank 0 run out before the last step
  bool clips_by_function = false;
  bool clips_values = false;
  bool overlaps_forward = false;  ///< and y is read parameter by parameter, each after a ready() of its own
  bool checks_ready = false;
  int64_t forgets_ready = -1;      ///< a parameter that is read without
  bool by_loss = false;            ///< AdamWScheduleFreePlus
  bool waits_by_train = false;     ///< for all of y at once, by a call that does nothing else
  bool ends_in_exception = false;  ///< which the optimizer's scope is left by
  int64_t steps = 3;
};

/// One of each option and dtype.
std::vector<Job> jobs();

/// What comes out of it, in host memory.
struct Outcome {
  std::vector<at::Tensor> y_at_start;  ///< of each step, as its forward sees it
  std::vector<double> norms;           ///< of each step with loss scaling if asked for, else of the last
  State state;
  at::Tensor y_at_end;  ///< once the optimizer is gone
};

/// All bits, for EXPECT_TRUE.
bool same_bits(const Outcome& a, const Outcome& b);
/// All bits, saying which differ.
void expect_same_bits(const Outcome& a, const Outcome& b);

/// Trains with gradients that are given: they do not depend on the parameters.
class Trainer {
 public:
  virtual ~Trainer() = default;
  Outcome run(const Job& job);
  detail::Engine& engine() const { return *engine_; }
  std::function<void()> before_it_goes = [] {};
  std::function<void(const std::shared_ptr<detail::StepOutcome>&)> after_scaled_step = [](const auto&) {};

 protected:
  virtual std::shared_ptr<Communicator> communicator() = 0;
  virtual detail::DeviceBackend backend() { return {}; }
  /// A copy of a parameter's first values, where it is to live.
  virtual at::Tensor place(const at::Tensor& value) = 0;
  virtual at::Tensor to_host(const at::Tensor& tensor) = 0;
  /// A copy of all parameters, flat, as they are when the trainer's stream gets there.
  virtual at::Tensor y_now();
  /// Before parameter `index` is read.
  virtual void ready(size_t index);
  /// Around what the parameter's part of forward queues.
  virtual std::shared_ptr<void> forward_of(int64_t) { return nullptr; }
  /// Called by backward.
  virtual at::Tensor make_gradient(const at::Tensor& value, int64_t parameter) = 0;
  virtual void begin_step(int64_t) {}
  virtual void begin_backward() {}
  virtual void after_backward() {}
  /// Before what the trainer does with the gradients.
  virtual void end_backward() {}
  virtual void end() {}

  NamedParameters parameters_;
  const Job& job() const { return job_; }

 private:
  void backward(int64_t step);

  Job job_;
  std::unique_ptr<torch::optim::OptimizerOptions> options_;
  std::shared_ptr<detail::Engine> engine_;
};

/// Over testing::world().
Outcome on_host(const Job& job);

}  // namespace zerosched::testing
