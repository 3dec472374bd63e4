#include "engine/device_training.h"

#include "api/optimizers.h"
#include "support/gather.h"
#include "support/world.h"

#include <zerosched/adamw_schedulefree_plus.h>

#include <torch/csrc/autograd/custom_function.h>

#include <limits>

namespace zerosched::testing {
namespace {

// Backward of a tensor that gives it whatever gradient the source makes.
struct GivenGradient : torch::autograd::Function<GivenGradient> {
  using Source = std::function<at::Tensor()>;
  static std::map<int64_t, Source> sources;

  static at::Tensor forward(
      torch::autograd::AutogradContext* context, const at::Tensor& parameter, int64_t index) {
    context->saved_data["index"] = index;
    return at::zeros({}, parameter.options().dtype(at::kFloat));
  }
  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context, const torch::autograd::variable_list&) {
    return {sources.at(context->saved_data["index"].toInt())(), at::Tensor()};
  }
};
std::map<int64_t, GivenGradient::Source> GivenGradient::sources;

// The one that is not used in every step, and on no rank in the second.
constexpr int64_t kSometimesUnused = 3;

class HostTrainer final : public Trainer {
  std::shared_ptr<Communicator> communicator() override { return world()->duplicate(); }
  at::Tensor place(const at::Tensor& value) override { return value.clone(); }
  at::Tensor to_host(const at::Tensor& tensor) override { return tensor; }
  at::Tensor make_gradient(const at::Tensor& value, int64_t) override { return value.clone(); }
};

}  // namespace

NamedParameters first_parameters(const std::vector<std::vector<int64_t>>& shapes, at::ScalarType dtype) {
  return make_parameters(shapes, dtype);
}
NamedParameters first_parameters(at::ScalarType dtype) { return first_parameters(usual_shapes(), dtype); }
std::vector<std::vector<int64_t>> usual_shapes() { return {{40}, {7, 5}, {3}, {64}, {90}, {11}}; }

std::vector<Job> jobs() {
  std::vector<Job> all(21);
  all[1].buffers = 1;
  all[2].overlaps = false;
  all[3].max_grad_norm = 1.0;
  all[4].dtype = at::kBFloat16;
  all[4].accumulates = true;  // float32 gradients are added by LibTorch, not by us
  all[5].dtype = at::kHalf;
  all[5].loss_scaling = true;
  all[6].dtype = at::kDouble;
  all[7].dtype = at::kBFloat16;
  all[7].reduce_dtype = at::kFloat;
  all[8].loss_scaling = true;
  all[8].overflows = true;
  all[9].weighs = true;
  all[10].weighs = all[10].joins =
      true;  // on a device ranks only look for others that have joined if they weigh
  all[11].clips_by_function = true;
  all[12].clips_values = all[12].clips_by_function = true;
  all[12].overlaps = false;
  all[13].mixes_dtypes = all[14].mixes_dtypes = true;
  all[13].max_grad_norm = 1;
  all[14].overlaps = false;
  all[14].clips_by_function = true;
  for (size_t j = 15; j < all.size(); ++j) all[j].overlaps_forward = true;
  all[16].checks_ready = true;
  all[17].overlaps = false;
  all[17].max_grad_norm = 1;
  all[18].weighs = all[18].joins = all[18].checks_ready = true;
  all[19].dtype = at::kHalf;
  all[19].loss_scaling = all[19].overflows = true;
  all[20].reduce_dtype = at::kBFloat16;
  all[20].max_grad_norm = 1;
  Job by_loss;
  by_loss.by_loss = by_loss.overlaps_forward = true;
  all.push_back(by_loss);
  by_loss.max_grad_norm = 1;
  by_loss.weighs = by_loss.joins = true;
  all.push_back(by_loss);
  by_loss.joins = false;
  by_loss.dtype = at::kHalf;
  by_loss.loss_scaling = by_loss.overflows = true;
  all.push_back(by_loss);
  return all;
}

bool same_bits(const Outcome& a, const Outcome& b) {
  if (a.norms != b.norms || a.y_at_start.size() != b.y_at_start.size()) return false;
  for (size_t i = 0; i < a.y_at_start.size(); ++i) {
    if (!same_bits(a.y_at_start[i], b.y_at_start[i])) return false;
  }
  for (const auto& [name, tensors] : a.state) {
    for (const auto& [parameter, tensor] : tensors) {
      if (!same_bits(tensor, b.state.at(name).at(parameter))) return false;
    }
  }
  return same_bits(a.y_at_end, b.y_at_end);
}

void expect_same_bits(const Outcome& a, const Outcome& b) {
  EXPECT_EQ(a.norms, b.norms);
  ASSERT_EQ(a.y_at_start.size(), b.y_at_start.size());
  for (size_t i = 0; i < b.y_at_start.size(); ++i) {
    EXPECT_TRUE(same_bits(a.y_at_start[i], b.y_at_start[i])) << "y before step " << i;
  }
  expect_same_bits(a.state, b.state);
  EXPECT_TRUE(same_bits(a.y_at_end, b.y_at_end)) << "y at the end";
}

Outcome Trainer::run(const Job& job) {
  job_ = job;
  for (const auto& [name, value] : first_parameters(job.shapes, job.dtype)) {
    const at::ScalarType by_turns[] = {at::kDouble, at::kFloat, at::kHalf};
    const at::ScalarType dtype = job.mixes_dtypes ? by_turns[parameters_.size() % 3] : job.dtype;
    const at::Tensor mine = place(value.detach().to(dtype)).view(value.sizes());
    parameters_.emplace_back(name, mine.requires_grad_());
  }
  ShardingOptions sharding = buckets_of(job.bucket_bytes);
  sharding.bucket_buffers(job.buffers).overlap_backward(job.overlaps);
  sharding.overlap_forward(job.overlaps_forward).check_ready(job.checks_ready);
  if (job.skips) sharding.non_finite(NonFinite::skip);
  if (job.ignores) sharding.non_finite(NonFinite::ignore);
  if (job.max_grad_norm) sharding.max_grad_norm(*job.max_grad_norm);
  if (job.reduce_dtype) sharding.reduce_dtype(*job.reduce_dtype);
  const std::vector<ParameterGroup> groups = {ParameterGroup(parameters_)};
  auto algorithm =
      detail::optimizer_entry(job.by_loss ? "AdamWScheduleFreePlus" : "AdamWScheduleFree").algorithm();
  if (job.by_loss) {
    options_ = std::make_unique<AdamWScheduleFreePlusOptions>(
        AdamWScheduleFreePlusOptions(0.5).weight_decay(10).polyak_beta(0.5));
  } else {
    options_ = std::make_unique<AdamWScheduleFreeOptions>(AdamWScheduleFreeOptions(0.01).weight_decay(0.1));
  }
  const detail::GroupOptions options = {options_.get()};
  engine_ = std::make_shared<detail::Engine>(
      groups, communicator(), *options_, sharding, std::move(algorithm), backend());
  engine_->watch_options([options] { return options; });
  Outcome outcome;
  for (int64_t step = 0; step < job.steps; ++step) {
    begin_step(step);
    if (job.lr_differs && step == 1 && world_rank() + 1 == world_size()) options_->set_lr(0.02);
    if (job.lr_changes) options_->set_lr(0.01 * static_cast<double>(step + 1));
    if (job.joins && world_rank() > 0 && step + 1 == job.steps) break;
    outcome.y_at_start.push_back(y_now());
    if (job.weighs) engine_->step_weight(1 + world_rank());
    if (job.accumulates) {
      engine_->enter_no_sync();
      backward(step + 100);
      engine_->leave_no_sync();
    }
    begin_backward();
    backward(step);
    end_backward();
    if (job.clips_values) engine_->clip_grad_value(options, 0.5);
    if (job.clips_by_function) outcome.norms.push_back(engine_->clip_grad_norm(options, 1.0, 2.0));
    engine_->set_loss(at::full({}, 0.5 + 0.25 * static_cast<double>(step + world_rank())));
    if (job.loss_scaling) {
      after_scaled_step(engine_->step_scaled(options, 4.0));
      if (job.asks_norms) outcome.norms.push_back(engine_->grad_norm());
    } else {
      engine_->step(options);
    }
    // What LibTorch would add to, at once and not in a stream.
    if (!job.overlaps && step + 1 < job.steps) engine_->zero_grad(true);
  }
  if (job.joins) engine_->join(options);
  end();
  // join() ends with a round of its own.
  if (outcome.norms.empty() && !job.joins) outcome.norms.push_back(engine_->grad_norm());
  for (at::Tensor& y : outcome.y_at_start) y = to_host(y);
  for (const char* which : {"z", "x", "v", "y"}) outcome.state[which] = engine_->full_state(which);
  before_it_goes();
  try {
    const auto gone = std::move(engine_);
    if (job.ends_in_exception) throw std::runtime_error("trained enough");
  } catch (const std::runtime_error&) {
    // What is meant.
  }
  outcome.y_at_end = to_host(y_now());
  return outcome;
}

at::Tensor Trainer::y_now() {
  std::vector<at::Tensor> all;
  for (size_t p = 0; p < parameters_.size(); ++p) {
    ready(p);
    all.push_back(parameters_[p].second.detach().reshape({-1}));
  }
  return at::cat(all);
}

void Trainer::ready(size_t index) {
  if (!engine_ || static_cast<int64_t>(index) == job_.forgets_ready) return;
  job_.waits_by_train ? engine_->train() : engine_->ready(parameters_[index].second);
}

void Trainer::backward(int64_t step) {
  const int rank = world_rank();
  at::Tensor loss = at::zeros({});
  GivenGradient::sources.clear();
  for (size_t p = 0; p < parameters_.size(); ++p) {
    const auto index = static_cast<int64_t>(p);
    if (!job_.uses_all && index == kSometimesUnused && (step == 1 || (step + rank) % 3 == 0)) continue;
    const at::Tensor value = random_like(parameters_[p].second.detach(), step, rank, index);
    if (job_.overflows && step == 1 && rank == 0)
      value.view({-1})[0] = std::numeric_limits<double>::infinity();
    GivenGradient::sources[index] = [this, value, index] { return make_gradient(value, index); };
    const auto forward = forward_of(index);
    loss = loss + GivenGradient::apply(parameters_[p].second, index);
  }
  loss.backward();
  // Hooks bring their streams with them. Where there are none, LibTorch's own order counts.
  if (!job_.overlaps) after_backward();
}

Outcome on_host(const Job& job) { return HostTrainer().run(job); }

}  // namespace zerosched::testing
