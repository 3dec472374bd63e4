// How single gradients get into flat buffers: the copying half of GradientReducer.
#include "engine/gradient_reducer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <string>
#include <utility>

namespace zerosched::detail {
namespace {

bool is_16_bit(const at::Tensor& tensor) { return tensor.element_size() == 2; }

}  // namespace

// The gradient's elements in the parameter's memory order, which is the order they have in the bucket.
at::Tensor GradientReducer::in_memory_order(const at::Tensor& gradient, int64_t parameter) const {
  const at::Tensor& like = parameters_[static_cast<size_t>(parameter)];
  TORCH_CHECK(gradient.sizes() == like.sizes(), "the gradient of parameter '",
      names_[static_cast<size_t>(parameter)], "' has shape ", gradient.sizes(), ", the parameter ",
      like.sizes(), ".");
  at::Tensor dense = gradient;
  if (gradient.is_sparse()) {
    executor_.keep(gradient._indices());  // rule 4
    executor_.keep(gradient._values());
    dense = gradient.to_dense();
  } else {
    executor_.keep(gradient);  // rule 4
  }
  if (dense.strides() == like.strides()) return dense.as_strided({dense.numel()}, {1});
  at::Tensor flat = executor_.empty(dense.numel(), dense.scalar_type());
  executor_.assign(flat.as_strided(like.sizes(), like.strides()), dense);
  return flat;
}

at::Tensor GradientReducer::converted(const at::Tensor& flat, at::ScalarType dtype) const {
  if (flat.scalar_type() == dtype) return flat;
  at::Tensor result = executor_.empty(flat.numel(), dtype);
  executor_.assign(result, flat);
  return result;
}

bool GradientReducer::has_gradient(int64_t parameter) const {
  const auto index = static_cast<size_t>(parameter);
  return parameters_[index].grad().defined() || states_[index].accumulated.defined();
}

// float32 gradients accumulate in .grad, as LibTorch does by itself; 16-bit ones would lose small terms.
void GradientReducer::accumulate(int64_t parameter) {
  const at::Tensor& tensor = parameters_[static_cast<size_t>(parameter)];
  if (!consume_gradients_ || !is_16_bit(tensor) || !tensor.grad().defined()) return;
  at::Tensor& sum = parameter_state(parameter).accumulated;
  const at::Tensor gradient = in_memory_order(tensor.grad(), parameter);
  if (sum.defined()) {
    executor_.keep(sum);  // rule 4
    executor_.add(sum, gradient);
  } else {
    sum = converted(gradient, at::kFloat);
  }
  tensor.mutable_grad().reset();
}

// .grad plus what no_sync passes have accumulated, flat, in memory order; undefined if there is neither.
at::Tensor GradientReducer::take_gradient(int64_t parameter) {
  const at::Tensor& tensor = parameters_[static_cast<size_t>(parameter)];
  ParameterState& state = parameter_state(parameter);
  at::Tensor flat;
  if (tensor.grad().defined()) {
    flat = in_memory_order(tensor.grad().detach(), parameter);
  }
  if (state.accumulated.defined()) {
    const at::Tensor sum = state.accumulated;
    executor_.keep(sum);  // rule 4
    if (flat.defined()) executor_.add(sum, flat);
    flat = sum;
    // Rounded as it would be on its way to another rank, so that a world of one computes the same bits.
    const auto [bucket, slot] = layout_.place_of[static_cast<size_t>(parameter)];
    if (bucket >= 0) flat = converted(flat, layout_of(bucket).reduce_dtype);
    state.accumulated.reset();
  }
  if (consume_gradients_) tensor.mutable_grad().reset();
  if (flat.defined()) used_[static_cast<size_t>(parameter)] = true;
  return flat;
}

std::vector<bool> GradientReducer::used_so_far() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return used_;
}

void GradientReducer::move(int64_t parameter) {
  ParameterState& state = parameter_state(parameter);
  const at::Tensor flat = take_gradient(parameter);
  if (!flat.defined()) {
    TORCH_CHECK(!state.waiting, "the gradient of parameter '", names_[static_cast<size_t>(parameter)],
        "' is gone from .grad, where it waited for a free bucket buffer. Drop gradients with the "
        "optimizer's own zero_grad(), not through torch::optim::Optimizer& or the module.");
    return;  // backward reached the parameter without a gradient: ready, but not used
  }
  const auto [bucket, slot] = layout_.place_of[static_cast<size_t>(parameter)];
  copy_pieces(bucket, slot, flat);
  state.moved = true;
}

void GradientReducer::copy_pieces(int64_t bucket, int64_t slot, const at::Tensor& flat) const {
  const Bucket& layout = layout_of(bucket);
  const at::Tensor buffer = buffer_of(bucket);
  auto piece = std::lower_bound(layout.pieces.begin(), layout.pieces.end(), slot,
      [](const Piece& candidate, int64_t wanted) { return candidate.slot < wanted; });
  for (; piece != layout.pieces.end() && piece->slot == slot; ++piece) {
    executor_.assign(
        buffer.narrow(0, piece->slice * layout.gradient_slice_numel() + piece->slice_begin, piece->numel),
        flat.narrow(0, piece->slot_begin, piece->numel));
  }
}

// Buffers are reused by other buckets, so everything that no gradient was moved to is zeroed every time:
// the gaps between parameters, and the parameters without a gradient.
void GradientReducer::zero_what_is_absent(int64_t bucket, const at::Tensor& buffer) const {
  const Bucket& layout = layout_of(bucket);
  int64_t slice = 0;
  int64_t filled = 0;  // up to here, within the slice
  const auto zero = [&](int64_t end) {
    if (end <= filled) return;
    executor_.fill(buffer.narrow(0, slice * layout.gradient_slice_numel() + filled, end - filled), 0);
  };
  for (const Piece& piece : layout.pieces) {
    const Slot& slot = layout.slots[static_cast<size_t>(piece.slot)];
    if (!states_[static_cast<size_t>(slot.parameter)].moved) continue;
    for (; slice < piece.slice; ++slice, filled = 0) zero(layout.shard_numel);
    zero(piece.slice_begin);
    filled = piece.slice_begin + piece.numel;
  }
  for (; slice < layout_.world_size; ++slice, filled = 0) zero(layout.shard_numel);
}

void GradientReducer::write_flags(int64_t bucket, const at::Tensor& buffer) const {
  const Bucket& layout = layout_of(bucket);
  const at::Tensor flags = buffer.view({layout_.world_size, layout.gradient_slice_numel()})
                               .narrow(1, layout.shard_numel, layout.flag_numel);
  executor_.fill(flags, 1);
  for (const Piece& piece : layout.pieces) {
    const Slot& slot = layout.slots[static_cast<size_t>(piece.slot)];
    if (states_[static_cast<size_t>(slot.parameter)].moved) continue;
    executor_.fill(flags[piece.slice][piece.flag], 0);
  }
}

// One small all-reduce checks that the ranks agree on which parameters have a gradient: where they do not,
// the trainer's averaging cannot have been right.
void GradientReducer::check_averaged() const {
  at::Tensor users = at::zeros({static_cast<int64_t>(parameters_.size())}, at::kInt);
  for (size_t p = 0; p < parameters_.size(); ++p) {
    users.mutable_data_ptr<int>()[p] = parameters_[p].grad().defined() ? 1 : 0;
  }
  communicator_->all_reduce(users, ReduceOp::sum, {"used parameters", -1, round_})->wait();
  for (size_t p = 0; p < parameters_.size(); ++p) {
    const int count = users.const_data_ptr<int>()[p];
    TORCH_CHECK(count == 0 || count == communicator_->size(), "parameter '", names_[p],
        "' has a gradient on ", count, " of ", communicator_->size(),
        " ranks, but GradientInput::already_averaged says that the trainer averaged it over all. "
        "Average every parameter on every rank, or use GradientInput::local.");
  }
}

std::vector<GradientSpan> GradientReducer::spans(int64_t bucket) const {
  const Bucket& layout = layout_of(bucket);
  const at::Tensor& shard = shards_[static_cast<size_t>(bucket)];
  std::vector<GradientSpan> spans;
  for (const Piece& piece : layout.pieces) {
    if (piece.slice != communicator_->rank()) continue;
    if (!direct_) {
      spans.push_back(
          {piece.slice_begin, piece.numel, shard, piece.slice_begin, layout.shard_numel + piece.flag});
      continue;
    }
    const auto parameter = static_cast<size_t>(layout.slots[static_cast<size_t>(piece.slot)].parameter);
    const at::Tensor& gradient = states_[parameter].taken;
    if (gradient.defined()) spans.push_back({piece.slice_begin, piece.numel, gradient, piece.slot_begin});
  }
  return spans;
}

}  // namespace zerosched::detail
