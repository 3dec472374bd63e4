// What ranks tell each other with their gradients: the reporting part of GradientReducer.
#include "base/check.h"
#include "engine/gradient_reducer.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace zerosched::detail {
namespace {

// Norms of gradients that are the same but for the order of summation agree to this; those of different batches do not.
double tolerance_of_norm(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::ScalarType::Double:
      return 1e-9;
    case c10::ScalarType::Float:
      return 1e-4;
    default:
      return 1e-2;
  }
}

}  // namespace

// What is known by the time that the report leaves.
void GradientReducer::complete_own_report() {
  own_report_.gradient_factor = edits_.factor();
  own_report_.weight = weight();
  own_report_.weight_is_given = weight_.has_value() && !joined_;
  own_report_.has_joined = joined_;
  own_report_.is_not_finite = not_finite_parameter_ >= 0;
  // Its options are those of a step long past.
  if (joined_) own_report_.values.clear();
}

// Empty but for the bucket that carries it.
std::vector<std::byte> GradientReducer::encoded_report(int64_t bucket) {
  if (bucket != carrier()) return {};
  complete_own_report();
  const ReportCodec& codec = codec_of(bucket);
  std::vector<std::byte> encoded(
      static_cast<size_t>(codec.numel()) * c10::elementSize(layout_of(bucket).reduce_dtype));
  codec.encode(own_report_, communicator_->rank(), encoded.data());
  return encoded;
}

StepReport GradientReducer::decode_report(int64_t carrier, const void* sums) const {
  return codec_of(carrier).decode(sums);
}

at::Tensor GradientReducer::report_on_device() const {
  if (direct_ || order_.empty() || executor_.device().is_cpu()) return {};
  const int64_t gradients = layout_of(carrier()).gradient_slice_numel();
  return received_[static_cast<size_t>(carrier())].narrow(0, gradients, codec_of(carrier()).numel());
}

StepReport GradientReducer::report() {
  if (averaged_already_) return averages_report_;
  if (direct_ || order_.empty()) {
    StepReport alone;
    alone.weight_sum = own_report_.weight;
    alone.given_weights = own_report_.weight_is_given ? 1 : 0;
    alone.suspecting = own_report_.suspects_writes ? 1 : 0;
    alone.not_finite = own_report_.is_not_finite ? 1 : 0;
    return alone;
  }
  wait(carrier());
  const int64_t gradients = layout_of(carrier()).gradient_slice_numel();
  const at::Tensor sums = executor_.to_host(
      received_[static_cast<size_t>(carrier())].narrow(0, gradients, codec_of(carrier()).numel()));
  return decode_report(carrier(), sums.const_data_ptr());
}

// One small all-reduce: whether ranks agree on which parameters have a gradient, and on what it is. Where they do not,
// the trainer's averaging cannot have been right. It carries the report too.
void GradientReducer::compare_averages() {
  const auto count = static_cast<int64_t>(states_.size());
  const ReportCodec codec(at::kLong, report_values_, layout_.world_size);
  std::vector<at::Tensor> gradients;
  for (int64_t p = 0; p < count; ++p) gradients.push_back(gradients_.look(p));
  const std::vector<double> squares =
      layout_.world_size > 1 ? executor_.sums_of_squares(gradients) : std::vector<double>(gradients.size());

  for (int64_t p = 0; p < count && not_finite_parameter_ < 0; ++p) {
    if (!std::isfinite(squares[static_cast<size_t>(p)])) not_finite_parameter_ = p;
  }
  complete_own_report();

  const at::Tensor sums = at::zeros({2 * count + codec.numel()}, at::kLong);
  auto* users = sums.mutable_data_ptr<int64_t>();
  int64_t* of_rank_zero = users + count;
  for (int64_t p = 0; p < count; ++p) {
    users[p] = gradients[static_cast<size_t>(p)].defined() ? 1 : 0;
    if (communicator_->rank() == 0)
      std::memcpy(of_rank_zero + p, &squares[static_cast<size_t>(p)], sizeof(double));
  }
  codec.encode(own_report_, communicator_->rank(), users + 2 * count);
  communicator_->all_reduce(sums, ReduceOp::sum, {"averaged gradients", -1, round_})->wait();
  averages_report_ = codec.decode(users + 2 * count);
  averages_report_.weight_sum = 1;
  for (int64_t p = 0; p < count; ++p) {
    const std::string& name = gradients_.name(p);
    ZEROSCHED_CHECK(users[p] == 0 || users[p] == communicator_->size(), "parameter '", name,
        "' has a gradient on ", users[p], " of ", communicator_->size(),
        " ranks, but GradientInput::already_averaged says that the trainer averaged it over all. "
        "Average every parameter on every rank, or use GradientInput::local.");
    double theirs = 0;
    std::memcpy(&theirs, of_rank_zero + p, sizeof(double));
    const double own = std::sqrt(squares[static_cast<size_t>(p)]);
    theirs = std::sqrt(theirs);
    // Where neither is finite there is nothing to compare.
    const double bar = tolerance_of_norm(gradients_.parameter(p).scalar_type()) * std::max(own, theirs);
    const bool same = std::abs(own - theirs) <= bar || (!std::isfinite(own) && !std::isfinite(theirs));
    ZEROSCHED_CHECK(same, "the gradient of parameter '", name, "' has norm ", own, " on rank ",
        communicator_->rank(), " and ", theirs,
        " on rank 0, but GradientInput::already_averaged says that the trainer averaged it over all ranks. "
        "Average "
        "every parameter on every rank, or use GradientInput::local.");
  }
}

}  // namespace zerosched::detail
