#include "engine/optimizer_state.h"

#include "engine/equal_on_ranks.h"
#include "engine/parameter_claim.h"
#include "kernels/kernels.h"

#include <ATen/ops/empty.h>

#include <cmath>
#include <utility>

namespace zerosched::detail {

OptimizerState::OptimizerState(std::shared_ptr<Communicator> communicator,
    std::unique_ptr<Algorithm> algorithm, Model model, Layout layout, size_t group_count)
    : communicator_(std::move(communicator)),
      algorithm_(std::move(algorithm)),
      model_(std::move(model)),
      layout_(std::move(layout)),
      groups_(group_count) {}

void OptimizerState::allocate(
    const std::vector<const torch::optim::OptimizerOptions*>& options, bool broadcasts) {
  parameters_ =
      std::make_unique<FlatParameters>(model_.parameters, model_.names, layout_, *communicator_, *executor_);
  if (broadcasts) broadcast_parameters();
  put_parameters_into_boxes();
  algorithm_->settle(options);
  shards_ = make_state(layout_, algorithm_->state().size(), *executor_);
  start_shards_at_parameters();
}

void OptimizerState::broadcast_parameters() {
  std::vector<at::Tensor> buffers;
  for (int64_t b = 0; b < layout_.bucket_count(); ++b) {
    buffers.push_back(parameters_->buffer(b));
  }
  broadcast_values(*communicator_, buffers);
  parameters_->mark_written();
}

// Where x and y begin they stay: both are means of iterates, which every step keeps in the group's box.
void OptimizerState::put_parameters_into_boxes() {
  for (size_t p = 0; p < model_.parameters.size(); ++p) {
    const ClampBounds& box = model_.clamps[static_cast<size_t>(model_.specs[p].group)];
    if (std::isinf(box.low) && std::isinf(box.high)) continue;
    executor_->clamp(model_.parameters[p].detach(), box.low, box.high);
  }
  parameters_->mark_written();
}

// What was saved without them, or with others.
void OptimizerState::put_shards_into_boxes() {
  for (size_t b = 0; b < shards_.size(); ++b) {
    const ClampBounds& box = model_.clamps[static_cast<size_t>(layout_.buckets[b].group)];
    if (std::isinf(box.low) && std::isinf(box.high)) continue;
    for (size_t i = 0; i < algorithm_->state().size(); ++i) {
      if (algorithm_->state()[i].starts_at_parameters) executor_->clamp(shards_[b][i], box.low, box.high);
    }
  }
}

void OptimizerState::start_shards_at_parameters() {
  for (size_t b = 0; b < shards_.size(); ++b) {
    const at::Tensor slice = parameters_->slice(static_cast<int64_t>(b), communicator_->rank());
    for (size_t i = 0; i < algorithm_->state().size(); ++i) {
      if (algorithm_->state()[i].starts_at_parameters) executor_->assign(shards_[b][i], slice);
    }
  }
}

void OptimizerState::restart_at_parameters() {
  parameters_->adopt();
  broadcast_parameters();
  put_parameters_into_boxes();
  broadcast_values(*communicator_, ParameterClaim::unclaimed(model_.frozen));
  broadcast_values(*communicator_, model_.buffers);
  start_shards_at_parameters();
  for (GroupState& group : groups_) group.weight_sum = 0;
  is_finite_ = shards_are_finite();
}

void OptimizerState::replaced(std::vector<GroupState> groups, bool is_finite, Point point) {
  groups_ = std::move(groups);
  is_finite_ = is_finite;
  parameters_->adopt();
  put_shards_into_boxes();
  write_parameters(point);
}

bool OptimizerState::shards_are_finite() const {
  bool are_finite = true;
  for (const ShardState& shard : shards_) {
    for (const at::Tensor& tensor : shard) {
      if (!tensor.defined()) continue;
      executor_->read(tensor, [&](const std::byte* bytes, int64_t count) {
        const auto numel = count / static_cast<int64_t>(tensor.element_size());
        are_finite = are_finite && std::isfinite(kernels::max_abs(tensor.scalar_type(), bytes, numel));
      });
    }
  }
  return are_finite;
}

int64_t OptimizerState::byte_count() const {
  int64_t bytes = 0;
  for (const ShardState& shard : shards_) {
    for (const at::Tensor& tensor : shard) bytes += tensor.defined() ? tensor.nbytes() : 0;
  }
  return bytes;
}

Interpolation OptimizerState::interpolation(int64_t bucket, Point point) const {
  const auto group = static_cast<size_t>(layout_.bucket(bucket).group);
  return algorithm_->interpolation(point, groups_[group]);
}

void OptimizerState::write_slice(int64_t bucket, Point point, const at::Tensor& out) const {
  updater_->interpolate(bucket, out, interpolation(bucket, point));
}

void OptimizerState::write_parameters(Point point) {
  std::vector<std::shared_ptr<Work>> gathers;
  for (int64_t b = 0; b < layout_.bucket_count(); ++b) {
    write_slice(b, point, parameters_->slice(b, communicator_->rank()));
    gathers.push_back(communicator_->all_gather(
        parameters_->buffer(b), {point == Point::x ? "parameters at x" : "parameters at y", b}));
  }
  for (const auto& gather : gathers) gather->wait();  // rule 7
  parameters_->mark_written();
}

at::Tensor OptimizerState::gathered(int64_t bucket, Point point) const {
  const Bucket& layout = layout_.bucket(bucket);
  at::Tensor whole = executor_->empty(layout.numel(layout_.world_size), layout.dtype);
  write_slice(bucket, point, whole.narrow(0, communicator_->rank() * layout.shard_numel, layout.shard_numel));
  communicator_->all_gather(whole, {point == Point::x ? "x" : "y", bucket})->wait();
  return whole;
}

at::Tensor OptimizerState::gathered_state(size_t bucket, size_t index) const {
  const Bucket& layout = layout_.buckets[bucket];
  const at::Tensor& own = shards_[bucket][index];
  at::Tensor whole = executor_->empty(layout.numel(layout_.world_size), own.scalar_type());
  executor_->assign(whole.narrow(0, communicator_->rank() * layout.shard_numel, layout.shard_numel), own);
  communicator_->all_gather(whole, {algorithm_->state()[index].name.c_str(), static_cast<int64_t>(bucket)})
      ->wait();
  return whole;
}

std::string OptimizerState::why_not_whole(const std::string& which) const {
  std::string there = "\"y\"";
  for (const StateTensor& tensor : algorithm_->state()) {
    if (tensor.name == which) return {};
    there += ", \"" + tensor.name + "\"";
  }
  return which == "y" ? "" : "full_state(\"" + which + "\"): this optimizer has " + there + ".";
}

std::map<std::string, at::Tensor> OptimizerState::whole(const std::string& which) const {
  const std::vector<StateTensor>& tensors = algorithm_->state();
  size_t index = 0;
  while (index < tensors.size() && tensors[index].name != which) ++index;
  const bool is_y = index == tensors.size();
  std::map<std::string, at::Tensor> result;
  for (size_t b = 0; b < layout_.buckets.size(); ++b) {
    const at::Tensor bucket =
        executor_->to_host(is_y ? gathered(static_cast<int64_t>(b), Point::y) : gathered_state(b, index));
    for (const Slot& slot : layout_.buckets[b].slots) {
      const ParameterSpec& spec = model_.specs[static_cast<size_t>(slot.parameter)];
      result[spec.name] =
          bucket.as_strided(spec.sizes, spec.strides, slot.offset).clone(at::MemoryFormat::Contiguous);
    }
  }
  for (const ParameterSpec& spec : model_.specs) {
    if (spec.numel() > 0) continue;
    result[spec.name] = at::empty(spec.sizes, is_y ? spec.dtype : kernels::state_dtype(spec.dtype));
  }
  return result;
}

}  // namespace zerosched::detail
