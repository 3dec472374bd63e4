#include "timeline/timed_training.h"

#include "api/optimizers.h"
#include "comm/nccl/nccl_backend.h"
#include "timeline/mirrored_communicator.h"
#include "timeline/timed_nccl.h"

#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <utility>

namespace zerosched::testing {

struct TimedTraining::Part {
  ModelPart is;
  at::Tensor weight, bias;  ///< undefined: none
};

namespace {

/// A module that takes time. What goes through the model is one number in host memory.
struct TimedModule : torch::autograd::Function<TimedModule> {
  struct Call {
    std::function<void()> forward;
    std::function<at::Tensor()> weight_gradient, bias_gradient;
    std::function<void()> backward;
  };

  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
      const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, const Call* call) {
    context->saved_data["call"] = reinterpret_cast<int64_t>(call);
    context->saved_data["weight"] = weight.has_value();
    context->saved_data["bias"] = bias.has_value();
    call->forward();
    return input.clone();
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context, const torch::autograd::variable_list& outputs) {
    const auto* call = reinterpret_cast<const Call*>(context->saved_data["call"].toInt());
    call->backward();
    torch::autograd::variable_list gradients = {outputs[0]};
    gradients.push_back(context->saved_data["weight"].toBool() ? call->weight_gradient() : at::Tensor());
    gradients.push_back(context->saved_data["bias"].toBool() ? call->bias_gradient() : at::Tensor());
    gradients.emplace_back();
    return gradients;
  }
};

std::optional<at::Tensor> if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? std::make_optional(tensor) : std::nullopt;
}

}  // namespace

TimedTraining::TimedTraining(TimedRuntime& runtime, const std::vector<ModelPart>& parts, Options options)
    : runtime_(runtime), kernels_(runtime), options_(std::move(options)), stream_(runtime.current_stream(0)) {
  NamedParameters parameters;
  const auto make = [&](const std::string& name, int64_t numel) {
    if (numel == 0) return at::Tensor();
    at::Tensor parameter = runtime_.empty(numel, options_.dtype, 0).requires_grad_();
    parameters.emplace_back(name, parameter);
    return parameter;
  };
  for (const ModelPart& part : parts) {
    // One after the other: the order in which they are registered.
    const at::Tensor weight = make(part.name + ".weight", part.weight_numel);
    parts_.push_back({part, weight, make(part.name + ".bias", part.bias_numel)});
  }
  detail::NcclOptions nccl;
  nccl.api = &timed_nccl(runtime);
  nccl.runtime = &runtime;
  nccl.watch_seconds = 0.2;
  MirroredCommunicator others(runtime.model().gpus);
  auto communicator = detail::make_nccl_communicator(others, std::nullopt, nccl);
  if (options_.wrap) communicator = options_.wrap(std::move(communicator));
  engine_ = std::make_unique<detail::Engine>(std::vector<ParameterGroup>{ParameterGroup(parameters)},
      std::move(communicator), optimizer_options_, options_.sharding,
      detail::optimizer_entry("AdamWScheduleFree").algorithm(), detail::DeviceBackend{&runtime_, &kernels_});
  engine_->watch_options([this] { return detail::GroupOptions{&optimizer_options_}; });
}

TimedTraining::~TimedTraining() = default;

StepTimes TimedTraining::step() {
  if (options_.reads_loss) runtime_.synchronize(stream_);
  const double host_begin = runtime_.now();
  const size_t first_span = runtime_.timeline().spans().size();
  const int64_t blocks = runtime_.timeline().blocks();
  runtime_.take_calls();
  std::vector<TimedModule::Call> calls;
  calls.reserve(parts_.size());
  const double flops = runtime_.model().flops;
  at::Tensor value = at::zeros({}).requires_grad_();
  for (const Part& part : parts_) {
    const double seconds = std::max(runtime_.model().kernel_start,
        part.is.flops_per_token * static_cast<double>(options_.tokens) / flops);
    const auto compute = [this, &part](Phase phase, double duration) {
      runtime_.work(options_.operations * options_.operation_call, phase, part.is.name.c_str());
      runtime_.queue(stream_, duration, 0, phase, part.is.name);
    };
    const auto gradient_of = [this](const at::Tensor& parameter) {
      return [this, numel = parameter.defined() ? parameter.numel() : 0] {
        return runtime_.empty(numel, options_.dtype, 0);
      };
    };
    calls.push_back({[=] { compute(Phase::forward, seconds); }, gradient_of(part.weight),
        gradient_of(part.bias), [=] { compute(Phase::backward, 2 * seconds); }});
    value = TimedModule::apply(value, if_defined(part.weight), if_defined(part.bias), &calls.back());
  }
  const int64_t before = runtime_.allocated_bytes();
  runtime_.take_peak_bytes();
  options_.in_backward(true);
  value.backward();
  options_.in_backward(false);
  if (options_.loss_scale) {
    engine_->step_scaled({&optimizer_options_}, *options_.loss_scale);
  } else {
    engine_->step({&optimizer_options_});
  }

  StepTimes times;
  times.begin = last_end_;
  times.end = last_end_ = runtime_.end_of(stream_);
  times.gradient_bytes = runtime_.take_peak_bytes() - before;
  times.calls = runtime_.take_calls();
  times.host_waits = runtime_.timeline().blocks() - blocks;
  times.host = runtime_.now() - host_begin;
  const auto& spans = runtime_.timeline().spans();
  for (size_t s = first_span; s < spans.size(); ++s) {
    if (spans[s].lane == Timeline::kHost && spans[s].phase == Phase::waiting)
      times.host -= spans[s].end - spans[s].begin;
  }
  const auto periods = [&](Phase phase) { return Periods::of(spans, phase, times.begin, times.end); };
  const Periods model = periods(Phase::forward).with(periods(Phase::backward));
  times.forward = periods(Phase::forward).seconds();
  times.backward = periods(Phase::backward).seconds();
  times.pack = periods(Phase::pack).seconds();
  times.update = periods(Phase::update).seconds();
  times.reduce_scatter = periods(Phase::reduce_scatter).seconds();
  times.reduce_scatter_exposed = periods(Phase::reduce_scatter).without(model).seconds();
  times.all_gather = periods(Phase::all_gather).seconds();
  times.all_gather_exposed = periods(Phase::all_gather).without(model.with(periods(Phase::update))).seconds();
  return times;
}

}  // namespace zerosched::testing
