#include "engine/executor.h"

#include "base/check.h"
#include "kernels/kernels.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>

namespace zerosched::detail {

at::Tensor HostExecutor::empty(int64_t numel, at::ScalarType dtype) {
  return at::empty({numel}, at::TensorOptions().dtype(dtype));
}

bool HostExecutor::note_in(std::vector<device::Stream>& noted) const {
  if (!noted.empty()) return false;
  noted.emplace_back();
  return true;
}

void HostExecutor::assign(const at::Tensor& to, const at::Tensor& from) { to.copy_(from); }
void HostExecutor::fill(const at::Tensor& tensor, double value) { tensor.fill_(value); }
// What of a module is not trained may be on a device all the same.
at::Tensor HostExecutor::to_host(const at::Tensor& tensor) { return tensor.to(at::kCPU); }
void HostExecutor::add(const at::Tensor& sum, const at::Tensor& term) { sum.add_(term); }
void HostExecutor::clamp(const at::Tensor& tensor, double low, double high) { tensor.clamp_(low, high); }

void HostExecutor::read(const at::Tensor& tensor, const Take& take) {
  const at::Tensor host = to_host(tensor).contiguous();
  const auto* bytes = static_cast<const std::byte*>(host.const_data_ptr());
  const auto byte_count = static_cast<int64_t>(host.nbytes());
  for (int64_t done = 0; done < byte_count; done += kPieceBytes) {
    take(bytes + done, std::min(kPieceBytes, byte_count - done));
  }
}

void HostExecutor::write(const at::Tensor& tensor, const Give& give) {
  auto* bytes = static_cast<std::byte*>(tensor.mutable_data_ptr());
  const auto byte_count = static_cast<int64_t>(tensor.nbytes());
  for (int64_t done = 0; done < byte_count; done += kPieceBytes) {
    give(bytes + done, std::min(kPieceBytes, byte_count - done));
  }
}

void HostExecutor::upload(const at::Tensor& to, const void* from) {
  std::memcpy(to.data_ptr(), from, to.nbytes());
}

std::vector<double> HostExecutor::sums_of_squares(const std::vector<at::Tensor>& tensors) {
  std::vector<double> sums;
  for (const at::Tensor& tensor : tensors) {
    sums.push_back(!tensor.defined() ? 0
                                     : kernels::sum_of_squares(
                                           tensor.scalar_type(), tensor.const_data_ptr(), tensor.numel()));
  }
  return sums;
}

DeviceExecutor::DeviceExecutor(device::Runtime& runtime, int device)
    : runtime_(runtime),
      device_(device),
      made_in_(runtime.current_stream(device)),
      beside_(runtime.create_stream(device)),
      last_(made_in_),
      event_(runtime.create_event(device)),
      uploads_(runtime, device),
      pieces_(runtime, device) {}

DeviceExecutor::~DeviceExecutor() {
  runtime_.destroy_event(event_);
  runtime_.destroy_stream(beside_);
}

at::Device DeviceExecutor::device() const {
  return at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device_));
}

at::Tensor DeviceExecutor::empty(int64_t numel, at::ScalarType dtype) {
  return runtime_.empty(numel, dtype, device_);
}

// Rules 1 and 8. The last stream came after the one before it, and so on, so it stands for all.
void DeviceExecutor::follow(device::Stream stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const device::Stream noted : noted_) order(noted, stream);
  noted_.clear();
  order(last_, stream);
  last_ = stream;
}

void DeviceExecutor::order(device::Stream before, device::Stream after) {
  if (before == after) return;
  runtime_.record(event_, before);
  runtime_.wait(after, event_);
}

void DeviceExecutor::note() {
  const std::lock_guard<std::mutex> lock(mutex_);
  note_in(noted_);
}

bool DeviceExecutor::note_in(std::vector<device::Stream>& noted) const {
  const device::Stream stream = current_stream();
  if (std::find(noted.begin(), noted.end(), stream) != noted.end()) return false;
  refuse_capture(stream);
  noted.push_back(stream);
  return true;
}

// Events and tables of the optimizer outlive a capture, and a graph would repeat one step's collectives and scalars.
std::string DeviceExecutor::why_not_usable(device::Stream stream) const {
  if (!runtime_.is_capturing(stream)) return {};
  return "the current stream of " + device().str() +
         " is being captured into a CUDA graph, and the optimizer cannot be part of one: capture forward and "
         "backward alone, with ShardingOptions().overlap_backward(false), which leaves gradients in .grad, "
         "and "
         "call step() and everything else of the optimizer outside of the capture.";
}

void DeviceExecutor::refuse_capture(device::Stream stream) const {
  const std::string why_not = why_not_usable(stream);
  ZEROSCHED_CHECK(why_not.empty(), why_not);
}

std::unique_ptr<device::DeviceScope> DeviceExecutor::enter() {
  auto scope = std::make_unique<device::DeviceScope>(runtime_, device_);
  const device::Stream stream = current_stream();
  refuse_capture(stream);
  follow(stream);
  return scope;
}

std::unique_ptr<device::DeviceScope> DeviceExecutor::visit() {
  auto scope = std::make_unique<device::DeviceScope>(runtime_, device_);
  refuse_capture(current_stream());
  return scope;
}

std::unique_ptr<device::StreamScope> DeviceExecutor::beside(bool after_all) {
  auto scope = std::make_unique<device::StreamScope>(runtime_, beside_);
  if (after_all) {
    const std::lock_guard<std::mutex> lock(mutex_);
    order(last_, beside_);
  }
  return scope;
}

at::Tensor DeviceExecutor::to_host(const at::Tensor& tensor) {
  return runtime_.device_of(tensor).is_cpu() ? tensor : runtime_.to_host(tensor);
}

void DeviceExecutor::from_host(const at::Tensor& to, const at::Tensor& host) {
  if (runtime_.device_of(to).is_cpu()) {
    to.copy_(host);
  } else {
    runtime_.from_host(to, host);
  }
}

void DeviceExecutor::read(const at::Tensor& tensor, const Take& take) {
  if (runtime_.device_of(tensor).is_cpu() || !tensor.is_contiguous()) {
    HostExecutor().read(to_host(tensor), take);
    return;
  }
  pieces_.read(tensor.const_data_ptr(), static_cast<int64_t>(tensor.nbytes()), current_stream(), take);
}

void DeviceExecutor::write(const at::Tensor& tensor, const Give& give) {
  if (runtime_.device_of(tensor).is_cpu()) {
    HostExecutor().write(tensor, give);
    return;
  }
  pieces_.write(tensor.mutable_data_ptr(), static_cast<int64_t>(tensor.nbytes()), current_stream(), give);
}

// Rule 5.
void DeviceExecutor::upload(const at::Tensor& to, const void* from) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto byte_count = static_cast<int64_t>(to.nbytes());
  PinnedBuffer& buffer = uploads_.free_buffer(byte_count);
  std::memcpy(buffer.memory(), from, static_cast<size_t>(byte_count));
  buffer.copy(to.data_ptr(), buffer.memory(), byte_count, current_stream());
}

std::vector<double> DeviceExecutor::sums_of_squares(const std::vector<at::Tensor>& tensors) {
  const auto count = static_cast<int64_t>(tensors.size());
  const at::Tensor sums = empty(count, at::kDouble);
  runtime_.fill(sums, 0);
  for (int64_t i = 0; i < count; ++i) {
    const at::Tensor& tensor = tensors[static_cast<size_t>(i)];
    if (tensor.defined() && tensor.numel() > 0) runtime_.sum_of_squares(sums.narrow(0, i, 1), tensor);
  }
  const at::Tensor on_host = to_host(sums);
  const double* values = on_host.const_data_ptr<double>();
  return {values, values + count};
}

void DeviceExecutor::leave() { follow(made_in_); }

}  // namespace zerosched::detail
