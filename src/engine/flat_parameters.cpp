#include "engine/flat_parameters.h"

#include "base/message_of.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>

#include <cstddef>
#include <utility>

namespace zerosched::detail {
namespace {

constexpr int64_t kMostCached = int64_t{256} << 20;

}  // namespace

FlatParameters::FlatParameters(std::vector<at::Tensor> parameters, std::vector<std::string> names,
    const Layout& layout, Communicator& communicator, Executor& executor)
    : parameters_(std::move(parameters)), names_(std::move(names)), layout_(layout), executor_(executor) {
  for (const at::Tensor& parameter : parameters_) {
    expected_.push_back(
        {parameter.sizes().vec(), parameter.strides().vec(), parameter.options(), nullptr, 0});
  }
  // One bucket at a time, so that the model is never in memory twice.
  int64_t cached = 0;
  for (const Bucket& bucket : layout.buckets) {
    const at::Tensor buffer =
        communicator.allocate(bucket.numel(layout.world_size), bucket.dtype, executor_.device());
    executor_.fill(buffer, 0);
    buffers_.push_back(buffer);
    adopt(bucket);
    // Buffers that do not come from LibTorch's cache have no use for what it keeps of the parameters' old memory.
    cached += static_cast<int64_t>(buffer.nbytes());
    if (cached >= kMostCached) {
      executor_.release_cached_memory();
      cached = 0;
    }
  }
  executor_.release_cached_memory();
  mark_written();
}

at::Tensor FlatParameters::slice(int64_t bucket, int64_t rank) const {
  const int64_t shard_numel = layout_.bucket(bucket).shard_numel;
  return buffer(bucket).narrow(0, rank * shard_numel, shard_numel);
}

at::Tensor FlatParameters::alias(int64_t parameter) const {
  const auto [bucket, slot] = layout_.place(parameter);
  const at::Tensor& buffer = buffers_[static_cast<size_t>(bucket)];
  const Expected& expected = expected_[static_cast<size_t>(parameter)];
  const int64_t offset = layout_.bucket(bucket).slot(slot).offset;
  auto* begin = static_cast<std::byte*>(buffer.data_ptr()) +
                static_cast<size_t>(offset) * static_cast<size_t>(buffer.element_size());
  const auto keep_buffer_alive = [buffer](void*) {};
  return at::from_blob(begin, expected.sizes, expected.strides, keep_buffer_alive, buffer.options());
}

void FlatParameters::adopt() {
  for (const Bucket& bucket : layout_.buckets) adopt(bucket);
  mark_written();
}

void FlatParameters::adopt(const Bucket& bucket) {
  const at::NoGradGuard no_grad;
  for (const Slot& slot : bucket.slots) {
    at::Tensor& parameter = parameters_[static_cast<size_t>(slot.parameter)];
    const at::Tensor ours = alias(slot.parameter);
    expected_[static_cast<size_t>(slot.parameter)].data = ours.const_data_ptr();
    if (parameter.const_data_ptr() == ours.const_data_ptr()) continue;
    const at::Tensor theirs = parameter.detach();
    executor_.keep(theirs);
    executor_.assign(ours, theirs);
    parameter.set_data(ours);
  }
}

void FlatParameters::mark_written() {
  for (size_t p = 0; p < parameters_.size(); ++p) {
    parameters_[p].unsafeGetTensorImpl()->bump_version();
    expected_[p].version = parameters_[p]._version();
  }
}

void FlatParameters::accept() {
  for (size_t p = 0; p < parameters_.size(); ++p) expected_[p].version = parameters_[p]._version();
}

std::string FlatParameters::replaced() const {
  for (size_t p = 0; p < parameters_.size(); ++p) {
    if (expected_[p].data == nullptr) continue;  // no elements: nothing to lose
    if (parameters_[p].const_data_ptr() != expected_[p].data) {
      return text(p, "given other storage (module->to(), torch::load or set_data?)");
    }
  }
  return {};
}

std::string FlatParameters::changed() const {
  for (size_t p = 0; p < parameters_.size(); ++p) {
    if (expected_[p].data == nullptr) continue;
    if (parameters_[p].const_data_ptr() != expected_[p].data) return replaced();
    if (parameters_[p]._version() != expected_[p].version) return text_of_write(static_cast<int64_t>(p));
  }
  return {};
}

std::string FlatParameters::written(int64_t bucket) const {
  for (const Slot& slot : layout_.bucket(bucket).slots) {
    const auto p = static_cast<size_t>(slot.parameter);
    const bool is_in_place = parameters_[p].const_data_ptr() == expected_[p].data;
    if (is_in_place && parameters_[p]._version() != expected_[p].version) return names_[p];
  }
  return {};
}

std::string FlatParameters::text_of_write(int64_t parameter) const {
  return text(static_cast<size_t>(parameter), "written (an in-place operation on it outside the optimizer?)");
}

std::string FlatParameters::text(size_t parameter, const char* what) const {
  return "parameter '" + names_[parameter] + "' was " + what +
         " since the optimizer last wrote it, and the optimizer's state does not know. Call "
         "reset_from_parameters() on every rank after loading or editing weights; construct a new "
         "optimizer after moving the module to another device or dtype.";
}

std::string FlatParameters::why_not_adoptable() const {
  for (size_t p = 0; p < parameters_.size(); ++p) {
    const Expected& expected = expected_[p];
    const at::Tensor& parameter = parameters_[p];
    if (parameter.sizes() == expected.sizes && parameter.strides() == expected.strides &&
        parameter.scalar_type() == expected.options.dtype().toScalarType() &&
        parameter.device() == expected.options.device()) {
      continue;
    }
    return "parameter '" + names_[p] +
           "' has another shape, memory format, dtype or device than when the optimizer was constructed; "
           "construct a new optimizer over the module as it is now.";
  }
  return {};
}

void FlatParameters::release() noexcept {
  const at::NoGradGuard no_grad;
  for (size_t p = 0; p < parameters_.size(); ++p) {
    at::Tensor& parameter = parameters_[p];
    if (expected_[p].data == nullptr || parameter.const_data_ptr() != expected_[p].data) continue;
    try {
      const at::Tensor own = executor_.empty(parameter.numel(), parameter.scalar_type())
                                 .as_strided(expected_[p].sizes, expected_[p].strides);
      executor_.assign(own, parameter.detach());
      parameter.set_data(own);
    } catch (const std::exception& error) {
      // Out of memory, most likely. The alias keeps the buffer alive, so the parameter stays usable.
      TORCH_WARN(
          "zerosched: parameter '", names_[p], "' keeps its place in a flat buffer: ", message_of(error));
    }
  }
}

}  // namespace zerosched::detail
