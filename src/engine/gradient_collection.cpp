// How single gradients are taken, and where they are once they are reduced: a part of GradientReducer.
#include "base/check.h"
#include "engine/gradient_reducer.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace zerosched::detail {

// Where .grad is the user's: as it is now.
void GradientReducer::see_gradients() {
  if (gradients_.consumes()) return;
  for (size_t p = 0; p < states_.size(); ++p) states_[p].seen = gradients_.see(static_cast<int64_t>(p));
}

std::string GradientReducer::text_of_stray(int64_t parameter) const {
  return "a gradient of parameter '" + gradients_.name(parameter) +
         "' arrived in eval mode, taken at x where it does not belong. Call zero_grad() to drop it, "
         "and train() before forward and backward.";
}

void GradientReducer::check_untouched(int64_t parameter) const {
  const ParameterState& state = states_[static_cast<size_t>(parameter)];
  gradients_.check_untouched(parameter, state.waiting ? state.seen : Seen());
}

int64_t GradientReducer::changed_gradient() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (gradients_.consumes() || !closed_) return -1;
  for (size_t p = 0; p < states_.size(); ++p) {
    const auto parameter = static_cast<int64_t>(p);
    if (!(gradients_.see(parameter) == states_[p].seen)) return parameter;
  }
  return -1;
}

void GradientReducer::guard(int64_t parameter) {
  if (no_sync_ == 0) gradients_.guard(parameter);
}

std::vector<bool> GradientReducer::used_so_far() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return gradients_.used();
}

// Where nothing is copied a few elements are looked at all the same: a loss that is not finite makes all of them so.
void GradientReducer::take_directly(int64_t parameter) {
  at::Tensor& taken = parameter_state(parameter).taken;
  taken = gradients_.take(parameter);
  executor_.note();
  if (!taken.defined() || not_finite_parameter_ >= 0 || !executor_.device().is_cpu()) return;
  const auto some = GradientEdits::sample(taken);
  const bool finite =
      std::all_of(some.begin(), some.end(), [](double value) { return std::isfinite(value); });
  if (!finite) not_finite_parameter_ = parameter;
}

void GradientReducer::put(int64_t parameter) {
  ParameterState& state = parameter_state(parameter);
  if (state.waiting) {
    ZEROSCHED_CHECK(gradients_.is_in_grad(parameter), "the gradient of parameter '",
        gradients_.name(parameter),
        "' is gone from .grad, where it waited for a free bucket buffer. Drop gradients with the "
        "optimizer's own zero_grad(), not through torch::optim::Optimizer& or the module.");
    check_untouched(parameter);
    state.waiting = false;
  }
  const at::Tensor flat = gradients_.take(parameter);
  if (state.arrived) guard(parameter);
  if (!flat.defined()) return;  // backward reached the parameter without a gradient: ready, but not used
  if (!state.arrived) executor_.keep(flat);  // rule 4
  const auto [bucket, slot] = layout_.place(parameter);
  const c10::ScalarType dtype = layout_of(bucket).dtype;
  const c10::ScalarType now = gradients_.parameter(parameter).scalar_type();
  ZEROSCHED_CHECK(now == dtype, "parameter '", gradients_.name(parameter), "' is ", c10::toString(now),
      " and was ", c10::toString(dtype),
      " when the optimizer was constructed (module->to()?). Construct the optimizer after moving the module "
      "to its dtype and device.");
  const bool is_finite = packer_->put(outgoing(bucket), slot, flat);
  if (!is_finite && not_finite_parameter_ < 0) not_finite_parameter_ = parameter;
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
    const int64_t parameter = layout.slot_of(piece).parameter;
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
