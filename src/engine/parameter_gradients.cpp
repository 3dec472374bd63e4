#include "engine/parameter_gradients.h"

#include "base/check.h"
#include "engine/gradient_guard.h"

#include <utility>

namespace zerosched::detail {
namespace {

bool is_16_bit(const at::Tensor& tensor) { return tensor.element_size() == 2; }

}  // namespace

ParameterGradients::ParameterGradients(std::vector<at::Tensor> parameters, std::vector<std::string> names,
    const Layout& layout, Executor& executor, bool consume, bool guard)
    : parameters_(std::move(parameters)),
      names_(std::move(names)),
      layout_(layout),
      executor_(executor),
      consume_(consume),
      guard_(consume && guard),
      accumulated_(parameters_.size()),
      guards_(parameters_.size()),
      used_(parameters_.size()) {}

bool ParameterGradients::has(int64_t index) const {
  return is_in_grad(index) || accumulated_[static_cast<size_t>(index)].defined();
}

bool ParameterGradients::is_in_grad(int64_t index) const {
  const at::Tensor& gradient = parameter(index).grad();
  return gradient.defined() && !gradient.is_same(guards_[static_cast<size_t>(index)]);
}

// The gradient's elements in the parameter's memory order, which is the order they have in the bucket.
at::Tensor ParameterGradients::in_memory_order(const at::Tensor& gradient, int64_t index) const {
  const at::Tensor& like = parameter(index);
  ZEROSCHED_CHECK(gradient.sizes() == like.sizes(), "the gradient of parameter '", name(index),
      "' has shape ", gradient.sizes(), ", the parameter ", like.sizes(), ".");
  if (!gradient.is_sparse() && gradient.strides() == like.strides()) {
    return gradient.as_strided({gradient.numel()}, {1});
  }
  const auto use = executor_.enter();
  at::Tensor dense = gradient;
  if (gradient.is_sparse()) {
    executor_.keep(gradient._indices());  // rule 4
    executor_.keep(gradient._values());
    dense = gradient.to_dense();
    if (dense.strides() == like.strides()) return dense.as_strided({dense.numel()}, {1});
  } else {
    executor_.keep(gradient);  // rule 4
  }
  at::Tensor flat = executor_.empty(dense.numel(), dense.scalar_type());
  executor_.assign(flat.as_strided(like.sizes(), like.strides()), dense);
  return flat;
}

at::Tensor ParameterGradients::converted(const at::Tensor& flat, at::ScalarType dtype) const {
  if (flat.scalar_type() == dtype) return flat;
  at::Tensor result = executor_.empty(flat.numel(), dtype);
  executor_.assign(result, flat);
  return result;
}

at::Tensor ParameterGradients::look(int64_t index) const {
  const at::Tensor& gradient = parameter(index).grad();
  return gradient.defined() ? in_memory_order(gradient.detach(), index) : at::Tensor();
}

at::Tensor ParameterGradients::take(int64_t index) {
  at::Tensor& accumulated = accumulated_[static_cast<size_t>(index)];
  at::Tensor flat;
  if (is_in_grad(index)) flat = look(index);
  if (accumulated.defined()) {
    const auto use = executor_.enter();
    const at::Tensor sum = std::move(accumulated);
    accumulated.reset();
    executor_.keep(sum);  // rule 4
    if (flat.defined()) {
      executor_.keep(flat);  // rule 4
      executor_.add(sum, flat);
    }
    // Rounded as it would be on its way to another rank, so that a world of one computes the same bits.
    const int64_t bucket = layout_.place(index).bucket;
    flat = bucket < 0 ? sum : converted(sum, layout_.bucket(bucket).reduce_dtype);
  }
  if (consume_) parameter(index).mutable_grad().reset();
  if (flat.defined()) used_[static_cast<size_t>(index)] = true;
  return flat;
}

void ParameterGradients::accumulate(int64_t index) {
  const at::Tensor& tensor = parameter(index);
  if (!consume_ || !is_16_bit(tensor) || !is_in_grad(index)) return;
  const auto use = executor_.enter();
  at::Tensor& sum = accumulated_[static_cast<size_t>(index)];
  const at::Tensor gradient = in_memory_order(tensor.grad(), index);
  executor_.keep(gradient);  // rule 4
  if (sum.defined()) {
    executor_.keep(sum);  // rule 4
    executor_.add(sum, gradient);
  } else {
    sum = converted(gradient, at::kFloat);
  }
  tensor.mutable_grad().reset();
}

void ParameterGradients::drop(bool set_to_none) {
  for (const at::Tensor& parameter : parameters_) {
    at::Tensor& gradient = parameter.mutable_grad();
    if (!gradient.defined()) continue;
    if (set_to_none || consume_) {
      gradient.reset();
    } else {
      gradient = gradient.detach();
      executor_.fill(gradient, 0);
    }
  }
  for (at::Tensor& sum : accumulated_) sum.reset();
}

ParameterGradients::Seen ParameterGradients::see(int64_t index) const {
  const at::Tensor& gradient = parameter(index).grad();
  if (!gradient.defined()) return {};
  return {gradient.unsafeGetTensorImpl(), static_cast<uint32_t>(gradient._version())};
}

// What somebody has made of .grad after backward would be lost, or be in the next step, or count now and then.
void ParameterGradients::check_untouched(int64_t index, const Seen& seen) const {
  if (seen == Seen() ? !is_in_grad(index) : see(index) == seen) return;
  ZEROSCHED_CHECK(false, "the gradient of parameter '", name(index),
      "' was put into .grad, or changed there, between backward and step(), when it was on its way to other "
      "ranks already. Construct the optimizer with ShardingOptions().overlap_backward(false) to work on "
      "gradients there.");
}

void ParameterGradients::guard(int64_t index) {
  if (!guard_) return;
  at::Tensor& guard = guards_[static_cast<size_t>(index)];
  if (!guard.defined()) guard = make_gradient_guard(parameter(index), name(index));
  parameter(index).mutable_grad() = guard;
}

void ParameterGradients::drop_guards() {
  if (!guard_) return;
  for (size_t p = 0; p < parameters_.size(); ++p) {
    if (parameters_[p].grad().is_same(guards_[p])) parameters_[p].mutable_grad().reset();
  }
}

}  // namespace zerosched::detail
