// How single gradients get into flat buffers: the copying half of GradientReducer.
#include "engine/gradient_guard.h"
#include "engine/gradient_reducer.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
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
  return has_own_gradient(parameter) || states_[index].accumulated.defined();
}

bool GradientReducer::has_own_gradient(int64_t parameter) const {
  const auto index = static_cast<size_t>(parameter);
  return parameters_[index].grad().defined() && !parameters_[index].grad().is_same(guards_[index]);
}

GradientReducer::Seen GradientReducer::see_gradient(int64_t parameter) const {
  const at::Tensor& gradient = parameters_[static_cast<size_t>(parameter)].grad();
  if (!gradient.defined()) return {};
  return {gradient.unsafeGetTensorImpl(), static_cast<uint32_t>(gradient._version())};
}

// Where .grad is the user's: as it is now.
void GradientReducer::see_gradients() {
  if (consume_gradients_) return;
  for (size_t p = 0; p < parameters_.size(); ++p) states_[p].seen = see_gradient(static_cast<int64_t>(p));
}

std::string GradientReducer::text_of_stray(int64_t parameter) const {
  return "a gradient of parameter '" + names_[static_cast<size_t>(parameter)] +
         "' arrived in eval mode, taken at x where it does not belong. Call zero_grad() to drop it, "
         "and train() before forward and backward.";
}

// What somebody has made of .grad after backward would be lost, or be in the next step, or count now and then.
void GradientReducer::check_untouched(int64_t parameter) const {
  const ParameterState& state = states_[static_cast<size_t>(parameter)];
  if (state.waiting ? see_gradient(parameter) == state.seen : !has_own_gradient(parameter)) return;
  TORCH_CHECK(false, "the gradient of parameter '", names_[static_cast<size_t>(parameter)],
      "' was put into .grad, or changed there, between backward and step(), when it was on its way to other "
      "ranks "
      "already. Construct the optimizer with ShardingOptions().overlap_backward(false) to work on gradients "
      "there.");
}

int64_t GradientReducer::changed_gradient() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (consume_gradients_ || !closed_) return -1;
  for (size_t p = 0; p < parameters_.size(); ++p) {
    const auto parameter = static_cast<int64_t>(p);
    if (!(see_gradient(parameter) == states_[p].seen)) return parameter;
  }
  return -1;
}

void GradientReducer::guard_gradient(int64_t parameter) {
  if (!guards_gradients_ || no_sync_ > 0) return;
  const auto index = static_cast<size_t>(parameter);
  if (!guards_[index].defined()) guards_[index] = make_gradient_guard(parameters_[index], names_[index]);
  parameters_[index].mutable_grad() = guards_[index];
}

void GradientReducer::drop_guards() {
  if (!guards_gradients_) return;
  for (size_t p = 0; p < parameters_.size(); ++p) {
    if (parameters_[p].grad().is_same(guards_[p])) parameters_[p].mutable_grad().reset();
  }
}

// float32 gradients accumulate in .grad, as LibTorch does by itself; 16-bit ones would lose small terms.
void GradientReducer::accumulate(int64_t parameter) {
  const at::Tensor& tensor = parameters_[static_cast<size_t>(parameter)];
  if (!consume_gradients_ || !is_16_bit(tensor) || !has_own_gradient(parameter)) return;
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
  if (has_own_gradient(parameter)) flat = in_memory_order(tensor.grad().detach(), parameter);
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

// Where nothing is copied a few elements are looked at all the same: a loss that is not finite makes all of them so.
void GradientReducer::take_directly(int64_t parameter) {
  at::Tensor& taken = parameter_state(parameter).taken;
  taken = take_gradient(parameter);
  if (!taken.defined() || not_finite_parameter_ >= 0 || !executor_.device().is_cpu()) return;
  const auto some = GradientEdits::sample(taken);
  const bool finite =
      std::all_of(some.begin(), some.end(), [](double value) { return std::isfinite(value); });
  if (!finite) not_finite_parameter_ = parameter;
}

void GradientReducer::move(int64_t parameter) {
  ParameterState& state = parameter_state(parameter);
  if (state.waiting) {
    TORCH_CHECK(has_own_gradient(parameter), "the gradient of parameter '",
        names_[static_cast<size_t>(parameter)],
        "' is gone from .grad, where it waited for a free bucket buffer. Drop gradients with the "
        "optimizer's own zero_grad(), not through torch::optim::Optimizer& or the module.");
    check_untouched(parameter);
    state.waiting = false;
  }
  const at::Tensor flat = take_gradient(parameter);
  if (state.arrived) guard_gradient(parameter);
  if (!flat.defined()) return;  // backward reached the parameter without a gradient: ready, but not used
  // The mean over no samples at all is often NaN, which must not count 0 times but not at all.
  if (weight() == 0) return;
  const auto [bucket, slot] = layout_.place_of[static_cast<size_t>(parameter)];
  const c10::ScalarType dtype = layout_of(bucket).dtype;
  TORCH_CHECK(parameters_[static_cast<size_t>(parameter)].scalar_type() == dtype, "parameter '",
      names_[static_cast<size_t>(parameter)], "' is ",
      c10::toString(parameters_[static_cast<size_t>(parameter)].scalar_type()), " and was ",
      c10::toString(dtype),
      " when the optimizer was constructed (module->to()?). Construct the optimizer after moving the module "
      "to its "
      "dtype and device.");
  if (!copy_pieces(bucket, slot, flat)) {
    bucket_state(bucket).not_finite = true;
    if (not_finite_parameter_ < 0) not_finite_parameter_ = parameter;
  }
  state.moved = true;
}

// Whether all of them are finite.
bool GradientReducer::copy_pieces(int64_t bucket, int64_t slot, const at::Tensor& flat) const {
  const Bucket& layout = layout_of(bucket);
  const at::Tensor rows = slices(bucket, buffer_of(bucket));
  bool finite = true;
  auto piece = std::lower_bound(layout.pieces.begin(), layout.pieces.end(), slot,
      [](const Piece& candidate, int64_t wanted) { return candidate.slot < wanted; });
  for (; piece != layout.pieces.end() && piece->slot == slot; ++piece) {
    const at::Tensor to = rows[piece->slice].narrow(0, piece->slice_begin, piece->numel);
    finite &= executor_.copy_gradient(to, flat.narrow(0, piece->slot_begin, piece->numel), weight());
  }
  return finite;
}

// Buffers are reused by other buckets, so everything that no gradient was moved to is zeroed every time:
// the gaps between parameters, and the parameters without a gradient.
void GradientReducer::zero_what_is_absent(int64_t bucket, const at::Tensor& buffer) const {
  const Bucket& layout = layout_of(bucket);
  int64_t slice = 0;
  int64_t filled = 0;  // up to here, within the slice
  const auto zero = [&](int64_t end) {
    if (end <= filled) return;
    executor_.fill(buffer.narrow(0, slice * slice_numel(bucket) + filled, end - filled), 0);
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
  const at::Tensor flags = slices(bucket, buffer).narrow(1, layout.shard_numel, layout.flag_numel);
  executor_.fill(flags, 1);
  for (const Piece& piece : layout.pieces) {
    const Slot& slot = layout.slots[static_cast<size_t>(piece.slot)];
    if (states_[static_cast<size_t>(slot.parameter)].moved) continue;
    executor_.fill(flags[piece.slice][piece.flag], 0);
  }
  if (!executor_.device().is_cpu()) return;  // there nobody has looked at the gradients
  const bool not_finite = buckets_[static_cast<size_t>(bucket)].not_finite;
  executor_.fill(flags.select(1, layout.not_finite_flag()), not_finite ? 1 : 0);
  executor_.fill(flags.select(1, layout.not_finite_rank_flag()), not_finite ? communicator_->rank() : 0);
}

NotFiniteSources GradientReducer::not_finite_sources(int64_t bucket) const {
  if (direct_) return {};
  const Bucket& layout = layout_of(bucket);
  const at::Tensor flags = shard(bucket).narrow(0, layout.shard_numel, layout.flag_numel).to(at::kDouble);
  const double* values = flags.const_data_ptr<double>();
  NotFiniteSources sources;
  sources.count = static_cast<int64_t>(values[layout.not_finite_flag()]);
  // bfloat16 has integers up to 256.
  if (sources.count == 1 && communicator_->size() <= 256) {
    sources.rank = static_cast<int64_t>(values[layout.not_finite_rank_flag()]);
  }
  return sources;
}

std::vector<GradientSpan> GradientReducer::spans(int64_t bucket) const {
  const Bucket& layout = layout_of(bucket);
  const at::Tensor& shard = shards_[static_cast<size_t>(bucket)];
  std::vector<GradientSpan> spans;
  for (const Piece& piece : layout.pieces) {
    if (piece.slice != communicator_->rank()) continue;
    const int64_t parameter = layout.slots[static_cast<size_t>(piece.slot)].parameter;
    if (!direct_) {
      spans.push_back({parameter, piece.slice_begin, piece.numel, shard, piece.slice_begin,
          layout.shard_numel + piece.flag});
      continue;
    }
    const at::Tensor& gradient = states_[static_cast<size_t>(parameter)].taken;
    if (gradient.defined())
      spans.push_back({parameter, piece.slice_begin, piece.numel, gradient, piece.slot_begin});
  }
  return spans;
}

}  // namespace zerosched::detail
